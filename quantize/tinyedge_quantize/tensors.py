"""Tensors as they lie in checkpoint files: where each row is and how to read it without mapping the file.

Rows are read with pread into buffers the caller reuses, so resident memory stays that of the slabs in flight: mapped pages
would count as ours and a board with 1 GB would start to swap.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tinyedge.errors import CheckpointError, TensorMismatchError
from tinyedge.ggml_types import row_bytes as ggml_row_bytes
from tinyedge.native import quantize as native
from tinyedge_quantize.strangers import open_regular

Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
RowOrder: TypeAlias = npt.NDArray[np.int64]

# Floating types a weight may have, with bytes per element. Others are what quantized checkpoints keep their parts in, or are
# listed so that a message can name them.
FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
OTHER_BYTES = {
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
DTYPE_BYTES = FLOAT_BYTES | OTHER_BYTES

# Where a row's elements lie further apart than this, reading them one by one costs less than reading the span between them.
_SPARSE_STRIDE_BYTES = 4096
_GATHER_COLUMNS = 1024
# What a transposed read holds of the file at a time.
_BLOCK_BYTES = 1024 * 1024
_TOO_MANY_OPEN = "allow more open files at a time (`ulimit -n 4096`): every part of the checkpoint is one"


class WeightFile:
    """An open checkpoint file: its path, size in bytes, and reads at a position that are safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = open_regular(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except OSError as error:
            remedy = _TOO_MANY_OPEN if error.errno in (errno.EMFILE, errno.ENFILE) else "check its kind and permissions"
            raise CheckpointError(f"{path} cannot be read ({error.strerror})", remedy) from error
        self.size = os.fstat(self._descriptor).st_size

    def read_into(self, out: Bytes, offset: int) -> None:
        """Fills `out` from `offset`; raises CheckpointError when the file ends before."""
        view = out.data
        while view:
            try:
                count = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be read ({error.strerror})", "check the disk") from error
            if count == 0:
                raise CheckpointError(f"{self.path} ended at {offset} bytes while a tensor goes on")
            view = view[count:]
            offset += count

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes from `offset`, checked against the file's size before anything is allocated."""
        if offset < 0 or count < 0:
            raise CheckpointError(f"{self.path} is damaged: it speaks of a place before its beginning")
        if offset + count > self.size:
            raise CheckpointError(f"{self.path} is truncated: it has {self.size} bytes of the {offset + count} it speaks of")
        out = np.empty(count, np.uint8)
        self.read_into(out, offset)
        return out.tobytes()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RowReader(Protocol):
    """Fills `out` with rows `first` to `first + count` of a matrix, row after row, in the file's own dtype."""

    def __call__(self, first: int, count: int, out: Bytes) -> None: ...


@dataclass(frozen=True)
class StridedRows:
    """Rows of a (rows, columns) view: `offset` in bytes, strides and `itemsize` as torch counts them, in elements and bytes."""

    file: WeightFile
    offset: int
    row_stride: int
    column_stride: int
    columns: int
    itemsize: int

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        row_bytes = self.columns * self.itemsize
        start = self.offset + first * self.row_stride * self.itemsize
        if self.column_stride == 1 or self.columns == 1:
            if self.row_stride == self.columns or count == 1:
                self.file.read_into(out, start)
                return
            for row in range(count):
                place = start + row * self.row_stride * self.itemsize
                self.file.read_into(out[row * row_bytes : (row + 1) * row_bytes], place)
            return
        elements = out.reshape(count, self.columns, self.itemsize)
        if self.row_stride == 1:
            self._read_columns(start, count, elements)
        else:
            for row in range(count):
                self._read_spread_row(start + row * self.row_stride * self.itemsize, elements[row])

    def _read_columns(self, start: int, count: int, elements: Bytes) -> None:
        """A transposed view: each column of the slab is contiguous in the file."""
        column = np.empty(count * self.itemsize, np.uint8)
        for index in range(self.columns):
            self.file.read_into(column, start + index * self.column_stride * self.itemsize)
            elements[:, index] = column.reshape(count, self.itemsize)

    def _read_spread_row(self, start: int, row: Bytes) -> None:
        step = self.column_stride * self.itemsize
        if step > _SPARSE_STRIDE_BYTES:
            for index in range(self.columns):
                self.file.read_into(row[index], start + index * step)
            return
        for first in range(0, self.columns, _GATHER_COLUMNS):
            count = min(_GATHER_COLUMNS, self.columns - first)
            span = np.empty((count - 1) * step + self.itemsize, np.uint8)
            self.file.read_into(span, start + first * step)
            row[first : first + count] = np.lib.stride_tricks.as_strided(span, (count, self.itemsize), (step, 1))


@dataclass(frozen=True)
class BlockRows:
    """Rows of `row_bytes` each that follow one another from byte `offset` on, whatever blocks they are made of."""

    file: WeightFile
    offset: int
    row_bytes: int

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        self.file.read_into(out[: count * self.row_bytes], self.offset + first * self.row_bytes)


@dataclass(frozen=True)
class ConstantRows:
    """Rows of a small tensor that no file holds, such as the RoPE factors computed from the configuration."""

    values: npt.NDArray[np.float32]

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        out[:] = self.values[first : first + count].view(np.uint8).ravel()


@dataclass(frozen=True)
class ColumnsAsRows:
    """The columns of another tensor as rows, for matrices that are stored (in, out); reads whole rows in blocks."""

    source: SourceTensor

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        source = self.source
        itemsize = DTYPE_BYTES[source.dtype]
        columns = out.reshape(count, source.rows, itemsize)
        step = max(1, _BLOCK_BYTES // source.row_bytes)
        for begin in range(0, source.rows, step):
            rows = min(step, source.rows - begin)
            raw, scratch = np.empty((2, rows * source.row_bytes), np.uint8)
            source.read_rows(begin, rows, raw, scratch)
            block = raw.reshape(rows, source.columns, itemsize)[:, first : first + count]
            columns[:, begin : begin + rows] = block.transpose(1, 0, 2)


@dataclass(frozen=True)
class ShiftedRows:
    """The values of another tensor plus `shift`, computed in that tensor's dtype as torch would (BF16 gives F32)."""

    source: SourceTensor
    shift: float

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        values = float_rows(self.source, first, count) + np.float32(self.shift)
        kind = np.float16 if self.source.dtype == "F16" else np.float32
        out[:] = values.astype(kind).view(np.uint8).ravel()


@dataclass(frozen=True)
class StackedRows:
    """Vectors of equal length, one after the other, as the rows of a matrix."""

    parts: tuple[SourceTensor, ...]

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        size = len(out) // count
        scratch = np.empty(size, np.uint8)
        for row, part in enumerate(self.parts[first : first + count]):
            part.read_rows(0, part.rows, out[row * size : (row + 1) * size], scratch)


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a checkpoint: `shape` as torch gives it, `dtype` in safetensors' spelling, and how to read its rows.

    From a GGUF file `dtype` may also be a ggml type, whose rows are whole blocks. A 1-D tensor counts as rows of one element.
    `order` gives, for each row, its index in the file: fused matrices are taken apart and rotary rows permuted by choosing
    rows, never by moving weights.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    reader: RowReader
    order: RowOrder | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        size = DTYPE_BYTES.get(self.dtype)
        return ggml_row_bytes(self.dtype, self.columns) if size is None else self.columns * size

    def select_rows(self, order: RowOrder, name: str | None = None) -> SourceTensor:
        """The same tensor with row i read from row `order[i]`."""
        highest = int(np.max(order)) if len(order) else -1
        if highest >= self.rows:
            raise TensorMismatchError(f"tensor {self.name} has {self.rows} rows where the configuration needs {highest + 1}")
        combined = order if self.order is None else self.order[order]
        return replace(self, name=name or self.name, shape=(len(order), *self.shape[1:]), order=combined)

    def transposed(self) -> SourceTensor:
        """The same matrix with rows and columns exchanged, for layers that are stored (in, out)."""
        if isinstance(self.reader, ColumnsAsRows) and self.order is None:  # turned back
            return replace(self.reader.source, name=self.name)
        reader: RowReader = ColumnsAsRows(self)
        strided = self.reader
        if isinstance(strided, StridedRows) and self.order is None:
            reader = replace(strided, row_stride=strided.column_stride, column_stride=strided.row_stride, columns=self.rows)
        return SourceTensor(self.name, (self.columns, self.rows), self.dtype, reader)

    def shifted(self, shift: float) -> SourceTensor:
        """The same tensor with `shift` added to every value."""
        dtype = "F16" if self.dtype == "F16" else "F32"
        return SourceTensor(self.name, self.shape, dtype, ShiftedRows(self, shift))

    def read_rows(self, first: int, count: int, out: Bytes, scratch: Bytes) -> None:
        """Fills `out` (count * row_bytes) with rows; `scratch`, as large, is used when the rows have an order of their own."""
        if self.order is None:
            self.reader(first, count, out)
            return
        wanted = self.order[first : first + count]
        by_place = np.argsort(wanted, kind="stable")
        places = wanted[by_place]
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        row_bytes = self.row_bytes
        for begin, end in zip([0, *breaks], [*breaks, count], strict=True):
            self.reader(int(places[begin]), int(end - begin), scratch[begin * row_bytes : end * row_bytes])
        back = np.empty(count, np.int64)
        back[by_place] = np.arange(count)
        np.take(scratch.reshape(count, row_bytes), back, axis=0, out=out.reshape(count, row_bytes))


def float_rows(tensor: SourceTensor, first: int, count: int) -> Floats:
    """Rows `first` to `first + count` as float32, (count, columns); for F32, F16, BF16 and the quantized ggml types."""
    raw, scratch = np.empty((2, count * tensor.row_bytes), np.uint8)
    tensor.read_rows(first, count, raw, scratch)
    if tensor.dtype == "F32":
        return raw.view(np.float32).reshape(count, tensor.columns)
    floats = np.empty((count, tensor.columns), np.float32)
    native.widen(tensor.dtype, raw.ctypes.data, floats.ctypes.data, floats.size)
    return floats


def stacked(name: str, parts: Sequence[SourceTensor]) -> SourceTensor:
    """The (count, length) matrix whose rows are these vectors; TensorMismatchError when they differ in length or dtype."""
    length, dtype = parts[0].rows, parts[0].dtype
    for part in parts:
        if part.shape != (length,) or part.dtype != dtype:
            raise TensorMismatchError(f"tensor {part.name} does not have the length and dtype of {parts[0].name}")
    return SourceTensor(name, (len(parts), length), dtype, StackedRows(tuple(parts)))


def file_tensor(
    file: WeightFile, name: str, shape: tuple[int, ...], dtype: str, offset: int, strides: tuple[int, ...] | None = None
) -> SourceTensor:
    """A tensor at byte `offset` of `file`; `strides` in elements, contiguous when not given."""
    rows_stride, column_stride = 1, 1
    columns = shape[1] if len(shape) > 1 else 1
    if strides is None:
        rows_stride = columns
    elif len(shape) == 1:
        rows_stride = strides[0]
    elif len(shape) == 2:
        rows_stride, column_stride = strides
    reader = StridedRows(file, offset, rows_stride, column_stride, columns, DTYPE_BYTES[dtype])
    return SourceTensor(name, shape, dtype, reader)
