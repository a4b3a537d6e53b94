"""BioWriter beyond the contract: its states, failures, and the process it lives in."""

from __future__ import annotations

import gc
import os
import threading
from contextlib import suppress

import numpy as np
import pytest
from images import coded

from bioio_tk import BioReader, BioWriter
from bioio_tk.backends.memory import MemorySink
from bioio_tk.errors import (
    ClosedError,
    SpecError,
    TargetExistsError,
    UnknownFormatError,
    UnsupportedError,
)

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.ome.tif"


def names(path):
    return sorted(p.name for p in path.parent.iterdir())


# ------------------------------------------------------------------ states


def test_a_writer_that_was_told_nothing_makes_nothing(path):
    with BioWriter(path):
        pass
    BioWriter(path, dtype="u1").close()
    assert names(path) == []


def test_a_writer_opened_and_forgotten_before_the_first_pixel_leaves_nothing(path):
    BioWriter(path, shape=(5, 5), dtype="u1")
    gc.collect()
    assert names(path) == []


def test_an_empty_selection_writes_nothing_but_zeros(path):
    with BioWriter(path, shape=(5, 5), dtype="u1") as bw:
        bw[3:3] = np.zeros((0, 5), "u1")
        bw[[]] = 1
    with BioReader(path) as br:
        assert not br[...].any()


def test_a_writer_forgotten_unclosed_warns_and_keeps_the_partial_file(path):
    bw = BioWriter(path, shape=(32, 32), dtype="u2", tile_size=16)
    bw[:16] = 7
    with pytest.warns(ResourceWarning, match="was never closed: what was written lies in"):  # noqa: PT031
        del bw
        gc.collect()
    assert names(path) == ["a.ome.tif.partial"]
    partial = path.with_name("a.ome.tif.partial")
    with BioReader(partial) as br:
        assert (br[:16] == 7).all()
        assert not br[16:].any()
    with pytest.raises(TargetExistsError, match="recover"):
        BioWriter(path, shape=(32, 32), dtype="u2")
    with BioWriter(path, shape=(4, 4), dtype="u2", overwrite=True) as bw:
        bw[...] = 1
    assert names(path) == ["a.ome.tif"]


def test_abort_can_be_asked_for_by_hand(path):
    bw = BioWriter(path, shape=(32, 32), dtype="u2")
    bw[0] = 7
    bw.abort()
    bw.abort()
    assert names(path) == []
    with pytest.raises(ClosedError):
        bw[0] = 1
    bw.close()
    assert names(path) == []


def test_repr_tells_the_state(path):
    bw = BioWriter(path, shape=(32, 30), dtype="u2")
    assert repr(bw) == "<BioWriter 'a.ome.tif' Y=32, X=30, Z=1, C=1, T=1 uint16 (new)>"
    bw[0] = 1
    assert "(open)" in repr(bw)
    bw.close()
    assert "(closed)" in repr(bw)


def test_close_waits_for_writes_in_other_threads(tmp_path, monkeypatch):
    inside, release = threading.Event(), threading.Event()
    real = MemorySink.store_tile

    def slow(self, at, encoded):
        inside.set()
        release.wait(20)
        real(self, at, encoded)

    monkeypatch.setattr(MemorySink, "store_tile", slow)
    bw = BioWriter(tmp_path / "a.mem", shape=(16, 16), dtype="u2", tile_size=16)
    thread = threading.Thread(target=bw.__setitem__, args=(..., 7))
    thread.start()
    inside.wait(20)
    threading.Timer(0.05, release.set).start()
    bw.close()
    thread.join()
    with BioReader(tmp_path / "a.mem") as br:
        assert (br[...] == 7).all()


# ------------------------------------------------------------------ failures


@pytest.fixture
def failing(monkeypatch):
    """Make the memory backend fail at the tile in row 1."""
    real = MemorySink.store_tile

    def store(self, at, encoded):
        if at.key[0] == 1:
            raise OSError(28, "No space left on device")
        real(self, at, encoded)

    monkeypatch.setattr(MemorySink, "store_tile", store)


