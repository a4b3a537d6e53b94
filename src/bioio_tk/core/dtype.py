"""Pixel types: which ones there are, their OME names, and converting pixels on purpose."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bioio_tk.errors import PixelTypeError, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

DType: TypeAlias = "np.dtype[Any]"

OME_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "int8": "int8",
        "int16": "int16",
        "int32": "int32",
        "uint8": "uint8",
        "uint16": "uint16",
        "uint32": "uint32",
        "float32": "float",
        "float64": "double",
        "complex64": "complex",
        "complex128": "double-complex",
        "bool": "bit",
    }
)
"""The OME PixelType of each NumPy type that has one, by NumPy's name of the type."""

CASTS: tuple[str, ...] = ("exact", "clip", "scale", "wrap")
"""The ways `cast` knows."""

_FROM_OME = {ome: name for name, ome in OME_TYPES.items()}


def ome_type(dtype: DType) -> str | None:
    """Return the OME PixelType of a NumPy type.

    OME knows no int64, uint64 and float16: for those the answer is None, and what to do about
    it is for the writer of a format to decide.

    Examples
    --------
    >>> ome_type(np.dtype("float32")), ome_type(np.dtype("int64"))
    ('float', None)
    """
    return OME_TYPES.get(dtype.name)


def from_ome_type(name: str) -> DType | None:
    """Return the NumPy type of an OME PixelType in any case, None if there is no such type.

    Examples
    --------
    >>> from_ome_type("Uint16"), from_ome_type("bit"), from_ome_type("rgb")
    (dtype('uint16'), dtype('bool'), None)
    """
    found = _FROM_OME.get(name.strip().lower())
    return None if found is None else np.dtype(found)


def pixel_dtype(given: Any) -> DType:
    """Return the pixel type that `given` means, in native byte order.

    Parameters
    ----------
    given : anything numpy.dtype() takes
        A type, a name, a string such as ``">u2"``.

    Raises
    ------
    PixelTypeError
        Not a type, or one that cannot be a pixel (objects, strings, records, dates).

    Examples
    --------
    >>> pixel_dtype(">u2"), pixel_dtype(float)
    (dtype('uint16'), dtype('float64'))
    """
    fits = "give bool, an integer, a float or a complex type such as 'uint16'"
    if given is None:  # numpy would take it for float64
        raise PixelTypeError(f"None is no pixel type; {fits}")
    try:
        dtype = np.dtype(given)
    except (TypeError, ValueError, SyntaxError) as exc:
        raise PixelTypeError(f"{given!r} is no pixel type; {fits}") from exc
    if dtype.kind not in "buifc" or dtype.subdtype is not None:
        raise PixelTypeError(f"{dtype} cannot be a pixel type; {fits}")
    native: DType = dtype.newbyteorder("=")
    return native


def check(given: DType, dtype: DType) -> None:
    """Raise PixelTypeError unless both types are equal up to byte order."""
    if given.newbyteorder("=") != dtype.newbyteorder("="):
        name = dtype.newbyteorder("=").name
        raise PixelTypeError(
            f"pixels are {given.newbyteorder('=')}, the image is {name}: convert them with "
            f"array.astype({name!r}) or pass cast='exact', 'clip', 'scale' or 'wrap'"
        )


def as_pixels(value: Any, dtype: DType, cast: str | None = None) -> NDArray[Any]:
    """Return `value` as an array of `dtype`, in native byte order.

    Parameters
    ----------
    value : array_like
        Arrays and NumPy scalars must have the type already, unless `cast` is given. Python's
        numbers, and lists of them, have no size of their own: they are taken if they fit. A
        float going into a float type is rounded to it; everything else must fit exactly.
    dtype : numpy.dtype
        The pixel type.
    cast : {"exact", "clip", "scale", "wrap"}, optional
        Convert what does not fit; see `cast`.

    Raises
    ------
    PixelTypeError
        The pixels are of another type, or a number does not fit.
    SpecError
        A ragged list, or no such `cast`.

    Examples
    --------
    >>> as_pixels([1, 2.0, True], np.dtype("uint8"))
    array([1, 2, 1], dtype=uint8)
    """
    dtype = dtype.newbyteorder("=")
    numbers = None if _is_array(value) else _python_numbers(value)
    if numbers is not None and cast is None:
        return _fitting(numbers, dtype)
    array = np.asarray(value)
    if cast is None:
        check(pixel_dtype(array.dtype), dtype)
        return array.astype(dtype, copy=False)
    return _cast(array, dtype, cast)


