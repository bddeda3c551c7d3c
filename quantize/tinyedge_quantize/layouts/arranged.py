"""The values a layout takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tinyedge_quantize.tensors import SourceTensor

# How the two halves of a rotary pair lie in a head's rows: "half" (i and i + head_dim / 2, Hugging Face and Lit-GPT) or
# "interleaved" (2 i and 2 i + 1, Meta, llama2.c and GGUF's llama architecture).
Rotary: TypeAlias = Literal["half", "interleaved"]


@dataclass(frozen=True)
class StateDict:
    """The tensors of a checkpoint by name, and what was saved beside them (`extras`, such as llama2.c's model_args)."""

    tensors: Mapping[str, SourceTensor]
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arranged:
    """A checkpoint under Hugging Face's tensor names, its configuration in Hugging Face's spelling."""

    layout: str
    config: dict[str, Any]
    tensors: dict[str, SourceTensor]
    rotary: Rotary
