"""Results in text: tinyedge's json, and rows in jsonl, csv or llama-bench's json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyedge.errors import ResultFileError
from tinyedge_bench.result_files import MOST_BYTES, Document, as_document
from tinyedge_bench.speed.read_speed_values import documents_of_rows, parse_json, typed

_OTHER = "give a file that `tinyedge bench` or llama-bench wrote (json, jsonl, csv or sqlite)"

_Rows = Iterator[tuple[str, Mapping[str, Any]]]


def text_documents(data: bytes, path: Path) -> tuple[Document, ...]:
    """The measurements in the bytes of a file that is no database. Raises ResultFileError."""
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ResultFileError(f"{path} is neither text nor a database", _OTHER) from error
    if not text:
        raise ResultFileError(f"{path} is empty", _OTHER)
    if not text.startswith(("{", "[")):
        return documents_of_rows(_csv_rows(text, path), path)
    first = text.partition("\n")[0]
    if text.startswith("{") and len(first) > 1 and not _is_json(text):
        return documents_of_rows(_line_rows(text, path), path)
    whole = parse_json(text, str(path))
    if isinstance(whole, dict) and ("tinyedge" in whole or "results" in whole):
        return (as_document(whole, path),)
    return documents_of_rows(_array_rows(whole if isinstance(whole, list) else [whole], path), path)


def _is_json(text: str) -> bool:
    """Whether the whole text is one value of JSON, not one in each line."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _array_rows(rows: list[Any], path: Path) -> _Rows:
    for place, row in enumerate(rows, 1):
        yield _row(row, f"result {place} of {path}")


def _line_rows(text: str, path: Path) -> _Rows:
    for place, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"line {place} of {path}"
            yield _row(parse_json(line, where), where)


def _row(value: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(value, dict):
        raise ResultFileError(f"{where} is not a row of results", _OTHER)
    return where, value


def _csv_rows(text: str, path: Path) -> _Rows:
    """The rows of a table with a head, which files put one behind the other repeat."""
    limit = csv.field_size_limit(MOST_BYTES)  # a cell with every sample is longer than Python's own limit
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        head = next(reader)
        if not {"model_filename", "document"} & set(head) or len(set(head)) < len(head):
            raise ResultFileError(f"{path} is not a file of results", _OTHER)
        for cells in reader:
            where = f"line {reader.line_num} of {path}"
            if cells and cells != head:
                if len(cells) != len(head):
                    raise ResultFileError(f"{where} has {len(cells)} cells where {len(head)} must be", "write the file again")
                yield where, typed(dict(zip(head, cells, strict=True)), where)
    except csv.Error as error:
        raise ResultFileError(f"{path} is not a file of results ({error})", _OTHER) from error
    finally:
        csv.field_size_limit(limit)