def cast(array: NDArray[Any], dtype: DType, how: str) -> NDArray[Any]:
    """Return `array` converted to `dtype`; no copy where it has that type already.

    Parameters
    ----------
    array : ndarray
        Pixels of any type.
    dtype : numpy.dtype
        The type wanted.
    how : {"exact", "clip", "scale", "wrap"}
        * ``"exact"``: every value must be representable, else PixelTypeError.
        * ``"clip"``: floats are rounded half to even for an integer type, then what is beyond
          the range of the type becomes its nearest end; NaN becomes 0.
        * ``"scale"``: the whole range of the one type is mapped onto the whole range of the
          other; that of a float type is 0 to 1 (what is beyond is clipped, NaN becomes 0).
          Float to float leaves the values as they are.
        * ``"wrap"``: as ``array.astype(dtype, casting="unsafe")``.

    Raises
    ------
    SpecError
        There is no such `how`.
    PixelTypeError
        A value does not fit (``"exact"``), or complex pixels would have to lose a part
        (``"clip"`` and ``"scale"``).

    Examples
    --------
    >>> cast(np.array([-1.0, 0.5, 1.5, 300.0]), np.dtype("uint8"), "clip")
    array([  0,   0,   2, 255], dtype=uint8)
    >>> cast(np.array([0, 255], "uint8"), np.dtype("uint16"), "scale")
    array([    0, 65535], dtype=uint16)
    """
    return _cast(array, dtype, how)


def _cast(array: NDArray[Any], dtype: DType, how: str) -> NDArray[Any]:
    if how not in CASTS:
        raise SpecError(f"cast={how!r}: there is no such way; give one of {', '.join(CASTS)}")
    source, dtype = pixel_dtype(array.dtype), pixel_dtype(dtype)
    array = array.astype(source, copy=False)
    if source == dtype:
        return array
    # What does not fit is either looked for below, or asked for by the caller.
    with np.errstate(all="ignore"):
        if how == "exact":
            return _exact(array, dtype)
        if how == "wrap":
            return _plain(array, dtype)
        if source.kind == "c" and dtype.kind != "c":
            raise PixelTypeError(
                f"pixels are {source} and cannot become {dtype} with cast={how!r}: "
                "give array.real, array.imag or abs(array)"
            )
        return _clip(array, dtype) if how == "clip" else _scale(array, dtype)


def _plain(array: NDArray[Any], dtype: DType) -> NDArray[Any]:
    if array.dtype.kind == "c" and dtype.kind not in "cb":
        array = array.real  # the same pixels, without NumPy's warning
    return array.astype(dtype, casting="unsafe")


def _exact(array: NDArray[Any], dtype: DType) -> NDArray[Any]:
    result = _plain(array, dtype)
    bad = ~_same(array, result)
    if bad.any():
        first = np.unravel_index(int(np.argmax(bad)), bad.shape)
        where = tuple(int(i) for i in first)
        error = PixelTypeError(
            f"the value {array[where].item()!r} at {where} does not fit {dtype} exactly: "
            "pass cast='clip', 'scale' or 'wrap', or choose a wider type"
        )
        error.place = where
        raise error
    return result


