"""What `tinyedge eval sweep` shows people: a table of the types, and what the figures are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tinyedge.cli.evaluate_cells import Row, cut_warnings, quality_columns, quality_table, task_notes, tasks_once, told
from tinyedge.cli.output import format_bytes, printable

if TYPE_CHECKING:
    from tinyedge_bench.result_files import Document


def table_lines(document: Document) -> list[str]:
    """A Markdown table: the base, then a row per type in the order asked for, with the columns that any has a figure for."""
    rows = _rows(document)
    quality = quality_columns(rows)
    columns = {
        "type": [f"{printable(str(row['type']), 40)}{' (base)' * (not place)}" for place, row in enumerate(rows)],
        "size": [format_bytes(row["file_bytes"]) for row in rows],
        "bits": [f"{row['bits_per_weight']:.2f}" for row in rows],
        **{head: quality[head] for head in ("perplexity", "mean KLD", "same top")},
        "prompt t/s": [_speed(row.get("prompt_tokens_per_s")) for row in rows],
        "gen t/s": [_speed(row.get("generated_tokens_per_s")) for row in rows],
        "Pareto": ["yes" if row.get("pareto") else "" for row in rows],
    }
    return quality_table(columns, rows)


def notes(document: Document) -> Iterator[str]:
    """What the figures are, and what is missing: lines for stderr."""
    more, perplexity, rows = document.more, document.results[0]["perplexity"], _rows(document)
    yield f"{more['base']['note']}; {perplexity['tokens']} tokens of {perplexity['text']} scored"
    test = more["speed_test"]
    if test["runs"]:
        parts = [f"{test[key]} {word}" for key, word in (("prompt", "prompt"), ("generate", "generated")) if test[key]]
        runs = f"{test['runs']} run{'s' * (test['runs'] != 1)}"
        where = f"{rows[0]['backends']}, {rows[0]['n_threads']} threads"
        yield f"speed: the median of {runs} of {' and '.join(parts)} tokens ({where}), {more['speed_order']}"
    yield from map(told, tasks_once(rows))
    for warning in cut_warnings(rows):
        yield f"warning: {warning}"
    for note in task_notes(rows):
        yield f"note: {note}"
    for row in rows:
        yield from (f"note: {warning}" for warning in row.get("warnings", ()))
    for each in document.missing:
        yield f"missing: {each.what} ({each.reason})"


def _rows(document: Document) -> list[Row]:
    return [document.more["base"], *document.results]


def _speed(tokens_per_s: float | None) -> str:
    return "" if tokens_per_s is None else f"{tokens_per_s:.1f}"