def opened(tmp_path, **more):
    return BioWriter(tmp_path / "a.mem", shape=(64, 64), dtype="u2", tile_size=16, **more)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_failing_tile_raises_in_the_caller_and_leaves_nothing(tmp_path, failing, workers):
    with (
        pytest.raises(OSError, match="No space left"),
        opened(tmp_path, max_workers=workers) as bw,
    ):
        bw[...] = 1
    assert not list(tmp_path.iterdir())


def test_after_a_failure_nothing_can_be_written_and_close_does_not_pretend(tmp_path, failing):
    bw = opened(tmp_path)
    with suppress(OSError):
        bw[...] = 1
    with pytest.raises(ClosedError, match=r"a write to 'a.mem' failed before"):
        bw[0] = 1
    with pytest.raises(ClosedError, match=r"a write to 'a.mem' failed, so the image is not compl"):
        bw.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mem.partial"]
    bw.close()


def test_a_failure_in_close_is_raised_there_and_the_target_is_as_it_was(tmp_path, failing):
    (tmp_path / "a.mem").write_bytes(b"old")
    bw = opened(tmp_path, overwrite=True)
    bw[20, 5] = 1  # waits for the rest of its tile
    with pytest.raises(OSError, match="No space left"):
        bw.close()
    assert (tmp_path / "a.mem").read_bytes() == b"old"
    assert (tmp_path / "a.mem.partial").exists()


def test_a_failure_in_close_at_the_end_of_with_is_raised(tmp_path, failing):
    with pytest.raises(OSError, match="No space left"), opened(tmp_path) as bw:
        bw[20, 5] = 1
    assert not (tmp_path / "a.mem").exists()


def test_a_failure_of_one_thread_stops_the_others_at_their_next_write(tmp_path, failing):
    bw = opened(tmp_path)
    thread = threading.Thread(target=lambda: suppress(OSError).__enter__() or _try(bw))
    thread.start()
    thread.join()
    with pytest.raises(ClosedError, match="failed before"):
        bw[:16] = 1
    bw.abort()
    assert not list(tmp_path.iterdir())


def _try(bw):
    with suppress(OSError):
        bw[16:32] = 1


def test_a_wrong_value_is_no_failure_of_the_file(tmp_path):
    with opened(tmp_path) as bw:
        bw[...] = 1
        for key, value in [(70, 1), (..., np.zeros(5)), (..., np.zeros((3, 3), "u2"))]:
            with pytest.raises((SpecError, IndexError)):
                bw[key] = value
        bw[0] = 2
    with BioReader(tmp_path / "a.mem") as br:
        assert (br[0] == 2).all()
        assert (br[1:] == 1).all()


def test_a_sink_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no room for the head")

    monkeypatch.setattr(MemorySink, "__init__", refuse)
    bw = opened(tmp_path)
    with pytest.raises(OSError, match="no room for the head"):
        bw[0] = 1
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ processes


@FORKS
@pytest.mark.parametrize("how", ["write", "leave the with", "raise", "close", "forget"])
def test_a_forked_child_cannot_disturb_its_parents_file(path, how):
    """Its copy of the writer must neither complete nor remove the file, nor hang."""
    image = coded((80, 80, 1, 1, 1))
    pid = None
    try:
        with BioWriter(path, image=image, tile_size=16) as bw:
            bw[:40] = image[:40]
            pid = os.fork()
            if pid == 0:
                _in_child(bw, how)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            bw[40:] = image[40:]
    finally:
        if pid == 0:
            os._exit(7 if how in ("leave the with", "raise") else 1)
    assert names(path) == ["a.ome.tif"]
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[...], image[..., 0, 0, 0])


