"""The command itself: which subcommands there are, and how errors and Ctrl-C end them."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from contextlib import suppress
from functools import cache
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
    "bdv": "Complete, check and move the views of a BigDataViewer dataset.",
    "finish": "Complete an OME-Zarr that several processes have written.",
    "watch": "Show how a running acquisition is doing.",
    "recover": "Keep what an interrupted write has left.",
    "demo": "Try it all on a large generated image.",
    "doctor": "Say what is installed, and what would go wrong.",
    "java": "Install and check what reading with Bio-Formats needs.",
}


_OTHER_NAMES = {
    "max_workers": "workers",
    "pyramid": "levels",
    "storage_options": "storage-option",
    "client": "cluster",
}
_ELSEWHERE = ("channel", "checksums", "size")
"""Keywords of what converts nothing."""
_TWICE = re.compile(r"(--[a-z-]+) \(\1\)")
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
            click.echo(f"  {as_typed(note)}", err=True)
        code = 1
    if terminated and code == 130:
        code = 128 + terminated[0]
    sys.exit(code if isinstance(code, int) else 0)


def error_text(exc: BaseException) -> str:
    """Return an error as one line, with options as they are spelled on the command line."""
    text = str(exc)
    if isinstance(exc, OSError) and exc.strerror and not isinstance(exc, BioIOError):
        text = f"{exc.strerror}: {exc.filename!r}" if exc.filename else exc.strerror
    return as_typed(text) or type(exc).__name__


def as_typed(text: str) -> str:
    """Return a message as one line, with options as they are spelled on the command line.

    >>> as_typed("pass exists='replace', or num_frames=3; with resume=True (--resume) it goes on")
    "use --exists 'replace', or --num-frames 3; with --resume it goes on"
    """
    about_codecs = "compression" in text  # whose own "level" is another than that of an image
    text = _keyword().sub(lambda found: _as_option(found, about_codecs=about_codecs), text)
    text = _TWICE.sub(r"\1", text)
    text = _CALL.sub(lambda found: f"bioio-tk {found[1]} {shlex.quote(found[3])}", text)
    return " ".join(text.split())


@cache
def _keyword() -> re.Pattern[str]:
    """Return what finds a keyword, and its value where that is spelled in another way.

    What stands inside a path (…/series=1/…) is none.
    """
    from bioio_tk.cli.batch import BATCH
    from bioio_tk.cli.options import OPTIONS

    names = "|".join(sorted({*OPTIONS, *BATCH, *_ELSEWHERE, *_OTHER_NAMES}))
    return re.compile(
        rf"(?<![^\s(])(pass )?({names})=(True\b|False\b|\(\d+(?:, \d+)*,?\)|(?=[^\s,;:)]))?"
    )


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
    space = "" if found[3] is None else " "
    return f"{use}--{_OTHER_NAMES.get(name, option)}{space}{sizes}"


def _on_sigterm() -> list[int]:
    """End on SIGTERM as on Ctrl-C, so that nothing unfinished stays; return where it is noted.

    So it is when the terminal is closed, or the connection to it breaks, but not under nohup.
    """
    seen: list[int] = []

    def stop(number: int, _: object) -> None:
        if not seen:  # a second one would interrupt the tidying up
            seen.append(number)
            raise KeyboardInterrupt

    with suppress(ValueError):  # not the main thread: someone calls main() from a program
        signal.signal(signal.SIGTERM, stop)
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
            signal.signal(hangup, stop)
    return seen
