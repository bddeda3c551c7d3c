"""GPT-NeoX: Pythia, Dolly v2 and others; q, k and v lie fused head by head.

Reference: llama.cpp's conversion/gptneox.py and src/models/gptneox.cpp; defaults of transformers' GPTNeoXConfig.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyedge_quantize.architectures.common import check_activation, check_settings, rope_parameters, rotary_width
from tinyedge_quantize.architectures.gpt_like import GELUS, multi_head_sizes, unassumed_rope, with_biases
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes, TensorRule
from tinyedge_quantize.config import integer, real
from tinyedge_quantize.metadata import MetadataEntry, boolean, float32, uint32
from tinyedge_quantize.tensors import SourceTensor


def queries_keys_values(tensor: SourceTensor, sizes: Sizes) -> SourceTensor:
    """All queries, then all keys, then all values, from rows that hold the three of each head together."""
    by_head = np.arange(tensor.rows).reshape(sizes["heads"], 3, sizes["head_dim"])
    return tensor.select_rows(by_head.swapaxes(0, 1).ravel())


TENSORS = (
    TensorRule("gpt_neox.embed_in.weight", "token_embd.weight", ("vocabulary", "hidden")),
    TensorRule("embed_out.weight", "output.weight", ("vocabulary", "hidden")),
    *with_biases(
        TensorRule("gpt_neox.final_layer_norm.weight", "output_norm.weight", ("hidden",)),
        TensorRule("gpt_neox.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", ("hidden",)),
        TensorRule("gpt_neox.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", ("hidden",)),
        TensorRule(
            "gpt_neox.layers.{}.attention.query_key_value.weight",
            "blk.{}.attn_qkv.weight",
            ("qkv", "hidden"),
            adapt=queries_keys_values,
        ),
        TensorRule("gpt_neox.layers.{}.attention.dense.weight", "blk.{}.attn_output.weight", ("hidden", "hidden")),
        TensorRule("gpt_neox.layers.{}.mlp.dense_h_to_4h.weight", "blk.{}.ffn_up.weight", ("ffn", "hidden")),
        TensorRule("gpt_neox.layers.{}.mlp.dense_4h_to_h.weight", "blk.{}.ffn_down.weight", ("hidden", "ffn")),
    ),
)


def neox_sizes(config: Config) -> Sizes:
    """The sizes; refuses what llama.cpp's GPT-NeoX does not compute."""
    check_activation(config, GELUS)
    check_settings(config, {"attention_bias": (True,)})
    return multi_head_sizes(
        layers=integer(config, "num_hidden_layers"),
        hidden=integer(config, "hidden_size"),
        heads=integer(config, "num_attention_heads"),
        ffn=integer(config, "intermediate_size"),
        vocabulary=integer(config, "vocab_size"),
        context=integer(config, "max_position_embeddings"),
    )


def neox_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    """GGUF's gptneox.* keys."""
    rope = _rope(config)
    return {
        "gptneox.context_length": uint32(sizes["context"]),
        "gptneox.embedding_length": uint32(sizes["hidden"]),
        "gptneox.block_count": uint32(sizes["layers"]),
        "gptneox.feed_forward_length": uint32(sizes["ffn"]),
        "gptneox.rope.dimension_count": uint32(rotary_width(rope, sizes["head_dim"])),
        **unassumed_rope("gptneox", config, rope),
        "gptneox.attention.head_count": uint32(sizes["heads"]),
        "gptneox.use_parallel_residual": boolean(config["use_parallel_residual"], "use_parallel_residual"),
        "gptneox.attention.layer_norm_epsilon": float32(real(config, "layer_norm_eps")),
    }


def _rope(config: Config) -> dict[str, Any]:
    """RoPE's parameters, theta and the rotated part standing under names of this family where transformers 4 wrote them."""
    named = {"rope_theta": config.get("rotary_emb_base"), "partial_rotary_factor": config.get("rotary_pct")}
    return rope_parameters({**config, **named})


GPT_NEOX = Architecture(
    gguf_name="gptneox",
    family="GPT-NeoX, Pythia",
    classes=("GPTNeoXForCausalLM",),
    base_classes=("GPTNeoXModel",),
    model_types=("gpt_neox",),
    tensors=TENSORS,
    sizes=neox_sizes,
    metadata=neox_metadata,
    prefix="gpt_neox.",
    head="embed_out.weight",
    # What the module is called in transformers 5, which saves it under its old name.
    aliases={"lm_head.weight": "embed_out.weight"},
    needs_output=True,
    vocabulary="gpt2",
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000.0,
        "use_parallel_residual": True,
    },
)
