"""Rows of results from a SQLite database: ours, or the one that llama-bench's `-o sql` makes."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyedge.errors import ResultFileError
from tinyedge_bench.speed.formats_sqlite import FAILURES, TABLE, WHOLE_COLUMNS, require_table
from tinyedge_bench.speed.read_speed_values import LLAMA_BENCH, typed

# Its table's name, and that before 2025.
_THEIRS = ("llama_bench", "test")
_LEAST_ROW = 40  # bytes: a row has a byte or more for the type of each column

_OTHER = "give a database that `tinyedge bench -o sqlite` or llama-bench made"


def database_rows(path: Path, size: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of the database at `path`, whose file has `size` bytes, each with its name. Raises ResultFileError.

    Opened for reading alone, and only a plain table is read, so that nothing that a stranger stored in it runs.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            table, names = _table(database, path)
            for place, cells in enumerate(database.execute(f"SELECT * FROM {table}"), 1):
                if place * _LEAST_ROW > size:
                    raise ResultFileError(f"{path} is damaged: it has more rows than bytes for them", _OTHER)
                where = f"row {place} of {path}"
                yield where, typed(dict(zip(names, cells, strict=True)), where)
    except FAILURES as error:
        raise ResultFileError(f"{path} cannot be read ({error})", _OTHER) from error


def _table(database: sqlite3.Connection, path: Path) -> tuple[str, list[str]]:
    """The table that holds results and its columns."""
    for table, needed in ((TABLE, WHOLE_COLUMNS), *((name, LLAMA_BENCH) for name in _THEIRS)):
        names = require_table(database, path, table, needed, _OTHER)
        if names:
            return table, names
    raise ResultFileError(f"{path} has no table of results", _OTHER)
