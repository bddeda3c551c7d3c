"""SmolLM3: a Llama in which every fourth layer does not rotate its queries and keys.

Reference: llama.cpp's conversion/llama.py and src/models/smollm3.cpp, which knows these layers by counting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tinyedge.errors import UnsupportedArchitectureError
from tinyedge_quantize.architectures.common import (
    check_absent,
    check_scaling,
    head_width_if_said,
    rope_parameters,
    some_layer_slides,
    window_warning,
)
from tinyedge_quantize.architectures.llama import LLAMA, llama_metadata, llama_sizes
from tinyedge_quantize.architectures.table import Config, Sizes, tied_unless_said
from tinyedge_quantize.config import integer
from tinyedge_quantize.metadata import MetadataEntry

_EVERY = 4


def _sizes(config: Config) -> Sizes:
    check_absent(config, "attention_bias", "mlp_bias")
    check_scaling(rope_parameters(config))
    sizes = llama_sizes(config)
    rotates = config.get("no_rope_layers")
    if rotates is None:
        every = integer(config, "no_rope_layer_interval", _EVERY)
        rotates = [int((layer + 1) % every != 0) for layer in range(sizes["layers"])]
    if rotates != [int((layer + 1) % _EVERY != 0) for layer in range(sizes["layers"])]:
        raise UnsupportedArchitectureError(
            "the model's layers without RoPE are not every fourth",
            "llama.cpp's SmolLM3 leaves it out in every fourth layer only",
        )
    return sizes


def _metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    return head_width_if_said("smollm3", config, llama_metadata(config, sizes, "smollm3"))


def _window_warning(config: Config) -> Iterable[str]:
    """As `window_warning`; without layer_types the layers that do not rotate slide (transformers, SmolLM3Config)."""
    usual = bool(config.get("use_sliding_window")) and integer(config, "num_hidden_layers") >= _EVERY
    return window_warning(config) if some_layer_slides(config, usual) else ()


SMOLLM3 = replace(
    LLAMA,
    gguf_name="smollm3",
    family="SmolLM3",
    classes=("SmolLM3ForCausalLM",),
    base_classes=("SmolLM3Model",),
    model_types=("smollm3",),
    sizes=_sizes,
    metadata=_metadata,
    tied=tied_unless_said(True),
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2000000.0,
        "use_sliding_window": False,
    },
    warnings=_window_warning,
)
