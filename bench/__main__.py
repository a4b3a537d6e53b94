"""Command line of the benchmark: ``python -m bench SUITE [--only ROW] [--out FILE.md] ...``.

``python -m bench soak`` is a run of hours, with options of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import bdv, images, java, jobs, report, soak, stream, tiff, zarr
from bench.goals import OURS, Outcomes
from bench.measure import DATA, Case, Outcome, alternate, quicker

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITES: dict[str, Any] = {
    "bdv": bdv,
    "java": java,
    "jobs": jobs,
    "stream": stream,
    "tiff": tiff,
    "zarr": zarr,
}


def main(argv: list[str] | None = None) -> int:
    """Run a suite, print its tables, and return 0 unless our own pixels were wrong or missing."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["soak"]:
        return soak.main(given[1:])
    options = _parser().parse_args(given)
    suite = SUITES[options.suite]
    rows = _chosen(suite.ROWS, options.only)
    if options.list:
        for row in rows:
            print(f"{row.key:14} {row.title}")
        return 0
    with _folder(options.dir) as folder:
        case = Case(
            folder,
            size=options.size,
            workers=options.workers,
            copy_gb=options.copy_gb,
            data=options.data,
        )
        if options.quick:
            case = quicker(case)
        repeats = min(options.repeats, 3) if options.quick else options.repeats
        heading = report.heading(suite, case, repeats)
        results = {}
        for row in rows:
            _say(f"{row.key}: {report.title_of(row, case)}")
            results[row.key] = (row, _measure(options, row, case, repeats))
            ratio, wanted, met = report.verdict(row, results[row.key][1])
            if wanted:
                _say(f"  {ratio}   (wanted {wanted})   {met}")
            text = _compose(suite, heading, results, case)
            if options.out is not None:  # after every row: a run that is cut short leaves them
                text += _draw(suite, results, case, options.out)
                options.out.write_text(text, encoding="utf-8")
    print(text)
    return _exit_code(results, strict=options.strict)


def _measure(options: argparse.Namespace, row: Any, case: Case, repeats: int) -> Outcomes:
    try:
        images.ensure(case, row.files)
        return alternate(
            options.suite,
            row,
            case,
            max(1, min(repeats, row.repeats)),
            timeout=options.timeout,
            say=_say,
        )
    except Exception as error:  # one row that cannot be prepared does not stop the run
        reason = f"{type(error).__name__}: {error}"
        _say(f"  the row failed: {reason}")
        return {one.label: Outcome(one.label, one.column, failed=reason) for one in row.contestants}


def _compose(suite: Any, heading: str, results: dict[str, tuple[Any, Outcomes]], case: Case) -> str:
    parts = [heading]
    if any(key != "ceilings" for key in results):
        parts.append(report.table(suite, results, case))
    if "ceilings" in results:
        parts += ["## Ceilings", report.ceilings(results["ceilings"][1], case)]
    if any(key != "ceilings" for key in results):
        parts += [
            "## Details",
            (
                "Peak memory is the high-water mark of the contestant's process in its first turn; "
                "before is what it held just ahead of it (interpreter, imports so far, a writer's "
                "input image), read what it asked the system for (memory maps do not count)."
            ),
            report.details(results),
        ]
    return "\n\n".join(parts) + "\n"


def _draw(suite: Any, results: dict[str, Any], case: Case, out: Path) -> str:
    """Write a suite's figure beside its tables, if it has one; the text that shows it."""
    drawn = suite.figure(results, case) if hasattr(suite, "figure") else ""
    if not drawn:
        return ""
    picture = out.with_suffix(".svg")
    picture.write_text(drawn, encoding="utf-8")
    return f"\n## Against the size of the image\n\n![speed and memory]({picture.name})\n"


def _exit_code(results: dict[str, tuple[Any, Outcomes]], *, strict: bool) -> int:
    measured = [(row, outcomes) for row, outcomes in results.values() if OURS in outcomes]
    if any(not outcomes[OURS].ok for _, outcomes in measured):
        return 1
    unmet = any(
        report.verdict(row, outcomes)[2].startswith(report.NO) for row, outcomes in measured
    )
    return 2 if strict and unmet else 0


def _chosen(rows: tuple[Any, ...], only: list[str] | None) -> list[Any]:
    if not only:
        return list(rows)
    chosen = [row for row in rows if any(word in row.key for word in only)]
    if not chosen:
        sys.exit(f"no row is called {only}; there are: {', '.join(row.key for row in rows)}")
    return chosen


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """The folder for the files: the given one is kept, its files used again."""
    if given is None:
        with tempfile.TemporaryDirectory(prefix="bioio-bench-") as name:
            yield Path(name)
        return
    given.mkdir(parents=True, exist_ok=True)
    yield given


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suite", choices=sorted(SUITES), help="what to measure")
    parser.add_argument("--size", type=int, default=8192, help="side of the test image in pixels")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns per contestant")
    parser.add_argument("--workers", type=int, default=4, help="threads every contestant may use")
    parser.add_argument("--copy-gb", type=float, default=16, help="size of the image to copy")
    parser.add_argument(
        "--only", action="append", metavar="ROW", help="rows whose name contains this; repeatable"
    )
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--quick", action="store_true", help="small images: does everything run?")
    parser.add_argument("--dir", type=Path, help="keep the generated files here and use them again")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of real files, which the Java suite needs"
    )
    parser.add_argument("--timeout", type=float, default=1800, help="seconds one turn may take")
    parser.add_argument("--strict", action="store_true", help="exit with 2 if a goal is not met")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
