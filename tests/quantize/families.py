"""The tiny models that stand for each family in the tests: every variant that changes what is written to a GGUF file.

Hidden sizes of 256 quantize to K-types; the others are there for the fallbacks of odd rows. Where a head is not hidden / heads
wide, queries are grouped, windows are shorter than the text, and layers alternate, the configuration says so on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from family_checkpoint import GELU, FamilyCase
from gpt_like_families import GPT_LIKE

_SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_THETA: dict[str, Any] = {"rope_type": "default", "rope_theta": 500000.0}
_LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GRANITE_SCALES: dict[str, Any] = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.03125,
}
_GEMMA3: dict[str, Any] = _SMALL | {
    "num_hidden_layers": 7,
    "intermediate_size": 256,
    "head_dim": 96,
    "query_pre_attn_scalar": 96,
    "sliding_window": 16,
}
_FULL, _WINDOW = "full_attention", "sliding_attention"
_GEMMA3_4B: dict[str, Any] = _GEMMA3 | {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        _FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        _WINDOW: {"rope_type": "default", "rope_theta": 10000.0},
    },
}
_GEMMA3_LINEAR: dict[str, Any] = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
# Those that SmolLM3's class fills in are beyond a tiny vocabulary.
_IDS: dict[str, Any] = {"bos_token_id": 3, "pad_token_id": 4}
Edit = Callable[[dict[str, Any]], None]


def _as_transformers_4(config: dict[str, Any]) -> None:
    """The spelling of transformers 4: torch_dtype, and RoPE in keys of its own."""
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters", None) or {}
    config["rope_theta"] = rope.pop("rope_theta", 10000.0)
    config["rope_scaling"] = None if rope.get("rope_type") == "default" else rope


def _as_gemma3_of_transformers_4(config: dict[str, Any]) -> None:
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters")
    full = rope["full_attention"]
    config["rope_theta"] = full.pop("rope_theta")
    config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    config["rope_scaling"] = full


def _as_olmo3_of_transformers_4(config: dict[str, Any]) -> None:
    config["torch_dtype"] = config.pop("dtype")
    config["rope_scaling"] = config.pop("rope_parameters")[_FULL]
    config["rope_theta"] = config["rope_scaling"].pop("rope_theta")


def _as_gemma3_4b_of_the_hub(config: dict[str, Any]) -> None:
    """What google/gemma-3-4b-it says of its text model: everything else is the default of transformers."""
    said = ("hidden_size", "intermediate_size", "model_type", "num_hidden_layers", "sliding_window", "vocab_size")
    text = {key: config["text_config"][key] for key in said}
    config["text_config"] = text | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}


def _edit(edit: Edit, without: Sequence[str] = (), **changes: Any) -> Edit:
    """`edit`, then keys taken away, which transformers fills in with its class's defaults, and others set."""

    def edited(config: dict[str, Any]) -> None:
        edit(config)
        for key in without:
            config.pop(key, None)
        config |= changes

    return edited


