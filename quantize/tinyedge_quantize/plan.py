"""Decides everything before a weight is read: names, order, types, bytes, metadata.

Pure: a plan is made from names, shapes and the configuration, so dry runs, size tables and progress totals need no weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tinyedge.errors import RequantizeError, TensorMismatchError
from tinyedge.ggml_types import type_named
from tinyedge_quantize.architectures import Architecture, Sizes, TensorRule, architecture_of
from tinyedge_quantize.checkpoint import Checkpoint
from tinyedge_quantize.control_metadata import final_metadata
from tinyedge_quantize.controls import Controls, pruned
from tinyedge_quantize.general import general_metadata
from tinyedge_quantize.gguf_header import TensorInfo, encode_header, padded
from tinyedge_quantize.gguf_source import GGUFSource
from tinyedge_quantize.layouts.arranged import Arranged
from tinyedge_quantize.metadata import MetadataEntry, uint32
from tinyedge_quantize.model import Model
from tinyedge_quantize.recipes import (
    ModelShape,
    Recipe,
    TensorFacts,
    choice_warnings,
    choose_types,
    gguf_order,
    importance_weights,
)
from tinyedge_quantize.selfcheck import STOCK_ERRORS
from tinyedge_quantize.tensors import FLOAT_BYTES, RowOrder, SourceTensor, float_rows, stacked
from tinyedge_quantize.tokenizer import read_tokenizer

# ggml.h, GGML_QNT_VERSION.
QUANTIZATION_VERSION = 2

Source: TypeAlias = Checkpoint | GGUFSource
Weights: TypeAlias = npt.NDArray[np.float32]

# No layer is wider; a longer vector is not read to see whether it is zero.
_LONGEST_BIAS = 2**20

# Quantized types that lose so little that quantizing them again is as good as from the original.
_ALMOST_EXACT = ("Q8_0",)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output: its source rows, its GGUF name, its shape as (rows, columns), its ggml type.

    `importance` is the weight of each column for the quantizer, from an importance matrix.
    """

    source: SourceTensor
    name: str
    shape: tuple[int, ...]
    ggml_type: str
    importance: Weights | None = field(default=None, repr=False, compare=False)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the output, rows and columns being those of `source`."""
        return type_named(self.ggml_type).row_bytes(self.source.columns)

    @property
    def bytes(self) -> int:
        return self.source.rows * self.row_bytes

    @property
    def elements(self) -> int:
        return self.source.rows * self.source.columns


@dataclass(frozen=True)
class PlannedFile:
    """One file of the output: its header's bytes, and its tensors in file order with their offsets behind the header."""

    header: bytes
    tensors: tuple[TensorPlan, ...]
    offsets: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The exact size of the file."""
        return len(self.header) + sum(padded(tensor.bytes) for tensor in self.tensors)


@dataclass(frozen=True)
class QuantPlan:
    """The whole output: metadata and tensors in file order. `warnings` are sentences for the person who asked for it."""

    recipe: Recipe
    metadata: Mapping[str, MetadataEntry]
    tensors: tuple[TensorPlan, ...]
    warnings: tuple[str, ...] = ()

    @property
    def whole(self) -> PlannedFile:
        """Everything in one file."""
        return planned_file(self.metadata, self.tensors)

    @property
    def total_bytes(self) -> int:
        """The exact size as one file."""
        return self.whole.bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each parameter, as llama.cpp counts them."""
        return 8 * sum(tensor.bytes for tensor in self.tensors) / self.parameters

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def type_counts(self) -> dict[str, int]:
        """Tensors per ggml type, most frequent first."""
        return dict(Counter(tensor.ggml_type for tensor in self.tensors).most_common())

    def with_metadata(self, entries: Mapping[str, MetadataEntry]) -> QuantPlan:
        """The same plan with further keys at the end; a key that is there already moves."""
        kept = {key: entry for key, entry in self.metadata.items() if key not in entries}
        return replace(self, metadata={**kept, **entries})


def planned_file(metadata: Mapping[str, MetadataEntry], tensors: tuple[TensorPlan, ...]) -> PlannedFile:
    """A file with this metadata and these tensors, in this order."""
    offsets = tuple(accumulate((padded(tensor.bytes) for tensor in tensors[:-1]), initial=0))
    infos = [
        TensorInfo(tensor.name, tensor.shape, type_named(tensor.ggml_type).id, offset)
        for tensor, offset in zip(tensors, offsets, strict=True)
    ]
    return PlannedFile(encode_header(metadata, infos), tensors, offsets)


