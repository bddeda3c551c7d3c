"""MPT: positions by ALiBi, no biases, the embedding used as output.

Reference: llama.cpp's conversion/mpt.py and src/models/mpt.cpp; defaults of transformers' MptConfig. What llm-foundry can train
beyond transformers' class (learned positions, RoPE, normed queries, grouped keys) is refused.
"""

from __future__ import annotations

from typing import Any

from tinyedge.errors import CheckpointError, UnsupportedArchitectureError
from tinyedge_quantize.architectures.common import check_absent, check_settings
from tinyedge_quantize.architectures.gpt_like import multi_head_sizes
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes, TensorRule, tied_unless_said
from tinyedge_quantize.config import integer, real
from tinyedge_quantize.metadata import MetadataEntry, float32, uint32
from tinyedge_quantize.strangers import show

TENSORS = (
    TensorRule("transformer.wte.weight", "token_embd.weight", ("vocabulary", "hidden")),
    TensorRule("transformer.norm_f.weight", "output_norm.weight", ("hidden",)),
    TensorRule("lm_head.weight", "output.weight", ("vocabulary", "hidden")),
    TensorRule("transformer.blocks.{}.norm_1.weight", "blk.{}.attn_norm.weight", ("hidden",)),
    TensorRule("transformer.blocks.{}.norm_2.weight", "blk.{}.ffn_norm.weight", ("hidden",)),
    TensorRule("transformer.blocks.{}.attn.Wqkv.weight", "blk.{}.attn_qkv.weight", ("qkv", "hidden")),
    TensorRule("transformer.blocks.{}.attn.out_proj.weight", "blk.{}.attn_output.weight", ("hidden", "hidden")),
    TensorRule("transformer.blocks.{}.ffn.up_proj.weight", "blk.{}.ffn_up.weight", ("ffn", "hidden")),
    TensorRule("transformer.blocks.{}.ffn.down_proj.weight", "blk.{}.ffn_down.weight", ("hidden", "ffn")),
)

_MODEL_SETTINGS: dict[str, tuple[Any, ...]] = {
    "expansion_ratio": (4,),
    "no_bias": (True,),
    "logit_scale": (),
    "norm_type": ("low_precision_layernorm", "layernorm"),
}
_ATTENTION_SETTINGS: dict[str, tuple[Any, ...]] = {
    "alibi": (True,),
    "attn_type": ("multihead_attention",),
    "sliding_window_size": (-1,),
}


def mpt_sizes(config: Config) -> Sizes:
    """The sizes; refuses whatever differs from transformers' MPT."""
    attention = _attention(config)
    check_settings(config, _MODEL_SETTINGS)
    check_settings(attention, _ATTENTION_SETTINGS)
    check_absent(attention, "prefix_lm", "qk_ln", "qk_gn", "rope")
    hidden = integer(config, "d_model")
    sizes = multi_head_sizes(
        layers=integer(config, "n_layers"),
        hidden=hidden,
        heads=integer(config, "n_heads"),
        ffn=4 * hidden,
        vocabulary=integer(config, "vocab_size"),
        context=integer(config, "max_seq_len"),
    )
    scale = sizes["head_dim"] ** -0.5
    if abs(real(attention, "softmax_scale", scale) - scale) > 1e-6 * scale:
        raise UnsupportedArchitectureError(
            f"the model scales attention by {show(attention['softmax_scale'])} where llama.cpp scales by {scale:.6g}",
            "only models without softmax_scale can be converted",
        )
    return sizes


def mpt_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    """GGUF's mpt.* keys."""
    attention = _attention(config)
    clipped = {}
    if attention.get("clip_qkv") is not None:
        clipped["mpt.attention.clamp_kqv"] = float32(real(attention, "clip_qkv"))
    return {
        "mpt.context_length": uint32(sizes["context"]),
        "mpt.embedding_length": uint32(sizes["hidden"]),
        "mpt.block_count": uint32(sizes["layers"]),
        "mpt.feed_forward_length": uint32(sizes["ffn"]),
        "mpt.attention.head_count": uint32(sizes["heads"]),
        "mpt.attention.layer_norm_epsilon": float32(real(config, "layer_norm_epsilon")),
        **clipped,
        "mpt.attention.max_alibi_bias": float32(real(attention, "alibi_bias_max", 8.0)),
    }


def _attention(config: Config) -> dict[str, Any]:
    attention = config.get("attn_config")
    if attention is None:
        return {}
    if not isinstance(attention, dict):
        raise CheckpointError("attn_config in config.json is not a table", "check that config.json is undamaged")
    return attention


MPT = Architecture(
    gguf_name="mpt",
    family="MPT",
    classes=("MPTForCausalLM", "MptForCausalLM"),
    base_classes=("MptModel", "MPTModel"),
    model_types=("mpt",),
    tensors=TENSORS,
    sizes=mpt_sizes,
    metadata=mpt_metadata,
    tied=tied_unless_said(True),
    prefix="transformer.",
    vocabulary="mpt",
    defaults={"max_seq_len": 2048, "layer_norm_epsilon": 1e-5},
)
