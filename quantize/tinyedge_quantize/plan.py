"""Decides everything before a weight is read: names, order, types, bytes, metadata.

Pure: a plan is made from names, shapes and the configuration, so dry runs, size tables and progress totals need no weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tinyedge.errors import TensorMismatchError
from tinyedge.ggml_types import type_named
from tinyedge_quantize.architectures import Architecture, Sizes, TensorRule, architecture_of
from tinyedge_quantize.checkpoint import Checkpoint
from tinyedge_quantize.general import general_metadata
from tinyedge_quantize.gguf_header import TensorInfo, encode_header, padded
from tinyedge_quantize.layouts.arranged import Arranged
from tinyedge_quantize.metadata import MetadataEntry, uint32
from tinyedge_quantize.recipes import ModelShape, Recipe, choose_types, gguf_order
from tinyedge_quantize.tensors import FLOAT_BYTES, RowOrder, SourceTensor
from tinyedge_quantize.tokenizer import read_tokenizer

# ggml.h, GGML_QNT_VERSION.
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output: its source rows, its GGUF name, its shape as (rows, columns), its ggml type."""

    source: SourceTensor
    name: str
    shape: tuple[int, ...]
    ggml_type: str

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
class QuantPlan:
    """The whole output: metadata, tensors in file order with their offsets, and the header's bytes."""

    recipe: Recipe
    metadata: Mapping[str, MetadataEntry]
    tensors: tuple[TensorPlan, ...]
    offsets: tuple[int, ...]
    header: bytes

    @property
    def total_bytes(self) -> int:
        """The exact size of the file."""
        return len(self.header) + sum(padded(tensor.bytes) for tensor in self.tensors)

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


def make_plan(checkpoint: Checkpoint, recipe: Recipe, pre_tokenizer: str | None = None) -> QuantPlan:
    """The plan for a checkpoint.

    Raises UnsupportedArchitectureError, TensorMismatchError, TokenizerError or CheckpointError when it cannot be converted.
    """
    arranged = checkpoint.arranged
    architecture = architecture_of(arranged.config)
    sizes = architecture.sizes(arranged.config)
    tensors = _map_tensors(architecture, arranged, sizes)
    tensors.sort(key=lambda item: gguf_order(item[0]))
    shape = ModelShape(sizes["layers"], sizes["heads"], sizes["kv_heads"])
    types = choose_types(recipe, [(name, source.shape) for name, source in tensors], shape)
    planned = tuple(
        TensorPlan(source, name, source.shape, ggml_type) for (name, source), ggml_type in zip(tensors, types, strict=True)
    )
    parameters = sum(tensor.elements for tensor in planned)
    metadata = {
        **general_metadata(checkpoint.folder, architecture.gguf_name, parameters, _model_name(checkpoint)),
        **architecture.metadata(arranged.config, sizes),
        **read_tokenizer(checkpoint.folder, sizes["vocabulary"], arranged.config, pre_tokenizer),
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
        "general.file_type": uint32(recipe.file_type),
    }
    offsets = tuple(accumulate((padded(tensor.bytes) for tensor in planned[:-1]), initial=0))
    infos = [
        TensorInfo(tensor.name, tensor.shape, type_named(tensor.ggml_type).id, offset)
        for tensor, offset in zip(planned, offsets, strict=True)
    ]
    return QuantPlan(recipe, metadata, planned, offsets, encode_header(metadata, infos))


def _model_name(checkpoint: Checkpoint) -> str:
    path = checkpoint.path.resolve()
    name = path.name if path.is_dir() else path.parent.name
    return name.encode("utf-8", "replace").decode() or "model"


def _map_tensors(architecture: Architecture, arranged: Arranged, sizes: Sizes) -> list[tuple[str, SourceTensor]]:
    """GGUF names with their sources: every tensor the family has, each of the right shape, and none left over."""
    available = dict(arranged.tensors)
    available |= {tensor.name: tensor for tensor in architecture.generated(arranged.config, sizes)}
    if architecture.tied(arranged.config):
        # A tied head is the embedding; transformers ignores a copy saved beside it, and so do we.
        available.pop("lm_head.weight", None)
    mapped = []
    for rule in architecture.tensors:
        for layer in range(sizes["layers"] if rule.per_layer else 1):
            name = rule.source.format(layer)
            tensor = available.pop(name, None)
            if tensor is not None:
                mapped.append((rule.target.format(layer), _checked(tensor, rule, arranged, sizes)))
            elif not rule.optional and not (rule.source == "lm_head.weight" and architecture.tied(arranged.config)):
                raise TensorMismatchError(
                    f"tensor {name} is missing", "check that all weight files and the right config.json are there"
                )
    if available:
        raise _left_over(sorted(available), sizes)
    return mapped


def _left_over(names: list[str], sizes: Sizes) -> TensorMismatchError:
    layer = re.match(r"model\.layers\.(\d+)\.", names[0])
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
