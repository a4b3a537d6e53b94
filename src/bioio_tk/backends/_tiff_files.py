"""TiffHandle: one open TIFF file and its pages, found by the offset of their directory."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._file import Seekable, open_random
from bioio_tk.backends._tiff_ifd import Ifd, IfdReader, Twin
from bioio_tk.backends._tiff_plain import PlainPage, is_single, plain_page
from bioio_tk.backends._tiff_segments import Page, Recipe
from bioio_tk.errors import BioIOError, DamagedFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffFile

    from bioio_tk.backends._file import AnyFile
    from bioio_tk.core.location import Location

_KEEP = 4096
_YCBCR = 6
_UUID = re.compile(r"<(?:\w+:)?OME\b[^>]*?\bUUID\s*=\s*[\"']([^\"']+)[\"']")


class TiffHandle:
    """An open TIFF file. Pages may be asked for from any thread.

    Parameters
    ----------
    path : Path or Url
        The file.
    file : RandomFile or UrlFile, optional
        The same, if it is open already; it is closed with this.

    Raises
    ------
    DamagedFileError
        It is no TIFF, or its first page cannot be understood.
    """

    def __init__(self, path: Location, file: AnyFile | None = None) -> None:
        self.file = open_random(path) if file is None else file
        self.path = self.file.path
        self._lock = threading.RLock()
        self._recipes: dict[Any, Recipe] = {}
        self._pages: OrderedDict[int, Page] = OrderedDict()
        self._last: tuple[Ifd, Page] | None = None
        self._twin: Twin | None = None
        self._first: tuple[PlainPage | None] | None = None
        self._chain: NDArray[np.int64] | None = None
        self._tif: TiffFile | None = None
        try:
            self.ifds = IfdReader(self.file)
            self.ifd = self._read(self.ifds.first)
        except BaseException:
            self.file.close()
            raise

    @property
    def chain(self) -> NDArray[np.int64]:
        """Offsets of all pages in the file's chain, read on first use."""
        with self._lock:
            if self._chain is None:
                self._chain = self.ifds.chain()
            return self._chain

    @property
    def tif(self) -> TiffFile:
        """What tifffile makes of the file; opened when the first page needs it."""
        with self._lock:
            if self._tif is None:
                from tifffile import TiffFile

                try:
                    file: Any = self.path if isinstance(self.path, Path) else Seekable(self.file)
                    # OME-XML is read elsewhere: tifffile opens any file that a document names
                    self._tif = TiffFile(file, is_ome=False)
                except Exception as exc:  # tifffile raises whatever a broken tag leads it to
                    raise damaged(self.path, exc) from exc
            return self._tif

    def tags(self) -> dict[str, Any]:
        """Return the tags of the first page and the vendors' metadata, by name."""
        from bioio_tk.backends._tiff_tags import tags_of

        with self._lock:
            try:
                return tags_of(self.tif)
            except Exception as exc:  # tifffile raises whatever a broken tag leads it to
                raise damaged(self.path, exc) from exc

    @property
    def description(self) -> str:
        """ImageDescription of the first page."""
        return self.ifds.text(self.ifd, 270)

    def single(self) -> PlainPage | None:
        """Return the only page of a file that has no more to say, else None."""
        page = self._plain(self.ifd)
        return page if page is not None and is_single(self.ifds, self.ifd, page) else None

    def _plain(self, ifd: Ifd) -> PlainPage | None:
        if ifd is not self.ifd:
            return plain_page(self.ifds, ifd, lambda: self._tiff_page(ifd.offset))
        if self._first is None:  # it is asked for by everyone
            page = plain_page(self.ifds, ifd, lambda: self._tiff_page(ifd.offset))
            self._first = (page,)
        return self._first[0]

    @property
    def uuid(self) -> str | None:
        """UUID in the file's own OME-XML, None where there is none."""
        match = _UUID.search(self.description[:4096])
        return plain_uuid(match[1]) if match else None

    def page(self, number: int) -> Page:
        """Return a page by its place in the file's chain."""
        chain = self.chain
        if number >= len(chain):
            why = f" ({self.ifds.broken})" if self.ifds.broken else ""
            raise DamagedFileError(
                f"{str(self.path)!r} should hold plane {number}, but has only {len(chain)}{why}"
            )
        return self.page_at(int(chain[number]))

    def page_at(self, offset: int) -> Page:
        """Return the page whose directory is at `offset`."""
        with self._lock:
            page = self._pages.get(offset)
            if page is None:
                page = self._pages[offset] = self._load(offset)
                if len(self._pages) > _KEEP:
                    self._pages.popitem(last=False)
            return page

    def subifds(self, offset: int) -> list[int]:
        """Return the offsets of the directories below the page at `offset`."""
        return self.ifds.subifds(self.ifds.read(offset))

    def recipe(self, tiff_page: Any, key: Any = None) -> Recipe:
        """Return the recipe of a tifffile page; the same one for pages laid out alike."""
        key = tiff_page.hash if key is None else key
        with self._lock:
            recipe = self._recipes.get(key)
            if recipe is None:
                try:
                    recipe = self._recipes[key] = Recipe(tiff_page)
                except Exception as exc:  # see tif
                    raise damaged(self.path, exc) from exc
            return recipe

    def from_tifffile(self, tiff_page: Any) -> Page:
        """Return a page that tifffile has read."""
        if tiff_page.offset:  # a page that an index file speaks of has no directory
            self.ifds.check(self.ifds.read(tiff_page.offset))
        keyframe = tiff_page.keyframe
        # tifffile's hash leaves out the tags that YCbCr is converted with
        key = (keyframe.hash, keyframe.offset) if keyframe.photometric == _YCBCR else None
        recipe = self.recipe(keyframe, key)
        with self._lock:  # tifffile reads some tags only now, at the file's one position
            page = Page(
                self.file,
                recipe,
                np.array(tiff_page.dataoffsets, np.int64),
                np.array(tiff_page.databytecounts, np.int64),
                getattr(tiff_page, "jpegtables", None) or keyframe.jpegtables,
                getattr(tiff_page, "jpegheader", None) or keyframe.jpegheader,
            )
        return finish(page)

    def _load(self, offset: int) -> Page:
        found = self._like_the_last(offset)
        if found is not None:
            return found
        ifd = self.ifd if offset == self.ifd.offset else self._read(offset)
        layout = self.ifds.layout(ifd)
        recipe = self._recipes.get(layout)
        if recipe is None:
            recipe = self.recipe(self._plain(ifd) or self._tiff_page(offset), layout)
        offsets, counts = self.ifds.segments(ifd)
        tables = None
        if 347 in ifd.entries:
            tables = next((value for tag, _, _, value in layout if tag == 347), None)
        page = finish(Page(self.file, recipe, offsets, counts, tables))
        self._last, self._twin = (ifd, page), None
        return page

    def _read(self, offset: int) -> Ifd:
        ifd = self.ifds.read(offset)
        self.ifds.check(ifd)
        return ifd

    def _like_the_last(self, offset: int) -> Page | None:
        """Return a page that differs from the one loaded last only in where its pixels are."""
        if self._last is None:
            return None
        ifd, model = self._last
        if self._twin is None:
            self._twin = self.ifds.twin(ifd)
            if self._twin is None:
                self._last = None
                return None
        found = self.ifds.look(self._twin, offset)
        if found is None:
            return None
        offsets, counts = (np.array([n], np.int64) for n in found)
        return finish(Page(self.file, model.recipe, offsets, counts, model.jpegtables))

    def _tiff_page(self, offset: int) -> Any:
        from tifffile import TiffPage

        with self._lock:
            try:
                first = self.tif.pages.first
                if offset == first.offset:
                    return first
                self.tif.filehandle.seek(offset)
                return TiffPage(self.tif, (0,))
            except Exception as exc:  # see tif
                raise damaged(self.path, exc) from exc

    def close(self) -> None:
        """Release the file."""
        if self._tif is not None:
            self._tif.close()
        self.file.close()


def finish(page: Page) -> Page:
    """Check a page's tables, and find out whether its raw strips follow each other."""
    recipe = page.recipe
    recipe.check(page)
    if recipe.raw and not recipe.tiled:
        if recipe.segments == 1:
            page.joined = bool(page.offsets[0] > 0 and page.counts[0] >= recipe.nbytes)
            return page
        offsets, counts = page.offsets[: recipe.segments], page.counts[: recipe.segments]
        gapless = bool((offsets[1:] == offsets[:-1] + counts[:-1]).all()) and offsets[0] > 0
        page.joined = gapless and int(counts.sum()) >= recipe.nbytes
    return page


def damaged(path: Location, exc: Exception) -> BioIOError:
    """Return what to raise instead of an exception from inside tifffile."""
    if isinstance(exc, BioIOError):
        return exc
    text = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
    return DamagedFileError(f"{str(path)!r} is damaged or no TIFF: {text[:160]}")


def plain_uuid(uuid: str | None) -> str | None:
    """Return the UUID without what it may be wrapped in.

    >>> plain_uuid("urn:uuid:6DFC7A8F-0FEA")
    '6dfc7a8f-0fea'
    """
    return None if uuid is None else uuid.strip().lower().removeprefix("urn:uuid:")
