"""What `tinyedge eval` shows people: a table of all models, and what to know about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinyedge.cli.output import format_bytes, format_seconds, printable

if TYPE_CHECKING:
    from tinyedge_bench.result_files import Document

Row = Mapping[str, Any]


def table_lines(document: Document) -> list[str]:
    """A Markdown table, a row per model in the order given, with the columns that any of them has a figure for."""
    columns = {
        "model": [printable(str(row["model_filename"]), 60) for row in document.results],
        "size": [format_bytes(row["model_size"]) for row in document.results],
        "perplexity": [_estimate(row.get("perplexity"), "value", "error", 4) for row in document.results],
        "bits/byte": [_estimate(row.get("bits_per_byte"), "value", "error", 4) for row in document.results],
        "mean KLD": [_estimate(row.get("divergence"), "mean_kl", "mean_kl_error", 6) for row in document.results],
        "99% KLD": [_percentile(row, "99.0") for row in document.results],
        "same top": [_estimate(row.get("divergence"), "same_top", "same_top_error", 2, share=True) for row in document.results],
    }
    names = dict.fromkeys(task["task"] for row in document.results for task in row.get("tasks", ()))
    for name in names:
        columns[name] = [_task_cell(row, name) for row in document.results]
    if len(names) > 1:
        columns["average"] = [_average(row, len(names)) for row in document.results]
    shown = [(head, cells) for head, cells in columns.items() if any(cells)]
    widths = [max(map(len, (head, *cells))) for head, cells in shown]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows = [[head for head, _ in shown], rule, *zip(*(cells for _, cells in shown), strict=True)]
    return [_line(row, widths) for row in rows]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"


def notes(document: Document) -> Iterator[str]:
    """Where the figures are from, how long they took, and what is missing: lines for stderr."""
    for row in document.results:
        for part in _timings(row):
            yield f"{row['model_filename']}: {part}"
        for warning in row.get("warnings", ()):
            yield f"warning: {warning}"
    for each in document.missing:
        yield f"missing: {each.what} ({each.reason})"


def _timings(row: Row) -> Iterator[str]:
    perplexity = row.get("perplexity")
    if perplexity:
        read, seconds = perplexity["chunks"] * perplexity["n_ctx"], perplexity["seconds"]
        beside = " beside the base" if "divergence" in row else ""
        windows = f"{perplexity['chunks']} windows of {perplexity['n_ctx']} tokens of {perplexity['text']}"
        yield f"{windows}, {perplexity['tokens']} scored, in {format_seconds(seconds)} ({read / seconds:,.0f} tokens/s{beside})"
    for task in row.get("tasks", ()):
        questions = f"{task['questions']} questions of {task['file']}, {_metric(task)}, {task['shots']}-shot"
        yield f"{task['task']}: {questions}, in {format_seconds(task['seconds'])}"


def _metric(task: Row) -> str:
    """The figure that published tables give of a task: accuracy, or accuracy by length."""
    return str(task["metric"])


def _estimate(found: Row | None, value: str, error: str, digits: int, *, share: bool = False) -> str:
    """`84.6701 ± 2.3608`, shares in percent; empty where there is no value."""
    if not found or found.get(value) is None:
        return ""
    scale, unit = (100, "%") if share else (1, "")
    spread = "" if found.get(error) is None else f" ± {scale * found[error]:.{digits}f}"
    return f"{scale * found[value]:.{digits}f}{spread}{unit}"


def _percentile(row: Row, name: str) -> str:
    found = row.get("divergence")
    return f"{found['kl_percentiles'][name]:.6f}" if found else ""


def _task_of(row: Row, name: str) -> Row | None:
    return next((task for task in row.get("tasks", ()) if task["task"] == name), None)


def _task_cell(row: Row, name: str) -> str:
    task = _task_of(row, name)
    return "" if task is None else _estimate(task, _metric(task), f"{_metric(task)}_error", 2, share=True)


def _average(row: Row, count: int) -> str:
    """The mean over the tasks of a model that has them all: of fewer it would compare with nothing."""
    values = [task[_metric(task)] for task in row.get("tasks", ())]
    return f"{100 * sum(values) / count:.2f}%" if len(values) == count else ""