def _same(  # noqa: PLR0911 - one for each pair of kinds
    array: NDArray[Any], result: NDArray[Any]
) -> NDArray[np.bool_]:
    """Where `result`, made by a plain cast, holds the very values of `array`."""
    source, target = array.dtype, result.dtype
    if target.kind == "c":
        real, imag = _same(array.real, result.real), _same(array.imag, result.imag)
        return np.asarray(real & imag, dtype=np.bool_)
    if source.kind == "c":
        return np.asarray((array.imag == 0) & _same(array.real, result), dtype=np.bool_)
    if source.kind == "b":
        return np.ones(array.shape, np.bool_)
    if target.kind == "b":
        return np.asarray((array == 0) | (array == 1))
    if source.kind == "f" and target.kind == "f":
        wide = result.astype(np.promote_types(source, target))
        return np.asarray((wide == array) | (np.isnan(wide) & np.isnan(array)))
    if source.kind == "f":
        low, high = _float_limits(target)
        # float16 would take the limits of the wider integers for infinite.
        wide = array.astype(np.promote_types(source, np.float32))
        return np.asarray((wide >= low) & (wide < high) & (np.trunc(wide) == wide))
    low_i, high_i = _int_limits(source)
    if target.kind == "f":
        # Only what lies inside the source type again can be compared there.
        low, high = _float_limits(source)
        wide = result.astype(np.float64)
        inside = (wide >= low) & (wide < high)
        back = np.where(inside, wide, 0).astype(source)
        return np.asarray(inside & (back == array))
    low_t, high_t = _int_limits(target)
    low_i, high_i = max(low_i, low_t), min(high_i, high_t)
    return np.asarray((array >= low_i) & (array <= high_i))


def _clip(array: NDArray[Any], dtype: DType) -> NDArray[Any]:
    source = array.dtype
    if source.kind == "b" or (dtype.kind == "c" and source.kind != "c"):
        return array.astype(dtype)
    if dtype.kind == "c":
        result = np.empty(array.shape, dtype)
        part = result.real.dtype
        result.real, result.imag = _clip(array.real, part), _clip(array.imag, part)
        return result
    if dtype.kind == "f":
        result = array.astype(dtype)
        limit = np.finfo(dtype).max
        over = np.isinf(result) & ~(np.isinf(array) if source.kind == "f" else np.False_)
        if over.any():
            result[over] = np.where(array[over] > 0, limit, -limit)
        return result
    if source.kind == "f":
        return _rounded(array, dtype)
    low, high = _int_limits(source)
    low_t, high_t = (0, 1) if dtype.kind == "b" else _int_limits(dtype)
    clipped: NDArray[Any] = np.clip(array, max(low, low_t), min(high, high_t))
    return clipped.astype(dtype)