def make_plan(source: Source, recipe: Recipe, pre_tokenizer: str | None = None, controls: Controls | None = None) -> QuantPlan:
    """The plan for a checkpoint or a GGUF file.

    Raises UnsupportedArchitectureError, TensorMismatchError, TokenizerError or CheckpointError when it cannot be converted,
    ImatrixError when the importance matrix does not fit or is missing where a type needs it, RequantizeError when tensors are
    quantized already, and ControlError when `controls` ask for what the model does not have.
    """
    controls = controls or Controls()
    model = source.model if isinstance(source, GGUFSource) else described(source, pre_tokenizer)
    kept = pruned([name for name, _ in model.tensors], controls)
    tensors = sorted(
        ((kept[name], name, tensor) for name, tensor in model.tensors if name in kept), key=lambda item: gguf_order(item[0])
    )
    facts = [
        TensorFacts(name, tensor.shape, tensor.dtype if model.from_gguf else None, tensor.dtype) for name, _, tensor in tensors
    ]
    types = choose_types(recipe, facts, model.shape, controls)
    importance = importance_weights(recipe, facts, types, controls, {name: original for name, original, _ in tensors})
    planned = tuple(
        TensorPlan(tensor, name, tensor.shape, ggml_type, weights)
        for (name, _, tensor), ggml_type, weights in zip(tensors, types, importance, strict=True)
    )
    warnings = [
        *model.warnings,
        *_requantizing(planned, controls),
        *choice_warnings(recipe, facts, types, importance, controls),
    ]
    return QuantPlan(recipe, _metadata(model, recipe, controls), planned, tuple(warnings))


def _metadata(model: Model, recipe: Recipe, controls: Controls) -> dict[str, MetadataEntry]:
    metadata = dict(model.metadata)
    metadata["general.quantization_version"] = uint32(QUANTIZATION_VERSION)
    if not recipe.copies or "general.file_type" not in metadata:
        metadata["general.file_type"] = uint32(recipe.file_type)
    shape = model.shape
    return final_metadata(metadata, controls, architecture=shape.architecture, layers=shape.layers)


def described(checkpoint: Checkpoint, pre_tokenizer: str | None = None) -> Model:
    """A checkpoint as a model under GGUF's names: its family's row decides names, transforms and metadata."""
    arranged = checkpoint.arranged
    architecture = architecture_of(arranged.config)
    sizes = architecture.sizes(arranged.config)
    tensors = map_tensors(architecture, arranged, sizes)
    name = _model_name(checkpoint)
    parameters = sum(tensor.rows * tensor.columns for _, tensor in tensors)
    metadata = {
        **general_metadata(checkpoint.folder, architecture.gguf_name, parameters, name),
        **architecture.metadata(arranged.config, sizes),
        **read_tokenizer(
            checkpoint.folder,
            sizes["vocabulary"],
            arranged.config,
            pre_tokenizer,
            vocabulary=architecture.vocabulary,
            pre_names=architecture.pre_tokenizers,
        ),
    }
    shape = ModelShape(sizes["layers"], sizes["heads"], sizes["kv_heads"], architecture.gguf_name)
    return Model(tuple(tensors), metadata, shape, name, warnings=tuple(architecture.warnings(arranged.config)))


def _requantizing(tensors: Sequence[TensorPlan], controls: Controls) -> list[str]:
    """What quantizing again costs, in a sentence; raises RequantizeError where it was not allowed."""
    again = [
        tensor
        for tensor in tensors
        if tensor.source.dtype not in FLOAT_BYTES
        and tensor.source.dtype not in _ALMOST_EXACT
        and tensor.source.dtype != tensor.ggml_type
    ]
    if not again:
        return []
    first = again[0]
    before, after = first.source.dtype, first.ggml_type
    if not controls.allow_requantize:
        raise RequantizeError(f"{len(again)} tensors are quantized already, {first.name} for one as {before}")
    cost = ""
    if before in STOCK_ERRORS:
        direct = STOCK_ERRORS.get(after, 0.0)
        both = float(np.hypot(STOCK_ERRORS[before], direct))
        cost = f": expect errors of about {both:.1%} of the weights where {after} from the original has {direct:.1%}"
    return [f"{len(again)} tensors are quantized a second time, {first.name} from {before} to {after}{cost}"]


