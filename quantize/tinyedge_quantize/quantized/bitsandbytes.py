"""bitsandbytes: NF4 and FP4 in blocks of the flattened weight, and the rows of INT8 that LLM.int8() keeps.

Four bits: `X.weight` holds two weights to the byte, the first in the high half, and `X.weight.absmax` the largest magnitude of
each block, itself in 8 bits with nested scales after double quantization; `X.weight.quant_state.bitsandbytes__nf4` is JSON with
the shape and block sizes. Eight bits: `X.weight` (out, in) and `X.SCB`, each row's largest magnitude. Source: bitsandbytes,
functional.py (QuantState, dequantize_4bit, get_4bit_type) and backends/default/ops.py, whose float32 results these equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyedge.errors import CheckpointError
from tinyedge_quantize.quantized.parts import (
    Floats,
    Settings,
    Tensors,
    choice,
    flat_bytes,
    float_weight,
    misfit,
    part,
    read_flat,
    read_json_part,
    read_rows,
    scale_part,
    widened,
)
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import FLOAT_BYTES, Bytes, SourceTensor

_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
# The values of each code, largest 1. NF4: QLoRA (arXiv:2305.14314), appendix E. FP4: sign, two exponent bits, one mantissa bit;
# both its zeros are positive.
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
_CODES = {
    "nf4": np.array(_NF4, np.float32),
    "fp4": np.array([*_FP4, *(0.0 - value for value in _FP4)], np.float32) / np.float32(12),
}
_BLOCK_SIZES = tuple(32 << n for n in range(8))
_MAX_NESTED_BLOCK = 2**20
# 1 / 127 as bitsandbytes has it.
_INT8_STEP = np.float32(7.874015718698502e-3)


def dequantized(tensors: Tensors, _settings: Settings) -> dict[str, SourceTensor]:
    """The tensors with each packed weight and its parts replaced by the weight; needs no configuration."""
    found = dict(tensors)
    for name in tensors:
        weight, marked, kind = name.partition(_STATE)
        if marked:
            found[weight] = _four_bits(tensors, weight, kind, name)
            for suffix in (*_PARTS, _STATE + kind):
                found.pop(weight + suffix, None)
        elif name.endswith(".SCB"):
            base = name.removesuffix(".SCB")
            found[f"{base}.weight"] = _eight_bits(tensors, base)
            for suffix in (".SCB", ".weight_format"):
                found.pop(base + suffix, None)
    return found


def _four_bits(tensors: Tensors, weight: str, kind: str, state_name: str) -> SourceTensor:
    state = read_json_part(part(tensors, state_name, "U8", dimensions=(1,)))
    if kind not in _CODES or state.get("quant_type", kind) != kind:
        raise CheckpointError(
            f"{show(weight)} has the bitsandbytes type {show(kind)} where {', '.join(_CODES)} are read", "take the original"
        )
    packed = part(tensors, weight)
    rows, columns = _shape(weight, state, flat_bytes(packed))
    scales = _Magnitudes.of(tensors, weight, state, rows * columns)
    return float_weight(weight, rows, columns, _FourBitRows(packed, scales, kind, columns))


def _shape(weight: str, state: dict[str, Any], packed_bytes: int) -> tuple[int, int]:
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n < 2**40 for n in shape):
        raise CheckpointError(f"the quantization state of {show(weight)} gives no shape of two sizes")
    if (shape[0] * shape[1] + 1) // 2 != packed_bytes:
        raise misfit(weight, f"shape ({shape[0]}, {shape[1]}) of four bits each in {packed_bytes} bytes")
    return shape[0], shape[1]


@dataclass(frozen=True)
class _Magnitudes:
    """The largest magnitude of each block of `block` weights, read a few at a time.

    With `nested`, `absmax` holds codes of `codes` whose own blocks have the magnitudes `nested`, and `offset` is added.
    """

    absmax: SourceTensor
    block: int
    nested: SourceTensor | None = None
    codes: SourceTensor | None = None
    nested_block: int = 1
    offset: float = 0.0

    @staticmethod
    def of(tensors: Tensors, weight: str, state: dict[str, Any], elements: int) -> _Magnitudes:
        where = f"the quantization state of {show(weight)}"
        block = choice(state, "blocksize", _BLOCK_SIZES, where)
        blocks = -(-elements // block)
        absmax = part(tensors, f"{weight}.absmax", *FLOAT_BYTES, "U8", dimensions=(1,))
        if absmax.rows != blocks:
            raise misfit(weight, f"{absmax.rows} scales for {blocks} blocks")
        if absmax.dtype != "U8":
            return _Magnitudes(absmax, block)
        nested_block = choice(state, "nested_blocksize", range(1, _MAX_NESTED_BLOCK + 1), where)
        offset = state.get("nested_offset")
        if isinstance(offset, bool) or not isinstance(offset, int | float) or not abs(offset) < 1e30:
            raise CheckpointError(f"nested_offset in {where} is {show(offset)} where a number is expected")
        nested = scale_part(tensors, f"{weight}.nested_absmax", dimensions=(1,))
        codes = scale_part(tensors, f"{weight}.nested_quant_map", dimensions=(1,))
        if nested.rows != -(-blocks // nested_block) or codes.rows != 256:
            raise misfit(weight, f"{nested.rows} nested scales and {codes.rows} codes for {blocks} blocks")
        return _Magnitudes(absmax, block, nested, codes, nested_block, float(offset))

    def of_elements(self, begin: int, end: int) -> Floats:
        """The magnitude that each of the elements `begin` to `end` is scaled by."""
        return _spread(self._of_blocks(begin // self.block, -(-end // self.block)), self.block, begin, end)

    def _of_blocks(self, begin: int, end: int) -> Floats:
        stored = read_rows(self.absmax, begin, end - begin)[:, 0]
        if self.nested is None or self.codes is None:
            return widened(stored, self.absmax.dtype)
        first, last = begin // self.nested_block, -(-end // self.nested_block)
        outer = widened(read_rows(self.nested, first, last - first)[:, 0], self.nested.dtype)
        codes = widened(read_rows(self.codes, 0, 256)[:, 0], self.codes.dtype)
        result: Floats = codes[stored] * _spread(outer, self.nested_block, begin, end) + np.float32(self.offset)
        return result


def _spread(values: Floats, size: int, begin: int, end: int) -> Floats:
    """values of whole blocks of `size`, of which the first holds element `begin`, once for each element until `end`."""
    spread: Floats = np.repeat(values, size)[begin % size :][: end - begin]
    return spread


@dataclass(frozen=True)
class _FourBitRows:
    packed: SourceTensor
    magnitudes: _Magnitudes
    kind: str
    columns: int

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        begin, end = first * self.columns, (first + count) * self.columns
        data = read_flat(self.packed, begin // 2, -(-end // 2))
        halves: npt.NDArray[np.uint8] = np.empty((len(data), 2), np.uint8)
        np.right_shift(data, 4, out=halves[:, 0])
        np.bitwise_and(data, 15, out=halves[:, 1])
        codes = halves.ravel()[begin % 2 :][: end - begin]
        with np.errstate(all="ignore"):
            np.multiply(_CODES[self.kind][codes], self.magnitudes.of_elements(begin, end), out=out.view(np.float32))


def _eight_bits(tensors: Tensors, base: str) -> SourceTensor:
    weight = part(tensors, f"{base}.weight", "I8", dimensions=(2,))
    scales = scale_part(tensors, f"{base}.SCB")
    if math.prod(scales.shape) != weight.rows or scales.columns != 1:
        raise misfit(base, f"SCB {scales.shape} for {weight.rows} rows")
    form = tensors.get(f"{base}.weight_format")
    if form is not None and read_rows(part(tensors, f"{base}.weight_format", "U8", dimensions=(1,)), 0, 1)[0, 0] != 0:
        raise CheckpointError(
            f"the INT8 weight {show(base)} lies in the order of a GPU's kernels, where rows are read",
            "load and save it with a current bitsandbytes, or take the original",
        )
    return float_weight(f"{base}.weight", weight.rows, weight.columns, _EightBitRows(weight, scales))


@dataclass(frozen=True)
class _EightBitRows:
    weight: SourceTensor
    scales: SourceTensor

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        scales = widened(read_rows(self.scales, first, count), self.scales.dtype)
        with np.errstate(all="ignore"):
            product = read_rows(self.weight, first, count) * scales
            np.multiply(product, _INT8_STEP, out=out.view(np.float32).reshape(count, -1))
