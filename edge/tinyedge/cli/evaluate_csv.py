"""Figures of quality as one flat table for programs: a row per model or type, a column per figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tinyedge.cli.output import printable

if TYPE_CHECKING:
    from tinyedge_bench.result_files import Document


def csv_text(document: Document) -> str:
    """A line of names and one per row, of a sweep the base's first; RFC 4180 but for its line ends.

    Names are those of the JSON object, joined with dots, a task's by its own: `divergence.mean_kl`, `piqa.accuracy_norm`.
    A figure that a row has not is an empty cell; lists and the subjects of MMLU are left to JSON.
    """
    base = [document.more["base"]] if document.kind == "sweep" else []
    rows = [dict(_flat("", row)) for row in (*base, *document.results)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key != "subjects":
                yield from _flat(f"{name}.{key}" if name else key, part)
    elif name == "tasks":
        for task in value:
            yield from _flat(task["task"], {key: part for key, part in task.items() if key != "task"})
    elif not isinstance(value, list | tuple):
        yield name, printable(value) if isinstance(value, str) else value
