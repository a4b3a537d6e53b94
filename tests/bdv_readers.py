"""Whether all who read a BigDataViewer dataset see the same in it: h5py, BDV's calls of JHDF5,
Bio-Formats, and our own reader, which comes last.
"""

from __future__ import annotations

from itertools import product

import h5py
import numpy as np
from bdv_java import bio_formats, by_bio_formats, loaded, spimdata

from bioio_tk import BioReader


def stored(file, view, level=0):
    """Return the stack of a (time point, setup) as h5py has it, uint16 as it is meant."""
    pixels = file[f"t{view[0]:05d}/s{view[1]:02d}/{level}/cells"][()]
    return pixels.view(np.uint16) if "dataType" not in file[f"s{view[1]:02d}"].attrs else pixels


def check_all_readers(xml, java=None):
    """Demand that all see the same views, sizes, places and pixels; Java's too, where it is."""
    found = spimdata(xml)
    with h5py.File(found.file, "r", locking=False) as file:
        there = {
            (int(t[1:]), int(s[1:]))
            for t in file
            if t[0] == "t"
            for s in file[t]
            if len(file[t][s])
        }
        assert there == found.views
        factors = {setup: file[f"s{setup:02d}/resolutions"][()] for setup in found.sizes}
        views = {
            (view, level): stored(file, view, level)
            for view in sorted(there)
            for level in range(len(factors[view[1]]))
        }
    for (view, level), pixels in views.items():
        full = np.array(found.sizes[view[1]])
        assert pixels.shape[::-1] == tuple(np.ceil(full / factors[view[1]][level]).astype(int))
    if java is not None:
        check_jhdf5(java, found, views)
        if all((f[0] == 1).all() for f in factors.values()):
            check_bio_formats(java, xml, found, views)
    check_ours(xml, found, views)


def check_jhdf5(java, found, views):
    with loaded(java, found.file) as loader:
        for view in product(found.times, found.sizes):
            assert loader.exists(view) == (view in found.views)
        for (view, level), pixels in views.items():
            np.testing.assert_array_equal(loader.pixels(view, level), pixels)


def check_bio_formats(java, xml, found, views):
    """Channels are C, tiles are series; of several illuminations or angles it shows one only."""
    tiles = sorted({at["tile"] for at in found.attributes.values()})
    channels = sorted({at["channel"] for at in found.attributes.values()})
    if len(tiles) * len(channels) < len(found.attributes):
        return
    with bio_formats(java, xml) as reader:
        assert int(reader.getSeriesCount()) == len(tiles)
        assert int(reader.getSizeT()) == len(found.times)
        for (view, level), pixels in views.items():
            if pixels.dtype.kind == "f":
                continue  # it knows none
            at = found.attributes[view[1]]
            place = (tiles.index(at["tile"]), channels.index(at["channel"]))
            t = found.times.index(view[0])
            shown = by_bio_formats(reader, pixels.dtype, *place, t, level)
            np.testing.assert_array_equal(shown, pixels)


def check_ours(xml, found, views):
    with BioReader(xml) as reader:
        ours = {(view.time, view.setup): view for view in reader.views}
        affines = reader.affines
    assert {key for key, view in ours.items() if not view.missing} == found.views
    assert {key for key, view in ours.items() if view.missing} == found.missing
    for key, matrix in found.models.items():
        np.testing.assert_array_equal(affines[key], matrix)
    for (key, level), pixels in views.items():
        view = ours[key]
        assert dict(view.attributes) == found.attributes[key[1]]
        with BioReader(xml, series=view.series, level=level) as reader:
            seen = reader.array[:, :, :, view.c, view.t].compute()
        np.testing.assert_array_equal(seen.transpose(2, 0, 1), pixels)
