"""TiffHandle: one open TIFF file and its pages, found by the offset of their directory."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioio_tk.backends._file import RandomFile
from bioio_tk.backends._tiff_ifd import IfdReader, Twin
from bioio_tk.backends._tiff_segments import Page, Recipe
from bioio_tk.errors import BioIOError, DamagedFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffFile

_KEEP = 4096
_YCBCR = 6
_UUID = re.compile(r"<(?:\w+:)?OME\b[^>]*?\bUUID\s*=\s*[\"']([^\"']+)[\"']")


class TiffHandle:
    """An open TIFF file. Pages may be asked for from any thread.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    DamagedFileError
        It is no TIFF, or its first page cannot be understood.
    """

    def __init__(self, path: Path) -> None:
        from tifffile import TiffFile

        self.path = path
        self.file = RandomFile(path)
        self._lock = threading.RLock()
        self._recipes: dict[Any, Recipe] = {}
        self._pages: OrderedDict[int, Page] = OrderedDict()
        self._twin: tuple[Twin, Page] | None = None
        self._chain: NDArray[np.int64] | None = None
        try:
            self.ifds = IfdReader(self.file)
            self.ifds.check(self.ifds.read(self.ifds.first))
            try:
                # OME-XML is read elsewhere: tifffile's way opens any file that a document names
                self.tif: TiffFile = TiffFile(path, is_ome=False)
            except Exception as exc:  # tifffile raises whatever a broken tag leads it to
                raise damaged(path, exc) from exc
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
    def description(self) -> str:
        """ImageDescription of the first page."""
        try:
            return str(self.tif.pages.first.description)
        except Exception as exc:  # see __init__
            raise damaged(self.path, exc) from exc

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
                except Exception as exc:  # see __init__
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
        if self._twin is not None:
            twin, model = self._twin
            found = self.ifds.look(twin, offset)
            if found is not None:
                return finish(
                    Page(
                        self.file,
                        model.recipe,
                        np.array([found[0]], np.int64),
                        np.array([found[1]], np.int64),
                        model.jpegtables,
                    )
                )
        ifd = self.ifds.read(offset)
        self.ifds.check(ifd)
        layout = self.ifds.layout(ifd)
        recipe = self._recipes.get(layout)
        if recipe is None:
            recipe = self.recipe(self._tiff_page(offset), layout)
        offsets, counts = self.ifds.segments(ifd)
        tables = None
        if 347 in ifd.entries:
            tables = next((value for tag, _, _, value in layout if tag == 347), None)
        page = finish(Page(self.file, recipe, offsets, counts, tables))
        alike = self.ifds.twin(ifd)
        self._twin = None if alike is None else (alike, page)
        return page

    def _tiff_page(self, offset: int) -> Any:
        from tifffile import TiffPage

        first = self.tif.pages.first
        if offset == first.offset:
            return first
        try:
            self.tif.filehandle.seek(offset)
            return TiffPage(self.tif, (0,))
        except Exception as exc:  # see __init__
            raise damaged(self.path, exc) from exc

    def close(self) -> None:
        """Release the file."""
        self.tif.close()
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


def damaged(path: Path, exc: Exception) -> BioIOError:
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
