"""Results of speed in any form that tinyedge writes or llama-bench does, told apart by their content.

Such files come from strangers too: nothing in them runs, and what is not as it must be is one sentence.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from tinyedge.errors import ResultFileError
from tinyedge_bench.result_files import MOST_BYTES, Document
from tinyedge_bench.speed.formats_sqlite import MAGIC
from tinyedge_bench.speed.read_speed_database import database_rows
from tinyedge_bench.speed.read_speed_text import text_documents
from tinyedge_bench.speed.read_speed_values import Values, documents_of_rows

_KINDS_READ = "give a file that `tinyedge bench` or llama-bench wrote (json, jsonl, csv or sqlite)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRow:
    """One case of one engine and its samples in tokens per second; a number is None where the file has none.

    `backend` is in lower case; `samples` is empty where only their mean was kept, as in llama-bench's csv.
    """

    model_filename: str
    model_type: str
    model_n_params: int | None
    engine: str
    engine_version: str
    backend: str
    threads: int | None
    batch: int | None
    ubatch: int | None
    gpu_layers: int | None
    flash_attn: str
    type_k: str
    type_v: str
    prompt: int
    generate: int
    depth: int
    sequences: int
    test: str
    time: str
    samples: tuple[float, ...]
    mean: float
    deviation: float
    median: float
    bytes_per_s: float | None
    bandwidth_share: float | None
    flops: float | None
    matrix_share: float | None


def read_document(path: Path) -> Document:
    """The newest measurement in the file, of any kind; see `read_documents`."""
    documents = read_documents(path)
    return max(enumerate(documents), key=lambda each: (each[1].date, each[0]))[1]


def read_documents(path: Path) -> tuple[Document, ...]:
    """Every measurement in the file, in the order of their first rows. Raises ResultFileError, OSError.

    A database or a file of lines holds as many as were put into it; llama-bench's own results are one, of engine llama-bench.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ResultFileError(f"{path} is not a regular file", _KINDS_READ)
    if status.st_size > MOST_BYTES:
        raise ResultFileError(f"{path} is larger than any file of results ({status.st_size} bytes)", _KINDS_READ)
    with path.open("rb") as file:
        data = file.read(MOST_BYTES)
    if data.startswith(MAGIC):
        documents = documents_of_rows(database_rows(path, len(data)), path)
    else:
        documents = text_documents(data, path)
    if not documents:
        raise ResultFileError(f"{path} holds no results", _KINDS_READ)
    return documents


def speed_rows(document: Document, path: Path) -> tuple[SpeedRow, ...]:
    """The rows of a speed document, checked; `path` is named in errors. Raises ResultFileError."""
    if document.kind != "speed":
        raise ResultFileError(f"{path} holds {document.kind} results, not speeds", _KINDS_READ)
    if not document.results:
        raise ResultFileError(f"{path} holds no results: every case failed or was left out", _KINDS_READ)
    return tuple(_speed_row(Values(row, f"result {place} of {path}")) for place, row in enumerate(document.results, 1))


def _speed_row(row: Values) -> SpeedRow:
    prompt, generate, depth = (row.count(key) or 0 for key in ("n_prompt", "n_gen", "n_depth"))
    sequences = row.count("n_parallel") or 1
    samples = _samples(row, (prompt + generate) * sequences)
    mean = fmean(samples) if samples else row.positive("avg_ts")
    if mean is None:
        raise row.error("samples_ts", "has no tokens per second")
    return SpeedRow(
        model_filename=row.text("model_filename"),
        model_type=row.text("model_type"),
        model_n_params=row.count("model_n_params"),
        engine=row.text("engine") or "tinyedge",
        engine_version=row.text("engine_version"),
        backend=row.text("backends").lower(),
        threads=row.count("n_threads"),
        batch=row.count("n_batch"),
        ubatch=row.count("n_ubatch"),
        gpu_layers=row.whole("n_gpu_layers"),
        flash_attn=str(row.row.get("flash_attn", ""))[:20],
        type_k=row.text("type_k").lower(),
        type_v=row.text("type_v").lower(),
        prompt=prompt,
        generate=generate,
        depth=depth,
        sequences=sequences,
        test=row.text("test"),
        time=row.text("test_time"),
        samples=samples,
        mean=mean,
        deviation=(stdev(samples) if len(samples) > 1 else 0.0) if samples else row.number("stddev_ts") or 0.0,
        median=median(samples) if samples else mean,
        bytes_per_s=row.number("bytes_per_s"),
        bandwidth_share=row.number("bandwidth_share"),
        flops=row.number("flops"),
        matrix_share=row.number("matrix_share"),
    )


def _samples(row: Values, tokens: int) -> tuple[float, ...]:
    """Tokens per second of each run: from the times, which llama-bench gives with more digits, or as they are given."""
    times, speeds = (row.positives(key) for key in ("samples_ns", "samples_ts"))
    if times and speeds and len(times) != len(speeds):
        raise row.error("samples_ns", f"has {len(times)} times and {len(speeds)} speeds")
    return tuple(tokens * 1e9 / time for time in times) if times and tokens else speeds
