"""Llama and what is identical to it: TinyLlama, Llama 2 and 3, SmolLM, Mistral without sliding window.

Reference: llama.cpp's conversion/llama.py and src/models/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tinyedge.errors import CheckpointError, UnsupportedArchitectureError
from tinyedge_quantize.architectures.table import Architecture, Sizes, TensorRule
from tinyedge_quantize.config import integer, real
from tinyedge_quantize.metadata import MetadataEntry, float32, string, uint32
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import ConstantRows, SourceTensor

TENSORS = (
    TensorRule("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden")),
    TensorRule("model.norm.weight", "output_norm.weight", ("hidden",)),
    TensorRule("lm_head.weight", "output.weight", ("vocabulary", "hidden")),
    TensorRule("rope_freqs.weight", "rope_freqs.weight", ("rope_pairs",), optional=True),
    TensorRule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", ("hidden",)),
    TensorRule("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", ("queries", "hidden"), rotary="heads"),
    TensorRule("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", ("keys", "hidden"), rotary="kv_heads"),
    TensorRule("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", ("keys", "hidden")),
    TensorRule("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("hidden", "queries")),
    TensorRule("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", ("queries",), rotary="heads", optional=True),
    TensorRule("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", ("keys",), rotary="kv_heads", optional=True),
    TensorRule("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", ("keys",), optional=True),
    TensorRule("model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", ("hidden",), optional=True),
    TensorRule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", ("hidden",)),
    TensorRule("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", ("ffn", "hidden")),
    TensorRule("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", ("ffn", "hidden")),
    TensorRule("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("hidden", "ffn")),
    TensorRule("model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", ("ffn",), optional=True),
    TensorRule("model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", ("ffn",), optional=True),
    TensorRule("model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", ("hidden",), optional=True),
)

# llama.cpp's LLAMA_MAX_LAYERS; more would make it abort.
_MAX_LAYERS = 512


def llama_sizes(config: Mapping[str, Any]) -> Sizes:
    """The sizes in a Llama configuration; what it may leave out has transformers' LlamaConfig default."""
    _require_plain(config)
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    kv_heads = integer(config, "num_key_value_heads", heads)
    head_dim = integer(config, "head_dim", hidden // heads or None)
    layers = integer(config, "num_hidden_layers")
    if heads % kv_heads or head_dim % 2 or layers > _MAX_LAYERS:
        raise CheckpointError(
            f"the configuration has {layers} layers of {heads} heads over {kv_heads} key/value heads of {head_dim}, "
            "which no Llama has",
            "check that config.json belongs to this checkpoint",
        )
    return {
        "layers": layers,
        "hidden": hidden,
        "ffn": integer(config, "intermediate_size"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "queries": heads * head_dim,
        "keys": kv_heads * head_dim,
        "rope_pairs": head_dim // 2,
        "vocabulary": integer(config, "vocab_size"),
        "context": integer(config, "max_position_embeddings", 2048),
    }


def _require_plain(config: Mapping[str, Any]) -> None:
    window = config.get("sliding_window")
    if (
        config.get("model_type") == "mistral"
        and window is not None
        and integer(config, "sliding_window") < integer(config, "max_position_embeddings", 4096 * 32)
    ):
        raise UnsupportedArchitectureError(
            f"this Mistral attends through a sliding window of {window}, which llama.cpp's llama architecture does not",
            "use a version without it (v0.2 and later), or set max_position_embeddings in config.json to the window",
        )
    if config.get("num_local_experts"):
        raise UnsupportedArchitectureError("the model is a mixture of experts", "only dense Llama models can be converted")
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "an unnamed method") if isinstance(quantized, dict) else "an unnamed method"
        raise UnsupportedArchitectureError(
            f"the checkpoint is already quantized ({show(method)})", "give the original F16, BF16 or F32 checkpoint"
        )


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4)."""
    value = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(value, dict):
        raise CheckpointError("rope_scaling in config.json is not a table", "check that config.json is undamaged")
    parameters = dict(value)
    parameters.setdefault("rope_type", parameters.get("type", "default"))
    if parameters.get("rope_theta") is None:
        parameters["rope_theta"] = config.get("rope_theta") or 10000.0
    if parameters.get("original_max_position_embeddings") is None:
        parameters["original_max_position_embeddings"] = config.get("original_max_position_embeddings")
    return parameters


def _rope_type(rope: Mapping[str, Any]) -> str:
    kind = rope["rope_type"]
    if not isinstance(kind, str):
        raise CheckpointError(
            f"the rope_type in config.json is {show(kind)} where a name is expected", "check that it is undamaged"
        )
    return kind.lower()


def _rope_metadata(config: Mapping[str, Any]) -> dict[str, MetadataEntry]:
    rope = rope_parameters(config)
    kind = _rope_type(rope)
    entries: dict[str, MetadataEntry] = {}
    if kind in ("linear", "yarn"):
        entries["llama.rope.scaling.type"] = string(kind)
        entries["llama.rope.scaling.factor"] = float32(real(rope, "factor"))
    if kind == "yarn":
        original = integer(rope, "original_max_position_embeddings", integer(config, "max_position_embeddings", 2048))
        entries["llama.rope.scaling.original_context_length"] = uint32(original)
        for key, names in _YARN_FACTORS.items():
            name = next((name for name in names if rope.get(name) is not None), None)
            if name is not None:
                entries[f"llama.rope.scaling.{key}"] = float32(real(rope, name))
    elif kind not in ("default", "linear", "llama3"):
        raise UnsupportedArchitectureError(
            f"the model scales RoPE by {show(kind)}", "supported are default, linear, yarn and llama3"
        )
    entries["llama.rope.freq_base"] = float32(real(rope, "rope_theta"))
    return entries


_YARN_FACTORS = {
    "yarn_ext_factor": ("extrapolation_factor",),
    "yarn_attn_factor": ("attention_factor", "attn_factor"),
    "yarn_beta_fast": ("beta_fast",),
    "yarn_beta_slow": ("beta_slow",),
}


def llama_metadata(config: Mapping[str, Any], sizes: Sizes) -> dict[str, MetadataEntry]:
    """GGUF's llama.* keys in the order llama.cpp's converter writes them."""
    return {
        "llama.block_count": uint32(sizes["layers"]),
        "llama.context_length": uint32(sizes["context"]),
        "llama.embedding_length": uint32(sizes["hidden"]),
        "llama.feed_forward_length": uint32(sizes["ffn"]),
        "llama.attention.head_count": uint32(sizes["heads"]),
        "llama.attention.head_count_kv": uint32(sizes["kv_heads"]),
        **_rope_metadata(config),
        "llama.attention.layer_norm_rms_epsilon": float32(real(config, "rms_norm_eps", 1e-6)),
        "llama.attention.key_length": uint32(sizes["head_dim"]),
        "llama.attention.value_length": uint32(sizes["head_dim"]),
        "llama.vocab_size": uint32(sizes["vocabulary"]),
        "llama.rope.dimension_count": uint32(sizes["head_dim"]),
    }


def llama3_rope_factors(config: Mapping[str, Any], sizes: Sizes) -> Iterable[SourceTensor]:
    """The divisors of the rotary frequencies that Llama 3.1 and later scale by; nothing for other scalings.

    The rule is Meta's (llama-models, models/llama3, apply_scaling), in float32 where llama.cpp's converter uses torch's
    float32.
    """
    rope = rope_parameters(config)
    if _rope_type(rope) != "llama3":
        return
    base, dim = real(rope, "rope_theta"), sizes["head_dim"]
    factor, low, high = real(rope, "factor", 8.0), real(rope, "low_freq_factor", 1.0), real(rope, "high_freq_factor", 4.0)
    original = integer(rope, "original_max_position_embeddings", 8192)
    if low <= 0 or high <= low or factor <= 0 or base <= 0:
        raise CheckpointError(
            "the llama3 rope_scaling in config.json has impossible factors", "check that config.json is undamaged"
        )
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    factors = []
    for frequency in np.float32(1.0) / np.power(np.float32(base), exponents):
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
            factors.append(float(1 / ((1 - smooth) / np.float32(factor) + smooth)))
    values = np.array(factors, np.float32)
    yield SourceTensor("rope_freqs.weight", values.shape, "F32", ConstantRows(values))


LLAMA = Architecture(
    gguf_name="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", "MistralForCausalLM"),
    model_types=("llama", "mistral"),
    tensors=TENSORS,
    sizes=llama_sizes,
    metadata=llama_metadata,
    generated=llama3_rope_factors,
    tied=lambda config: config.get("tie_word_embeddings") is True,
)
