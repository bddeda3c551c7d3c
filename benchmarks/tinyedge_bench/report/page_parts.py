"""What a page is made of: sections of tables, plots and sentences, and their HTML.

Everything that is shown is escaped here and nowhere else. A cell is text; a link is made only of an https address.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlsplit

from tinyedge_bench.report.drawing import svg
from tinyedge_bench.report.plots import Plot

MOST_TABLE_ROWS = 200
ORIGIN = "results"  # the head of the column that names the file of results
_LONG_CELL = 40  # characters, from which on a cell has several lines


@dataclass(frozen=True, slots=True)
class Link:
    """A cell that names a source, and where it is."""

    words: str
    address: str

    def __len__(self) -> int:
        return len(self.words)

    @property
    def safe(self) -> bool:
        """Whether the address is a plain https one."""
        try:
            parts = urlsplit(self.address)
            return parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc and self.address.isprintable()
        except ValueError:
            return False


Cell = str | Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with a caption; columns named in `words` are set left, the others right as numbers are. No rows, no table.

    A column in which nothing stands is left out. Columns named in `once`, and ORIGIN, are told below where all rows agree.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: Sequence[str] = ()
    once: Sequence[str] = ()

    def html(self) -> str:
        told = {i: self.rows[0][i] for i in range(len(self.head)) if self._same(i)}
        kept = [i for i in range(len(self.head)) if i not in told and any(row[i] != "" for row in self.rows)]
        classes = {i: self._class(i) for i in kept}
        head = "".join(f'<th scope="col"{classes[i]}>{escape(self.head[i])}</th>' for i in kept)
        body = "".join(
            f"<tr>{''.join(f'<td{classes[i]}>{_cell(row[i])}</td>' for i in kept)}</tr>" for row in self.rows[:MOST_TABLE_ROWS]
        )
        more = len(self.rows) - MOST_TABLE_ROWS
        note = f'<p class="note">{more} more rows are in the files of results.</p>' if more > 0 else ""
        same = ", ".join(f"{self.head[i]} {_cell(cell)}" for i, cell in told.items())
        note += f'<p class="note">In all rows: {same}.</p>' if same else ""
        # A region that scrolls must be reachable by keyboard.
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.caption)}"><table>'
            f"<caption><span>{escape(self.caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )

    def _same(self, column: int) -> bool:
        """Whether a column is told once, below the table."""
        values = {row[column] for row in self.rows}
        return self.head[column] in (ORIGIN, *self.once) and len(self.rows) > 1 and len(values) == 1 and "" not in values

    def _class(self, column: int) -> str:
        if self.head[column] not in self.words:
            return ""
        longest = max(len(row[column]) for row in self.rows[:MOST_TABLE_ROWS])
        return ' class="long"' if longest > _LONG_CELL else ' class="w"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading with what belongs under it, in this order; left out of the page when there is no plot, table or item."""

    title: str
    intro: str = ""
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    items: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())

    def __bool__(self) -> bool:
        return bool(self.plots or self.items or any(table.rows for table in self.tables))

    def html(self) -> str:
        intro = f"<p>{escape(self.intro)}</p>" if self.intro else ""
        items = "".join(f"<li>{escape(item)}</li>" for item in self.items)
        plots = "".join(
            f'<figure><figcaption><b>{escape(plot.title)}</b></figcaption>{svg(plot)}<p class="note">{escape(plot.description)}'
            "</p></figure>"
            for plot in self.plots
        )
        tables = "".join(table.html() for table in self.tables if table.rows)
        return (
            f'<section aria-labelledby="{self.anchor}"><h2 id="{self.anchor}">{escape(self.title)}</h2>{intro}'
            f"{f'<div class=plots>{plots}</div>' if plots else ''}{tables}{f'<ul>{items}</ul>' if items else ''}</section>"
        )


def _cell(cell: Cell) -> str:
    if isinstance(cell, Link):
        if cell.safe:
            return f'<a href="{escape(cell.address)}" rel="noopener noreferrer">{escape(cell.words or cell.address)}</a>'
        return escape(cell.words)
    return escape(cell)


def decimal(value: float | None, digits: int = 3) -> str:
    """`12.3`, `0.00123`, `1,234`: so many significant digits, thousands parted; empty for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if not 1e-6 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{share * 100:.{digits}f} %"


def mebibytes(count: float | None) -> str:
    return decimal(count / 2**20) if count else ""


def millions(count: float | None) -> str:
    return decimal(count / 1e6) if count else ""


def seconds(value: float | None) -> str:
    """`12.3 ms` below a second, `1.23 s` above."""
    if value is None:
        return ""
    return f"{decimal(value * 1000)} ms" if value < 1 else f"{decimal(value)} s"
