"""AWQ's gemm format: integers of four bits with a scale and a zero point for each group of inputs.

`qweight` (in, out / 8), `qzeros` (groups, out / 8) and `scales` (groups, out); both integer tensors pack eight outputs into a
word in the order 0, 2, 4, 6, 1, 3, 5, 7. Weight = scale * (integer - zero point). Source: AutoAWQ, awq/modules/linear/gemm.py
and awq/utils/packing_utils.py, which multiply in F16; here the product stays exact in F32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyedge.errors import CheckpointError
from tinyedge_quantize.quantized.bit_packing import Small, unpack
from tinyedge_quantize.quantized.parts import (
    Settings,
    Tensors,
    choice,
    flag,
    float_weight,
    misfit,
    part,
    read_columns,
    scale_part,
    widened,
)
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import Bytes, SourceTensor

BITS = 4
SUFFIXES = (".qweight", ".qzeros", ".scales")
_PACKED = 8
# Where in a word each of its eight outputs lies: the inverse of the order they are packed in.
_PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])


def dequantized(tensors: Tensors, settings: Settings) -> dict[str, SourceTensor]:
    """The tensors with each AWQ layer's parts replaced by its weight."""
    bases = {name.removesuffix(".qweight"): None for name in tensors if name.endswith(".qweight")}
    form = settings.get("version") or settings.get("checkpoint_format") or settings.get("format") or "gemm"
    if not isinstance(form, str) or form.lower() != "gemm":
        raise CheckpointError(
            f"the AWQ checkpoint is packed for {show(form)}, where gemm is read",
            "take the checkpoint in the gemm format, or the original in F16 or BF16",
        )
    choice(settings, "w_bit" if "w_bit" in settings else "bits", (BITS,))
    flag(settings, "zero_point")
    rest = {
        name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in bases or not name.endswith(SUFFIXES)
    }
    return rest | {f"{base}.weight": _weight(tensors, base, settings) for base in bases}


def _weight(tensors: Tensors, base: str, settings: Settings) -> SourceTensor:
    qweight = part(tensors, f"{base}.qweight", "I32", dimensions=(2,))
    qzeros = part(tensors, f"{base}.qzeros", "I32", dimensions=(2,))
    scales = scale_part(tensors, f"{base}.scales", dimensions=(2,))
    inputs, outputs, groups = qweight.rows, qweight.columns * _PACKED, scales.rows
    if scales.columns != outputs or qzeros.shape != (groups, qweight.columns) or inputs % groups:
        raise misfit(base, f"qweight {qweight.shape}, qzeros {qzeros.shape} and scales {scales.shape}")
    stated = settings.get("q_group_size", settings.get("group_size", -1))
    if type(stated) is not int or (inputs if stated == -1 else stated) != inputs // groups:
        raise misfit(base, f"the configuration says groups of {show(stated)} and its parts {inputs // groups}")
    return float_weight(f"{base}.weight", outputs, inputs, _Rows(qweight, qzeros, scales, inputs // groups))


@dataclass(frozen=True)
class _Rows:
    qweight: SourceTensor
    qzeros: SourceTensor
    scales: SourceTensor
    group_size: int

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        scales = widened(read_columns(self.scales, first, count), self.scales.dtype)
        integers = _unpacked(self.qweight, first, count).astype(np.int8)
        zeros = _unpacked(self.qzeros, first, count).astype(np.int8)
        weights = out.view(np.float32).reshape(count, -1)
        with np.errstate(all="ignore"):
            differences = integers - np.repeat(zeros, self.group_size, axis=0)
            np.multiply(differences.T, np.repeat(scales, self.group_size, axis=0).T, out=weights)


def _unpacked(packed: SourceTensor, first: int, count: int) -> Small:
    """Outputs `first` to `first + count` as (rows, count)."""
    begin, end = first // _PACKED, -(-(first + count) // _PACKED)
    fields = unpack(read_columns(packed, begin, end - begin), BITS)[:, _PLACES]
    ordered: Small = fields.transpose(0, 2, 1).reshape(packed.rows, -1)[:, first - begin * _PACKED :][:, :count]
    return ordered
