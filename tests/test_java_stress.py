"""Thousands of reads at once through Java, none of them wrong.

``BIOIO_TK_READS`` says how many; the truth is what Bio-Formats gives plane by plane, alone.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import tifffile
from images import picked
from java_images import Fake, by_java, series_count
from test_contract import together

from bioio_tk import BioReader
from bioio_tk.backends import _java_readers

READS = int(os.environ.get("BIOIO_TK_READS", "2000"))
THREADS = 8
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = [
    "czi/CellDivision_T3_Z5_CH2_X240_Y170_comp1.czi",
    "czi/RGB-8bit.czi",
    "czi/mosaic_test.czi",
    "lif/LeicaLASX_wavelength-sweep_example.lif",
    "nd2/example-multichannel.nd2",
    "nd2/example-timelapse.nd2",
    "svs/CMU-1-Small-Region.svs",
    "ndpi/test3-TRITC_2_(560)/test3-TRITC 2 (560).ndpi",
    "dicom/sm_image/sm_image.dcm",
    "ics/testim/testim.ics",
    "bdv/pybdv_example/example.xml",
    "mrc/ROI_Random_Scan_movie.mrc",
    "vendor-tiff/olympus_SIS/olympus_SIS.tif",
]


def made(folder):
    """Make files of several formats; return their paths."""
    fakes = [
        Fake(x=200, y=150, z=3, c=2, t=2, type="uint16", order="XYTZC", series=2, little=False),
        Fake(x=90, y=70, c=6, rgb=3, t=4, interleaved=False),
        Fake(x=400, y=300, z=2, type="float", more="&resolutions=3&resolutionScale=2"),
    ]
    paths = [fake.file(folder) for fake in fakes]
    rng = np.random.default_rng(11)
    image = rng.integers(0, 60000, (4, 500, 700), "u2")
    options = [{"tile": (128, 112)}, {"rowsperstrip": 13}, {"tile": (512, 512)}]
    for number, option in enumerate(options):
        path = folder / f"{number}.tif"
        tifffile.imwrite(
            path, image + number, compression="zlib", photometric="minisblack", **option
        )
        paths.append(path)
    try:
        from pylibCZIrw import czi
    except ImportError:
        return paths
    for codec in ("zstd1:ExplicitLevel=3;PreProcess=HiLoByteUnpack", "uncompressed:"):
        path = folder / f"{codec[:5]}.czi"
        with czi.create_czi(str(path), compression_options=codec) as file:
            for c, y, x in np.ndindex(2, 3, 3):
                part = image[c, y * 100 : y * 100 + 100, x * 130 : x * 130 + 130, None]
                file.write(np.ascontiguousarray(part), (x * 130, y * 100), {"C": c})
            file.write_metadata("mosaic")
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def truth(java, tmp_path_factory):
    """The pixels of each image, by its path and series."""
    folder = tmp_path_factory.mktemp("images")
    paths = [*made(folder), *(DATA / name for name in REAL if (DATA / name).exists())]
    if java.started.version.startswith("6."):  # gets some of them wrong, also alone
        paths = [path for path in paths if path.suffix not in (".czi", ".dcm")]
    return {
        (path, series): by_java(java, path, series)
        for path in paths
        for series in range(series_count(java, path))
    }


@pytest.mark.parametrize("kept", [False, True], ids=["parsed", "from memos"])
def test_thousands_of_reads_at_once(truth, tmp_path, monkeypatch, kept):
    monkeypatch.setattr(_java_readers, "_SLOW", 0 if kept else 1e9)
    monkeypatch.setenv("BIOIO_TK_CACHE", str(tmp_path / "cache"))
    shared = {
        (path, series): BioReader(path, backend="java", series=series, max_workers=2)
        for path, series in truth
    }
    numbers = count()  # next() of it is atomic

    def work(seed):
        rng = np.random.default_rng(seed)
        images = sorted(truth)
        while next(numbers) < READS:
            which = images[rng.integers(len(images))]
            key = region(truth[which].shape, rng)
            if rng.integers(20):
                got = shared[which][key]
            else:  # now and then one of its own
                with BioReader(which[0], backend="java", series=which[1]) as br:
                    got = br[key]
            np.testing.assert_array_equal(got, picked(truth[which], key), str((which, key)))

    try:
        together([lambda n=n: work(n) for n in range(THREADS)])
    finally:
        for br in shared.values():
            br.close()
    assert next(numbers) >= READS


def region(shape, rng):
    """Return a random window, sometimes with steps, of one or all planes."""
    y, x = (int(rng.integers(0, n)) for n in shape[:2])
    h, w = (int(rng.integers(1, 200)) for _ in range(2))
    step = int(rng.integers(1, 4)) if rng.integers(3) == 0 else 1
    rest = [int(rng.integers(0, n)) if rng.integers(4) else slice(None) for n in shape[2:]]
    return (slice(y, y + h, step), slice(x, x + w, step), *rest)
