"""A document of results as flat rows: the columns of csv, jsonl and sqlite, in one order and with one type each.

llama-bench's columns come first, in its order and with its names (tools/llama-bench/llama-bench.cpp, `test::get_fields`), so
that what reads its files reads ours. What belongs to the whole measurement stands in every row, because rows of several
measurements are put together: `schema`, `kind`, and `document`, an object with everything but the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinyedge_bench.result_files import SCHEMA, Document

# What a column holds: SQLite's name of the type, or JSON for lists and objects, which are text where cells are.
COLUMNS = {
    "build_commit": "TEXT",
    "cpu_info": "TEXT",
    "gpu_info": "TEXT",
    "backends": "TEXT",
    "model_filename": "TEXT",
    "model_type": "TEXT",
    "model_size": "INTEGER",
    "model_n_params": "INTEGER",
    "n_batch": "INTEGER",
    "n_ubatch": "INTEGER",
    "n_threads": "INTEGER",
    "type_k": "TEXT",
    "type_v": "TEXT",
    "n_gpu_layers": "INTEGER",
    "flash_attn": "INTEGER",
    "n_prompt": "INTEGER",
    "n_gen": "INTEGER",
    "n_depth": "INTEGER",
    "test_time": "TEXT",
    "avg_ns": "REAL",
    "stddev_ns": "REAL",
    "avg_ts": "REAL",
    "stddev_ts": "REAL",
    "samples_ns": "JSON",
    "samples_ts": "JSON",
    "engine": "TEXT",
    "engine_version": "TEXT",
    "n_parallel": "INTEGER",
    "test": "TEXT",
    "median_ts": "REAL",
    "ttft_ns": "REAL",
    "ttft_samples_ns": "JSON",
    "bytes_per_s": "REAL",
    "bandwidth_share": "REAL",
    "flops": "REAL",
    "matrix_share": "REAL",
    "energy_j_per_token": "REAL",
    "energy_note": "TEXT",
    "temperature_c": "JSON",
    "clock_mhz": "JSON",
    "throttled": "JSON",
    "warnings": "JSON",
}
WHOLE = {"schema": "INTEGER", "kind": "TEXT", "document": "JSON"}


def columns_of(document: Document) -> dict[str, str]:
    """The columns of its rows by name, in order, with what each holds: ours, then what only these rows have, then the whole."""
    others = {name: _kind(row[name]) for row in document.results for name in row if name not in COLUMNS | WHOLE}
    known = COLUMNS if document.kind == "speed" else {}
    return {**known, **others, **WHOLE}


def flat_rows(document: Document) -> list[dict[str, Any]]:
    """A row of values for each result; what a row lacks is missing or None."""
    machine = document.machine
    devices = machine.get("devices")
    gpus = [str(each) for each in devices if not str(each).startswith("cpu")] if isinstance(devices, list) else []
    facts = {
        "build_commit": document.build.get("ggml_commit"),
        "cpu_info": machine.get("cpu"),
        "gpu_info": ", ".join(gpus),
    }
    whole = {"schema": SCHEMA, "kind": document.kind, "document": whole_object(document)}
    return [{**(facts if document.kind == "speed" else {}), **row, **whole} for row in document.results]


def whole_object(document: Document) -> dict[str, Any]:
    """Everything of a document but its rows and its schema."""
    everything = document.as_json()
    return {key: value for key, value in everything.items() if key not in ("tinyedge", "results")}


def cell_value(value: Any) -> Any:
    """`value` as a cell of csv or SQLite can hold it: lists and objects as JSON text, true and false as 1 and 0."""
    if isinstance(value, bool):
        return int(value)
    return compact_json(value) if isinstance(value, (list, tuple, Mapping)) else value


def compact_json(value: Any) -> str:
    """ASCII only, so that nothing in a name can drive a terminal. Raises ValueError for NaN and infinity."""
    return json.dumps(value, allow_nan=False, default=dict)


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple, Mapping)):
        return "JSON"
    return {bool: "INTEGER", int: "INTEGER", float: "REAL"}.get(type(value), "TEXT")
