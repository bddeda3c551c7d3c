"""Decides everything before a weight is read: names, order, types, bytes, metadata.

Pure: a plan is made from names, shapes and the configuration, so dry runs, size tables and progress totals need no weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tinyedge.errors import RequantizeError
from tinyedge.ggml_types import type_named
from tinyedge_quantize.checkpoint import Checkpoint
from tinyedge_quantize.controls.metadata import final_metadata
from tinyedge_quantize.controls.values import Controls, pruned
from tinyedge_quantize.described import described
from tinyedge_quantize.gguf_header import TensorInfo, encode_header, padded
from tinyedge_quantize.gguf_source import GGUFSource
from tinyedge_quantize.metadata import MetadataEntry, uint32
from tinyedge_quantize.model import Model
from tinyedge_quantize.recipes import (
    Recipe,
    TensorFacts,
    choice_warnings,
    choose_types,
    gguf_order,
    importance_weights,
)
from tinyedge_quantize.selfcheck import STOCK_ERRORS
from tinyedge_quantize.tensors import FLOAT_BYTES, SourceTensor

# ggml.h, GGML_QNT_VERSION.
QUANTIZATION_VERSION = 2

Source: TypeAlias = Checkpoint | GGUFSource
Weights: TypeAlias = npt.NDArray[np.float32]

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
    metadata = _metadata(model, recipe, controls)
    kept = pruned([name for name, _ in model.tensors], controls)
    tensors = sorted(
        ((kept[name], name, tensor) for name, tensor in model.tensors if name in kept), key=lambda item: gguf_order(item[0])
    )
    facts = [
        TensorFacts(name, tensor.shape, tensor.dtype if model.from_gguf else None, tensor.dtype) for name, _, tensor in tensors
    ]
    types = choose_types(recipe, facts, model.shape, controls)
    originals = {name: original for name, original, _ in tensors}
    importance = importance_weights(recipe, facts, types, controls, originals, {name for name, _ in model.tensors})
    planned = tuple(
        TensorPlan(tensor, name, tensor.shape, ggml_type, weights)
        for (name, _, tensor), ggml_type, weights in zip(tensors, types, importance, strict=True)
    )
    warnings = [
        *model.warnings,
        *_requantizing(planned, controls),
        *choice_warnings(recipe, facts, types, importance, controls),
    ]
    return QuantPlan(recipe, metadata, planned, tuple(warnings))


def _metadata(model: Model, recipe: Recipe, controls: Controls) -> dict[str, MetadataEntry]:
    metadata = dict(model.metadata)
    metadata["general.quantization_version"] = uint32(QUANTIZATION_VERSION)
    if not recipe.copies or "general.file_type" not in metadata:
        metadata["general.file_type"] = uint32(recipe.file_type)
    shape = model.shape
    return final_metadata(metadata, controls, architecture=shape.architecture, layers=shape.layers)


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
