"""What is drawn: each plot is a value with its data, and draws itself on matplotlib's axes.

Marks differ in shape as well as in colour. matplotlib is not imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tinyedge_bench.report.look import MOST_SERIES, TEXT, light, series_colour
from tinyedge_bench.report.placing import Spot, cut, label_ends, label_spots, name_powers, spaced

HEIGHT = 300
MOST_STRIPS = 24
_ROW = 38  # points of height that a row of a strip plot takes
_MARKS = "os^DvPXh"


class Plot(Protocol):
    """A plot of the report. `name` is that of its PNG file and its element, `description` what it shows in a sentence."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def height(self) -> float: ...
    def draw(self, axes: Any) -> None:
        """Draws on matplotlib's `Axes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line: `middles[i]` at `places[i]`, with all samples of it or with an error; dotted at `level`, to be passed."""

    name: str
    places: Sequence[float]
    middles: Sequence[float]
    samples: Sequence[Sequence[float]] = ()
    errors: Sequence[float | None] = ()
    level: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePlot:
    """Series over a number or, where `place_names` are given, over things in order; each named at its end.

    The axis does not go beyond `bounds`.
    """

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    place_names: Sequence[str] = ()
    from_zero: bool = True
    bounds: tuple[float, float] | None = None
    height: float = HEIGHT

    def draw(self, axes: Any) -> None:
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        ends = []
        for i, each in enumerate(self.series[:MOST_SERIES]):
            colour = series_colour(i)
            axes.plot(each.places, each.middles, color=colour, linewidth=2, marker=_MARKS[i], markersize=7, gid="data-middles")
            for place, samples in zip(each.places, each.samples, strict=False):
                _dots(axes, [place] * len(samples), samples, colour)
            for place, middle, error in zip(each.places, each.middles, each.errors, strict=False):
                if error:
                    axes.plot([place, place], [middle - error, middle + error], color=colour, linewidth=1.5, gid="data-error")
            ends.append((each.name, each.middles[-1], colour))
        _name_places(axes, self.series, self.place_names)
        if self.from_zero:
            axes.set_ylim(bottom=0)
        levels = [each.level for each in self.series[:MOST_SERIES]]
        for i, level in enumerate(levels):
            if level is not None and level not in levels[:i]:
                colour = series_colour(i) if levels.count(level) == 1 else light("muted")
                axes.axhline(level, color=colour, linewidth=1.5, linestyle=":", gid="data-level")
        if self.bounds:
            low, high = (min(max(each, self.bounds[0]), self.bounds[1]) for each in axes.get_ylim())
            if low < high:
                axes.set_ylim(low, high)
        label_ends(axes, ends)


