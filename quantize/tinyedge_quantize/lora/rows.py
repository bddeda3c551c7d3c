"""Rows of a weight with adapters applied, computed slab by slab from the files: W + scaling * B @ A, or DoRA's rescaling of it.

No matrix is kept: A and B are small beside the slab of W they change, and reading them again for each slab costs less than the
memory they would take (all linear layers of TinyLlama at rank 64 are 100 MB of float32).
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyedge.errors import WeightValueError
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import Bytes, Floats, SourceTensor, StridedRows, float_rows

# Elements of W, A and B in memory at once, each; as many as write.py's slabs have.
_SLAB_ELEMENTS = 256 * 1024
# OpenBLAS (interface/gemm.c) uses one thread for products of up to 4 * 65536 multiplications. Above that its threads would
# compete with the writer's, which costs ten times what it gains.
_SHARE_ROWS, _SHARE_RANKS, _SHARE_COLUMNS = 128, 64, 32
_LEAST_COLUMNS = 8
# The bits that are all set in what is infinite or NaN.
_EXPONENTS: dict[str, tuple[Any, int]] = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
_DIVERGED = "take an earlier checkpoint of the adapter: its training diverged or its file is damaged"


@dataclass(frozen=True)
class LowRankChange:
    """`scaling` * `left` @ `right`, as large as the weight: (rows, rank) and (rank, columns).

    With a `magnitude`, DoRA: each output's weights get that length. Outputs are the rows, or the columns if `by_column`.
    """

    left: SourceTensor
    right: SourceTensor
    scaling: float
    magnitude: SourceTensor | None = None
    by_column: bool = False

    def rows(self, first: int, count: int) -> Floats:
        """The change of rows `first` to `first + count`."""
        left = _finite_rows(self.left, first, count)
        change = np.empty((count, self.right.columns), np.float32)
        step = max(1, min(_SHARE_RANKS, _SLAB_ELEMENTS // self.right.columns))
        for begin in range(0, self.right.rows, step):
            end = min(begin + step, self.right.rows)
            part = np.empty_like(change) if begin else change
            _multiply(left[:, begin:end], _finite_rows(self.right, begin, end - begin), part)
            if begin:
                change += part
        change *= np.float32(self.scaling)
        return change


def finite_tensor(tensor: SourceTensor) -> SourceTensor:
    """The same tensor of an adapter; reading NaN or infinity from it raises WeightValueError with the adapter's name."""
    return replace(tensor, reader=FiniteRows(tensor))


@dataclass(frozen=True)
class FiniteRows:
    """Reads rows of a tensor that an adapter has in place of the base's."""

    source: SourceTensor

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        self.source.reader(first, count, out)
        kind, exponent = _EXPONENTS[self.source.dtype]
        if (out.view(kind) & kind(exponent) == kind(exponent)).any():
            raise _diverged(self.source)


def _finite_rows(tensor: SourceTensor, first: int, count: int) -> Floats:
    """`float_rows` of an adapter's tensor; WeightValueError with the adapter's name for NaN and infinity."""
    rows = float_rows(tensor, first, count)
    if not np.isfinite(rows).all():
        raise _diverged(tensor)
    return rows


def _diverged(tensor: SourceTensor) -> WeightValueError:
    where = str(tensor.reader.file.path) if isinstance(tensor.reader, StridedRows) else "the adapter"
    name = show(tensor.name.removeprefix("base_model.model."))
    return WeightValueError(f"{where} holds NaN or infinite values in {name}", _DIVERGED)


def _multiply(left: Floats, right: Floats, out: Floats) -> None:
    """Writes `left` @ `right` into `out`, a share at a time, so that BLAS does each in the thread that asks for it."""
    columns = math.gcd(right.shape[1], _SHARE_COLUMNS)
    if columns < _LEAST_COLUMNS:
        np.matmul(left, right, out=out)
        return
    shares = right.reshape(len(right), -1, columns).transpose(1, 0, 2)
    for first in range(0, len(left), _SHARE_ROWS):
        rows = slice(first, first + _SHARE_ROWS)
        np.matmul(left[rows], shares, out=out[rows].reshape(-1, len(shares), columns).transpose(1, 0, 2))


