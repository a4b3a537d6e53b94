"""The figure of the suite of conversion jobs: speed and memory against the size of the image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.goals import OURS
from bench.jobs_inputs import FULL, SIZES, pixel_bytes
from bench.measure import MIB

if TYPE_CHECKING:
    from bench.measure import Case, Outcome

WIDTH, HEIGHT = 820, 360
PLOT = (290, 230)  # of one panel
LEFT, TOP, BETWEEN = 70, 50, 110
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by the colour-blind, too
SERIES = (  # row, contestant, name
    ("sizes-zarr", "ours", "ours, TIFF to Zarr"),
    ("sizes-tiff", "ours", "ours, Zarr to TIFF"),
    ("sizes-zarr", "ngff-zarr", "ngff-zarr, TIFF to Zarr"),
    ("sizes-tiff", "libvips", "libvips, TIFF to TIFF"),
)


class Point(NamedTuple):
    """An image of so many GiB: MB of pixels in a second, and MB of memory at the most."""

    size: float
    speed: float
    memory: float


def figure(results: dict[str, Any], case: Case) -> str:
    """Draw what is there of the rows as SVG; "" if nothing is, and in a quick run."""
    if case.size < FULL:  # the images are not as large as they are called
        return ""
    lines = [(name, points(results, case, row, who)) for row, who, name in SERIES]
    if not any(line for _, line in lines):
        return ""
    text = "".join(
        (
            _panel(LEFT, "MB of pixels in a second", [_curve(line, 1) for _, line in lines]),
            _panel(
                LEFT + PLOT[0] + BETWEEN, "peak memory, MB", [_curve(line, 2) for _, line in lines]
            ),
            *(_legend(i, name) for i, (name, line) in enumerate(lines) if line),
        )
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" '
        f'fill="white"/>{text}</svg>\n'
    )


def points(results: dict[str, Any], case: Case, row: str, who: str) -> list[Point]:
    """What was measured of one contestant, by size."""
    outcomes: dict[str, Outcome] = results[row][1] if row in results else {}
    found = []
    for size in SIZES:
        label = f"{who}, {size:g} GiB"
        if who == OURS and size == SIZES[-1]:
            label = OURS
        one = outcomes.get(label)
        if one is not None and one.ok and one.peak:
            speed = pixel_bytes(size, case) / one.median / 1e6
            found.append(Point(size, speed, one.peak / MIB))
    return found


def _curve(line: list[Point], column: int) -> list[tuple[float, float]]:
    return [(point.size, point[column]) for point in line]


def _panel(left: float, title: str, curves: list[list[tuple[float, float]]]) -> str:
    """Axes with powers of ten across and up, and the curves in them."""
    values = [value for curve in curves for _, value in curve]
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))

    def across(size: float) -> float:
        return left + PLOT[0] * math.log(size / SIZES[0]) / math.log(SIZES[-1] / SIZES[0])

    def up(value: float) -> float:
        return TOP + PLOT[1] * (1 - math.log(value / low) / math.log(max(high / low, 10)))

    bottom = TOP + PLOT[1]
    parts = [_text(left, TOP - 14, title, "start")]
    for decade in range(round(math.log10(low)), round(math.log10(max(high, 10 * low))) + 1):
        y = up(10**decade)
        parts.append(_line([(left, y), (left + PLOT[0], y)], "#ccc", 1))
        parts.append(_text(left - 6, y + 4, f"{10**decade:g}", "end"))
    for size in SIZES:
        parts.append(_line([(across(size), bottom), (across(size), bottom + 5)], "#444", 1))
        parts.append(_text(across(size), bottom + 19, f"{size:g}", "middle"))
    parts.append(_text(left + PLOT[0] / 2, bottom + 38, "GiB of pixels", "middle"))
    for color, curve in zip(COLORS, curves, strict=True):
        places = [(across(size), up(value)) for size, value in curve]
        parts.append(_line(places, color, 2))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in places]
    return "".join(parts)


def _legend(index: int, name: str) -> str:
    x, y = LEFT + index * 190, HEIGHT - 14
    return _line([(x, y - 4), (x + 20, y - 4)], COLORS[index], 3) + _text(x + 26, y, name, "start")


def _line(places: list[tuple[float, float]], color: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
