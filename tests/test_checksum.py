"""Checksums of planes: as zlib gives them, in whatever pieces the pixels come."""

from __future__ import annotations

import json
import threading
import zlib
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioio_tk.core.checksum import PlaneSums, check_sums
from bioio_tk.errors import SpecError

TYPES = ["u1", "<u2", ">u2", "i4", ">f4", "f8", "?", "c8", ">c16", "f2", "u8"]


def image(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    raw = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(shape)


def expected(pixels):
    """What anyone gets with zlib, plane by plane."""
    _, _, z, c, t = pixels.shape
    little = pixels.dtype.newbyteorder("<")
    found = {}
    for kt, kc, kz in product(range(t), range(c), range(z)):
        data = np.ascontiguousarray(pixels[:, :, kz, kc, kt], little).tobytes()
        found[f"t{kt} c{kc} z{kz}"] = f"crc32:{zlib.crc32(data):08x}"
    return found


def boxes(shape, cuts):
    spans = []
    for n, cut in zip(shape, cuts, strict=True):
        edges = sorted({0, n, *(k % n for k in cut)})
        spans.append([slice(a, b) for a, b in pairwise(edges)])
    return list(product(*spans))


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 2, *[st.integers(1, 3)] * 3),
    cuts=st.lists(st.lists(st.integers(0, 100), max_size=4), min_size=5, max_size=5),
    dtype=st.sampled_from(TYPES),
    order=st.randoms(use_true_random=False),
)
def test_pieces_in_any_order_give_the_sum_of_the_plane(shape, cuts, dtype, order):
    pixels = image(shape, dtype)
    sums = PlaneSums(shape, dtype)
    pieces = boxes(shape, cuts)
    order.shuffle(pieces)
    for box in pieces:
        sums.add(box, pixels[box])
    assert sums.result() == expected(pixels)


def test_the_memory_layout_does_not_matter():
    pixels = image((50, 60, 2, 3, 2), "u2")
    turned = np.ascontiguousarray(pixels.transpose(4, 3, 2, 0, 1)).transpose(3, 4, 2, 1, 0)
    for given_ in (pixels, turned, np.asfortranarray(pixels), pixels[::-1][::-1]):
        sums = PlaneSums(pixels.shape, pixels.dtype)
        for box in boxes(pixels.shape, [[17], [20, 40], [1], [], []]):
            sums.add(box, given_[box])
        assert sums.result() == expected(pixels)


def test_a_plane_that_is_not_complete_is_left_out():
    pixels = image((10, 12, 2, 1, 1), "u1")
    sums = PlaneSums(pixels.shape, pixels.dtype)
    first = (slice(0, 10), slice(0, 12), slice(1, 2), slice(0, 1), slice(0, 1))
    half = (slice(0, 10), slice(0, 11), slice(0, 1), slice(0, 1), slice(0, 1))
    for box in (first, half):
        sums.add(box, pixels[box])
    assert sums.result() == {"t0 c0 z1": expected(pixels)["t0 c0 z1"]}


def test_parts_travel_as_json():
    pixels = image((33, 21, 1, 2, 1), "i2")
    whole = PlaneSums(pixels.shape, pixels.dtype)
    for box in boxes(pixels.shape, [[10], [5], [], [1], []]):
        one = PlaneSums(pixels.shape, pixels.dtype)
        one.add(box, pixels[box])
        whole.merge(json.loads(json.dumps(one.parts())))
    assert whole.result() == expected(pixels)


def test_threads_lose_nothing():
    pixels = image((256, 256, 1, 1, 2), "u2")
    sums = PlaneSums(pixels.shape, pixels.dtype)
    pieces = boxes(pixels.shape, [range(0, 256, 16), range(0, 256, 16), [], [], [1]])
    start = threading.Barrier(8)

    def work(mine):
        start.wait(30)
        for box in mine:
            sums.add(box, pixels[box])

    threads = [threading.Thread(target=work, args=(pieces[k::8],)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sums.result() == expected(pixels)


def test_a_plane_of_more_than_4_gb_of_zeros():
    # only the last pixel is given: the rest is 0, so it does not matter for the sum
    shape = (70_000, 70_000, 1, 1, 1)
    sums = PlaneSums(shape, "u1")
    last = (slice(69_999, 70_000), slice(69_999, 70_000), *[slice(0, 1)] * 3)
    sums.add(last, np.full((1, 1, 1, 1, 1), 7, "u1"))
    sums.merge({"t0 c0 z0": (0, 70_000 * 70_000 - 1)})
    # by squaring the state of "so many zeros" with zlib alone
    crc, block = 0, bytes(1 << 26)
    left = 70_000 * 70_000 - 1
    from isal import isal_zlib

    while left:
        crc = isal_zlib.crc32(block[: min(left, len(block))], crc)
        left -= min(left, len(block))
    assert sums.result() == {"t0 c0 z0": f"crc32:{zlib.crc32(bytes([7]), crc):08x}"}


def test_recorded_sums_are_looked_at():
    pixels = image((4, 4, 2, 1, 1), "u1")
    good = expected(pixels)
    assert list(check_sums(dict(reversed(good.items())), pixels.shape)) == ["t0 c0 z0", "t0 c0 z1"]
    for bad in (None, [], {"t0 c0 z0": good["t0 c0 z0"]}, dict.fromkeys(good, "md5:1")):
        with pytest.raises(SpecError, match="checksums are not the crc32"):
            check_sums(bad, pixels.shape)
