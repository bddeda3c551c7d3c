"""The main plots as text for a terminal, without any plotting library.

Each function gives lines that fit the width of the terminal (COLUMNS where that is set), or an empty string when the document
has nothing of the kind. Block and box characters where standard output can encode them, ASCII where it cannot.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tinyedge_bench.report.names import distinct_labels
from tinyedge_bench.report.rows import SpeedCase, model_labels, quality_models, speed_cases
from tinyedge_bench.result_files import Document

_HEIGHT = 14
_MOST_BARS = 60
_MARKS = "o+x*#%@&"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LEVEL = "┄"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_ASCII = str.maketrans(
    {"│": "|", "└": "+", "─": "-", "●": "O", "○": "o", "·": ".", "█": "#", "…": "~", "±": "~", "≤": "<", "┄": "-"}
)


def speed_bars(document: Document) -> str:
    """Median tokens/s of each case as a bar, prompt and generation each on a scale of its own."""
    cases = speed_cases(document)[:_MOST_BARS]
    lines: list[str] = []
    for phase in dict.fromkeys(case.phase for case in cases):
        group = [case for case in cases if case.phase == phase]
        lines += [f"{phase}, tokens/s (median)", *_bars(group)]
    return _shown(lines)


def progress_plot(document: Document) -> str:
    """Accuracy per task, or perplexity when there are no tasks, over the models in the order given; two models at least."""
    models = quality_models(document)
    tasks = list(dict.fromkeys(task.task for model in models for task in model.tasks))[: len(_MARKS)]
    series: list[_Series] = []
    for mark, name in zip(_MARKS, tasks, strict=False):
        found = [(i, task.best_known) for i, model in enumerate(models) for task in model.tasks if task.task == name]
        series.append(_Series(f"{mark} {name}", mark, [(float(i), each.value * 100) for i, each in found if each]))
    unit, bounds = "accuracy, %", (0.0, 100.0)
    chances = sorted({round(task.chance * 100, 1) for model in models for task in model.tasks if task.chance})[: len(_MARKS)]
    if not any(each.points for each in series):
        points = [(float(i), model.perplexity.value) for i, model in enumerate(models) if model.perplexity]
        series, unit, bounds, chances = [_Series("perplexity", "o", points)], "perplexity", (0.0, math.inf), []
    if len(models) < 2 or not any(each.points for each in series):
        return ""
    names = distinct_labels([{"model": model.model, "type": model.kind} for model in models])
    key = "  ".join(each.name for each in series) if len(series) > 1 or tasks else ""
    if chances:
        key += f"  {_LEVEL} guessing"
    rows, named = _grid(series, x_name=lambda x: f"{x + 1:.0f}", y_name=_short, x_names=names, bounds=bounds, levels=chances)
    listed = [] if named else [f"{i + 1:>3}  {name}" for i, name in enumerate(names[:_MOST_BARS])]
    return _shown([f"{unit}   {key}".rstrip(), *rows, *listed])


def size_quality_plot(document: Document) -> str:
    """File size against mean KL divergence (logarithmic), or perplexity without a base; the Pareto front filled."""
    models = [model for model in quality_models(document) if model.file_bytes]
    by_kl = any(model.mean_kl for model in models)
    found = [(model, model.mean_kl if by_kl else model.perplexity) for model in models]
    placed = [(model, each.value) for model, each in found if each and (each.value > 0 or not by_kl)]
    if len({model.file_bytes for model, _ in placed}) < 2:
        return ""
    names = model_labels([model for model, _ in placed])
    front: dict[bool, _Series] = {False: _Series("", "○", [], []), True: _Series("", "●", [], [])}
    for name, (model, value) in zip(names, placed, strict=True):
        front[model.pareto].points.append((model.file_bytes / 2**20, math.log10(value) if by_kl else value))
        front[model.pareto].names.append(name)
    title = "mean KL divergence (log)" if by_kl else "perplexity"
    key = "   ● Pareto front" if front[True].points else ""
    y_name: Callable[[float], str] = (lambda y: f"{10**y:.2g}") if by_kl else _short
    rows, named = _grid([*front.values()], x_name=_short, y_name=y_name)
    if not named:
        rows = _lettered(front, y_name)
    return _shown([f"{title} over file size in MiB{key}", *rows])


def _lettered(front: dict[bool, _Series], y_name: Callable[[float], str]) -> list[str]:
    """The points as letters, from the left, and below what each is."""
    every = sorted(
        (point, name, filled) for filled, each in front.items() for point, name in zip(each.points, each.names, strict=True)
    )
    more = len(every) - len(_LETTERS)
    letters = [*_LETTERS[: len(every)], *"·" * more]
    series = [_Series("", letter, [point]) for letter, (point, _, _) in zip(letters, every, strict=True)]
    margin = max(len(_cut(name, 24)) for _, name, _ in every)
    listed = [
        f"  {letter} {front[filled].mark} {_cut(name, 24).ljust(margin)}  {_short(x)} MiB  {y_name(y)}"
        for letter, ((x, y), name, filled) in zip(_LETTERS, every, strict=False)
    ]
    if more > 0:
        listed.append(f"  · {more} more")
    return [*_grid(series, x_name=_short, y_name=y_name)[0], *listed]


@dataclass(frozen=True, slots=True)
class _Series:
    """Points with one mark, each with a name beside it where `names` are given."""

    name: str
    mark: str
    points: list[tuple[float, float]]
    names: list[str] = field(default_factory=list)


def _bars(cases: list[SpeedCase]) -> list[str]:
    names = [_cut(name, _width() // 2) for name in distinct_labels([case.traits for case in cases])]
    most = max(case.median for case in cases)
    values = [_speed(case) for case in cases]
    margin, tail = max(map(len, names)), max(map(len, values))
    room = max(4, _width() - margin - tail - 4)
    return [
        f"  {name.ljust(margin)} {_bar(case.median / most * room)} {value}"
        for name, case, value in zip(names, cases, values, strict=True)
    ]


def _speed(case: SpeedCase) -> str:
    return f"{case.median:.2f}" + (f" ± {case.deviation:.2f}" if len(case.samples) > 1 else "")


def _bar(length: float) -> str:
    whole, part = divmod(round(length * 8), 8)
    return ("█" * whole + _EIGHTHS[part].strip()) or "▏"


def _grid(
    series: list[_Series],
    *,
    x_name: Callable[[float], str],
    y_name: Callable[[float], str],
    x_names: list[str] | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    levels: Sequence[float] = (),
) -> tuple[list[str], bool]:
    """The points on a field with both axes named at their ends, and whether all names found room.

    Names are those of the points, or `x_names` of the places 0, 1, ... below. The axis stays within `bounds` unless points do
    not; `levels` are dotted lines. A point whose cell is taken stands in the next one.
    """
    points = [point for each in series for point in each.points]
    left, right = _span([x for x, _ in points])
    values = [y for _, y in points]
    low, high = _span([*values, *levels])
    low, high = max(low, min(bounds[0], *values)), min(high, max(bounds[1], *values))
    margin = max(len(y_name(low)), len(y_name(high)))
    width = max(16, _width() - margin - 3)
    field = [[" "] * width for _ in range(_HEIGHT)]

    def height(y: float) -> int:
        return _HEIGHT - 1 - round((y - low) / (high - low) * (_HEIGHT - 1))

    def place(x: float) -> int:
        return 1 + round((x - left) / (right - left) * (width - 3))

    for level in levels:
        field[height(level)] = [_LEVEL] * width
    marked: list[tuple[int, int, str]] = []
    for each in series:
        for i, (x, y) in enumerate(each.points):
            row, column = height(y), place(x)
            column = next((c for c in range(column, width) if field[row][c] in (" ", _LEVEL)), column)
            field[row][column] = each.mark
            marked.append((row, column, each.names[i] if each.names else ""))
    fitted = [_write_beside(field[row], column, _cut(name, 16)) for row, column, name in marked if name]
    heads = {0: y_name(high), _HEIGHT - 1: y_name(low)}
    rows = [f"{heads.get(i, '').rjust(margin)} │{''.join(line).rstrip()}" for i, line in enumerate(field)]
    under = _named_places([place(float(i)) for i in range(len(x_names))], x_names, width) if x_names else None
    ends = x_name(left), x_name(right)
    foot = under or f"{ends[0]}{ends[1].rjust(width - len(ends[0]))}"
    rows += [f"{' ' * margin} └{'─' * width}", f"{' ' * (margin + 2)}{foot}"]
    return rows, under is not None if x_names else all(fitted)


def _named_places(columns: list[int], names: list[str], width: int) -> str | None:
    """A line with each name below its column, None when they do not fit."""
    line = ""
    for column, name in zip(columns, names, strict=True):
        start = min(max(0, column - len(name) // 2), width - len(name))
        if start < len(line) + 2 * bool(line):
            return None
        line = line.ljust(start) + name
    return line


def _write_beside(line: list[str], column: int, name: str) -> bool:
    """Puts `name` right of a mark, or left of it, where there is room and no other mark next to it; says whether there was."""
    for start in (column + 2, column - 1 - len(name)):
        end = start + len(name)
        # From the cell beside the mark to two beyond the name: there it would be read as another mark's.
        room = line[column + 1 : end + 2] if start > column else line[max(0, start - 2) : column]
        if start >= 0 and end <= len(line) and all(c == " " for c in room):
            line[start:end] = name
            return True
    return False


def _span(values: list[float]) -> tuple[float, float]:
    """The least and the most, a little apart when they are one."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0))


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cut(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _width() -> int:
    return max(40, min(shutil.get_terminal_size((80, 24)).columns, 160))


def _shown(lines: list[str]) -> str:
    joined = "\n".join(_cut(line, _width()) for line in lines)
    try:
        "█│●▏".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        for partial in _EIGHTHS[1:8]:
            joined = joined.replace(partial, "")
        return joined.translate(_ASCII).encode("ascii", "replace").decode()
    return joined
