"""Where names and numbers stand on a plot, so that they do not cover each other."""

from __future__ import annotations

import math
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


# Where a name may stand beside its point: shift in points, and the alignments that go with it, best first.
_NEAR = (
    (7, 7, "left", "bottom"),
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (-8, 8, "right", "bottom"),
    (8, -8, "left", "top"),
    (-8, -8, "right", "top"),
)
_FAR = tuple(
    (dx, dy, "left" if dx > 0 else "right", "bottom" if dy > 0 else "top")
    for away in (24, 44, 66)
    for dx, dy in ((away, away), (-away, -away), (away, -away), (-away, away), (away, away / 3), (-away, -away / 3))
)
_BEGIN = {"left": 0.0, "center": -0.5, "right": -1.0, "bottom": 0.0, "top": -1.0}
_CLEAR = 14.0  # points that a name is at least away from other points, so that it is not read as theirs
_ROUNDS = 3  # in which a name gives way to those that were placed after it

_Box = tuple[float, float, float, float]


def label_spots(axes: Any, spots: Sequence[Spot]) -> None:
    """Names beside the points, each on the side away from other points and names; with a line to its point where it is far."""
    size = _size(axes)
    shares = axes.transLimits.transform(axes.transScale.transform([(spot.x, spot.y) for spot in spots]))
    points = [(float(x) * size[0], float(y) * size[1]) for x, y in shares]
    boxes = [
        [_box(point, side, len(cut(spot.name)) * (TEXT - 1) * 0.62) for side in (*_NEAR, *_FAR)]
        for spot, point in zip(spots, points, strict=True)
    ]
    chosen: dict[int, int] = {}
    for _ in range(_ROUNDS):
        for i in range(len(spots)):
            names = [boxes[j][at] for j, at in chosen.items() if j != i]
            others = [point for j, point in enumerate(points) if j != i]
            costs = [_cost(box, names, others, size) + 0.01 * at + 0.3 * (at >= len(_NEAR)) for at, box in enumerate(boxes[i])]
            chosen[i] = costs.index(min(costs))
    for i, spot in enumerate(spots):
        if len(spots) > 12 and any(_meet(boxes[i][chosen[i]], boxes[j][at]) for j, at in chosen.items() if j != i):
            del chosen[i]  # the table has it
            continue
        dx, dy, across, along = (*_NEAR, *_FAR)[chosen[i]]
        style: dict[str, Any] = {"ha": across, "va": along, "color": light("ink"), "fontsize": TEXT - 1}
        if chosen[i] >= len(_NEAR):
            style["arrowprops"] = {"arrowstyle": "-", "color": light("muted"), "linewidth": 1, "shrinkA": 0, "shrinkB": 5}
        axes.annotate(cut(spot.name), (spot.x, spot.y), (dx, dy), textcoords="offset points", **style)


def _box(point: tuple[float, float], side: tuple[float, float, str, str], wide: float) -> _Box:
    dx, dy, across, along = side
    left, low = point[0] + dx + _BEGIN[across] * wide, point[1] + dy + (-0.5 if along == "center" else _BEGIN[along]) * TEXT
    return left, low, left + wide, low + TEXT


def _cost(box: _Box, names: Sequence[_Box], points: Sequence[tuple[float, float]], size: tuple[float, float]) -> float:
    """How bad a place is: beyond the edges, over other names, over other points or so near them that it is read as theirs."""
    near = [_distance(box, point) for point in points]
    return 3 * (not _inside(box, size)) + sum(_meet(box, name) for name in names) + sum(_nearness(each) for each in near)


def _nearness(distance: float) -> float:
    """2 over a point, 1 beside it, less up to _CLEAR points from it."""
    return 2.0 if distance < 6 else max(0.0, (_CLEAR - distance) / (_CLEAR - 6))


def _distance(box: _Box, point: tuple[float, float]) -> float:
    """From a point to the nearest of a box."""
    across = max(box[0] - point[0], 0.0, point[0] - box[2])
    along = max(box[1] - point[1], 0.0, point[1] - box[3])
    return math.hypot(across, along)


def _inside(box: _Box, size: tuple[float, float]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def cut(name: str, limit: int = _LONGEST_LABEL) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
