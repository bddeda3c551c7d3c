"""OLMo 2 and 3: normalisation behind attention and feed-forward network, and over all queries and keys together.

Reference: llama.cpp's conversion/olmo.py and src/models/olmo2.cpp.
"""

from __future__ import annotations

from dataclasses import replace

from tinyedge_quantize.architectures.common import (
    ATTENTION,
    EMBEDDING,
    GATED_FFN,
    OUTPUT,
    OUTPUT_NORM,
    check_absent,
    check_activation,
    check_heads_fill,
    check_scaling,
    decoder_metadata,
    decoder_sizes,
    head_width_if_said,
    layer_pattern,
    rope_parameters,
    sliding_rope,
)
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes, TensorRule
from tinyedge_quantize.config import integer, real
from tinyedge_quantize.metadata import MetadataEntry, booleans, float32, uint32

_NORMS = (
    TensorRule("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", ("queries",)),
    TensorRule("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", ("keys",)),
    TensorRule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.post_attention_norm.weight", ("hidden",)),
    TensorRule("model.layers.{}.post_feedforward_layernorm.weight", "blk.{}.post_ffw_norm.weight", ("hidden",)),
)


def _sizes(config: Config) -> Sizes:
    check_activation(config, ("silu",))
    check_absent(config, "attention_bias")
    check_scaling(rope_parameters(config))
    sizes = decoder_sizes(config)
    check_heads_fill("OLMo 2", sizes)
    return sizes


def _olmo2_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    return head_width_if_said("olmo2", config, decoder_metadata("olmo2", config, sizes, epsilon=1e-5))


def _olmo3_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    local = sliding_rope(config)
    check_scaling(local, ("default",))
    slides = layer_pattern(config, sizes["layers"], 4)
    if not any(slides):  # llama.cpp aborts on a window that no layer has
        return _olmo2_metadata(config, sizes)
    return {
        **_olmo2_metadata(config, sizes),
        "olmo2.rope.freq_base_swa": float32(real(local, "rope_theta")),
        "olmo2.attention.sliding_window": uint32(integer(config, "sliding_window")),
        "olmo2.attention.sliding_window_pattern": booleans(slides),
    }


OLMO2 = Architecture(
    gguf_name="olmo2",
    family="OLMo 2",
    classes=("Olmo2ForCausalLM",),
    base_classes=("Olmo2Model",),
    model_types=("olmo2",),
    tensors=(EMBEDDING, OUTPUT_NORM, OUTPUT, *_NORMS, *ATTENTION, *GATED_FFN),
    sizes=_sizes,
    metadata=_olmo2_metadata,
    needs_output=True,
    vocabulary="gpt2",
)

OLMO3 = replace(
    OLMO2,
    family="OLMo 3",
    classes=("Olmo3ForCausalLM",),
    base_classes=("Olmo3Model",),
    model_types=("olmo3",),
    metadata=_olmo3_metadata,
    defaults={"rope_theta": 500000.0, "rope_local_base_freq": 500000.0, "sliding_window": 4096},
)
