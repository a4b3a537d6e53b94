"""Numbers as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Return a number of bytes as text.

    >>> size(999), size(20_480), size(2_100_000_000)
    ('999 B', '20.5 kB', '2.1 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a time as text.

    >>> duration(0.42), duration(75), duration(7260)
    ('0.4 s', '1:15', '2:01:00')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plural(count: int, one: str, many: str = "") -> str:
    """Return a number and its noun.

    >>> plural(1, "plane"), plural(3, "plane")
    ('1 plane', '3 planes')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"
