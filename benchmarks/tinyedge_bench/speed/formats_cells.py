"""Cells and tables in Markdown, of values that may come from a stranger's file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, its first column to the left and the others to the right; the text of the cells is safe already."""
    widths = [max(len(line[place]) for line in (head, *rows)) for place in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *others])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(head), line(rule), *map(line, rows)]


def printable(text: str) -> str:
    """`text` with what could drive a terminal escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def cell_text(value: Any, limit: int = 60) -> str:
    """`value` as a cell of a table: nothing for None, no line break, no bar, cut at `limit`."""
    text = "" if value is None else printable(str(value)[: limit + 1])
    return _no_html(text if len(text) <= limit else text[: limit - 1] + "…").replace("|", "\\|")


def line_text(value: Any, limit: int = 400) -> str:
    """`value` as a part of a line."""
    text = "" if value is None else printable(str(value)[: limit + 1])
    return _no_html(text if len(text) <= limit else text[: limit - 1] + "…")


def _no_html(text: str) -> str:
    """`text` as Markdown that shows it: a backslash before `<` would not do where a backslash is before it already."""
    return text.replace("<", "&lt;")


def file_text(row: Mapping[str, Any], limit: int = 48) -> str:
    """The row's file, as a part of a line: of a long path the end."""
    name = str(row.get("model_filename") or "")
    return line_text(name if len(name) <= limit else f"…{name[1 - limit :]}")


def several_files(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows are of more than one file."""
    return len({str(row.get("model_filename")) for row in rows}) > 1


def objects(value: Any) -> list[Mapping[str, Any]]:
    """Those elements of a list that are objects."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, (list, tuple)) else []


def number(row: Mapping[str, Any], key: str) -> float | None:
    """The finite number that the row has under `key`, else None."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
