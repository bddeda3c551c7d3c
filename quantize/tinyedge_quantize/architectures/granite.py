"""Granite 3: a Llama with scales of its own.

Reference: llama.cpp's conversion/granite.py and src/models/granite.cpp.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinyedge.errors import UnsupportedArchitectureError
from tinyedge_quantize.architectures.common import check_heads_fill
from tinyedge_quantize.architectures.llama import LLAMA, llama_metadata, llama_sizes
from tinyedge_quantize.architectures.table import Config, Sizes
from tinyedge_quantize.config import real
from tinyedge_quantize.metadata import MetadataEntry, float32

_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def _sizes(config: Config) -> Sizes:
    sizes = llama_sizes(config)
    check_heads_fill("Granite", sizes)
    for name in _SCALES.values():
        if not np.float32(real(config, name, 1.0)):
            raise UnsupportedArchitectureError(
                f"{name} in config.json is 0, which llama.cpp takes to mean that there is none",
                "check that config.json belongs to this checkpoint",
            )
    return sizes


def _metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    entries = llama_metadata(config, sizes, "granite")
    del entries["granite.attention.key_length"], entries["granite.attention.value_length"]
    return entries | {f"granite.{key}": float32(real(config, name, 1.0)) for key, name in _SCALES.items()}


GRANITE = replace(
    LLAMA,
    gguf_name="granite",
    family="Granite 3",
    classes=("GraniteForCausalLM",),
    base_classes=("GraniteModel",),
    model_types=("granite",),
    sizes=_sizes,
    metadata=_metadata,
    pre_tokenizers={"smollm": "refact"},
)
