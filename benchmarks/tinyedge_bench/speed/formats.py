"""A document of results as text: Markdown for people, json, jsonl and csv for programs; or appended to a SQLite database."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

from tinyedge_bench.result_files import Document
from tinyedge_bench.speed.formats_cells import printable
from tinyedge_bench.speed.formats_columns import cell_value, columns_of, compact_json, flat_rows
from tinyedge_bench.speed.formats_sqlite import append_sqlite
from tinyedge_bench.speed.formats_table import markdown

__all__ = ["FORMATS", "append_sqlite", "render"]


def render(document: Document, format: str) -> str:  # noqa: A002 - the word that the option has
    """The text of `document` in one of FORMATS, with a newline at its end. Raises ValueError for another."""
    if format not in FORMATS:
        raise ValueError(f"{format!r} is none of {', '.join(FORMATS)}")
    return FORMATS[format](document)


def _json(document: Document) -> str:
    return json.dumps(document.as_json(), indent=2, allow_nan=False, default=dict) + "\n"


def _jsonl(document: Document) -> str:
    """A line for each row, with everything that reading it alone takes."""
    columns = columns_of(document)
    ordered = ({name: row[name] for name in columns if name in row} for row in flat_rows(document))
    return "".join(compact_json(row) + "\n" for row in ordered)


def _csv(document: Document) -> str:
    """RFC 4180 but for its line ends; an empty cell for what is not known, lists and objects as JSON."""
    columns = columns_of(document)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in flat_rows(document):
        cells = (cell_value(row.get(name)) for name in columns)
        writer.writerow([printable(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


FORMATS: dict[str, Callable[[Document], str]] = {"md": markdown, "json": _json, "jsonl": _jsonl, "csv": _csv}
