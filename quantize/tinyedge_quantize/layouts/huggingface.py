"""Hugging Face transformers: config.json beside the weights, names as the model's class in transformers has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyedge_quantize.architectures import ARCHITECTURES, Architecture, architecture_of
from tinyedge_quantize.config import read_json
from tinyedge_quantize.layouts.arranged import Arranged, StateDict
from tinyedge_quantize.same_values import same_values
from tinyedge_quantize.tensors import SourceTensor

_EMBEDDINGS = {name for row in ARCHITECTURES for name in (row.embedding, row.embedding.removeprefix(row.prefix))}
# The text model inside one that also sees: older and newer transformers nest it differently.
_TEXT_MODEL = "language_model."
_OTHER_PARTS = ("vision_tower.", "model.vision_tower.", "multi_modal_projector.", "model.multi_modal_projector.")


def recognises(state: StateDict) -> bool:
    return any(_text_name(name) in _EMBEDDINGS for name in state.tensors)


def arrange(state: StateDict, folder: Path, _config_name: str | None) -> Arranged:
    config = text_config(read_json(folder / "config.json"))
    row = architecture_of(config)
    config, tensors = {**row.defaults, **config}, _full_names(state, row)
    if row.tied(config) and _has_own_head(row, tensors):
        config["tie_word_embeddings"] = False
    return Arranged("huggingface", config, tensors, "half")


def _has_own_head(row: Architecture, tensors: Mapping[str, SourceTensor]) -> bool:
    """Whether an output matrix is saved that is not the embedding, which transformers 5 then does not tie to it.

    transformers, modeling_utils.py, `tie_weights`; llama.cpp's converter writes such a matrix, too.
    """
    embedding, head = tensors.get(row.embedding), tensors.get(row.head)
    return embedding is not None and head is not None and not same_values(embedding, head)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with that of its text model, if it has one, laid over it."""
    inner = config.get("text_config")
    return config | inner if isinstance(inner, dict) else config


def _full_names(state: StateDict, row: Architecture) -> dict[str, SourceTensor]:
    """The tensors under the names of the class with a language model head; buffers and other parts left out."""
    named = {
        _text_name(name): tensor
        for name, tensor in state.tensors.items()
        if not name.endswith(row.ignored) and not name.startswith(_OTHER_PARTS)
    }
    for alias, name in row.aliases.items():
        if alias in named and name not in named:
            named[name] = replace(named.pop(alias), name=name)
    if row.embedding in named:
        return named
    return {(name if name == row.head else row.prefix + name): tensor for name, tensor in named.items()}


def _text_name(name: str) -> str:
    return name.replace(_TEXT_MODEL, "", 1)
