"""Qwen2, Qwen2.5 and Qwen3.

Reference: llama.cpp's conversion/qwen.py, src/models/qwen2.cpp and qwen3.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tinyedge_quantize.architectures.common import (
    ATTENTION,
    ATTENTION_BIASES,
    BLOCK_NORMS,
    EMBEDDING,
    GATED_FFN,
    HEAD_NORMS,
    OUTPUT,
    OUTPUT_NORM,
    check_absent,
    check_activation,
    check_heads_fill,
    check_scaling,
    decoder_metadata,
    decoder_sizes,
    head_width_if_said,
    rope_parameters,
    some_layer_slides,
    window_warning,
)
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes
from tinyedge_quantize.config import integer
from tinyedge_quantize.metadata import MetadataEntry

_TENSORS = (EMBEDDING, OUTPUT_NORM, OUTPUT, *BLOCK_NORMS, *ATTENTION, *GATED_FFN)
_QUERY_KEY_VALUE_BIASES = ATTENTION_BIASES[:3]


def _qwen2_sizes(config: Config) -> Sizes:
    sizes = _sizes(config)
    check_heads_fill("Qwen2", sizes)
    return sizes


def _qwen3_sizes(config: Config) -> Sizes:
    check_absent(config, "attention_bias")
    return _sizes(config)


def _sizes(config: Config) -> Sizes:
    check_activation(config, ("silu",))
    check_scaling(rope_parameters(config))
    return decoder_sizes(config)


def _qwen2_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    return head_width_if_said("qwen2", config, decoder_metadata("qwen2", config, sizes))


def _qwen3_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    return decoder_metadata("qwen3", config, sizes)


def _window_warning(config: Config) -> Iterable[str]:
    """As `window_warning`; without layer_types the layers from max_window_layers on slide (transformers, Qwen2Config)."""
    usual = integer(config, "max_window_layers", 28, least=0) < integer(config, "num_hidden_layers")
    return window_warning(config) if config.get("use_sliding_window") and some_layer_slides(config, usual) else ()


QWEN2 = Architecture(
    gguf_name="qwen2",
    family="Qwen2, Qwen2.5",
    classes=("Qwen2ForCausalLM",),
    base_classes=("Qwen2Model",),
    model_types=("qwen2",),
    tensors=(*_TENSORS, *_QUERY_KEY_VALUE_BIASES),
    sizes=_qwen2_sizes,
    metadata=_qwen2_metadata,
    vocabulary="qwen",
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "use_sliding_window": False,
    },
    warnings=_window_warning,
)

QWEN3 = replace(
    QWEN2,
    gguf_name="qwen3",
    family="Qwen3",
    classes=("Qwen3ForCausalLM",),
    base_classes=("Qwen3Model",),
    model_types=("qwen3",),
    tensors=(*_TENSORS, *HEAD_NORMS),
    sizes=_qwen3_sizes,
    metadata=_qwen3_metadata,
    defaults={**QWEN2.defaults, "head_dim": 128},
)
