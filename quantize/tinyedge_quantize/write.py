"""Executes a plan: weights go from the checkpoint's files to quantized blocks in the output, slab by slab.

Each thread takes the next slab of rows, reads it with pread into its own buffers, widens it to float32, quantizes it and writes
it where the plan says. Nothing waits for its turn, and resident memory is that of the slabs in flight.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tinyedge.errors import WeightValueError
from tinyedge.native import quantize as native
from tinyedge_quantize.output_file import OutputFile, check_room, new_files
from tinyedge_quantize.plan import PlannedFile, TensorPlan
from tinyedge_quantize.tensors import FLOAT_BYTES, Bytes, Floats

# Values in a slab: 1 MiB of float32 stays in the second-level cache of a laptop and is 30 slabs per layer of TinyLlama.
SLAB_ELEMENTS = 256 * 1024

# The bit patterns from which on a value, its sign removed, is infinite or NaN.
_EXPONENT_ALL_ONES: dict[str, tuple[Any, int, int]] = {
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
}

# The largest F16 number. Blocks have F16 scales, none larger than their largest weight. What is beyond is refused before it is
# converted: ggml's IQ searches end the process for 1e18, and a ggml compiled with reordered float operations, as setup.sh
# compiles it, makes of an overflow not infinity but some number.
_LARGEST_F16 = 65504.0

# Called with the output bytes done since the last call and the total.
Progress = Callable[[int, int], None]


class Observer(Protocol):
    """Sees every slab that is written: its rows from `first` on as float32 before, or None for a copy, and its blocks."""

    def add(self, tensor: TensorPlan, first: int, floats: Floats | None, blocks: Bytes) -> None: ...


@dataclass(frozen=True)
class _Slab:
    output: OutputFile
    tensor: TensorPlan
    first: int
    rows: int
    offset: int


def default_threads() -> int:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write(
    files: Sequence[PlannedFile],
    paths: Sequence[Path],
    threads: int | None = None,
    progress: Progress | None = None,
    *,
    observer: Observer | None = None,
    final_header: Callable[[], bytes] | None = None,
) -> None:
    """Writes the planned files; `progress` is called after each slab.

    `final_header` is called at the end and gives the first file's header anew, in as many bytes, with what is known only then.
    Raises OutputError or DiskSpaceError before anything is read, and WeightValueError naming a tensor that holds NaN or
    infinity. The files appear under their names only when all are complete.
    """
    total = sum(file.bytes for file in files)
    for path in paths:
        check_room(path, total)
    native.load_kernels()
    with new_files(paths) as outputs:
        for file, output in zip(files, outputs, strict=True):
            output.write_at(file.header, 0)
            os.truncate(output.descriptor, file.bytes)
        slabs = (slab for file, output in zip(files, outputs, strict=True) for slab in _slabs(file, output))
        _Workers(slabs, total, progress, observer).run(threads or default_threads())
        if final_header is not None:
            header = final_header()
            assert len(header) == len(files[0].header), "a header keeps its size"
            outputs[0].write_at(header, 0)


def _slabs(file: PlannedFile, output: OutputFile) -> Iterator[_Slab]:
    for tensor, offset in zip(file.tensors, file.offsets, strict=True):
        start = len(file.header) + offset
        rows = max(1, SLAB_ELEMENTS // tensor.source.columns)
        for first in range(0, tensor.source.rows, rows):
            count = min(rows, tensor.source.rows - first)
            yield _Slab(output, tensor, first, count, start + first * tensor.row_bytes)


class _Workers:
    """Threads that share one iterator of slabs and stop together at the first error or interrupt."""

    def __init__(self, slabs: Iterator[_Slab], total: int, progress: Progress | None, observer: Observer | None) -> None:
        self._slabs = slabs
        self._progress = progress
        self._observer = observer
        self._total = total
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
                blocks, floats = buffers.convert(slab)
                slab.output.write_at(blocks.data, slab.offset)
                if self._observer is not None:
                    self._observer.add(slab.tensor, slab.first, floats, blocks)
                done = len(blocks)
        except BaseException as error:
            self._stop(error)


class _Buffers:
    """The memory of one thread, grown to the largest slab it meets and reused."""

    def __init__(self) -> None:
        self._raw: Bytes = np.empty(0, np.uint8)
        self._scratch: Bytes = np.empty(0, np.uint8)
        self._floats: Floats = np.empty(0, np.float32)
        self._blocks: Bytes = np.empty(0, np.uint8)
        self._restored: Floats = np.empty(0, np.float32)

    def convert(self, slab: _Slab) -> tuple[Bytes, Floats | None]:
        """The slab in the output's type, and as (rows, columns) float32 unless it is a copy; valid until the next call."""
        tensor, source = slab.tensor, slab.tensor.source
        raw = self._read(slab)
        count = slab.rows * source.columns
        if source.dtype in FLOAT_BYTES:
            largest = _largest_finite(tensor, raw, source.dtype)
            if source.dtype == tensor.ggml_type:
                return raw, None
            floats = self._widen(source.dtype, raw, count)
        else:
            floats = self._widen(source.dtype, raw, count)
            largest = _largest_finite(tensor, floats.view(np.uint8), "F32")
            if source.dtype == tensor.ggml_type:
                return raw, None
        blocks = self._convert(slab, floats, largest)
        return blocks, floats.reshape(slab.rows, source.columns)

    def _convert(self, slab: _Slab, floats: Floats, largest: float) -> Bytes:
        tensor, columns = slab.tensor, slab.tensor.source.columns
        if tensor.ggml_type == "F32":
            return floats.view(np.uint8)
        size = slab.rows * tensor.row_bytes
        self._blocks = _grown(self._blocks, size)
        blocks = self._blocks[:size]
        if largest > _LARGEST_F16 and tensor.ggml_type != "BF16":
            raise WeightValueError(
                f"tensor {tensor.source.name} has weights of {largest:.1e}, beyond the {_LARGEST_F16:.0f} of F16, in which "
                f"{tensor.ggml_type} keeps {'them' if tensor.ggml_type == 'F16' else 'its scales'}",
                "use -t BF16 or F32, or give this tensor such a type with --tensor-type",
            )
        importance = None if tensor.importance is None else tensor.importance.ctypes.data
        # 1-D tensors stay F32, so here a row is a row of the matrix.
        native.quantize_rows(tensor.ggml_type, floats.ctypes.data, blocks.ctypes.data, slab.rows, columns, importance)
        if tensor.ggml_type == "BF16":
            _largest_finite(tensor, blocks, "BF16")
        if importance is not None:
            self._require_restorable(tensor, blocks, len(floats))
        return blocks

    def _require_restorable(self, tensor: TensorPlan, blocks: Bytes, count: int) -> None:
        """Raises WeightValueError when the blocks hold a scale that is infinite or NaN."""
        restored = self._restored = _grown_floats(self._restored, count)
        native.widen(tensor.ggml_type, blocks.ctypes.data, restored.ctypes.data, count)
        if not np.isfinite(restored[:count]).all():
            raise WeightValueError(
                f"tensor {tensor.source.name} becomes NaN or infinite as {tensor.ggml_type} with this importance matrix",
                "make the importance matrix from more text, or go without it",
            )

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
        self._floats = _grown_floats(self._floats, count)
        floats = self._floats[:count]
        native.widen(dtype, raw.ctypes.data, floats.ctypes.data, count)
        return floats


def _grown_floats(buffer: Floats, count: int) -> Floats:
    return buffer if len(buffer) >= count else np.empty(count, np.float32)


def _grown(buffer: Bytes, size: int) -> Bytes:
    return buffer if len(buffer) >= size else np.empty(size, np.uint8)


def _largest_finite(tensor: TensorPlan, data: Bytes, dtype: str) -> float:
    """The largest magnitude among values of a float dtype; raises WeightValueError for NaN and infinity."""
    kind, magnitude, limit = _EXPONENT_ALL_ONES[dtype]
    largest = kind(np.bitwise_and(data.view(kind), kind(magnitude)).max())
    if largest < limit:
        return _value(largest, dtype)
    raise WeightValueError(f"tensor {tensor.source.name} holds NaN or infinite values")


def _value(bits: Any, dtype: str) -> float:
    """The number with these bits in a float dtype."""
    if dtype == "F16":
        return float(bits.view(np.float16))
    return float((np.uint32(bits) << np.uint32(16 if dtype == "BF16" else 0)).view(np.float32))
