"""Executes a plan: weights go from the checkpoint's files to quantized blocks in the output, slab by slab.

Each thread takes the next slab of rows, reads it with pread into its own buffers, widens it to float32, quantizes it and writes
it where the plan says. Nothing waits for its turn, and resident memory is that of the slabs in flight.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tinyedge.errors import WeightValueError
from tinyedge.native import quantize as native
from tinyedge_quantize.output_file import OutputFile, check_room, new_file
from tinyedge_quantize.plan import QuantPlan, TensorPlan
from tinyedge_quantize.tensors import Bytes

Floats: TypeAlias = npt.NDArray[np.float32]

# Values in a slab: 1 MiB of float32 stays in the second-level cache of a laptop and is 30 slabs per layer of TinyLlama.
SLAB_ELEMENTS = 256 * 1024

# The bit patterns from which on a value, its sign removed, is infinite or NaN.
_EXPONENT_ALL_ONES: dict[str, tuple[Any, int, int]] = {
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
}

# Called with the output bytes done since the last call and the total.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Slab:
    tensor: TensorPlan
    first: int
    rows: int
    offset: int


def default_threads() -> int:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write(plan: QuantPlan, path: Path, threads: int | None = None, progress: Progress | None = None) -> None:
    """Writes the planned file; `progress` is called after each slab.

    Raises OutputError or DiskSpaceError before anything is read, and WeightValueError naming a tensor that holds NaN or
    infinity. The file appears under `path` only when it is complete.
    """
    check_room(path, plan.total_bytes)
    native.load_kernels()
    with new_file(path) as output:
        output.write_at(plan.header, 0)
        os.truncate(output.descriptor, plan.total_bytes)
        _Workers(plan, output, progress).run(threads or default_threads())


def _slabs(plan: QuantPlan) -> Iterator[_Slab]:
    for tensor, offset in zip(plan.tensors, plan.offsets, strict=True):
        start = len(plan.header) + offset
        rows = max(1, SLAB_ELEMENTS // tensor.source.columns)
        for first in range(0, tensor.source.rows, rows):
            count = min(rows, tensor.source.rows - first)
            yield _Slab(tensor, first, count, start + first * tensor.row_bytes)


class _Workers:
    """Threads that share one iterator of slabs and stop together at the first error or interrupt."""

    def __init__(self, plan: QuantPlan, output: OutputFile, progress: Progress | None) -> None:
        self._slabs = _slabs(plan)
        self._output = output
        self._progress = progress
        self._total = plan.total_bytes
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def run(self, threads: int) -> None:
        pool = [threading.Thread(target=self._work, name=f"quantize-{n}") for n in range(threads)]
        for thread in pool:
            thread.start()
        try:
            for thread in pool:
                while thread.is_alive():
                    # A join without a timeout would hold back Ctrl-C on some platforms.
                    thread.join(0.2)
        except BaseException as interrupt:
            self._stop(interrupt)
        for thread in pool:
            thread.join()
        if self._error is not None:
            raise self._error

    def _stop(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error

    def _next(self, done: int) -> _Slab | None:
        with self._lock:
            if done and self._progress is not None:
                self._progress(done, self._total)
            return None if self._error is not None else next(self._slabs, None)

    def _work(self) -> None:
        try:
            buffers = _Buffers()
            done = 0
            while (slab := self._next(done)) is not None:
                data = buffers.convert(slab)
                self._output.write_at(data, slab.offset)
                done = len(data)
        except BaseException as error:
            self._stop(error)


class _Buffers:
    """The memory of one thread, grown to the largest slab it meets and reused."""

    def __init__(self) -> None:
        self._raw: Bytes = np.empty(0, np.uint8)
        self._scratch: Bytes = np.empty(0, np.uint8)
        self._floats: Floats = np.empty(0, np.float32)
        self._blocks: Bytes = np.empty(0, np.uint8)

    def convert(self, slab: _Slab) -> memoryview:
        """The slab's bytes in the output's type, valid until the next call."""
        tensor, source = slab.tensor, slab.tensor.source
        raw = self._read(slab)
        _require_finite(tensor, raw)
        if source.dtype == tensor.ggml_type:
            return raw.data
        count = slab.rows * source.columns
        floats = self._widen(source.dtype, raw, count)
        if tensor.ggml_type == "F32":
            return floats.view(np.uint8).data
        target = self._blocks = _grown(self._blocks, slab.rows * tensor.row_bytes)
        blocks = target[: slab.rows * tensor.row_bytes]
        # 1-D tensors stay F32, so here a row is a row of the matrix.
        native.quantize_rows(tensor.ggml_type, floats.ctypes.data, blocks.ctypes.data, slab.rows, source.columns)
        if tensor.ggml_type == "F16":
            _require_finite(tensor, blocks, "F16")
        return blocks.data

    def _read(self, slab: _Slab) -> Bytes:
        source = slab.tensor.source
        size = slab.rows * source.row_bytes
        self._raw = _grown(self._raw, size)
        if source.order is not None:
            self._scratch = _grown(self._scratch, size)
        raw = self._raw[:size]
        source.read_rows(slab.first, slab.rows, raw, self._scratch[:size])
        return raw

    def _widen(self, dtype: str, raw: Bytes, count: int) -> Floats:
        if dtype == "F32":
            return raw.view(np.float32)
        if len(self._floats) < count:
            self._floats = np.empty(count, np.float32)
        floats = self._floats[:count]
        native.widen(dtype, raw.ctypes.data, floats.ctypes.data, count)
        return floats


def _grown(buffer: Bytes, size: int) -> Bytes:
    return buffer if len(buffer) >= size else np.empty(size, np.uint8)


def _require_finite(tensor: TensorPlan, data: Bytes, dtype: str | None = None) -> None:
    kind, magnitude, limit = _EXPONENT_ALL_ONES[dtype or tensor.source.dtype]
    if int(np.bitwise_and(data.view(kind), kind(magnitude)).max()) < limit:
        return
    if dtype is not None and tensor.source.dtype != dtype:
        raise WeightValueError(
            f"tensor {tensor.source.name} has values beyond F16's range of 65504", "use -t BF16 or a quantized type"
        )
    raise WeightValueError(f"tensor {tensor.source.name} holds NaN or infinite values")
