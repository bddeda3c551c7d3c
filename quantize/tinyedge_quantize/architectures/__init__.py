"""The model families that can be converted: one row or small file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyedge.errors import CheckpointError, UnsupportedArchitectureError
from tinyedge_quantize.architectures.llama import LLAMA
from tinyedge_quantize.architectures.table import Architecture, Sizes, TensorRule
from tinyedge_quantize.strangers import show

__all__ = ["ARCHITECTURES", "Architecture", "Sizes", "TensorRule", "architecture_of"]

ARCHITECTURES = (LLAMA,)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The row that a Hugging Face configuration belongs to; raises UnsupportedArchitectureError naming those there are.

    `architectures` decides; where it is missing, `model_type` does.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    model_type = config.get("model_type")
    if name is None and model_type is None:
        raise CheckpointError(
            "config.json names neither `architectures` nor `model_type`", "copy the config.json that belongs to this checkpoint"
        )
    for row in ARCHITECTURES:
        if name in row.classes or (name is None and model_type in row.model_types):
            return row
    supported = ", ".join(sorted(name for row in ARCHITECTURES for name in row.classes))
    raise UnsupportedArchitectureError(f"the model is a {show(name or model_type)}", f"supported are {supported}")
