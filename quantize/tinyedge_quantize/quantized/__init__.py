"""Checkpoints that are already quantized, brought back to float weights on the way in.

Each method packs a weight into several tensors. What comes out is the same checkpoint with one F32 tensor in their place, whose
rows are computed when they are read, so that nothing after this knows of it. The methods are one small file each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from tinyedge.errors import CheckpointError
from tinyedge_quantize.architectures import ARCHITECTURES
from tinyedge_quantize.config import read_json
from tinyedge_quantize.layouts.arranged import StateDict
from tinyedge_quantize.quantized import awq, bitnet, bitsandbytes, compressed_tensors, gptq, scaled
from tinyedge_quantize.quantized.parts import Settings, Tensors, duplicate
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import SourceTensor

Dequantize: TypeAlias = Callable[[Tensors, Settings], dict[str, SourceTensor]]


@dataclass(frozen=True)
class Method:
    """One way of quantizing: its name, what of it is read, and the values of `quant_method` it goes by.

    `outputs_first` says that it packs a layer as (out, in) also where transformers stores it (in, out), as GPT-2's are: the
    tools take a Conv1D's weight transposed (AutoGPTQ, QuantLinear.pack; transformers, integrations/bitsandbytes.py).
    """

    name: str
    reads: str
    quant_methods: tuple[str, ...]
    dequantize: Dequantize
    outputs_first: bool = False


METHODS = (
    Method("GPTQ", "2, 3, 4 and 8 bits, act-order, formats gptq and gptq_v2", ("gptq",), gptq.dequantized, outputs_first=True),
    Method("AWQ", "4 bits, format gemm", ("awq",), awq.dequantized, outputs_first=True),
    Method(
        "bitsandbytes",
        "NF4 and FP4 with or without double quantization, INT8",
        ("bitsandbytes",),
        bitsandbytes.dequantized,
        outputs_first=True,
    ),
    Method(
        "FP8",
        "E4M3 and E5M2 with a scale per tensor, row or block",
        ("fp8", "fbgemm_fp8", "modelopt"),
        scaled.dequantized,
    ),
    Method(
        "compressed-tensors",
        "FP8 and INT8 with a scale per tensor, row or block; integers of 2, 4 and 8 bits packed into words",
        ("compressed-tensors", "compressed_tensors"),
        compressed_tensors.dequantized,
    ),
    Method("BitNet", "ternary, four weights to the byte", ("bitnet",), bitnet.dequantized),
)
_BY_NAME = {name: method for method in METHODS for name in method.quant_methods}

# AutoRound writes the formats of others and says which.
_AUTOROUND = ("auto-round", "intel/auto-round")
_AUTOROUND_FORMATS = {"auto_round:auto_gptq": "gptq", "auto_round:auto_awq": "awq"}
# Ends of names that only packed weights have, with the method where that is certain without a configuration.
_MARKS = {
    ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": None,
    ".weight_packed": None,
    ".weight_scale": None,
    ".weight_scale_inv": None,
    ".q_weight": None,
}
# Parts that stand in place of a tensor, beside which it would be there twice.
_IN_PLACE_OF_WEIGHT = {".qweight": ".weight", ".weight_packed": ".weight"}
# Configurations of their own that GPTQ's and AWQ's tools write beside config.json.
_OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def dequantized(state: StateDict, config: Mapping[str, Any] | None, folder: Path) -> StateDict:
    """The state dict with F32 weights in place of packed ones; itself when none is packed.

    `config` is config.json or None, `folder` where it lies. Raises CheckpointError for methods and formats that are not read,
    for a missing quantization configuration and for parts that do not fit together. Reads no weights, only the few bytes of
    shapes and states.
    """
    marks = {mark for mark in _MARKS for name in state.tensors if name.endswith(mark)}
    settings = _settings(config, folder, look_beside=bool(marks))
    if settings is None:
        if not marks:
            return state
        certain = {_MARKS[mark] for mark in marks}
        if certain != {"bitsandbytes"}:
            raise _without_configuration(state, sorted(marks)[0])
        settings = {"quant_method": "bitsandbytes"}
    method = _method(settings, marks)
    if not marks and not any(tensor.dtype in scaled.FP8 for tensor in state.tensors.values()):
        return state
    _require_single(state)
    tensors = method.dequantize(state.tensors, settings)
    if method.outputs_first:
        tensors = _as_stored(tensors, state.tensors, config or {})
    return replace(state, tensors=tensors)


def _as_stored(found: dict[str, SourceTensor], packed: Tensors, config: Mapping[str, Any]) -> dict[str, SourceTensor]:
    """`found` with the weights that were unpacked turned to (in, out) where the family stores its weights so."""
    turned = next((row.inputs_first for row in ARCHITECTURES if row.describes(config)), frozenset[str]())

    def as_stored(name: str, tensor: SourceTensor) -> SourceTensor:
        layer, _, kind = name.rpartition(".")
        unpacked = kind == "weight" and tensor is not packed.get(name)
        return tensor.transposed() if unpacked and layer.rpartition(".")[2] in turned else tensor

    return {name: as_stored(name, tensor) for name, tensor in found.items()}


def _settings(config: Mapping[str, Any] | None, folder: Path, *, look_beside: bool) -> dict[str, Any] | None:
    """The quantization configuration with its `quant_method`, from config.json or a file of its own."""
    for key in ("quantization_config", "compression_config"):
        value = (config or {}).get(key)
        if isinstance(value, dict) and value:
            return value
        if value:
            raise CheckpointError(f"{key} in config.json is not a table", "copy config.json again from where it came from")
    for name, method in _OWN_FILES.items():
        if look_beside and (folder / name).is_file():
            return {"quant_method": method} | read_json(folder / name)
    return None


def _require_single(state: StateDict) -> None:
    """Raises CheckpointError for a weight that is there packed and as it was before."""
    for name in state.tensors:
        for suffix, plain in _IN_PLACE_OF_WEIGHT.items():
            base = name.removesuffix(suffix)
            if name.endswith(suffix) and base + plain in state.tensors:
                raise duplicate(base, suffix, plain)


def _without_configuration(state: StateDict, mark: str) -> CheckpointError:
    example = next(name for name in sorted(state.tensors) if name.endswith(mark))
    return CheckpointError(
        f"the checkpoint holds packed weights such as {show(example)} and no configuration that says how they are packed",
        "put its config.json with quantization_config, or quantize_config.json (GPTQ) or quant_config.json (AWQ), beside them",
    )


def _method(settings: Settings, marks: set[str]) -> Method:
    name = settings.get("quant_method")
    if "quant_method" not in settings:
        # Older files name no method: AutoAWQ's have w_bit, bitsandbytes' need none.
        name = (
            "awq" if "w_bit" in settings else "bitsandbytes" if marks & {m for m, known in _MARKS.items() if known} else "gptq"
        )
    if not isinstance(name, str):
        raise CheckpointError(
            f"quant_method in the quantization configuration is {show(name)} where a name is expected",
            "copy the configuration again from where the checkpoint came from",
        )
    name = name.lower()
    if name in _AUTOROUND:
        form = settings.get("packing_format")
        name = _AUTOROUND_FORMATS.get(form, f"AutoRound {form}") if isinstance(form, str) else "AutoRound"
    method = _BY_NAME.get(name)
    if method is None:
        raise CheckpointError(
            f"the checkpoint is quantized by {show(name)}, where {', '.join(method.name for method in METHODS)} are read",
            "give the original F16, BF16 or F32 checkpoint",
        )
    return method
