"""BareZarrSink: one Zarr array without the metadata of NGFF."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bioio_tk.backends import _described
from bioio_tk.backends.zarr_write import STORED_AXES, ZarrSink
from bioio_tk.errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from bioio_tk.backends.base import StoreOptions
    from bioio_tk.core.spec import ImageSpec


class BareZarrSink(ZarrSink):
    """A new Zarr array TCZYX, which lies at the root of its store.

    Its attributes say what is known of the image under flat names (``dx``, ``dz``, ``fs`` …), and
    in Zarr v2, where an array cannot name its axes, ``_ARRAY_DIMENSIONS`` does.
    """

    caps = ZarrSink.caps.__class__(parallel_store=True, tile_multiple=1, pyramids=False)
    resume = None  # type: ignore[assignment]  # the document of its array is written last

    @classmethod
    def check(cls, images: tuple[ImageSpec, ...], options: StoreOptions) -> None:
        super().check(images, options)
        if len(images[0].levels) > 1:
            raise UnsupportedError(
                "a Zarr array without NGFF has no smaller resolutions: leave pyramid out, or "
                "leave ome=False out"
            )
        if options.extra.get("label") is not None:
            raise SpecError("labels are a part of NGFF: leave ome=False out")

    def _path_of(self, level: int) -> str:
        return ""

    def _write_metadata(self, windows: Any) -> None:
        said: dict[str, Any] = _described.flat(self.images[0])
        document = json.loads(self._documents[0])
        if self._version == "0.4":
            said["_ARRAY_DIMENSIONS"] = list(STORED_AXES)
            self._store.put(".zattrs", _json(said))
        else:
            document["attributes"] = said
        self._store.put(self._name("array"), _json(document))


def _json(document: Any) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode()
