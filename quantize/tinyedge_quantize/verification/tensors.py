"""What became of the weights: their errors against the source, and whether NaN or infinity is among them.

A conversion can gather these figures while it writes, from the blocks it has just made (`SlabObserver`); from a finished file
`file_pass` gathers the same.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tinyedge.ggml_types import type_named
from tinyedge.native import quantize as native
from tinyedge_quantize.selfcheck import STOCK_ERRORS, STOCK_WEIGHTED_ERRORS
from tinyedge_quantize.tensors import Bytes, Floats

if TYPE_CHECKING:
    from tinyedge_quantize.plan import TensorPlan

# The relative RMS error a tensor may have. Trained weights have outliers that `selfcheck.sample` has few of, and an importance
# matrix trades the error of some columns for that of others; three times the error of the sample leaves room for both. Another
# tensor in its place gives 1.41, zeros give 1, so nothing may come near.
ERROR_FACTOR = 3.0
LARGEST_BOUND = 0.9
_EXACT_BOUND = 1e-6  # F32


def error_bound(type_name: str) -> float:
    """The largest relative RMS error that a tensor of this type may have."""
    if type_name == "F32":
        return _EXACT_BOUND
    stock = STOCK_ERRORS.get(type_name, STOCK_WEIGHTED_ERRORS.get(type_name, LARGEST_BOUND))
    return min(LARGEST_BOUND, ERROR_FACTOR * stock)


@dataclass(frozen=True)
class SlabSums:
    """Sums over a part of a tensor: of squares (of the difference, the source, the restored values) and of products.

    `largest` is the largest absolute difference; `valid` says that no value is NaN or infinite.
    """

    valid: bool
    difference: float
    source: float
    restored: float
    product: float
    largest: float


@dataclass(frozen=True)
class TensorErrors:
    """How far a tensor is from its source.

    `relative_rms` is the norm of the difference over that of the source, `cosine` that of the angle between them, `largest`
    the largest absolute difference. They are NaN where the source or the tensor holds NaN.
    """

    relative_rms: float
    cosine: float
    largest: float


class _Buffers(threading.local):
    """The memory of each thread, grown to the largest slab it meets and reused: fresh pages would cost more than the sums."""

    def __init__(self) -> None:
        self._floats: Floats = np.empty(0, np.float32)
        self._doubles: npt.NDArray[np.float64] = np.empty((2, 0), np.float64)

    def floats(self, count: int) -> Floats:
        if len(self._floats) < count:
            self._floats = np.empty(count, np.float32)
        return self._floats[:count]

    def doubles(self, count: int) -> npt.NDArray[np.float64]:
        """Two rows of `count` values."""
        if self._doubles.shape[1] < count:
            self._doubles = np.empty((2, count), np.float64)
        return self._doubles[:, :count]


_buffers = _Buffers()


def slab_sums(type_name: str, blocks: Bytes, source: Floats | None) -> SlabSums:
    """The sums over `blocks` of one of MATRIX_TYPES, against as many values of the source; with none, against themselves."""
    restored = _restored(type_name, blocks)
    values, wanted = _buffers.doubles(len(restored))
    np.copyto(values, restored)
    squares = _product(values, values)
    # A sum of squares of float32 cannot overflow float64, so it is finite if and only if all of them are. ggml has the last
    # word; it writes to stderr about what it finds, and is not asked about what is known to be bad.
    valid = math.isfinite(squares) and native.is_valid(type_name, blocks.ctypes.data, len(blocks))
    if source is None:
        nothing = 0.0 if valid else math.nan
        return SlabSums(valid, nothing, squares, squares, squares, nothing)
    np.copyto(wanted, source.ravel())
    sums = _product(wanted, wanted), squares, _product(wanted, values)
    values -= wanted
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    return SlabSums(valid, _product(values, values), *sums, largest if math.isfinite(squares) else math.nan)


def _restored(type_name: str, blocks: Bytes) -> Floats:
    """The values of `blocks` as float32, dequantized by ggml."""
    if type_name == "F32":
        return blocks.view(np.float32)
    kind = type_named(type_name)
    restored = _buffers.floats(len(blocks) // kind.block_bytes * kind.block_elements)
    native.widen(type_name, blocks.ctypes.data, restored.ctypes.data, restored.size)
    return restored


def _product(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """The sum of the products; einsum and not dot, which would start threads of its own."""
    with np.errstate(all="ignore"):
        return float(np.einsum("i,i->", a, b))


class ErrorSums:
    """The sums of one tensor, gathered slab by slab in any order and from any thread; the total does not depend on either."""

    def __init__(self, type_name: str) -> None:
        self._type = type_name
        self._slabs: dict[int, SlabSums] = {}

    def add(self, offset: int, blocks: Bytes, source: Floats | None) -> None:
        """Adds the blocks at byte `offset` of the tensor; `source` as for `slab_sums`."""
        self._slabs[offset] = slab_sums(self._type, blocks, source)

    @property
    def valid(self) -> bool:
        """Whether no block holds NaN or infinity."""
        return all(slab.valid for slab in self._slabs.values())

    @property
    def errors(self) -> TensorErrors:
        """The errors over all slabs, added up in the tensor's order."""
        slabs = [self._slabs[offset] for offset in sorted(self._slabs)]
        difference, source, restored, product = (
            sum(getattr(slab, name) for slab in slabs) for name in ("difference", "source", "restored", "product")
        )
        largest = max((slab.largest for slab in slabs), default=0.0)
        if any(math.isnan(slab.largest) for slab in slabs):
            largest = math.nan
        norms = math.sqrt(source) * math.sqrt(restored)
        same = difference == 0
        relative = 0.0 if same else math.sqrt(difference / source) if source else math.inf
        return TensorErrors(relative, 1.0 if same else product / norms if norms else 0.0, largest)


class SlabObserver:
    """Sees every slab that a conversion writes: its errors, and a checksum to compare the finished file with.

    `write` calls `add` from its threads. What comes out equals what `verify` finds in the file that was written.
    """

    def __init__(self) -> None:
        self._sums: dict[str, ErrorSums] = {}
        self._checksums: dict[str, dict[int, tuple[int, int]]] = {}

    def add(self, tensor: TensorPlan, first: int, floats: Floats | None, blocks: Bytes) -> None:
        """Takes the rows from `first` on: as float32 before, and as they are written.

        `floats` is None for rows that are copied as they are. Neither is kept.
        """
        offset = first * tensor.row_bytes
        self._sums.setdefault(tensor.name, ErrorSums(tensor.ggml_type)).add(offset, blocks, floats)
        self._checksums.setdefault(tensor.name, {})[offset] = len(blocks), zlib.crc32(blocks.data)

    def sums(self, name: str) -> ErrorSums | None:
        """The sums of the tensor with this GGUF name."""
        return self._sums.get(name)

    def slabs(self, name: str) -> Mapping[int, tuple[int, int]]:
        """Size and CRC-32 of each slab of the tensor, by its byte offset."""
        return self._checksums.get(name, {})
