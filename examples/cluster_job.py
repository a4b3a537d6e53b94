"""Filter a huge image with many jobs: each process writes its own rows of one OME-Zarr.

On one machine, to try it: `python cluster_job.py create in.tif out.ome.zarr`, then
`python cluster_job.py work in.tif out.ome.zarr 0 8` (and 1 8, 2 8, … at once), then
`python cluster_job.py finish in.tif out.ome.zarr`. With Slurm:

    first=$(sbatch --parsable --wrap "python cluster_job.py create in.tif out.ome.zarr")
    jobs=$(sbatch --parsable --array 0-7 --dependency afterok:$first \
        --wrap 'python cluster_job.py work in.tif out.ome.zarr $SLURM_ARRAY_TASK_ID 8')
    sbatch --dependency afterok:$jobs --wrap "python cluster_job.py finish in.tif out.ome.zarr"
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from bioio_tk import BioReader, BioWriter, finish
from bioio_tk.errors import BioIOError

CHUNK, ROWS = 1024, 2048
"""Size of chunks and of shards; a job takes rows of whole shards: no two write the same file."""


def create(source: str, target: str) -> None:
    """Lay the image out: its metadata, and no pixels."""
    with BioReader(source) as br:
        layout = {"chunks": CHUNK, "shards": ROWS, "pyramid": True}
        BioWriter(target, like=br, mode="create", **layout).close()


def work(source: str, target: str, job: int, jobs: int) -> None:
    """Write every `jobs`-th band of rows, beginning with number `job`."""
    with BioReader(source) as br, BioWriter(target, mode="r+") as bw:
        bands = range(job * ROWS, br.Y, jobs * ROWS)
        for y in bands:
            for z, c, t in np.ndindex(br.Z, br.C, br.T):
                band = br[y : y + ROWS, :, z, c, t]
                bw[y : y + ROWS, :, z, c, t] = np.clip(band, 100, None) - 100  # the camera's offset


def main(what: str, source: str, target: str, *numbers: int | str) -> None:
    """Do one of the three steps."""
    if what == "create":
        create(source, target)
    elif what == "work":
        work(source, target, *map(int, numbers))
    else:
        finish(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=["create", "work", "finish"])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("numbers", type=int, nargs="*", help="for work: which job, of how many")
    args = parser.parse_args()
    if len(args.numbers) != (2 if args.what == "work" else 0):
        parser.error("work needs two numbers, which job and of how many; the others need none")
    try:
        main(args.what, args.source, args.target, *args.numbers)
    except (BioIOError, OSError) as exc:
        sys.exit(f"Error: {exc}")