def _model_name(checkpoint: Checkpoint) -> str:
    path = checkpoint.path.resolve()
    name = path.name if path.is_dir() else path.parent.name
    return name.encode("utf-8", "replace").decode() or "model"


def map_tensors(architecture: Architecture, arranged: Arranged, sizes: Sizes) -> list[tuple[str, SourceTensor]]:
    """GGUF names with their sources: every tensor the family has, each of the right shape, and none left over."""
    available = dict(arranged.tensors)
    available |= {tensor.name: tensor for tensor in architecture.generated(arranged.config, sizes)}
    tied = architecture.tied(arranged.config)
    if tied:
        # A tied head is the embedding; transformers ignores a copy saved beside it, and so do we.
        available.pop(architecture.head, None)
        if architecture.needs_output and architecture.embedding in available:
            available[architecture.head] = available[architecture.embedding]
    mapped = []
    for rule in architecture.tensors:
        if rule.when is not None and not sizes[rule.when]:
            continue
        for layer in range(sizes["layers"] if rule.per_layer else 1):
            tensor = _take(rule, layer, available, sizes)
            if tensor is not None:
                mapped.append((rule.target.format(layer), _checked(tensor, rule, arranged, sizes)))
            elif not rule.optional and not (rule.source == architecture.head and tied):
                raise TensorMismatchError(
                    f"tensor {_name(rule, layer)} is missing", "check that all weight files and the right config.json are there"
                )
    left = [name for name, tensor in available.items() if not _adds_nothing(tensor)]
    if left:
        raise _left_over(sorted(left), sizes)
    return mapped


def _adds_nothing(tensor: SourceTensor) -> bool:
    """Whether it is a bias of zeros, such as GPTQ's first tools wrote for every layer, also of families that have none."""
    is_bias = tensor.name.endswith(".bias") and len(tensor.shape) == 1 and tensor.dtype in FLOAT_BYTES
    return is_bias and tensor.rows <= _LONGEST_BIAS and not float_rows(tensor, 0, tensor.rows).any()


def _name(rule: TensorRule, layer: int, part: int = 0) -> str:
    return rule.source.format(layer, part=part)


def _take(rule: TensorRule, layer: int, available: dict[str, SourceTensor], sizes: Sizes) -> SourceTensor | None:
    if rule.stack is None:
        return available.pop(_name(rule, layer), None)
    parts = [available.pop(_name(rule, layer, part), None) for part in range(sizes[rule.stack])]
    found = [part for part in parts if part is not None]
    if found and len(found) < len(parts):
        missing = _name(rule, layer, parts.index(None))
        raise TensorMismatchError(f"tensor {missing} is missing", "check that all weight files are there")
    return stacked(_name(rule, layer), found) if found else None


def _left_over(names: list[str], sizes: Sizes) -> TensorMismatchError:
    layer = re.match(r".*?\.(\d+)\.", names[0])
    if layer and int(layer[1]) >= sizes["layers"]:
        problem = f"the checkpoint has tensor {names[0]} where the configuration has {sizes['layers']} layers"
    else:
        problem = f"the checkpoint has {len(names)} tensors its architecture does not know, such as {names[0]}"
    return TensorMismatchError(problem)


def _checked(tensor: SourceTensor, rule: TensorRule, arranged: Arranged, sizes: Sizes) -> SourceTensor:
    expected = tuple(sizes[name] for name in rule.shape)
    if tensor.shape != expected:
        raise TensorMismatchError(
            f"tensor {tensor.name} has shape {_shape(tensor.shape)} where the configuration needs {_shape(expected)}"
        )
    if tensor.dtype not in FLOAT_BYTES:
        raise TensorMismatchError(
            f"tensor {tensor.name} has dtype {tensor.dtype} where {', '.join(FLOAT_BYTES)} can be converted",
            "save the checkpoint in BF16, F16 or F32",
        )
    if rule.adapt is not None:
        tensor = rule.adapt(tensor, sizes)
    if rule.rotary is not None and arranged.rotary == "half":
        return tensor.select_rows(interleaved_rotary_rows(sizes[rule.rotary], tensor.rows))
    return tensor


def interleaved_rotary_rows(heads: int, rows: int) -> RowOrder:
    """The order that turns half-rotation rows into interleaved ones, head by head: i, i + head_dim / 2, i + 1, ...

    llama.cpp, conversion/llama.py, `permute`.
    """
    order: RowOrder = np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).ravel()
    return order


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