@dataclass(frozen=True)
class MergedRows:
    """Reads rows of `base` with `changes` applied one after the other, as float32.

    Each DoRA's lengths are those of the base with its own change alone, as in PEFT (tuners/lora/variants.py, `merge_safe`).
    `lengths` are those of the columns, one for each change, where outputs are columns.
    """

    base: SourceTensor
    changes: tuple[LowRankChange, ...]
    lengths: tuple[ColumnLengths | None, ...]

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        target = out.view(np.float32).reshape(count, self.base.columns)
        step = rows_at_once(self.base, self.changes)
        # An overflow shows in the result, which is checked where it is written.
        with np.errstate(all="ignore"):
            for begin in range(0, count, step):
                end = min(begin + step, count)
                target[begin:end] = self._merged(first + begin, end - begin)

    def _merged(self, first: int, count: int) -> Floats:
        base = float_rows(self.base, first, count)
        result = base.copy() if len(self.changes) > 1 else base
        for change, lengths in zip(self.changes, self.lengths, strict=True):
            difference = change.rows(first, count)
            if change.magnitude is None:
                result += difference
                continue
            magnitude = _finite_rows(change.magnitude, 0, change.magnitude.rows).ravel()
            if lengths is None:
                factor = (magnitude[first : first + count] / _lengths(base + difference))[:, None]
            else:
                factor = magnitude / lengths.values()
            result += difference
            result *= factor
        if not np.isfinite(result).all() and np.isfinite(float_rows(self.base, first, count)).all():
            raise WeightValueError(
                f"merging the adapter makes {show(self.base.name)} infinite or NaN", "give it a smaller scale, or take another"
            )
        return result


def _lengths(rows: Floats) -> Floats:
    """(rows,), their Euclidean lengths, summed in float64."""
    lengths: Floats = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)).astype(np.float32)
    return lengths


class ColumnLengths:
    """The Euclidean lengths of the columns of base + change, computed at the first use, by whichever thread comes first."""

    def __init__(self, base: SourceTensor, change: LowRankChange) -> None:
        self._base = base
        self._change = change
        self._lock = threading.Lock()
        self._values: Floats | None = None

    def values(self) -> Floats:
        """(columns,)"""
        with self._lock:
            if self._values is None:
                self._values = self._computed()
            return self._values

    def _computed(self) -> Floats:
        squares = np.zeros(self._base.columns, np.float64)
        step = rows_at_once(self._base, (self._change,))
        for first in range(0, self._base.rows, step):
            count = min(step, self._base.rows - first)
            rows = float_rows(self._base, first, count) + self._change.rows(first, count)
            squares += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        return np.sqrt(squares).astype(np.float32)


@dataclass(frozen=True)
class AddedVector:
    """Reads a bias with `scaling` * `vector` added to it, as float32."""

    base: SourceTensor
    vector: SourceTensor
    scaling: float

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        added = _finite_rows(self.vector, 0, self.vector.rows).ravel()[first : first + count]
        rows = float_rows(self.base, first, count).ravel()
        out.view(np.float32)[:] = rows + np.float32(self.scaling) * added


def merged_tensor(base: SourceTensor, changes: tuple[LowRankChange, ...]) -> SourceTensor:
    """`base` with the changes applied, an F32 tensor of the same name and shape."""
    lengths = tuple(
        ColumnLengths(base, change) if change.magnitude is not None and change.by_column else None for change in changes
    )
    return SourceTensor(base.name, base.shape, "F32", MergedRows(base, changes, lengths))


def rows_at_once(base: SourceTensor, changes: tuple[LowRankChange, ...]) -> int:
    """How many rows are computed together, so that neither W nor B takes more than a slab."""
    return max(1, _SLAB_ELEMENTS // max(base.columns, *(change.left.columns for change in changes)))