def _in_child(bw, how):
    if how == "raise":
        raise RuntimeError("in the child")
    if how == "leave the with":
        return_out_of_with(bw)
    if how == "write":
        try:
            bw[0] = 1
        except ClosedError as exc:
            os._exit(7 if "belongs to the process that opened it" in str(exc) else 1)
    if how == "close":
        bw.close()
        bw.abort()
        os._exit(7)
    if how == "forget":
        bw.__del__()
        os._exit(7)
    os._exit(1)


def return_out_of_with(bw):
    bw.__exit__(None, None, None)
    os._exit(7)


@FORKS
def test_a_fork_while_other_threads_write_disturbs_neither(path):
    image = coded((256, 256, 1, 1, 1))
    with BioWriter(path, image=image, tile_size=16, max_workers=2) as bw:

        def work(first):
            for y in range(first, 256, 32):
                bw[y : y + 16] = image[y : y + 16]

        threads = [threading.Thread(target=work, args=(n,)) for n in (0, 16)]
        for thread in threads:
            thread.start()
        codes = []
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                with suppress(BaseException):
                    bw.__exit__(RuntimeError, None, None)
                    bw.__del__()
                os._exit(0)
            codes.append(os.waitpid(pid, 0)[1])
        for thread in threads:
            thread.join()
        assert codes == [0] * 5
    with BioReader(path) as br:
        np.testing.assert_array_equal(br[...], image[..., 0, 0, 0])


# ------------------------------------------------------------------ choosing a format


def test_an_ending_that_says_no_format_lists_those_that_do(tmp_path):
    with pytest.raises(UnknownFormatError, match=r"end it with one of \.ome\.tif"):
        BioWriter(tmp_path / "a.docx")
    with pytest.raises(SpecError, match="no backend is called 'nonsense'"):
        BioWriter(tmp_path / "a.docx", backend="nonsense")


def test_a_backend_can_be_forced_whatever_the_name(tmp_path):
    path = tmp_path / "a.dat"
    with BioWriter(path, backend="python", shape=(5, 5), dtype="u1") as bw:
        bw[...] = 3
    with BioReader(path) as br:
        assert (br[...] == 3).all()


def test_an_unknown_compression_lists_the_choices(path):
    with pytest.raises((SpecError, UnsupportedError), match=r"deflate.*zstd"):
        BioWriter(path, compression="rar", shape=(5, 5), dtype="u1")
    assert names(path) == []


def test_colours_may_be_given_in_several_ways(path):
    colors = ["#ff8000", (1, 2, 3), (4, 5, 6, 7), None, "#01020380"]
    with BioWriter(path, shape=(5, 5, 1, 5), dtype="u1", channel_colors=colors) as bw:
        bw[0] = 1
    want = [(255, 128, 0, 255), (1, 2, 3, 255), (4, 5, 6, 7), None, (1, 2, 3, 128)]
    with BioReader(path) as br:
        assert br.channel_colors == want


@pytest.mark.parametrize("count", [1, 2])
def test_rgb_channels_are_named_once_for_all_samples(path, count):
    names_given = ["bright field", "other"][:count]
    with BioWriter(path, X=5, Y=5, samples_per_pixel=3, channel_names=names_given) as bw:
        assert bw.shape == (5, 5, 1, 3 * count, 1)
        assert bw.channel_names == [n for n in names_given for _ in range(3)]
        bw[...] = 1


def test_like_takes_the_series_that_is_open(path, tmp_path):
    import tifffile

    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(coded((20, 30), "u2"), metadata={"axes": "YX", "Name": "first"})
        tif.write(coded((10, 15), "f4"), metadata={"axes": "YX", "Name": "second"})
    other = tmp_path / "b.ome.tif"
    with BioReader(path, series=1) as br, BioWriter(other, like=br) as bw:
        bw[...] = br[...]
    with BioReader(other) as br:
        assert (br.n_series, br.name, br.shape) == (1, "second", (10, 15, 1, 1, 1))
        np.testing.assert_array_equal(br[...], coded((10, 15), "f4"))


def test_like_takes_readers_only(path):
    with pytest.raises(SpecError, match="like= takes a BioReader, not a str"):
        BioWriter(path, like="a.tif")
