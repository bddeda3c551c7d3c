"""A checkpoint as a model under GGUF's names: its family's row decides names, shapes, transforms and metadata."""

from __future__ import annotations

import re

import numpy as np

from tinyedge.errors import TensorMismatchError
from tinyedge_quantize.architectures import Architecture, Sizes, TensorRule, architecture_of
from tinyedge_quantize.checkpoint import Checkpoint
from tinyedge_quantize.general import general_metadata
from tinyedge_quantize.layouts.arranged import Arranged
from tinyedge_quantize.model import Model
from tinyedge_quantize.recipes import ModelShape
from tinyedge_quantize.tensors import FLOAT_BYTES, RowOrder, SourceTensor, float_rows, stacked
from tinyedge_quantize.tokenizer import open_tokenizer

# No layer is wider; a longer vector is not read to see whether it is zero.
_LONGEST_BIAS = 2**20


def described(checkpoint: Checkpoint, pre_tokenizer: str | None = None) -> Model:
    """A checkpoint as a model under GGUF's names: its family's row decides names, transforms and metadata."""
    arranged = checkpoint.arranged
    architecture = architecture_of(arranged.config)
    sizes = architecture.sizes(arranged.config)
    tensors = map_tensors(architecture, arranged, sizes)
    name = _model_name(checkpoint)
    parameters = sum(tensor.rows * tensor.columns for _, tensor in tensors)
    general = general_metadata(checkpoint.folder, architecture.gguf_name, parameters, name)
    tokenizer = open_tokenizer(
        checkpoint.folder,
        sizes["vocabulary"],
        arranged.config,
        pre_tokenizer,
        vocabulary=architecture.vocabulary,
        pre_names=architecture.pre_tokenizers,
        name=str(general["general.name"].value),
    )
    metadata = {**general, **architecture.metadata(arranged.config, sizes), **tokenizer.entries}
    warnings = (*architecture.warnings(arranged.config), *tokenizer.warnings)
    shape = ModelShape(sizes["layers"], sizes["heads"], sizes["kv_heads"], architecture.gguf_name)
    return Model(tuple(tensors), metadata, shape, name, warnings=warnings)


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
        # A copy of the embedding that was saved beside it; a head of other values makes the model an untied one (layouts).
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
                raise _missing(rule, layer, architecture)
    left = [name for name, tensor in available.items() if not _adds_nothing(tensor)]
    if left:
        raise _left_over(sorted(left), sizes)
    return mapped


def _missing(rule: TensorRule, layer: int, architecture: Architecture) -> TensorMismatchError:
    if rule.source == architecture.head:
        return TensorMismatchError(
            f"the checkpoint has no output matrix: tensor {architecture.head} is missing",
            f"give that of the class {architecture.classes[0]}, or set tie_word_embeddings if the embedding is the output",
        )
    return TensorMismatchError(
        f"tensor {_name(rule, layer)} is missing", "check that all weight files and the right config.json are there"
    )


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
