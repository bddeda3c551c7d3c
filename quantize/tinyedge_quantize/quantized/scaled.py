"""Weights of one byte each with a scale for the whole, for each row, or for each block: FP8, and compressed-tensors' INT8.

Weight = value * scale in float32, as in llama.cpp, conversion/base.py, dequant_simple, whose result this equals bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tinyedge.errors import CheckpointError
from tinyedge_quantize.quantized.parts import (
    Floats,
    Settings,
    Tensors,
    duplicate,
    float_weight,
    misfit,
    part,
    read_rows,
    scale_part,
    widened,
)
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import Bytes, SourceTensor

FP8 = ("F8_E4M3", "F8_E5M2")
# What the projects call a weight's scale: DeepSeek and transformers' fp8, Mistral, and the others.
_SCALE_NAMES = {".weight_scale_inv": ".weight", ".qscale_weight": ".weight", ".weight_scale": ".weight"}
# Scales of activations and of the key-value cache, which have no place in a GGUF file.
UNUSED = (".activation_scale", ".input_scale", ".input_scale_ub", ".qscale_act", ".output_scale", ".k_scale", ".v_scale")


def dequantized(tensors: Tensors, settings: Settings) -> dict[str, SourceTensor]:
    """The tensors with each FP8 weight and its scale replaced by the weight."""
    method = settings.get("quant_method")
    algorithm = settings.get("quant_algo", "FP8")
    if method == "modelopt" and algorithm != "FP8":
        raise CheckpointError(
            f"the ModelOpt checkpoint is quantized to {show(algorithm)}, where FP8 is read", "take the original in F16 or BF16"
        )
    found = with_scales(tensors, FP8, block_size(settings.get("weight_block_size")))
    for name, tensor in found.items():
        if tensor.dtype in FP8:
            raise CheckpointError(
                f"the FP8 weight {show(name)} has no scale", "check that all weight files are there, or take the original"
            )
    return found


def block_size(value: object) -> tuple[int, int] | None:
    """The (rows, columns) of a block as a configuration states them, or None for null."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in value):
        raise CheckpointError(
            f"the block size in the quantization configuration is {show(value)} where two whole numbers are expected",
            "copy the configuration again from where the checkpoint came from",
        )
    return value[0], value[1]


def with_scales(tensors: Tensors, dtypes: tuple[str, ...], block: tuple[int, int] | None) -> dict[str, SourceTensor]:
    """The tensors with each weight that has a scale multiplied by it, and the scales of activations left out."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(UNUSED)}
    scales: dict[str, str] = {}
    for name in tensors:
        suffix = next((suffix for suffix in _SCALE_NAMES if name.endswith(suffix)), None)
        if suffix is None:
            continue
        base = name.removesuffix(suffix)
        weight_name = base + _SCALE_NAMES[suffix]
        if weight_name in scales:
            raise duplicate(base, scales[weight_name], suffix)
        scales[weight_name] = suffix
        found[weight_name] = _weight(tensors, weight_name, name, dtypes, block)
        found.pop(name, None)
        found.pop(f"{base}.weight_zero_point", None)
    return found


def _weight(
    tensors: Tensors, name: str, scale_name: str, dtypes: tuple[str, ...], block: tuple[int, int] | None
) -> SourceTensor:
    weight = part(tensors, name, *dtypes, dimensions=(2,))
    scale = scale_part(tensors, scale_name)
    shape = (scale.rows, scale.columns)
    grid = None if block is None else (-(-weight.rows // block[0]), -(-weight.columns // block[1]))
    if block is None or (shape != grid and math.prod(shape) == 1):
        block = (1 if scale.rows == weight.rows else weight.rows, weight.columns)
        grid = (-(-weight.rows // block[0]), 1)
    if shape != grid:
        raise misfit(name, f"{weight.shape} with scales {scale.shape}")
    zero_name = f"{name}_zero_point"
    zeros = part(tensors, zero_name, "I8") if zero_name in tensors else None
    if zeros is not None and (zeros.shape != scale.shape or weight.dtype != "I8"):
        raise misfit(name, f"scales {scale.shape} with zero points {zeros.shape}")
    return float_weight(name, weight.rows, weight.columns, _Rows(weight, scale, zeros, block))


@dataclass(frozen=True)
class _Rows:
    weight: SourceTensor
    scale: SourceTensor
    zeros: SourceTensor | None
    block: tuple[int, int]

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        result = out.view(np.float32).reshape(count, -1)
        values = widened(read_rows(self.weight, first, count), self.weight.dtype)
        with np.errstate(all="ignore"):
            if self.zeros is not None:
                values -= self._spread(self.zeros, first, count)
            np.multiply(values, self._spread(self.scale, first, count), out=result)

    def _spread(self, scale: SourceTensor, first: int, count: int) -> Floats:
        """The scales of these rows, (count, 1) or (count, columns)."""
        height, width = self.block
        begin, end = first // height, (first + count - 1) // height + 1
        grid = widened(read_rows(scale, begin, end - begin), scale.dtype)
        rows = grid[np.arange(first, first + count) // height - begin]
        if rows.shape[1] == 1:
            return rows
        spread: Floats = np.repeat(rows, width, axis=1)[:, : self.weight.columns]
        return spread