def _name_places(axes: Any, series: Sequence[Series], names: Sequence[str]) -> None:
    if names:
        slanted = (max(map(len, names)) + 1) * len(names) > 28
        axes.set_xticks(range(len(names)), [cut(name) for name in names])
        axes.tick_params("x", rotation=40 if slanted else 0)
        for label in axes.get_xticklabels() if slanted else ():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
        return
    places = sorted({place for each in series for place in each.places})
    axes.set_xticks(spaced(places), [f"{place:,.0f}" for place in spaced(places)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A row of a strip plot: every sample as a dot, `middle` as a mark with `value` as its words."""

    name: str
    middle: float
    value: str
    samples: Sequence[float] = ()
    error: float | None = None
    series: int = 0


def _extent(strip: Strip) -> list[float]:
    """What must be on the axis."""
    error = strip.error or 0.0
    return [strip.middle - error, strip.middle + error, *strip.samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class StripPlot:
    """Rows under each other, the name above its dots; a line at `reference`."""

    name: str
    title: str
    description: str
    x_label: str
    strips: Sequence[Strip]
    reference: float | None = None
    from_zero: bool = True

    @property
    def height(self) -> float:
        return 64 + _ROW * len(self.strips[:MOST_STRIPS])

    def draw(self, axes: Any) -> None:
        shown = self.strips[:MOST_STRIPS]
        values = [value for strip in shown for value in _extent(strip)]
        if min(values) > 0 and max(values) > 30 * min(values):
            axes.set_xscale("log")
            name_powers(axes.xaxis, (min(values), max(values)), lambda value: f"{value:,g}")
        elif self.from_zero:
            axes.set_xlim(0, max(values) * 1.04)
        else:
            room = (max(values) - min(values)) * 0.08 or abs(max(values)) * 0.02 or 1.0
            axes.set_xlim(min(values) - room, max(values) + room)
        axes.set_ylim(len(shown) - 0.45, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(self.x_label)
        if self.reference is not None:
            axes.axvline(self.reference, color=light("muted"), linewidth=1)
        for row, strip in enumerate(shown):
            self._row(axes, row, strip)

    def _row(self, axes: Any, row: int, strip: Strip) -> None:
        colour = series_colour(strip.series)
        axes.axhline(row, color=light("grid"), linewidth=1, zorder=0)
        _dots(axes, strip.samples, [row] * len(strip.samples), colour)
        if strip.error:
            axes.plot([strip.middle - strip.error, strip.middle + strip.error], [row, row], color=colour, linewidth=2)
        axes.plot([strip.middle], [row], "|", color=colour, markersize=15, markeredgewidth=2.5, gid="data-middles")
        above = {"transform": axes.get_yaxis_transform(), "y": row - 0.24, "va": "bottom", "fontsize": TEXT - 1}
        axes.text(x=0, s=cut(strip.name, 34), ha="left", **above)
        axes.text(x=1, s=strip.value, ha="right", color=colour, **above)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterPlot:
    """Named points, those of the front filled and joined by steps."""

    name: str
    title: str
    description: str
    x_label: str
    y_label: str
    spots: Sequence[Spot]
    log_y: bool = False
    height: float = HEIGHT + 20

    def draw(self, axes: Any) -> None:
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        axes.margins(0.1, 0.13)
        front = sorted((spot.x, spot.y) for spot in self.spots if spot.front)
        if len(front) > 1:
            axes.step(*zip(*front, strict=True), where="post", color=light("series-0"), linewidth=1.5, gid="data-front")
        for filled in (True, False):
            found = [(spot.x, spot.y) for spot in self.spots if spot.front is filled]
            if found:
                colour = light("series-0" if filled else "series-1")
                face = colour if filled else "none"
                style = {"linestyle": "none", "markersize": 9, "color": colour, "markerfacecolor": face, "markeredgewidth": 1.8}
                axes.plot(*zip(*found, strict=True), marker="o" if filled else "s", gid="data-middles", **style)
        if self.log_y:
            axes.set_yscale("log")
            name_powers(axes.yaxis, axes.get_ylim(), lambda value: f"{value:.2g}")
        label_spots(axes, self.spots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Speeds in FLOP/s over FLOPs per byte read, under the two measured ceilings."""

    name: str
    title: str
    description: str
    bytes_per_s: float | None
    flops: Sequence[tuple[str, float]]
    spots: Sequence[Spot]

    @property
    def height(self) -> float:
        return HEIGHT + 20 * math.ceil(len(self.spots) / 2)

    def draw(self, axes: Any) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("FLOPs per byte read")
        axes.set_ylabel("FLOP/s")
        top = max((value for _, value in self.flops), default=None)
        edge = [top / self.bytes_per_s] if top and self.bytes_per_s else []
        places = [spot.x for spot in self.spots] + edge
        left, right = min(places) / 3, max(places) * 6
        if self.bytes_per_s:
            end = edge[0] if edge else right
            line = [left * self.bytes_per_s, end * self.bytes_per_s]
            axes.plot([left, end], line, color=light("muted"), linewidth=2, gid="data-bandwidth")
        for _, value in self.flops:
            start = left if self.bytes_per_s is None else value / self.bytes_per_s
            solid = value == top
            axes.plot([start, right], [value] * 2, "-" if solid else ":", color=light("muted"), linewidth=2, gid="data-matrix")
        for i, spot in enumerate(self.spots):
            style = {"linestyle": "none", "marker": _MARKS[i % 8], "color": series_colour(i), "markersize": 9}
            axes.plot([spot.x], [spot.y], **style, label=cut(spot.name), gid="data-middles")
        axes.set_xlim(left, right)
        axes.margins(y=0.16)
        name_powers(axes.xaxis, axes.get_xlim(), lambda value: f"{value:,g}")
        name_powers(axes.yaxis, axes.get_ylim(), lambda value: _scaled(value, ""))
        self._name_ceilings(axes, left, right)
        key = {"loc": "outside lower center", "ncols": 2, "frameon": False, "fontsize": TEXT - 2, "borderpad": 0}
        axes.figure.legend(**key, columnspacing=0.8, handletextpad=0.1)

    def _name_ceilings(self, axes: Any, left: float, right: float) -> None:
        style = {"color": light("muted"), "fontsize": TEXT - 2}
        for name, value in self.flops[:1]:
            words = f"{name} {_scaled(value, 'FLOP/s')}".strip()
            axes.annotate(words, (right, value), (-2, 4), textcoords="offset points", ha="right", va="bottom", **style)
        if self.bytes_per_s:
            at = (left, left * self.bytes_per_s)
            words = _scaled(self.bytes_per_s, "B/s")
            axes.annotate(words, at, (12, -8), textcoords="offset points", ha="left", va="top", **style)


def _dots(axes: Any, xs: Sequence[float], ys: Sequence[float], colour: str) -> None:
    axes.plot(xs, ys, "o", color=colour, markersize=4.5, alpha=0.45, markeredgewidth=0, gid="data-samples")


def _scaled(value: float, unit: str) -> str:
    """`12.3 GB/s`."""
    power = min(max(int(math.log10(value) // 3), 0), 5) if value > 0 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}"