_LLAMA_LIKE = (
    FamilyCase(name="llama-2", model="LlamaForCausalLM", config=_SMALL | {"num_key_value_heads": 4}, tokenizer="llama-spm"),
    FamilyCase(
        name="llama-3.2",
        model="LlamaForCausalLM",
        config=_SMALL | {"head_dim": 32, "rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        tokenizer="llama3",
        pre="llama-bpe",
    ),
    FamilyCase(
        name="llama-3.1-transformers-4",
        model="LlamaForCausalLM",
        config=_SMALL | {"rope_parameters": _LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True},
        tokenizer="llama3",
        pre="llama-bpe",
        dtype="float16",
        edit=_as_transformers_4,
    ),
    FamilyCase(
        name="smollm2",
        model="LlamaForCausalLM",
        config=_SMALL | {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
        tokenizer="smollm",
        pre="smollm",
    ),
    FamilyCase(
        name="smollm3",
        model="SmolLM3ForCausalLM",
        config=_SMALL | {"num_hidden_layers": 5, **_IDS},
        tokenizer="smollm3",
        pre="llama-bpe",
        added=("tokenizer.ggml.add_bos_token",),
    ),
    FamilyCase(
        name="smollm3-transformers-4",
        model="SmolLM3ForCausalLM",
        config=_SMALL | {"num_hidden_layers": 4, "hidden_size": 128, **_IDS, "tie_word_embeddings": False},
        tokenizer="smollm3",
        pre="llama-bpe",
        added=("tokenizer.ggml.add_bos_token",),
        edit=_edit(_as_transformers_4, without=("no_rope_layers", "layer_types")),
    ),
    FamilyCase(
        name="mistral",
        model="MistralForCausalLM",
        config=_SMALL | {"sliding_window": None, "head_dim": 96},
        tokenizer="llama-spm",
    ),
    FamilyCase(
        name="mistral-nemo-transformers-4",
        model="MistralForCausalLM",
        config=_SMALL
        | {"sliding_window": None, "num_attention_heads": 16, "num_key_value_heads": 8, "rope_parameters": _THETA},
        tokenizer="tekken",
        pre="tekken",
        edit=_edit(_as_transformers_4, without=("num_key_value_heads", "rms_norm_eps")),
    ),
    FamilyCase(
        name="granite",
        model="GraniteForCausalLM",
        config=_SMALL | _GRANITE_SCALES | {"tie_word_embeddings": True},
        tokenizer="granite",
        pre="refact",
    ),
    FamilyCase(
        name="granite-transformers-4",
        model="GraniteForCausalLM",
        config=_SMALL | _GRANITE_SCALES | {"attention_bias": True, "mlp_bias": True, "hidden_size": 128},
        tokenizer="granite",
        pre="refact",
        dtype="float32",
        edit=_as_transformers_4,
    ),
)

_QWEN = (
    FamilyCase(
        name="qwen2",
        model="Qwen2ForCausalLM",
        config=_SMALL | {"tie_word_embeddings": True, "rope_parameters": _THETA},
        tokenizer="qwen2",
        pre="qwen2",
        padding=5,
    ),
    FamilyCase(
        name="qwen2.5-transformers-4",
        model="Qwen2ForCausalLM",
        config=_SMALL | {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-5},
        tokenizer="qwen2",
        pre="qwen2",
        dtype="float16",
        edit=_edit(_as_transformers_4, without=("layer_types",)),
    ),
    FamilyCase(
        name="qwen2.5-yarn",
        model="Qwen2ForCausalLM",
        config=_SMALL | {"rope_parameters": _YARN},
        tokenizer="qwen2",
        pre="qwen2",
        edit=_as_transformers_4,
    ),
    FamilyCase(
        name="qwen2.5-yarn-of-other-attention",
        model="Qwen2ForCausalLM",
        config=_SMALL | {"rope_parameters": _YARN | {"attention_factor": 1.0}},
        tokenizer="qwen2",
        pre="qwen2",
        added=("qwen2.rope.scaling.attn_factor",),
    ),
    FamilyCase(
        name="qwen3",
        model="Qwen3ForCausalLM",
        config=_SMALL | {"head_dim": 96, "tie_word_embeddings": True, "rope_parameters": _THETA},
        tokenizer="qwen2",
        pre="qwen2",
    ),
    FamilyCase(
        name="qwen3-transformers-4",
        model="Qwen3ForCausalLM",
        config=_SMALL | {"head_dim": 128},
        tokenizer="qwen2",
        pre="qwen2",
        edit=_edit(_as_transformers_4, without=("layer_types", "head_dim")),
    ),
)

_GEMMA = (
    FamilyCase(
        name="gemma",
        model="GemmaForCausalLM",
        config=_SMALL | {"head_dim": 96, "num_key_value_heads": 1},
        tokenizer="gemma-spm",
        loosest=GELU,
    ),
    FamilyCase(
        name="gemma-transformers-4",
        model="GemmaForCausalLM",
        config=_SMALL | {"head_dim": 256, "hidden_size": 128, "num_key_value_heads": 4},
        tokenizer="gemma-spm",
        loosest=GELU,
        dtype="float16",
        edit=_edit(_as_transformers_4, without=("rope_theta", "rope_scaling", "head_dim"), hidden_act="gelu"),
    ),
    FamilyCase(
        name="gemma2",
        model="Gemma2ForCausalLM",
        config=_SMALL | {"num_hidden_layers": 3, "head_dim": 96, "query_pre_attn_scalar": 96, "sliding_window": 16},
        tokenizer="gemma-spm",
        loosest=GELU,
    ),
    FamilyCase(
        name="gemma2-transformers-4",
        model="Gemma2ForCausalLM",
        config=_SMALL | {"head_dim": 256, "query_pre_attn_scalar": 256, "hidden_size": 128, "num_hidden_layers": 4},
        tokenizer="gemma-spm",
        loosest=GELU,
        dtype="float32",
        edit=_edit(_as_transformers_4, without=("layer_types", "attn_logit_softcapping"), hidden_act="gelu"),
    ),
    FamilyCase(
        name="gemma2-with-other-windows",
        model="Gemma2ForCausalLM",
        config=_GEMMA3 | {"num_hidden_layers": 3, "layer_types": [_FULL, _WINDOW, _WINDOW], "rope_parameters": _THETA},
        tokenizer="gemma-spm",
        loosest=GELU,
        added=("gemma2.attention.sliding_window_pattern", "gemma2.rope.freq_base"),
    ),
    FamilyCase(
        name="gemma3",
        model="Gemma3ForCausalLM",
        config=_GEMMA3,
        tokenizer="gemma3-spm",
        loosest=GELU,
    ),
    FamilyCase(
        name="gemma3-transformers-4",
        model="Gemma3ForCausalLM",
        config=_GEMMA3 | {"rope_parameters": _GEMMA3_LINEAR},
        tokenizer="gemma3-spm",
        loosest=GELU,
        dtype="float16",
        edit=_edit(_as_gemma3_of_transformers_4, without=("layer_types",)),
    ),
    FamilyCase(
        name="gemma3-with-vision",
        model="Gemma3ForConditionalGeneration",
        config=_GEMMA3 | {"rope_parameters": _GEMMA3_LINEAR},
        nested={"vision_config": _VISION, "mm_tokens_per_image": 4},
        tokenizer="gemma3-spm",
        loosest=GELU,
    ),
    FamilyCase(
        name="gemma3-4b-of-the-hub",
        model="Gemma3ForConditionalGeneration",
        config=_GEMMA3_4B,
        nested={"vision_config": _VISION, "mm_tokens_per_image": 4},
        tokenizer="gemma3-spm",
        loosest=GELU,
        edit=_as_gemma3_4b_of_the_hub,
    ),
    FamilyCase(
        name="gemma3-with-other-windows",
        model="Gemma3ForCausalLM",
        config=_GEMMA3 | {"layer_types": [_FULL, *[_WINDOW] * 5, _FULL], "tie_word_embeddings": False},
        tokenizer="gemma3-spm",
        loosest=GELU,
        added=("gemma3.attention.sliding_window_pattern",),
    ),
    FamilyCase(
        name="gemma3-without-windows",
        model="Gemma3ForCausalLM",
        config=_GEMMA3 | {"num_hidden_layers": 2, "sliding_window_pattern": 1, "final_logit_softcapping": 30.0},
        tokenizer="gemma3-spm",
        loosest=GELU,
    ),
)

_OLMO = (
    FamilyCase(
        name="olmo2",
        model="Olmo2ForCausalLM",
        config=_SMALL | {"rope_parameters": _THETA, "rms_norm_eps": 1e-6},
        tokenizer="olmo2",
        pre="dbrx",
    ),
    FamilyCase(
        name="olmo2-transformers-4",
        model="Olmo2ForCausalLM",
        config=_SMALL | {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 6},
        tokenizer="olmo2",
        pre="dbrx",
        dtype="float16",
        edit=_edit(_as_transformers_4, without=("num_key_value_heads", "rms_norm_eps")),
    ),
    FamilyCase(
        name="olmo3",
        model="Olmo3ForCausalLM",
        config=_SMALL | {"num_hidden_layers": 5, "sliding_window": 16},
        tokenizer="olmo2",
        pre="dbrx",
    ),
    FamilyCase(
        name="olmo3-yarn-transformers-4",
        model="Olmo3ForCausalLM",
        config=_SMALL | {"num_hidden_layers": 4, "sliding_window": 16, "rope_parameters": {_FULL: _YARN, _WINDOW: _THETA}},
        tokenizer="olmo2",
        pre="dbrx",
        edit=_edit(_as_olmo3_of_transformers_4, without=("layer_types",)),
    ),
)

# What the converter writes so that llama.cpp does not load it or computes something else: only transformers can be asked.
_BEYOND_THE_CONVERTER = (
    FamilyCase(
        name="olmo2-tied",
        model="Olmo2ForCausalLM",
        config=_SMALL | {"tie_word_embeddings": True},
        tokenizer="olmo2",
    ),
    FamilyCase(
        name="gemma-stretched",
        model="GemmaForCausalLM",
        config=_SMALL | {"head_dim": 96, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}},
        tokenizer="gemma-spm",
        loosest=GELU,
    ),
)

BEYOND_THE_CONVERTER = {case.name: case for case in _BEYOND_THE_CONVERTER}
FAMILIES = {case.name: case for case in (*_LLAMA_LIKE, *_QWEN, *_GEMMA, *_OLMO, *GPT_LIKE)}
