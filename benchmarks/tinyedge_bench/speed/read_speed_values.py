"""The values of a row of results, each checked for what it must be, and rows put back into the documents they came from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tinyedge.errors import ResultFileError
from tinyedge_bench.result_files import SCHEMA, Document, as_document
from tinyedge_bench.speed.formats_columns import COLUMNS, WHOLE

# The columns by which a row without our schema is known as one of llama-bench's.
LLAMA_BENCH = frozenset(("model_filename", "n_prompt", "n_gen", "avg_ts"))

_LEAST, _MOST = 1e-9, 1e18  # of nanoseconds and of tokens per second, beyond which nothing was measured


@dataclass(frozen=True, slots=True)
class Values:
    """The values of `row`, which `where` names in errors. Every reader raises ResultFileError for another type or NaN."""

    row: Mapping[str, Any]
    where: str

    def error(self, key: str, problem: str) -> ResultFileError:
        return ResultFileError(f"{self.where} {problem} ({key})", "the file is damaged: write it again")

    def text(self, key: str) -> str:
        """The text under `key`, empty where there is none."""
        value = self.row.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "has no text where text must be")
        return value or ""

    def number(self, key: str) -> float | None:
        """The finite number under `key`."""
        return self._number(self.row.get(key), key)

    def positive(self, key: str) -> float | None:
        return self._positive(self.number(key), key)

    def whole(self, key: str) -> int | None:
        """The whole number under `key`, such as -1 layers."""
        value = self.number(key)
        if value is not None and not (value.is_integer() and abs(value) < 2**63):
            raise self.error(key, "has no whole number where one must be")
        return None if value is None else int(value)

    def count(self, key: str) -> int | None:
        """The whole number under `key`, not below 0."""
        value = self.whole(key)
        if value is not None and value < 0:
            raise self.error(key, "has a number below 0")
        return value

    def numbers(self, key: str) -> tuple[float | None, ...]:
        """The list under `key`, empty where there is none."""
        value = self.row.get(key)
        if value is not None and not isinstance(value, (list, tuple)):
            raise self.error(key, "has no list where a list must be")
        return tuple(self._number(each, key) for each in value or ())

    def positives(self, key: str) -> tuple[float, ...]:
        return tuple(number for each in self.numbers(key) if (number := self._positive(each, key)) is not None)

    def _number(self, value: Any, key: str) -> float | None:
        if value is None:
            return None
        try:
            if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
        raise self.error(key, "has no number where a number must be")

    def _positive(self, value: float | None, key: str) -> float | None:
        if value is not None and not _LEAST <= value <= _MOST:
            raise self.error(key, "has a time or a speed that cannot be")
        return value


def parse_json(text: str | bytes, where: str) -> Any:
    """The value that `text` is; NaN and infinity, which are no JSON, are refused. Raises ResultFileError that names `where`."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ResultFileError(f"{where} is not JSON", "the file is damaged or was cut short: write it again") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def documents_of_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], path: Path) -> tuple[Document, ...]:
    """Rows, each with the words that name it, put together by the measurement they are of. Raises ResultFileError."""
    together: dict[str, tuple[Any, list[Mapping[str, Any]]]] = {}
    for where, row in rows:
        whole = _whole(row, where)
        kept = {key: value for key, value in _as_ours(row).items() if key not in WHOLE and value is not None}
        together.setdefault(json.dumps(whole, sort_keys=True, default=str), (whole, []))[1].append(kept)
    return tuple(as_document({**whole, "results": results}, path) for whole, results in together.values())


def _is_llama_bench(row: Mapping[str, Any]) -> bool:
    return "schema" not in row and row.keys() >= LLAMA_BENCH


def _whole(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the row says of its measurement, as a document without results."""
    if _is_llama_bench(row):
        gpu = row.get("gpu_info")
        return {
            "tinyedge": {"schema": SCHEMA, "kind": "speed"},
            "date": "",
            "machine": {"cpu": row.get("cpu_info"), "devices": [gpu] if gpu else []},
            "build": {"llama.cpp": _llama_cpp(row)},
        }
    whole = row.get("document")
    if "schema" not in row or not isinstance(whole, Mapping):
        raise ResultFileError(f"{where} is a row of neither tinyedge nor llama-bench", "write the file again")
    return {**whole, "tinyedge": {"schema": row["schema"], "kind": row.get("kind")}}


def _as_ours(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of llama-bench's with what ours have beside; ours as it is."""
    if not _is_llama_bench(row):
        return row
    return {**row, "engine": "llama-bench", "engine_version": _llama_cpp(row), "test": _test_name(row)}


def _llama_cpp(row: Mapping[str, Any]) -> str:
    """The version as llama-bench prints it below its table."""
    return f"{row.get('build_commit')} ({row.get('build_number')})"


def _test_name(row: Mapping[str, Any]) -> str:
    """As llama-bench's table names it (`markdown_printer`, column test)."""
    parts = [f"{word}{row[key]}" for word, key in (("pp", "n_prompt"), ("tg", "n_gen")) if row[key]]
    return "+".join(parts) + (f" @ d{row['n_depth']}" if row.get("n_depth") else "")


def typed(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row of cells as typed values, by what its columns hold: csv has text only, SQLite no lists."""
    return {name: _typed(value, (COLUMNS | WHOLE).get(name), f"{where} ({name})") for name, value in row.items()}


def _typed(value: Any, kind: str | None, where: str) -> Any:
    if value is None or value == "":
        return None
    if kind == "JSON" and isinstance(value, str):
        return parse_json(value, where)
    if kind in ("INTEGER", "REAL") and isinstance(value, str):
        try:
            return int(value) if kind == "INTEGER" else float(value)
        except ValueError as error:
            raise ResultFileError(f"{where} is not a number", "the file is damaged: write it again") from error
    return value
