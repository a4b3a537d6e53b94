"""``bioio-tk wipp``: what WIPP calls to convert a collection."""

from __future__ import annotations

import logging
import os
from typing import Any

import click


@click.command()
@click.option(
    "--inpDir",
    "inp_dir",
    required=True,
    metavar="FOLDER",
    help="Folder with the images, or files with commas between them.",
)
@click.option(
    "--filePattern",
    "file_pattern",
    default=".+",
    metavar="PATTERN",
    help="Which of them: a file pattern (img_r{r:ddd}_c{c:d+}.tif) or a regular expression [.+].",
)
@click.option(
    "--fileExtension",
    "file_extension",
    metavar="EXT",
    help="Ending of the new files: .ome.tif or .ome.zarr [POLUS_IMG_EXT, else .ome.tif].",
)
@click.option("--outDir", "out_dir", required=True, metavar="FOLDER", help="Where the files go.")
@click.option("--preview", is_flag=True, help="Write only preview.json, with the names.")
@click.option(
    "--exists",
    type=click.Choice(["skip", "error", "replace"]),
    default="skip",
    help="A file that is there: skip it if it was made in the same way, fail, or replace [skip].",
)
def command(**options: Any) -> None:
    """Convert each plane of the images in a folder to a file, as a plugin of WIPP.

    The names are those of WIPP's OME converter: cells_c0_t0_z0_s0.ome.tif, without what an image
    has only one of. The environment says more: POLUS_IMG_EXT, NUM_THREADS (for each file),
    NUM_WORKERS (files at a time) and POLUS_LOG (DEBUG, INFO, WARNING …).
    """
    _log(os.environ.get("POLUS_LOG") or "INFO")
    from bioio_tk.cli.main import as_typed
    from bioio_tk.jobs.wipp import wipp

    report = wipp(**options)
    if report.failed:
        raise click.ClickException(
            f"{len(report.failed)} of the images failed: "
            + "; ".join(
                f"{path.name}: {as_typed(why.partition(': ')[2] or why)}"
                for path, why in report.failed.items()
            )
        )


def _log(level: str) -> None:
    """Write what happens to stderr, in the form that WIPP's plugins have."""
    logger = logging.getLogger("bioio_tk.wipp")
    try:
        logger.setLevel(level.upper())
    except ValueError as exc:
        raise click.UsageError(f"POLUS_LOG={level!r} is no level such as INFO") from exc
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(
            logging.Formatter("%(asctime)s - %(name)-8s - %(levelname)-8s - %(message)s")
        )
        logger.addHandler(handler)
        logger.propagate = False
