"""Rows of results in a SQLite database that is appended to, run after run: table `tinyedge_bench`."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from pathlib import Path

from tinyedge.errors import ResultFileError
from tinyedge_bench.result_files import Document
from tinyedge_bench.speed.formats_columns import WHOLE, cell_value, columns_of, flat_rows

TABLE = "tinyedge_bench"
MAGIC = b"SQLite format 3\x00"
WHOLE_COLUMNS = frozenset(WHOLE)

# What sqlite3 raises for a damaged database, whose messages quote it, and for a number that SQLite cannot hold.
FAILURES = (sqlite3.Error, OverflowError, UnicodeDecodeError)

_OTHER = "name another file with -o"
_SQL_TYPES = {"JSON": "TEXT"}


def append_sqlite(document: Document, path: Path) -> None:
    """Adds the rows of `document` to the database at `path`, all or none.

    The database and the table are made where they are absent. Columns that the table lacks are added, and what it holds
    stays. Raises ResultFileError where something else is at `path` or another table has the name, OSError.
    """
    _require_database(path)
    kinds = columns_of(document)
    rows = flat_rows(document)
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("BEGIN IMMEDIATE")
            _add_columns(database, path, kinds)
            names = ", ".join(map(_quoted, kinds))
            places = ", ".join("?" * len(kinds))
            database.executemany(
                f"INSERT INTO {TABLE} ({names}) VALUES ({places})",
                ([cell_value(row.get(name)) for name in kinds] for row in rows),
            )
            database.execute("COMMIT")
    except FAILURES as error:
        raise ResultFileError(f"{path} cannot be added to ({error})", _OTHER) from error


def require_results(path: Path) -> None:
    """Raises ResultFileError unless rows can be added to what is at `path`, which nothing is done to; OSError."""
    _require_database(path)
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            require_table(database, path, TABLE, WHOLE_COLUMNS)
    except FAILURES as error:
        raise ResultFileError(f"{path} cannot be read ({error})", _OTHER) from error


def _require_database(path: Path) -> None:
    """Raises ResultFileError unless `path` is free, empty or a SQLite database."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise ResultFileError(f"the folder {path.parent} does not exist", "make it first, or " + _OTHER) from None
        return
    if not stat.S_ISREG(mode):
        raise ResultFileError(f"{path} is not a regular file", _OTHER)
    with path.open("rb") as file:
        if file.read(len(MAGIC)) not in (b"", MAGIC):
            raise ResultFileError(f"{path} is there already and is not a SQLite database", _OTHER)


def _add_columns(database: sqlite3.Connection, path: Path, kinds: dict[str, str]) -> None:
    """Makes the table, or checks that the one there is ours and adds what it lacks."""
    declared = {name: f"{_quoted(name)} {_SQL_TYPES.get(kind, kind)}" for name, kind in kinds.items()}
    there = require_table(database, path, TABLE, WHOLE_COLUMNS)
    if not there:
        database.execute(f"CREATE TABLE {TABLE} ({', '.join(declared.values())})")
        return
    for name in kinds.keys() - there:
        database.execute(f"ALTER TABLE {TABLE} ADD COLUMN {declared[name]}")


def require_table(
    database: sqlite3.Connection, path: Path, table: str, needed: frozenset[str], remedy: str = _OTHER
) -> list[str]:
    """The columns of `table`, among which `needed` are; none where nothing has that name.

    Raises ResultFileError where a view, a trigger, a computed column or someone else's table has the name: reading or writing
    it could run what a stranger wrote.
    """
    entries = database.execute("SELECT type FROM sqlite_master WHERE tbl_name = ? COLLATE NOCASE", (table,)).fetchall()
    if not entries:
        return []
    columns = database.execute(f"PRAGMA table_xinfo({table})").fetchall()
    names = [str(column[1]) for column in columns]
    if {kind for (kind,) in entries} != {"table"} or any(column[6] for column in columns) or not needed <= set(names):
        raise ResultFileError(f"{path} has another table named {table}", remedy)
    return names


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
