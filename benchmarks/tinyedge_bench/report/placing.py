"""Where names and numbers stand on a plot, so that they do not cover each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyedge_bench.report.look import TEXT, light

_LONGEST_LABEL = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A named point; on the front or not."""

    name: str
    x: float
    y: float
    front: bool = False


def name_powers(axis: Any, limits: tuple[float, float], words: Callable[[float], str]) -> None:
    """Marks a logarithmic axis at powers of ten, where these are few at 2 and 5 times them too, in plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    few = limits[1] < 100 * limits[0]
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: words(value))


def spaced(places: list[float]) -> list[float]:
    """Those of the measured places whose numbers do not touch each other on the axis."""
    kept = places[-1:]
    for place in reversed(places[:-1]):
        if kept[-1] - place >= (places[-1] - places[0]) * 0.14:
            kept.append(place)
    return kept


def _size(axes: Any) -> tuple[float, float]:
    """Width and height of the field in points, once the layout is made."""
    axes.figure.draw_without_rendering()
    return axes.bbox.width * 72 / axes.figure.dpi, axes.bbox.height * 72 / axes.figure.dpi


def label_ends(axes: Any, ends: Sequence[tuple[str, float, str]]) -> None:
    """Names right of the axes, at the heights of the lines' ends as far as they do not touch."""
    if len(ends) < 2:
        return
    line = (TEXT + 2) / _size(axes)[1]
    low, high = axes.get_ylim()
    placed = sorted(((value - low) / (high - low), name, colour) for name, value, colour in ends)
    heights = _apart([place for place, _, _ in placed], line)
    for at, (_, name, colour) in zip(heights, placed, strict=True):
        axes.text(1.03, at, cut(name), transform=axes.transAxes, color=colour, va="center", fontsize=TEXT - 1)


def _apart(places: list[float], least: float) -> list[float]:
    """Ascending places moved up, and then down from 1, until they are `least` apart."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + least) if moved else place)
    ceiling = 1.0
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - least
    return moved


# Where a name may stand beside its point: shift in points, and the alignments that go with it.
_SIDES = (
    (7, 7, "left", "bottom"),
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (-8, 8, "right", "bottom"),
    (8, -8, "left", "top"),
    (-8, -8, "right", "top"),
    (9, 15, "left", "bottom"),
    (9, -15, "left", "top"),
    (-9, 15, "right", "bottom"),
    (-9, -15, "right", "top"),
)
_BEGIN = {"left": 0.0, "center": -0.5, "right": -1.0, "bottom": 0.0, "top": -1.0}


def label_spots(axes: Any, spots: Sequence[Spot]) -> None:
    """Names beside the points, each at the side where it covers the fewest points, names and edges."""
    size = _size(axes)
    shares = axes.transLimits.transform(axes.transScale.transform([(spot.x, spot.y) for spot in spots]))
    points = [(float(x) * size[0], float(y) * size[1]) for x, y in shares]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    for i, (spot, (x, y)) in enumerate(zip(spots, points, strict=True)):
        name = cut(spot.name)
        wide, high = len(name) * (TEXT - 1) * 0.6, TEXT
        boxes = []
        for dx, dy, across, along in _SIDES:
            left, low = x + dx + _BEGIN[across] * wide, y + dy + (-0.5 if along == "center" else _BEGIN[along]) * high
            boxes.append((left, low, left + wide, low + high))
        others = [box for j, box in enumerate(taken) if j != i]
        covered = [sum(_meet(box, other) for other in others) + 3 * (not _inside(box, size)) for box in boxes]
        best = covered.index(min(covered))
        if covered[best] and len(spots) > 12:
            continue  # the table has it
        taken.append(boxes[best])
        dx, dy, across, along = _SIDES[best]
        style = {"ha": across, "va": along, "color": light("ink"), "fontsize": TEXT - 1}
        axes.annotate(name, (spot.x, spot.y), (dx, dy), textcoords="offset points", **style)


def _inside(box: tuple[float, float, float, float], size: tuple[float, float]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def cut(name: str, limit: int = _LONGEST_LABEL) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
