"""Writes an adapter as the GGUF file that llama.cpp applies at run time.

Reference: llama.cpp's convert_lora_to_gguf.py, whose file it equals, with two differences. That script writes lora_alpha as it
stands and so loses rsLoRA and alpha_pattern; here alpha makes up for the root, and B for a pattern. And it gives GPT-2's
layers, which keep (in, out), in an order that llama.cpp then refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyedge.errors import AdapterError
from tinyedge_quantize.architectures import Architecture, Sizes, TensorRule, architecture_of
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.config import read_json
from tinyedge_quantize.described import interleaved_rotary_rows
from tinyedge_quantize.general import general_metadata
from tinyedge_quantize.layouts.huggingface import text_config
from tinyedge_quantize.lora.adapter import Adapter, LowRank
from tinyedge_quantize.lora.merge import AliasedNames, keeps_inputs_first
from tinyedge_quantize.metadata import MetadataEntry, float32, string, uint32
from tinyedge_quantize.plan import QUANTIZATION_VERSION, TensorPlan, planned_file
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import Bytes, ConstantRows, RowOrder, SourceTensor, float_rows
from tinyedge_quantize.write import write

_MERGE = "merge it into the weights with `tinyedge quantize BASE --lora ADAPTER`"
_EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class AdapterFile:
    """What was written: `modules` adapted by the file, the kind of adapter, and the family of models it is for."""

    path: Path
    architecture: str
    kind: str
    type: str
    alpha: float
    modules: int
    bytes: int


@dataclass(frozen=True)
class ScaledRows:
    """Rows of another tensor times `factor`, as float32."""

    source: SourceTensor
    factor: float

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        values = float_rows(self.source, first, count) * np.float32(self.factor)
        out[:] = values.view(np.uint8).ravel()


def base_config(base: Path) -> dict[str, Any]:
    """The Hugging Face configuration of a base: from its config.json, or from a checkpoint of another layout."""
    path = base / "config.json"
    if path.is_file():
        config = text_config(read_json(path))
        return {**architecture_of(config).defaults, **config}
    with open_checkpoint(base) as checkpoint:
        return checkpoint.config


def write_adapter(adapter: Adapter, config: Mapping[str, Any], path: Path, type_name: str = "F32") -> AdapterFile:
    """Writes `adapter`, for a base of this configuration, to `path`, which appears only when it is complete.

    Raises AdapterError for what llama.cpp cannot apply at run time and for an adapter that does not fit the base.
    """
    architecture = architecture_of(config)
    tensors = _planned(adapter, architecture, architecture.sizes(config), type_name, tied=architecture.tied(config))
    file = planned_file(_metadata(adapter, architecture), tensors)
    write([file], [path])
    return AdapterFile(path, architecture.gguf_name, adapter.kind, type_name, adapter.alpha, len(adapter.pairs), file.bytes)


def _metadata(adapter: Adapter, architecture: Architecture) -> dict[str, MetadataEntry]:
    name = adapter.folder.resolve().name.encode("utf-8", "replace").decode() or "adapter"
    described = general_metadata(adapter.folder, architecture.gguf_name, 0, name)
    described.pop("general.size_label", None)  # that of a model, which an adapter has none of
    return {
        **described,
        "general.type": string("adapter"),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": float32(adapter.alpha),
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
    }


def _planned(
    adapter: Adapter, architecture: Architecture, sizes: Sizes, type_name: str, *, tied: bool
) -> tuple[TensorPlan, ...]:
    _require_plain(adapter)
    places = {
        rule.source.format(layer): (rule, rule.target.format(layer))
        for rule in architecture.tensors
        if rule.stack is None
        for layer in range(sizes["layers"] if rule.per_layer else 1)
    }
    names = AliasedNames(places, architecture.aliases)
    planned: dict[str, TensorPlan] = {}
    for module, pair in adapter.pairs.items():
        found = names.find(f"{module}.weight")
        if found is None:
            raise AdapterError(f"{adapter.path} adapts {show(module)}, which this base does not have")
        rule, target = places[found]
        if tied and (found == architecture.head or target == _EMBEDDING):
            raise AdapterError(
                f"{adapter.path} adapts {show(module)}, which this base uses as input and output at once", _MERGE
            )
        for side, tensor in zip("ab", _matrices(adapter, pair, rule, sizes), strict=True):
            name = f"{target}.lora_{side}"
            if name in planned:
                raise AdapterError(f"{adapter.path} adapts {show(found)} twice", "save the adapter again")
            planned[name] = TensorPlan(tensor, name, tensor.shape, type_name)
    return tuple(planned.values())


def _require_plain(adapter: Adapter) -> None:
    """Raises AdapterError for what llama.cpp's adapters have no place for."""
    if not adapter.pairs:
        raise AdapterError(f"{adapter.path} holds no pairs of matrices", _MERGE)
    trained = sorted(adapter.replaced.keys() - adapter.copies)
    if trained:
        raise AdapterError(f"{adapter.path} replaces {show(trained[0])}, which llama.cpp cannot do at run time", _MERGE)
    for module, pair in adapter.pairs.items():
        if pair.magnitude is not None:
            raise AdapterError(f"{adapter.path} is a DoRA, which llama.cpp cannot apply at run time", _MERGE)
        if pair.bias is not None:
            raise AdapterError(f"{adapter.path} adapts the bias of {show(module)}, which llama.cpp cannot do", _MERGE)


def _matrices(adapter: Adapter, pair: LowRank, rule: TensorRule, sizes: Sizes) -> tuple[SourceTensor, SourceTensor]:
    """A and B as llama.cpp multiplies them with the tensor of `rule`: (rank, in) and (out, rank)."""
    stored = tuple(sizes[name] for name in rule.shape)
    outward = (pair.up.rows, pair.down.columns)
    inputs_first = pair.embedding or keeps_inputs_first(pair.module)
    if (outward[::-1] if inputs_first else outward) != stored:
        raise AdapterError(
            f"{adapter.path} has {show(pair.module)} with {outward[0]} outputs and {outward[1]} inputs, and this base {stored}"
        )
    up = pair.up
    factor = pair.scaling * pair.rank / adapter.alpha
    if abs(factor - 1) > 1e-12:
        up = SourceTensor(up.name, up.shape, "F32", ScaledRows(up, factor))
    if pair.embedding:  # llama.cpp looks the token's row of A up (llm_build_inp_embd)
        return pair.down.transposed(), up
    order = _row_order(adapter, pair, rule, sizes, stored)
    return pair.down, up if order is None else up.select_rows(order)


def _row_order(adapter: Adapter, pair: LowRank, rule: TensorRule, sizes: Sizes, stored: tuple[int, ...]) -> RowOrder | None:
    """Which row of the checkpoint's weight each row of the GGUF file's is: what `rule` makes of a weight without values."""
    reader = ConstantRows(np.empty((0, 0), np.float32))
    weight = SourceTensor(pair.module, (pair.up.rows, pair.down.columns), "F32", reader)
    if keeps_inputs_first(pair.module):
        weight = weight.transposed()
    adapted = weight if rule.adapt is None else rule.adapt(weight, sizes)
    turned_back = keeps_inputs_first(pair.module) and adapted.shape == stored[::-1]
    if not turned_back and adapted.reader is not reader:
        raise AdapterError(f"{adapter.path} adapts {show(pair.module)}, whose values differ in a GGUF file", _MERGE)
    if rule.rotary is not None:
        adapted = adapted.select_rows(interleaved_rotary_rows(sizes[rule.rotary], adapted.rows))
    return adapted.order
