"""StableLM 3B, StableLM 2: Llama's shape with layer norms, a part of each head rotated, and variants of the rest.

Reference: llama.cpp's conversion/stablelm.py and src/models/stablelm.cpp; defaults of transformers' StableLmConfig. The older
class StableLMEpoch has other names for two settings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinyedge_quantize.architectures.common import (
    ATTENTION,
    ATTENTION_BIASES,
    BLOCK_NORMS,
    EMBEDDING,
    GATED_FFN,
    OUTPUT,
    OUTPUT_NORM,
    check_activation,
    check_square_attention,
    decoder_sizes,
    rope_parameters,
    rotary_width,
)
from tinyedge_quantize.architectures.gpt_like import unassumed_rope, with_biases
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes, TensorRule
from tinyedge_quantize.config import real
from tinyedge_quantize.metadata import MetadataEntry, boolean, float32, uint32

_ATTENTION_NORM = BLOCK_NORMS[0]
_FFN_NORM = replace(BLOCK_NORMS[1], shape=("ffn_norm",), when="ffn_norm")
_QKV_BIASES = ATTENTION_BIASES[:3]

TENSORS = (
    EMBEDDING,
    OUTPUT,
    *with_biases(OUTPUT_NORM, _ATTENTION_NORM),
    *with_biases(_FFN_NORM),
    *ATTENTION,
    *_QKV_BIASES,
    TensorRule(
        "model.layers.{}.self_attn.q_layernorm.norms.{part}.weight",
        "blk.{}.attn_q_norm.weight",
        ("query_norms", "head_dim"),
        stack="query_norms",
        when="query_norms",
    ),
    TensorRule(
        "model.layers.{}.self_attn.k_layernorm.norms.{part}.weight",
        "blk.{}.attn_k_norm.weight",
        ("key_norms", "head_dim"),
        stack="key_norms",
        when="key_norms",
    ),
    *GATED_FFN,
)


def stablelm_sizes(config: Config) -> Sizes:
    """The sizes; `ffn_norm`, `query_norms` and `key_norms` are 0 where the configuration says that there are none."""
    check_activation(config, ("silu", "swish"))
    sizes = decoder_sizes(config)
    check_square_attention(sizes)
    parallel, normed = (boolean(config[key], key).value for key in ("use_parallel_residual", "qk_layernorm"))
    return sizes | {
        "ffn_norm": 0 if parallel else sizes["hidden"],
        "query_norms": sizes["heads"] if normed else 0,
        "key_norms": sizes["kv_heads"] if normed else 0,
    }


def stablelm_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    """GGUF's stablelm.* keys."""
    rope = _rope(config)
    return {
        "stablelm.context_length": uint32(sizes["context"]),
        "stablelm.embedding_length": uint32(sizes["hidden"]),
        "stablelm.block_count": uint32(sizes["layers"]),
        "stablelm.feed_forward_length": uint32(sizes["ffn"]),
        "stablelm.rope.dimension_count": uint32(rotary_width(rope, sizes["head_dim"])),
        **unassumed_rope("stablelm", config, rope),
        "stablelm.attention.head_count": uint32(sizes["heads"]),
        "stablelm.attention.head_count_kv": uint32(sizes["kv_heads"]),
        "stablelm.use_parallel_residual": boolean(config["use_parallel_residual"], "use_parallel_residual"),
        "stablelm.attention.layer_norm_epsilon": float32(real(config, "layer_norm_eps", real(config, "norm_eps"))),
    }


def _rope(config: Config) -> dict[str, Any]:
    rope = rope_parameters(config)
    if rope["partial_rotary_factor"] is None:
        rope["partial_rotary_factor"] = config.get("rope_pct", 0.25)
    return rope


STABLELM = Architecture(
    gguf_name="stablelm",
    family="StableLM 3B, StableLM 2",
    classes=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    base_classes=("StableLmModel",),
    model_types=("stablelm", "stablelm_epoch"),
    tensors=TENSORS,
    sizes=stablelm_sizes,
    metadata=stablelm_metadata,
    needs_output=True,
    vocabulary="stablelm",
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "use_parallel_residual": False,
        "qk_layernorm": False,
    },
    pre_tokenizers={"qwen2": "stablelm2"},
)
