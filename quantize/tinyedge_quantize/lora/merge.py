"""Applies adapters to a checkpoint's tensors: what changes gets a reader that merges, what is replaced another place to read.

Reference: PEFT's merge_and_unload, in float32. Where input and output embedding are one matrix and an adapter was trained on
one of them alone, PEFT trains them apart but merges into both; here they part, as the training had them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tinyedge.errors import AdapterError
from tinyedge_quantize.architectures import architecture_of
from tinyedge_quantize.layouts.arranged import Arranged
from tinyedge_quantize.lora.adapter import Adapter, LowRank
from tinyedge_quantize.lora.names import BaseNames
from tinyedge_quantize.lora.rows import AddedVector, LowRankChange, merged_tensor
from tinyedge_quantize.same_values import same_values
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import OTHER_BYTES, SourceTensor

_RESIZE = "give the base it was trained on; if tokens were added, resize the base's embeddings first and save it"
# transformers' Conv1D, the layers of GPT-2, keeps (in, out). PEFT's fan_in_fan_out says whether the last layer was one.
_CONV1D = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})


class AliasedNames(BaseNames):
    """Finds tensors also by the names that other versions of transformers have for them (`Architecture.aliases`)."""

    def __init__(self, names: Iterable[str], aliases: Mapping[str, str]) -> None:
        known = frozenset(names)
        self._aliases = {alias: name for alias, name in aliases.items() if name in known and alias not in known}
        super().__init__(known | self._aliases.keys())

    def find(self, name: str) -> str | None:
        found = super().find(name)
        return None if found is None else self._aliases.get(found, found)


def merge_into(arranged: Arranged, adapters: Sequence[Adapter]) -> Arranged:
    """The checkpoint with `adapters` applied in their order; weights are read later, when its rows are.

    Raises AdapterError naming the first tensor or module of an adapter that the checkpoint does not have or has in another
    shape.
    """
    if not adapters:
        return arranged
    if arranged.rotary != "half":
        raise AdapterError(
            f"adapters follow Hugging Face's order of rows, which the {arranged.layout} checkpoint does not have",
            "give the Hugging Face form of the base",
        )
    architecture = architecture_of(arranged.config)
    tensors, config = dict(arranged.tensors), arranged.config
    embedding, head = architecture.embedding, architecture.head
    tied = architecture.tied(config) and embedding in tensors
    if tied:
        # The copy that may be saved beside the embedding holds the same (layouts/huggingface.py).
        tensors[head] = replace(tensors[embedding], name=head)
    result = merged(tensors, adapters, architecture.aliases)
    if tied:
        parted = any(result[name] is not tensors[name] for name in (embedding, head))
        if not parted or all(each.keeps_tying for each in adapters) or same_values(result[embedding], result[head]):
            del result[head]
        elif any(rule.source == head for rule in architecture.tensors):
            config = config | {"tie_word_embeddings": False}
        else:
            raise AdapterError(
                f"{', '.join(str(each.path) for each in adapters)} trained one side of a matrix that llama.cpp's "
                f"{architecture.gguf_name} uses as input and output",
                "train it with ensure_weight_tying, or without the embedding",
            )
    return replace(arranged, config=config, tensors=result)


def merged(
    tensors: Mapping[str, SourceTensor], adapters: Sequence[Adapter], aliases: Mapping[str, str] | None = None
) -> dict[str, SourceTensor]:
    """`tensors` under the same names with `adapters` applied in their order; those that change are F32.

    `aliases` are other names that adapters may have for tensors. Raises AdapterError as `merge_into` does, and when an adapter
    replaces a tensor that another one touches.
    """
    names = AliasedNames(tensors, aliases or {})
    owners, result = _with_replacements(names, tensors, adapters)
    changes: dict[str, list[LowRankChange]] = {}
    for adapter in adapters:
        done: set[str] = set()
        for module, pair in adapter.pairs.items():
            base = _found(names, result, f"{module}.weight", adapter)
            owner = owners.get(base.name, adapter)
            if owner is not adapter:
                raise _both_change(base.name, owner, adapter)
            if base.name in done:
                raise AdapterError(f"{adapter.path} adapts {show(base.name)} twice", "save the adapter again")
            done.add(base.name)
            changes.setdefault(base.name, []).append(_change(adapter, pair, base))
            if pair.bias is not None:
                bias = _found(names, result, f"{module}.bias", adapter)
                _require_shape(adapter, f"{module}.bias", (pair.up.rows,), bias)
                reader = AddedVector(bias, pair.bias, adapter.scale * pair.scaling)
                result[bias.name] = SourceTensor(bias.name, bias.shape, "F32", reader)
    for name, found in changes.items():
        if keeps_inputs_first(name.removesuffix(".weight")):
            result[name] = merged_tensor(result[name].transposed(), tuple(found)).transposed()
        else:
            result[name] = merged_tensor(result[name], tuple(found))
    return result


def _with_replacements(
    names: BaseNames, tensors: Mapping[str, SourceTensor], adapters: Sequence[Adapter]
) -> tuple[dict[str, Adapter], dict[str, SourceTensor]]:
    """Which adapter replaces which tensor, and all tensors with those that do so in their places."""
    owners: dict[str, Adapter] = {}
    result = dict(tensors)
    for adapter in adapters:
        for name, tensor in adapter.replaced.items():
            base = _found(names, tensors, name, adapter)
            if base.name in owners:
                raise _both_change(base.name, owners[base.name], adapter)
            _require_shape(adapter, name, tensor.shape, base)
            owners[base.name] = adapter
            result[base.name] = replace(tensor, name=base.name)
    return owners, result


def _found(names: BaseNames, tensors: Mapping[str, SourceTensor], name: str, adapter: Adapter) -> SourceTensor:
    """The base's tensor, under the name it has among `tensors`."""
    found = names.find(name)
    if found is None:
        raise AdapterError(f"{adapter.path} adapts {show(name)}, which this model does not have")
    tensor = tensors[found]
    if tensor.dtype in OTHER_BYTES:
        raise AdapterError(
            f"{adapter.path} adapts {show(name)}, which this model keeps as {tensor.dtype}", "give a base in BF16, F16 or F32"
        )
    return replace(tensor, name=found)


def _change(adapter: Adapter, pair: LowRank, base: SourceTensor) -> LowRankChange:
    """The pair as a product with rows like those of the base, or, for layers that keep (in, out), of its transpose."""
    outward = (pair.up.rows, pair.down.columns)
    inputs_first = pair.embedding or keeps_inputs_first(pair.module)
    _require_shape(adapter, f"{pair.module}.weight", outward[::-1] if inputs_first else outward, base)
    scaling = adapter.scale * pair.scaling
    if pair.embedding:
        return LowRankChange(pair.down.transposed(), pair.up.transposed(), scaling, pair.magnitude, by_column=True)
    return LowRankChange(pair.up, pair.down, scaling, pair.magnitude)


def keeps_inputs_first(module: str) -> bool:
    """Whether a base keeps the weight of this module as (in, out)."""
    return module.rpartition(".")[2] in _CONV1D


def _require_shape(adapter: Adapter, name: str, shape: tuple[int, ...], base: SourceTensor) -> None:
    if base.shape != shape:
        raise AdapterError(f"{adapter.path} has {show(name)} of shape {shape} where this model has {base.shape}", _RESIZE)


def _both_change(name: str, first: Adapter, second: Adapter) -> AdapterError:
    return AdapterError(
        f"{first.path} puts its own {show(name)} in place of the model's, which {second.path} changes too",
        "merge only one of them",
    )
