"""What `tinyedge eval` shows people: a table of all models, and what to know about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tinyedge.cli.evaluate_cells import Row, cut_warnings, quality_columns, quality_table, task_notes, told
from tinyedge.cli.output import format_bytes, format_seconds, printable

if TYPE_CHECKING:
    from tinyedge_bench.result_files import Document


def table_lines(document: Document) -> list[str]:
    """A Markdown table, a row per model in the order given, with the columns that any of them has a figure for."""
    rows = document.results
    columns = {
        "model": [printable(str(row["model_filename"]), 60) for row in rows],
        "size": [format_bytes(row["model_size"]) for row in rows],
        **quality_columns(rows),
    }
    return quality_table(columns, rows)


def notes(document: Document) -> Iterator[str]:
    """Where the figures are from, how long they took, and what is missing: lines for stderr."""
    for row in document.results:
        for part in _timings(row):
            yield f"{row['model_filename']}: {part}"
        for warning in cut_warnings([row]):
            yield f"warning: {row['model_filename']}: {warning}"
    for note in task_notes(document.results):
        yield f"note: {note}"
    for each in document.missing:
        yield f"missing: {each.what} ({each.reason})"


def _timings(row: Row) -> Iterator[str]:
    perplexity = row.get("perplexity")
    if perplexity:
        read, seconds = perplexity["chunks"] * perplexity["n_ctx"], perplexity["seconds"]
        beside = " beside the base" if "divergence" in row else ""
        count = f"{perplexity['chunks']} window{'s' * (perplexity['chunks'] != 1)}"
        windows = f"{count} of {perplexity['n_ctx']} tokens of {perplexity['text']}"
        yield f"{windows}, {perplexity['tokens']} scored, in {format_seconds(seconds)} ({read / seconds:,.0f} tokens/s{beside})"
    for task in row.get("tasks", ()):
        yield f"{told(task)}, in {format_seconds(task['seconds'])}"
