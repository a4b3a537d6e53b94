"""The command itself: which subcommands there are, and how errors and Ctrl-C end them."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from bioio_tk import __version__
from bioio_tk.errors import BioIOError, BioIOWarning

# name -> what it does, in the order of the help; the code is in the module of that name
_COMMANDS = {
    "info": "Show what is in image files.",
    "formats": "Show which formats can be read and written here.",
    "convert": "Convert an image to OME-TIFF, OME-Zarr and more, whatever its size.",
    "batch": "Convert many images as one job, and go on where one fails.",
    "wipp": "Convert a collection to single planes, as a plugin of WIPP.",
    "verify": "Check that two images have the same pixels.",
    "metadata": "Show or change names, colours and pixel sizes in place.",
    "thumbnail": "Make a small PNG picture of an image.",
    "validate": "Check that image files are what their format asks for.",
    "upgrade": "Bring an OME-Zarr 0.1 to 0.4 to version 0.5.",
    "finish": "Complete an OME-Zarr that several processes have written.",
    "recover": "Keep what an interrupted write has left.",
    "demo": "Try it all on a large generated image.",
    "doctor": "Say what is installed, and what would go wrong.",
    "java": "Install and check what reading with Bio-Formats needs.",
}


_OTHER_NAMES = {"max_workers": "workers", "pyramid": "levels", "storage_options": "storage-option"}
_NAMES = (
    *("cast", "channel", "chunks", "compression", "compression_level", "downsample", "dtype"),
    *("group", "labels", "level", "ngff_version", "overwrite", "predictor", "pyramid_z"),
    *("series", "shards", "size", "tile_size", *_OTHER_NAMES),
)
# a keyword in a message, its value where that is spelled in another way on the command line; what
# stands inside a path (…/series=1/…) is none
_KEYWORD = re.compile(
    rf"(?<![^\s(])(pass )?({'|'.join(_NAMES)})="
    r"(True\b|False\b|\(\d+(?:, \d+)*,?\))?"
)
_CALL = re.compile(r"bioio_tk\.(finish)\((['\"])(.*?)\2\)")


class _Commands(click.Group):
    """Imports a subcommand when it is wanted, so that the help costs nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"bioio_tk.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


class Interrupted(click.ClickException):
    """Ctrl-C, with what was left behind."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        """Print the message."""
        click.echo(f"Interrupted: {self.message}", file=file or sys.stderr)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where in the program an error comes from.")
@click.version_option(__version__, prog_name="bioio-tk")
def command(*, debug: bool) -> None:
    """Read and convert microscopy images of any size.

    Every command has its own help: bioio-tk convert --help
    """
    if not debug:
        import logging
        import warnings

        warnings.simplefilter("ignore", BioIOWarning)  # they stand in the notes, too
        # what is odd in a file stands in the notes; the parser's own log would only repeat it
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    given = sys.argv[1:] if args is None else args
    debug = "--debug" in given
    if debug:  # wherever it stands
        given = ["--debug", *(word for word in given if word != "--debug")]
    terminated = _on_sigterm()
    try:
        code = command.main(given, prog_name="bioio-tk", standalone_mode=False)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.Abort:
        code = 130
        click.echo("Interrupted.", err=True)
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (BioIOError, OSError, MemoryError) as exc:
        if debug:
            raise
        click.echo(f"Error: {error_text(exc)}", err=True)
        for note in getattr(exc, "__notes__", ()):
            click.echo(f"  {note}", err=True)
        code = 1
    sys.exit(143 if terminated and code == 130 else code if isinstance(code, int) else 0)


def error_text(exc: BaseException) -> str:
    """Return an error as one line, with options as they are spelled on the command line."""
    text = str(exc)
    if isinstance(exc, OSError) and exc.strerror and not isinstance(exc, BioIOError):
        text = f"{exc.strerror}: {exc.filename!r}" if exc.filename else exc.strerror
    about_codecs = "compression" in text  # whose own "level" is another than that of an image
    text = _KEYWORD.sub(lambda found: _as_option(found, about_codecs=about_codecs), text)
    text = _CALL.sub(lambda found: f"bioio-tk {found[1]} {shlex.quote(found[3])}", text)
    return " ".join(text.split()) or type(exc).__name__


def file_error(path: str, exc: BaseException) -> str:
    """Return an error about one file of several; its path stands in it once."""
    text = error_text(exc)
    named = any(repr(str(known)) in text for known in (path, Path(path), Path(path).resolve()))
    return text if named else f"{path}: {text}"


def _as_option(found: re.Match[str], *, about_codecs: bool) -> str:
    use, name, value = "use " if found[1] else "", found[2], found[3] or ""
    option = name.replace("_", "-")
    if value in ("True", "False"):
        return f"{use}--{'no-' if value == 'False' else ''}{option}"
    if name == "level" and about_codecs:
        option = "compression-level"
    sizes = "x".join(re.findall(r"\d+", value))
    return f"{use}--{_OTHER_NAMES.get(name, option)} {sizes}"


def _on_sigterm() -> list[int]:
    """End on SIGTERM as on Ctrl-C, so that nothing unfinished stays; return where it is noted."""
    seen: list[int] = []

    def stop(number: int, _: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    with suppress(ValueError):  # not the main thread: someone calls main() from a program
        signal.signal(signal.SIGTERM, stop)
    return seen
