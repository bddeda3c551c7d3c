"""The Markdown of a speed document: llama-bench's table with median and runs, and below it what belongs beside the numbers.

Where the columns beside tokens/s would make the table wider than a terminal, they stand in a second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyedge_bench.result_files import Document
from tinyedge_bench.speed.formats_below import below
from tinyedge_bench.speed.formats_cells import cell_text, markdown_table, number

WIDTH = 100  # of a table, in columns of a terminal

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Column:
    """A column by its head: how its cell is made, and the text in it that is not worth a column where all rows have it."""

    head: str
    cell: Callable[[Row], str]
    usual: str | None = None

    def worth_showing(self, rows: Sequence[Row]) -> bool:
        return self.usual is None or any(self.cell(row) not in ("", self.usual) for row in rows)


def markdown(document: Document) -> str:
    """The table, then loads, ceilings, published figures, what is missing, what to doubt, and the machine and versions.

    Raises ValueError for a document of another kind than speed.
    """
    if document.kind != "speed":
        raise ValueError(f"a table of speeds cannot show {document.kind} results")
    blocks = [*_tables(document.results), *below(document)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def is_markdown(text: str) -> bool:
    """Whether a text begins with a table that `markdown` made."""
    head = [cell.strip() for cell in text.partition("\n")[0].strip("|").split("|")]
    return head[0] == _WHICH[0].head and all(column.head in head for column in _SPEED)


def _tables(rows: Sequence[Row]) -> list[list[str]]:
    """One table, or two where it would be wider than WIDTH; none without rows."""
    if not rows:
        return []
    which, speed, beside = ([column for column in part if column.worth_showing(rows)] for part in (_WHICH, _SPEED, _BESIDE))
    whole = _table([*which, *speed, *beside], rows)
    if not beside or len(whole[0]) <= WIDTH:
        return [whole]
    telling = [column for column in which if column.head == "test" or len({column.cell(row) for row in rows}) > 1]
    return [_table([*which, *speed], rows), ["Beside tokens/s:", "", *_table([*telling, *beside], rows)]]


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
    _Column("size", _size),
    _Column("params", _params),
    _Column("backend", lambda row: cell_text(row.get("backends")).upper()),
    _Column("threads", _number("n_threads", ".0f")),
    _Column("type_k", _text("type_k"), usual="f16"),
    _Column("type_v", _text("type_v"), usual="f16"),
    _Column("engine", _text("engine"), usual="tinyedge"),
    _Column("test", _text("test")),
)
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
