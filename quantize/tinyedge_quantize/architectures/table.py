"""What describes a model family: which classes it answers to, its tensors, and the metadata llama.cpp wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyedge_quantize.metadata import MetadataEntry
from tinyedge_quantize.tensors import SourceTensor

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class TensorRule:
    """One kind of tensor: its Hugging Face name, its GGUF name, and its shape as names of sizes.

    `{}` in the names stands for the layer. `rotary` names the size that counts the heads whose rows are permuted.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    rotary: str | None = None
    optional: bool = False

    @property
    def per_layer(self) -> bool:
        return "{}" in self.source


@dataclass(frozen=True)
class Architecture:
    """One model family.

    `sizes` reads the named sizes from a Hugging Face configuration (at least layers, hidden, heads, kv_heads, vocabulary) and
    raises when they make no sense or describe a variant that is not supported. `metadata` gives GGUF's keys after
    `general.*`, in llama.cpp's order. `generated` gives tensors that follow from the configuration alone.
    """

    gguf_name: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    tensors: tuple[TensorRule, ...]
    sizes: Callable[[Mapping[str, Any]], Sizes]
    metadata: Callable[[Mapping[str, Any], Sizes], dict[str, MetadataEntry]]
    generated: Callable[[Mapping[str, Any], Sizes], Iterable[SourceTensor]]
    tied: Callable[[Mapping[str, Any]], bool]
