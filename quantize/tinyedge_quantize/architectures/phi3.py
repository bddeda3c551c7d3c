"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: q, k, v fused, gate and up fused, long contexts by two lists of RoPE factors.

Reference: llama.cpp's conversion/phi.py and src/models/phi3.cpp; defaults of transformers' Phi3Config.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tinyedge.errors import CheckpointError
from tinyedge_quantize.architectures.common import (
    BLOCK_NORMS,
    EMBEDDING,
    OUTPUT,
    OUTPUT_NORM,
    check_activation,
    check_scaling,
    check_square_attention,
    decoder_sizes,
    rope_parameters,
    rope_type,
    rotary_width,
    window_warning,
)
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes, TensorRule
from tinyedge_quantize.config import integer, real
from tinyedge_quantize.metadata import MetadataEntry, float32, uint32
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import ConstantRows, SourceTensor

TENSORS = (
    EMBEDDING,
    OUTPUT_NORM,
    OUTPUT,
    TensorRule("rope_factors_long.weight", "rope_factors_long.weight", ("rope_pairs",), optional=True),
    TensorRule("rope_factors_short.weight", "rope_factors_short.weight", ("rope_pairs",), optional=True),
    *BLOCK_NORMS,
    TensorRule("model.layers.{}.self_attn.qkv_proj.weight", "blk.{}.attn_qkv.weight", ("qkv", "hidden")),
    TensorRule("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("hidden", "queries")),
    TensorRule("model.layers.{}.mlp.gate_up_proj.weight", "blk.{}.ffn_up.weight", ("gate_and_up", "hidden")),
    TensorRule("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("hidden", "ffn")),
)


def phi3_sizes(config: Config) -> Sizes:
    """The sizes, those of the fused matrices (`qkv`, `gate_and_up`) and the number of rotated pairs among them."""
    check_activation(config, ("silu", "swish"))
    sizes = decoder_sizes(config)
    check_square_attention(sizes)
    return sizes | {
        "qkv": sizes["queries"] + 2 * sizes["keys"],
        "gate_and_up": 2 * sizes["ffn"],
        "rope_pairs": rotary_width(rope_parameters(config), sizes["head_dim"]) // 2,
    }


def phi3_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    """GGUF's phi3.* keys; a sliding window of 0 is how llama.cpp knows models without one."""
    rope = rope_parameters(config)
    scaling = {}
    if _scales(rope):
        scaling["phi3.rope.scaling.attn_factor"] = float32(_attention_factor(config, rope, sizes))
    return {
        "phi3.context_length": uint32(sizes["context"]),
        "phi3.rope.scaling.original_context_length": uint32(_original_context(config)),
        "phi3.embedding_length": uint32(sizes["hidden"]),
        "phi3.feed_forward_length": uint32(sizes["ffn"]),
        "phi3.block_count": uint32(sizes["layers"]),
        "phi3.attention.head_count": uint32(sizes["heads"]),
        "phi3.attention.head_count_kv": uint32(sizes["kv_heads"]),
        "phi3.attention.layer_norm_rms_epsilon": float32(real(config, "rms_norm_eps")),
        "phi3.rope.dimension_count": uint32(2 * sizes["rope_pairs"]),
        "phi3.rope.freq_base": float32(real(rope, "rope_theta")),
        **scaling,
        "phi3.attention.sliding_window": uint32(integer(config, "sliding_window", 0, least=0)),
    }


def rope_factors(config: Config, sizes: Sizes) -> Iterable[SourceTensor]:
    """The divisors of the rotary frequencies beyond the original context and within it; none where RoPE is not scaled."""
    rope = rope_parameters(config)
    if not _scales(rope):
        return
    for kind in ("long", "short"):
        given = rope.get(f"{kind}_factor")
        if not isinstance(given, list) or len(given) != sizes["rope_pairs"]:
            found = f"a list of {len(given)}" if isinstance(given, list) else show(given)
            raise CheckpointError(
                f"{kind}_factor of rope_scaling in config.json is {found} where {sizes['rope_pairs']} numbers are needed",
                "check that config.json is undamaged",
            )
        numbers = [real({kind: value}, kind) for value in given]
        if min(numbers) <= 0:
            raise CheckpointError(
                f"{kind}_factor of rope_scaling in config.json has factors that are not positive", "check that it is undamaged"
            )
        values = np.array(numbers, np.float32)
        yield SourceTensor(f"rope_factors_{kind}.weight", values.shape, "F32", ConstantRows(values))


def _scales(rope: Mapping[str, Any]) -> bool:
    """Whether RoPE is scaled by factors; transformers takes the older names `su` and `yarn` to mean the same."""
    check_scaling(rope, ("default", "longrope", "su", "yarn"))
    return rope_type(rope) != "default"


def _original_context(config: Config) -> int:
    return integer(config, "original_max_position_embeddings", least=2)


def _attention_factor(config: Config, rope: Mapping[str, Any], sizes: Sizes) -> float:
    """What rotated queries and keys are multiplied by (LongRoPE, arXiv 2402.13753); a factor in the configuration wins.

    The converter does not know of factors in the configuration, transformers does.
    """
    original = _original_context(config)
    longer = real(rope, "factor", sizes["context"] / original)
    return real(rope, "attention_factor", math.sqrt(1 + math.log(longer) / math.log(original)) if longer > 1 else 1.0)


PHI3 = Architecture(
    gguf_name="phi3",
    family="Phi-3, 3.5, 4 and 4-mini",
    classes=("Phi3ForCausalLM",),
    base_classes=("Phi3Model",),
    model_types=("phi3",),
    tensors=TENSORS,
    sizes=phi3_sizes,
    metadata=phi3_metadata,
    generated=rope_factors,
    vocabulary="phi3",
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 1.0,
    },
    warnings=window_warning,
)