def _rounded(array: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """Floats to integers: round half to even, clip, NaN to 0."""
    low_i, high_i = (0, 1) if dtype.kind == "b" else _int_limits(dtype)
    # float16 cannot hold the limits of the wider integers.
    array = np.rint(array.astype(np.promote_types(array.dtype, np.float32), copy=False))
    low, high = (0.0, 2.0) if dtype.kind == "b" else _float_limits(dtype)
    inside = (array >= low) & (array < high)
    result = np.where(inside, array, 0).astype(dtype)
    result[array >= high] = high_i
    result[array < low] = low_i
    return result


def _scale(array: NDArray[Any], dtype: DType) -> NDArray[Any]:
    source = array.dtype
    if source.kind in "fc" and dtype.kind in "fc":
        return array.astype(dtype)
    if source.kind == "f":
        unsigned = np.dtype(f"u{dtype.itemsize}")
        share = np.clip(array.astype(np.float64), 0, 1)
        offset = _rounded(share * float(2 ** _bits(dtype) - 1), unsigned)
        return _from_offset(offset, dtype, np.isnan(array))
    offset = _to_offset(array)
    if dtype.kind in "fc":
        return (offset / float(2 ** _bits(source) - 1)).astype(dtype)
    n, m = _bits(source), _bits(dtype)
    # 2**n - 1 divides 2**m - 1 where n divides m: no rounding on the way up, and no ties on
    # the way down because the quotient is odd.
    if n <= m:
        wide = offset.astype(np.uint64) * np.uint64((2**m - 1) // (2**n - 1))
    else:
        q = np.uint64((2**n - 1) // (2**m - 1))
        wide = offset // q + (offset % q > q // np.uint64(2))
    return _from_offset(wide, dtype, None)


def _bits(dtype: DType) -> int:
    return 1 if dtype.kind == "b" else dtype.itemsize * 8


def _to_offset(array: NDArray[Any]) -> NDArray[np.uint64]:
    """How far each integer is above the least value of its type."""
    if array.dtype.kind != "i":
        return array.astype(np.uint64)
    bits = _bits(array.dtype)
    return (array.astype(np.int64).view(np.uint64) + np.uint64(2 ** (bits - 1))) & np.uint64(
        2**bits - 1
    )


def _from_offset(
    offset: NDArray[Any], dtype: DType, zero: NDArray[np.bool_] | None
) -> NDArray[Any]:
    """Undo `_to_offset`; where `zero` is True the pixel is 0."""
    if dtype.kind == "i":
        bits = _bits(dtype)
        unsigned = offset.astype(f"u{dtype.itemsize}") ^ np.array(2 ** (bits - 1), f"u{bits // 8}")
        result: NDArray[Any] = unsigned.view(dtype)
    else:
        result = offset.astype(dtype)
    if zero is not None:
        result[zero] = 0
    return result


def _int_limits(dtype: DType) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _float_limits(dtype: DType) -> tuple[float, float]:
    """Least value of an integer type and the first one beyond it: both are exact as floats."""
    low, high = _int_limits(dtype)
    return float(low), float(high + 1)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__")


def _python_numbers(value: Any) -> NDArray[Any] | None:
    """Python's own numbers as an array of objects; None where NumPy's are among them."""
    if isinstance(value, bool | int | float | complex):
        flat: list[Any] = [value]
        shape: tuple[int, ...] = ()
    else:
        flat = []
        shape = _flatten(value, flat)
    if not all(isinstance(v, bool | int | float | complex) for v in flat) or any(
        isinstance(v, np.generic) for v in flat
    ):
        return None
    numbers = np.empty(len(flat), object)
    numbers[:] = flat
    return numbers.reshape(shape)


def _flatten(value: Any, into: list[Any]) -> tuple[int, ...]:
    if not isinstance(value, list | tuple | range):
        into.append(value)
        return np.shape(value) if _is_array(value) else ()
    shapes = {_flatten(item, into) for item in value}
    if len(shapes) > 1:
        raise SpecError("a ragged list is no block of pixels: give every row the same length")
    return (len(value), *(shapes.pop() if shapes else ()))


def _fitting(numbers: NDArray[Any], dtype: DType) -> NDArray[Any]:
    for where, number in np.ndenumerate(numbers):
        if not _fits(number, dtype):
            at = f" at {where}" if where else ""
            raise PixelTypeError(
                f"the value {number!r}{at} does not fit {dtype}: give numbers that do, or pass "
                "cast='clip', 'scale' or 'wrap'"
            )
    if dtype.kind != "c":  # 2+0j fits, but only its real part converts
        numbers = np.frompyfunc(_real, 1, 1)(numbers) if numbers.size else numbers
    return np.asarray(numbers).astype(dtype)


def _real(number: Any) -> Any:
    return number.real if isinstance(number, complex) else number


def _fits(number: Any, dtype: DType) -> bool:  # noqa: PLR0911 - one for each kind of type
    if isinstance(number, complex):
        if dtype.kind == "c":
            part = np.dtype(f"f{dtype.itemsize // 2}")
            return _fits(number.real, part) and _fits(number.imag, part)
        return number.imag == 0 and _fits(number.real, dtype)
    if dtype.kind == "c":
        return _fits(number, np.dtype(f"f{dtype.itemsize // 2}"))
    if dtype.kind == "b":
        return bool(number in (0, 1))
    if dtype.kind == "f":
        if isinstance(number, float):
            # Infinity and NaN are values of the type; too large a number is not.
            with np.errstate(over="ignore"):
                return number - number != 0 or bool(np.isfinite(dtype.type(number)))
        return _int_fits_float(int(number), dtype)
    if isinstance(number, float) and not number.is_integer():
        return False
    low, high = _int_limits(dtype)
    return bool(low <= number <= high)


def _int_fits_float(number: int, dtype: DType) -> bool:
    try:
        with np.errstate(over="ignore"):
            value = float(dtype.type(number))
        return value - value == 0 and int(value) == number
    except OverflowError:
        return False
