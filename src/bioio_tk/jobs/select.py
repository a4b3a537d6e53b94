"""What is converted of an image: the selection, and the metadata as they are for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bioio_tk.base import BioBase
from bioio_tk.core.pick import one_based, ordered, parse, positions
from bioio_tk.core.region import AXES
from bioio_tk.errors import SpecError
from bioio_tk.meta import ome, ome_select

if TYPE_CHECKING:
    from bioio_tk.core.region import Shape5
    from bioio_tk.core.spec import ImageSpec
    from bioio_tk.jobs.options import Options
    from bioio_tk.lazy import LazyArray

_COUNTED = {"Z": "planes", "T": "timepoints", "C": "channels"}
_FIRST = {"Z": "num_zplanes", "T": "num_timepoints"}


def chosen(image: LazyArray, options: Options) -> LazyArray:
    """Return what the options select of an image.

    Raises
    ------
    RegionError
        Something is outside the image, or nothing is selected; the text names the axis.
    SpecError
        An axis is selected in two ways.
    """
    sizes = dict(zip(AXES, (len(pick) for pick in image.picks), strict=True))
    wanted = parse(options.select)
    for axis, item in options.axes.items():
        if axis in wanted:
            raise SpecError(f"select= and {axis.lower()}= both say what to take of {axis}")
        wanted[axis] = item
    found = {axis: positions(axis, item, sizes[axis]) for axis, item in wanted.items()}
    for axis in _COUNTED:
        numbers = _counted(axis, sizes[axis], options)
        if numbers is None:
            continue
        if axis in found:
            raise SpecError(
                f"{axis.lower()} (from 0) and {_names(axis)} (from 1) both say what to take of "
                f"{axis}: give one of them"
            )
        found[axis] = numbers
    for axis, item in found.items():
        image = _restrict(image, axis, item)
    return image


def _names(axis: str) -> str:
    return " or ".join(name for name in (_COUNTED.get(axis), _FIRST.get(axis)) if name)


def _counted(axis: str, size: int, options: Options) -> list[int] | None:
    """Return the positions that are given counted from 1, None where none are."""
    name, first = _COUNTED[axis], _FIRST.get(axis, "")
    value = getattr(options, name)
    count = getattr(options, first) if first else None
    if value is not None and count is not None:
        raise SpecError(f"{name}= and {first}= both say what to take of {axis}: give one of them")
    numbers = None
    if value is not None:
        numbers = one_based(name, value, axis, size)
    elif count is not None:
        numbers = _some(first, count, axis, size)
    if axis == "Z" and options.order is not None:
        numbers = ordered(options.order, list(range(size)) if numbers is None else numbers)
    return numbers


def _some(name: str, count: Any, axis: str, size: int) -> list[int]:
    whole = hasattr(count, "__index__") and not isinstance(count, bool)
    if not whole or not 1 <= count <= size:
        raise SpecError(f"{name}={count!r}: the image has {axis}={size}; give 1 to {size}")
    return list(range(int(count)))


def _restrict(image: LazyArray, axis: str, item: Any) -> LazyArray:
    where = image.dims.find(axis)
    if where < 0:  # an axis that was dropped has one position
        if (item[0] if isinstance(item, list) else range(1)[item][0]) != 0:
            raise SpecError(f"{axis}: the array has no axis {axis} any more")
        return image
    if isinstance(item, list) and item == list(range(item[0], item[0] + len(item))):
        item = slice(item[0], item[0] + len(item))
    return image[(slice(None),) * where + (item,)]


class Seen(BioBase):
    """What is known of a selection of an image, for `BioWriter` to take over.

    Parameters
    ----------
    image : LazyArray
        The selection.
    """

    n_series = 1
    series = 0

    def __init__(self, image: LazyArray) -> None:
        self._path = image.reader.path
        self._seen = image.spec
        self.ome_xml = document(image)

    def _spec(self) -> ImageSpec:
        return self._seen

    def _get_shape(self) -> Shape5:
        return self._seen.shape


def document(image: LazyArray) -> str:
    """Return the OME-XML of a selection, a small one where the image has none."""
    reader = image.reader
    xml = reader.ome_xml
    if xml is None:
        return ome.document((image.spec,))
    if reader.n_series > 1:
        xml = ome.single(xml, reader.series)
    full = reader.level_shapes[0][:2]
    return ome_select.picked(xml, image.picks, reader._spec(), full)  # noqa: SLF001
