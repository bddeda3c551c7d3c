"""Phi-1, Phi-1.5 and Phi-2: attention and feed-forward beside each other behind one norm, biases everywhere.

Reference: llama.cpp's conversion/phi.py and src/models/phi2.cpp; defaults of transformers' PhiConfig.
"""

from __future__ import annotations

from tinyedge_quantize.architectures.common import (
    EMBEDDING,
    OUTPUT,
    check_absent,
    check_activation,
    check_square_attention,
    decoder_sizes,
    rope_parameters,
    rotary_width,
)
from tinyedge_quantize.architectures.gpt_like import GELUS, unassumed_rope, with_biases
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes, TensorRule
from tinyedge_quantize.config import real
from tinyedge_quantize.metadata import MetadataEntry, boolean, float32, uint32

TENSORS = (
    EMBEDDING,
    *with_biases(
        OUTPUT,
        TensorRule("model.final_layernorm.weight", "output_norm.weight", ("hidden",)),
        TensorRule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", ("hidden",)),
        TensorRule("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", ("queries", "hidden")),
        TensorRule("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", ("keys", "hidden")),
        TensorRule("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", ("keys", "hidden")),
        TensorRule("model.layers.{}.self_attn.dense.weight", "blk.{}.attn_output.weight", ("hidden", "queries")),
        TensorRule("model.layers.{}.mlp.fc1.weight", "blk.{}.ffn_up.weight", ("ffn", "hidden")),
        TensorRule("model.layers.{}.mlp.fc2.weight", "blk.{}.ffn_down.weight", ("hidden", "ffn")),
    ),
)


def phi2_sizes(config: Config) -> Sizes:
    """The sizes; refuses what llama.cpp's Phi-2 does not compute."""
    check_activation(config, GELUS)
    check_absent(config, "qk_layernorm")
    sizes = decoder_sizes(config)
    check_square_attention(sizes)
    return sizes


def phi2_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    """GGUF's phi2.* keys; the converter's feed-forward length is 4 * hidden whatever the model's is."""
    rope = rope_parameters(config)
    return {
        "phi2.context_length": uint32(sizes["context"]),
        "phi2.embedding_length": uint32(sizes["hidden"]),
        "phi2.feed_forward_length": uint32(sizes["ffn"]),
        "phi2.block_count": uint32(sizes["layers"]),
        "phi2.attention.head_count": uint32(sizes["heads"]),
        "phi2.attention.head_count_kv": uint32(sizes["kv_heads"]),
        "phi2.attention.layer_norm_epsilon": float32(real(config, "layer_norm_eps")),
        "phi2.rope.dimension_count": uint32(rotary_width(rope, sizes["head_dim"])),
        **unassumed_rope("phi2", config, rope),
        "tokenizer.ggml.add_bos_token": boolean(False),
    }


PHI2 = Architecture(
    gguf_name="phi2",
    family="Phi-1, 1.5 and 2",
    classes=("PhiForCausalLM",),
    base_classes=("PhiModel",),
    model_types=("phi",),
    tensors=TENSORS,
    sizes=phi2_sizes,
    metadata=phi2_metadata,
    needs_output=True,
    vocabulary="gpt2",
    defaults={"max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    pre_tokenizers={"gpt-2": "phi-2"},
)
