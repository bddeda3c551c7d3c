"""compressed-tensors, what llm-compressor writes: FP8 and INT8 weights with scales, and integers packed into words.

`X.weight_packed` (out, in / fields of a word) packs along the inputs, `X.weight_scale` is (out, groups), `X.weight_zero_point`
(out / fields, groups) packs along the outputs, `X.weight_shape` gives (out, in) and `X.weight_g_idx` the group of each input.
Weight = scale * (integer - zero point), the zero point being half the range where none is stored. Source: compressed-tensors,
compressors/pack_quantized; llama.cpp, conversion/base.py, dequant_packed, whose result this equals bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyedge.errors import CheckpointError
from tinyedge_quantize.quantized import scaled
from tinyedge_quantize.quantized.bit_packing import Small, unpack
from tinyedge_quantize.quantized.parts import (
    Settings,
    Tensors,
    choice,
    float_weight,
    misfit,
    part,
    read_rows,
    scale_part,
    table,
    widened,
)
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import Bytes, SourceTensor

FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
# Those that fill words; releases differ in how they pack the others.
_BITS = (2, 4, 8)
_PARTS = ("_packed", "_scale", "_shape", "_zero_point", "_g_idx")


def dequantized(tensors: Tensors, settings: Settings) -> dict[str, SourceTensor]:
    """The tensors with each weight's parts replaced by the weight."""
    form = settings.get("format")
    if not isinstance(form, str) or form not in FORMATS:
        raise CheckpointError(
            f"the compressed-tensors checkpoint has the format {show(form)}, where {', '.join(FORMATS)} are read",
            "take the original in F16 or BF16",
        )
    _require_plain(settings)
    arguments = _weight_arguments(settings)
    if form == "pack-quantized":
        return _unpacked(tensors, choice(arguments, "num_bits", _BITS), _group_size(arguments))
    return scaled.with_scales(tensors, (*scaled.FP8, "I8"), scaled.block_size(arguments.get("block_structure")))


def _require_plain(settings: Settings) -> None:
    """Refuses weights that are more than quantized: sparse ones leave zeros out, transformed ones need the model changed."""
    sparsity = table(settings, "sparsity_config")
    if sparsity.get("format", "dense") != "dense":
        kind = f"sparse in the format {show(sparsity['format'])}"
    elif settings.get("transform_config"):
        kind = "rotated before they were quantized (transform_config)"
    else:
        return
    raise CheckpointError(f"the weights of this compressed-tensors checkpoint are {kind}", "take the original in F16 or BF16")


def _weight_arguments(settings: Settings) -> dict[str, Any]:
    """How the weights are quantized; the groups of layers may differ in what they do to activations alone."""
    groups = settings.get("config_groups")
    kinds = [group.get("weights") for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    if not kinds or not isinstance(kinds[0], dict):
        raise CheckpointError(
            "the compressed-tensors configuration does not say how its weights are quantized (config_groups)",
            "copy the configuration again from where the checkpoint came from",
        )
    if any(kind != kinds[0] for kind in kinds):
        raise CheckpointError(
            f"the compressed-tensors checkpoint quantizes its weights in {len(kinds)} ways, where one is read",
            "take the original in F16 or BF16",
        )
    return kinds[0]


def _group_size(arguments: Settings) -> int | None:
    """Inputs in a group, or None for all of a row."""
    size = arguments.get("group_size")
    if size is None or size == -1:
        return None
    if type(size) is not int or not 1 <= size < 2**31:
        raise CheckpointError(
            f"group_size in the quantization configuration is {show(size)} where a whole number from 1 is expected",
            "copy the configuration again from where the checkpoint came from",
        )
    return size


def _unpacked(tensors: Tensors, bits: int, group_size: int | None) -> dict[str, SourceTensor]:
    names = [name.removesuffix("_packed") for name in tensors if name.endswith(".weight_packed")]
    taken = {name + suffix for name in names for suffix in _PARTS}
    rest = {name: tensor for name, tensor in tensors.items() if name not in taken and not name.endswith(scaled.UNUSED)}
    return rest | {name: _weight(tensors, name, bits, group_size) for name in names}


def _weight(tensors: Tensors, name: str, bits: int, group_size: int | None) -> SourceTensor:
    packed = part(tensors, f"{name}_packed", "I32", dimensions=(2,))
    scales = scale_part(tensors, f"{name}_scale", dimensions=(2,))
    shape = part(tensors, f"{name}_shape", "I64", "I32", dimensions=(1,))
    zeros = part(tensors, f"{name}_zero_point", "I32", dimensions=(2,)) if f"{name}_zero_point" in tensors else None
    g_idx = part(tensors, f"{name}_g_idx", "I32", "I64", dimensions=(1,)) if f"{name}_g_idx" in tensors else None
    fields = 32 // bits
    sizes = read_rows(shape, 0, shape.rows)[:, 0].tolist() if shape.rows == 2 else []
    if len(sizes) != 2 or sizes[0] != packed.rows or sizes[1] < 1 or -(-sizes[1] // fields) != packed.columns:
        raise misfit(name, f"{packed.shape} words of {bits} bits for the stated shape {tuple(sizes)}")
    rows, columns = sizes
    size = group_size or columns
    if scales.shape != (rows, -(-columns // size)):
        raise misfit(name, f"scales {scales.shape} for ({rows}, {columns}) in groups of {size}")
    if zeros is not None and zeros.shape != (-(-rows // fields), scales.columns):
        raise misfit(name, f"zero points {zeros.shape} for scales {scales.shape}")
    if g_idx is not None and g_idx.rows != columns:
        raise misfit(name, f"g_idx has {g_idx.rows} entries for {columns} inputs")
    return float_weight(name, rows, columns, _Rows(name, packed, scales, zeros, g_idx, bits, size, columns))


@dataclass(frozen=True)
class _Rows:
    name: str
    packed: SourceTensor
    scales: SourceTensor
    zeros: SourceTensor | None
    g_idx: SourceTensor | None
    bits: int
    group_size: int
    columns: int

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        fields = unpack(read_rows(self.packed, first, count), self.bits)
        integers = fields.transpose(0, 2, 1).reshape(count, -1)[:, : self.columns].astype(np.int16)
        scales = widened(read_rows(self.scales, first, count), self.scales.dtype)
        groups = self._groups()
        zeros = np.int16(2 ** (self.bits - 1)) if self.zeros is None else self._zeros(self.zeros, first, count)[:, groups]
        with np.errstate(all="ignore"):
            np.multiply(integers - zeros, scales[:, groups], out=out.view(np.float32).reshape(count, -1))

    def _groups(self) -> npt.NDArray[np.int64]:
        """The group of each input."""
        if self.g_idx is None:
            return np.arange(self.columns) // self.group_size
        groups = read_rows(self.g_idx, 0, self.columns)[:, 0].astype(np.int64)
        if groups.min() < 0 or groups.max() >= self.scales.columns:
            raise misfit(self.name, f"g_idx names a group beyond its {self.scales.columns}")
        return groups

    def _zeros(self, zeros: SourceTensor, first: int, count: int) -> npt.NDArray[np.int16]:
        fields = 32 // self.bits
        begin, end = first // fields, -(-(first + count) // fields)
        every: Small = unpack(read_rows(zeros, begin, end - begin), self.bits).reshape(-1, zeros.columns)
        return every[first - begin * fields :][:count].astype(np.int16)
