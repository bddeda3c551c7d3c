"""GPTQ: integers of 2, 3, 4 or 8 bits with a scale and a zero point for each group of inputs.

`qweight` (in * bits / 32, out) packs along the inputs, `qzeros` (groups, out * bits / 32) along the outputs, `scales` is
(groups, out) and `g_idx` (in) says which group an input is in, which act-order shuffles. Weight = scale * (integer - zero
point); the first format stores the zero point less one, `gptq_v2` as it is. Source: AutoGPTQ and GPTQModel, QuantLinear.pack;
llama.cpp, conversion/base.py, dequant_gptq, whose result this equals bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyedge.errors import CheckpointError
from tinyedge_quantize.quantized.bit_packing import unpack_stream
from tinyedge_quantize.quantized.parts import (
    Settings,
    Tensors,
    choice,
    flag,
    float_weight,
    misfit,
    part,
    read_columns,
    read_rows,
    scale_part,
    table,
    widened,
)
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import Bytes, SourceTensor

BITS = (2, 3, 4, 8)
SUFFIXES = (".qweight", ".qzeros", ".scales", ".g_idx")
# What is added to a stored zero point.
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
_WORDS = ("I32", "I16", "I8", "I64")


def dequantized(tensors: Tensors, settings: Settings) -> dict[str, SourceTensor]:
    """The tensors with each GPTQ layer's parts replaced by its weight."""
    bases = {name.removesuffix(".qweight"): None for name in tensors if name.endswith(".qweight")}
    offset = _zero_offset(settings)
    _require_types(settings)
    rest = {
        name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in bases or not name.endswith(SUFFIXES)
    }
    return rest | {f"{base}.weight": _weight(tensors, base, settings, offset) for base in bases}


def _require_types(settings: Settings) -> None:
    """Raises CheckpointError for settings that are not what they should be, whether or not these weights depend on them."""
    for key in ("desc_act", "sym"):
        flag(settings, key)
    for key in ("dynamic", "extra_config"):
        table(settings, key)


def _zero_offset(settings: Settings) -> int:
    form = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if flag(settings, "is_marlin_format"):
        form = "marlin"
    if not isinstance(form, str) or form not in _ZERO_OFFSETS:
        raise CheckpointError(
            f"the GPTQ checkpoint is packed for {show(form)}, where {' and '.join(_ZERO_OFFSETS)} are read",
            "take the checkpoint in one of these formats, or the original in F16 or BF16",
        )
    return _ZERO_OFFSETS[form]


def _weight(tensors: Tensors, base: str, settings: Settings, offset: int) -> SourceTensor:
    qweight = part(tensors, f"{base}.qweight", *_WORDS, dimensions=(2,))
    qzeros = part(tensors, f"{base}.qzeros", qweight.dtype, dimensions=(2,))
    scales = scale_part(tensors, f"{base}.scales", dimensions=(2,))
    g_idx = part(tensors, f"{base}.g_idx", "I32", "I64", dimensions=(1,)) if f"{base}.g_idx" in tensors else None
    word_bits = qweight.row_bytes // qweight.columns * 8
    bits = _bits(qzeros, scales, word_bits, settings)
    groups, outputs = scales.shape
    inputs, left = divmod(qweight.rows * word_bits, bits)
    if left or qweight.columns != outputs or qzeros.rows != groups:
        raise misfit(base, f"qweight {qweight.shape}, qzeros {qzeros.shape} and scales {scales.shape} at {bits} bits")
    if g_idx is not None and g_idx.rows != inputs:
        raise misfit(base, f"g_idx has {g_idx.rows} entries for {inputs} inputs")
    size = _group_size(base, settings, inputs, groups)
    if g_idx is None and flag(settings, "desc_act") and groups > 1:
        raise CheckpointError(f"the act-order GPTQ weight {show(base)} has no g_idx, without which its groups are unknown")
    return float_weight(f"{base}.weight", outputs, inputs, _Rows(base, qweight, qzeros, scales, g_idx, bits, size, offset))


def _bits(qzeros: SourceTensor, scales: SourceTensor, word_bits: int, settings: Settings) -> int:
    """The bits of a layer, which its shapes give; the configuration must agree unless it has exceptions for single layers."""
    bits, left = divmod(qzeros.columns * word_bits, scales.columns)
    stated = choice(settings, "bits", BITS)
    if left or bits not in BITS or (bits == 3 and word_bits != 32) or (bits != stated and not _has_exceptions(settings)):
        raise misfit(
            qzeros.name.removesuffix(".qzeros"),
            f"the configuration says {stated} bits, and qzeros {qzeros.shape} beside scales {scales.shape} says otherwise",
        )
    return bits


def _group_size(base: str, settings: Settings, inputs: int, groups: int) -> int:
    """Inputs in a group; -1 in the configuration is all of them."""
    stated = settings.get("group_size", -1)
    if type(stated) is not int or not (stated == -1 or 1 <= stated < 2**31):
        raise CheckpointError(
            f"group_size in the quantization configuration is {show(stated)} where -1 or a whole number from 1 is expected",
            "copy the configuration again from where the checkpoint came from",
        )
    size = inputs if stated == -1 else stated
    if -(-inputs // size) == groups:
        return size
    if not _has_exceptions(settings):
        raise misfit(base, f"{inputs} inputs in groups of {size} are not the {groups} groups its scales have")
    return -(-inputs // groups)


def _has_exceptions(settings: Settings) -> bool:
    """Whether single layers may differ: GPTQModel's `dynamic`, AutoRound's `extra_config`."""
    return bool(table(settings, "dynamic") or table(settings, "extra_config"))


@dataclass(frozen=True)
class _Rows:
    name: str
    qweight: SourceTensor
    qzeros: SourceTensor
    scales: SourceTensor
    g_idx: SourceTensor | None
    bits: int
    group_size: int
    zero_offset: int

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        integers = unpack_stream(read_columns(self.qweight, first, count), self.bits)
        scales = widened(read_columns(self.scales, first, count), self.scales.dtype)
        zeros = self._zeros(first, count)
        weights = out.view(np.float32).reshape(count, -1)
        groups = self._groups(len(integers))
        with np.errstate(all="ignore"):
            # The transpose is written once, by the last operation.
            np.multiply((integers - zeros[groups]).T, scales[groups].T, out=weights)

    def _groups(self, inputs: int) -> npt.NDArray[np.int64]:
        if self.g_idx is None:
            return np.arange(inputs) // self.group_size
        groups = read_rows(self.g_idx, 0, inputs)[:, 0].astype(np.int64)
        if groups.min() < 0 or groups.max() >= self.scales.rows:
            raise misfit(self.name, f"g_idx names a group beyond its {self.scales.rows}")
        return groups

    def _zeros(self, first: int, count: int) -> npt.NDArray[np.int16]:
        """Zero points as (groups, count), from the words that hold those of these outputs."""
        word_bits = self.qzeros.row_bytes // self.qzeros.columns * 8
        # Three words of 32 bits hold 32 fields of three.
        words, fields = (3, 32) if self.bits == 3 else (1, word_bits // self.bits)
        begin, end = first // fields, -(-(first + count) // fields)
        packed = read_columns(self.qzeros, begin * words, (end - begin) * words)
        stream = unpack_stream(np.ascontiguousarray(packed.T), self.bits)
        zeros: npt.NDArray[np.int16] = stream[first - begin * fields :][:count].T.astype(np.int16)
        zeros += np.int16(self.zero_offset)
        return zeros
