"""Ternary weights as transformers packs them for BitNet models: four rows to the byte, one scale for the weight.

`X.weight` (out / 4, in) of U8, whose lowest two bits are the first quarter of the rows, and `X.weight_scale`, by which the
values -1, 0 and 1 are divided. Source: llama.cpp, conversion/base.py, dequant_bitnet, whose result this equals bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tinyedge.errors import CheckpointError
from tinyedge_quantize.quantized.parts import (
    Settings,
    Tensors,
    float_weight,
    misfit,
    part,
    read_rows,
    scale_part,
    widened,
)
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import Bytes, SourceTensor

_QUARTERS = 4


def dequantized(tensors: Tensors, settings: Settings) -> dict[str, SourceTensor]:
    """The tensors with each packed weight and its scale replaced by the weight."""
    if settings.get("linear_class", "bitlinear") not in ("bitlinear", "autobitlinear"):
        raise CheckpointError(
            f"the BitNet checkpoint has the layer class {show(settings['linear_class'])}", "take the original"
        )
    found = dict(tensors)
    for name in tensors:
        if name.endswith(".weight_scale"):
            weight = name.removesuffix("_scale")
            found[weight] = _weight(tensors, weight)
            del found[name]
    return found


def _weight(tensors: Tensors, name: str) -> SourceTensor:
    packed = part(tensors, name, "U8", dimensions=(2,))
    scale = scale_part(tensors, f"{name}_scale")
    if math.prod(scale.shape) != 1:
        raise misfit(name, f"scales {scale.shape} where there is one")
    return float_weight(name, packed.rows * _QUARTERS, packed.columns, _Rows(packed, scale))


@dataclass(frozen=True)
class _Rows:
    packed: SourceTensor
    scale: SourceTensor

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        weights = out.view(np.float32).reshape(count, -1)
        scale = widened(read_rows(self.scale, 0, 1), self.scale.dtype)
        done = 0
        with np.errstate(all="ignore"):
            while done < count:
                quarter, row = divmod(first + done, self.packed.rows)
                rows = min(count - done, self.packed.rows - row)
                fields = read_rows(self.packed, row, rows) >> np.uint8(2 * quarter) & np.uint8(3)
                np.divide(fields.astype(np.float32) - np.float32(1), scale, out=weights[done : done + rows])
                done += rows
