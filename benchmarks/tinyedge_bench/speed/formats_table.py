"""The Markdown of a speed document: llama-bench's table with median and runs, and below it what belongs beside the numbers.

Where the columns beside tokens/s would make the table wider than a terminal, they stand in a second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyedge_bench.result_files import Document
from tinyedge_bench.speed.formats_below import below
from tinyedge_bench.speed.formats_cells import cell_text, file_text, markdown_table, number, objects

WIDTH = 100  # of a table, in columns of a terminal

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Column:
    """A column by its head: how its cell is made, and the text in it that is not worth a column where all rows have it.

    One that is `telling` is worth showing only where rows differ in it.
    """

    head: str
    cell: Callable[[Row], str]
    usual: str | None = None
    telling: bool = False

    def worth_showing(self, rows: Sequence[Row]) -> bool:
        if self.telling:
            return self.differs(rows)
        return self.usual is None or any(self.cell(row) not in ("", self.usual) for row in rows)

    def differs(self, rows: Sequence[Row]) -> bool:
        return len({self.cell(row) for row in rows}) > 1


def markdown(document: Document, width: int | None = None) -> str:
    """The table, then loads, ceilings, published figures, what is missing, what to doubt, and the machine and versions.

    Where it is wider than `width`, what is the same in all rows stands in a line above it. A model that was not named by its
    file is named as the user did. Raises ValueError for a document of another kind than speed.
    """
    if document.kind != "speed":
        raise ValueError(f"a table of speeds cannot show {document.kind} results")
    shown = _as_typed(document)
    blocks = [*_tables(shown.results, width), *below(shown)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def is_markdown(text: str) -> bool:
    """Whether a text begins with a table that `markdown` made."""
    head = [cell.strip() for cell in text.partition("\n")[0].strip("|").split("|")]
    return head[0] == _WHICH[0].head and all(column.head in head for column in _SPEED)


def _as_typed(document: Document) -> Document:
    """The document with the names in its `typed` for those of files, as in `demo` for `demo-0123456789abcdef-Q4_K_M.gguf`."""
    typed = document.more.get("typed")
    if not isinstance(typed, Mapping):
        return document

    def named(each: Row) -> Row:
        name = each.get("model_filename")
        return {**each, "model_filename": typed.get(name, name) if isinstance(name, str) else name}

    loads = [named(each) for each in objects(document.more.get("loads"))]
    return replace(document, results=tuple(map(named, document.results)), more={**document.more, "loads": loads})


def _tables(rows: Sequence[Row], width: int | None) -> list[list[str]]:
    """One table, or two where it would be wider than WIDTH; none without rows."""
    if not rows:
        return []
    which, speed, beside = ([column for column in part if column.worth_showing(rows)] for part in (_WHICH, _SPEED, _BESIDE))
    whole = _table([*which, *speed, *beside], rows)
    if not beside or len(whole[0]) <= min(WIDTH, width or WIDTH):
        return [whole] if beside else _within(width, which, speed, rows)
    telling = [column for column in which if column.head == "test" or column.differs(rows)]
    if any(column.telling for column in telling):
        telling = [column for column in telling if column.head not in _OF_FILE]
    return [*_within(width, which, speed, rows), ["Beside tokens/s:", "", *_table([*telling, *beside], rows)]]


def _within(width: int | None, which: Sequence[_Column], speed: Sequence[_Column], rows: Sequence[Row]) -> list[list[str]]:
    """The table; where it is wider than `width`, with the columns that are the same in all rows in a line above it."""
    whole = _table([*which, *speed], rows)
    if width is None or len(whole[0]) <= width:
        return [whole]
    same = [column for column in which if column.head != "test" and not column.differs(rows)]
    line = "; ".join(f"{column.head} {column.cell(rows[0])}" for column in same)
    return [[line] if line else [], _table([*(column for column in which if column not in same), *speed], rows)]


def _table(columns: Sequence[_Column], rows: Sequence[Row]) -> list[str]:
    return markdown_table([column.head for column in columns], [[column.cell(row) for column in columns] for row in rows])


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: cell_text(row.get(key))


def _number(key: str, form: str, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: "" if (value := number(row, key)) is None else f"{value * scale:{form}}"


def _size(row: Row) -> str:
    """In llama-bench's units and digits."""
    size = number(row, "model_size")
    if size is None:
        return ""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"


def _params(row: Row) -> str:
    """In llama-bench's units and digits."""
    count = number(row, "model_n_params")
    if count is None:
        return ""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _mean(row: Row) -> str:
    mean = number(row, "avg_ts")
    return "" if mean is None else f"{mean:.2f} ± {number(row, 'stddev_ts') or 0:.2f}"


def _runs(row: Row) -> str:
    samples = row.get("samples_ts")
    return str(len(samples)) if isinstance(samples, (list, tuple)) and samples else ""


def _with_share(key: str, share_key: str) -> Callable[[Row], str]:
    """In billions, with its share of the ceiling where that is known."""

    def cell(row: Row) -> str:
        value, part = number(row, key), number(row, share_key)
        share = "" if part is None else f" ({part:.0%})" if part >= 0.1 else f" ({part:.1%})"
        return "" if value is None else f"{value / 1e9:.3g}{share}"

    return cell


def _course(key: str) -> Callable[[Row], str]:
    """Before, during and after, `45/61/58`."""

    def cell(row: Row) -> str:
        values = row.get(key)
        if not isinstance(values, (list, tuple)) or len(values) > 3:
            return ""
        numbers = [number({key: value}, key) for value in values]
        known = any(each is not None for each in numbers)
        return "/".join("?" if each is None else f"{each:.0f}" for each in numbers) if known else ""

    return cell


_WHICH = (
    _Column("model", _text("model_type")),
    _Column("file", lambda row: cell_text(file_text(row)), telling=True),
    _Column("size", _size),
    _Column("params", _params),
    _Column("backend", lambda row: cell_text(row.get("backends")).upper()),
    _Column("threads", _number("n_threads", ".0f")),
    _Column("type_k", _text("type_k"), usual="f16"),
    _Column("type_v", _text("type_v"), usual="f16"),
    _Column("engine", _text("engine"), usual="tinyedge"),
    _Column("test", _text("test")),
)
_OF_FILE = ("model", "size", "params")  # what a file's name tells, where there are several
_SPEED = (
    _Column("t/s", _mean),
    _Column("median", _number("median_ts", ".2f")),
    _Column("runs", _runs),
)
_BESIDE = (
    _Column("TTFT ms", _number("ttft_ns", ".1f", 1e-6), usual=""),
    _Column("GB/s (of ceiling)", _with_share("bytes_per_s", "bandwidth_share"), usual=""),
    _Column("GFLOP/s (of ceiling)", _with_share("flops", "matrix_share"), usual=""),
    _Column("J/token", _number("energy_j_per_token", ".3g"), usual=""),
    _Column("°C", _course("temperature_c"), usual=""),
    _Column("MHz", _course("clock_mhz"), usual=""),
)
