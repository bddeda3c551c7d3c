"""Gemma, Gemma 2 and the text model of Gemma 3.

Their normalisations multiply by one plus the weight; llama.cpp multiplies by the weight alone, so one is added on the way.
Reference: llama.cpp's conversion/gemma.py and src/models/gemma.cpp, gemma2.cpp, gemma3.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from tinyedge.errors import UnsupportedArchitectureError
from tinyedge_quantize.architectures.common import (
    ATTENTION,
    BLOCK_NORMS,
    EMBEDDING,
    GATED_FFN,
    HEAD_NORMS,
    OUTPUT,
    OUTPUT_NORM,
    adapted,
    check_absent,
    check_activation,
    check_scaling,
    decoder_metadata,
    decoder_sizes,
    layer_pattern,
    rope_metadata,
    rope_parameters,
    sliding_rope,
)
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes, TensorRule, tied_unless_said
from tinyedge_quantize.config import integer, real
from tinyedge_quantize.metadata import MetadataEntry, booleans, float32, uint32
from tinyedge_quantize.tensors import SourceTensor

# Both names mean the approximation by tanh: Gemma's first configurations say gelu (transformers, configuration_gemma.py).
_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu")
_BOTH_SIDES = (
    TensorRule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", ("hidden",)),
    TensorRule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.post_attention_norm.weight", ("hidden",)),
    TensorRule("model.layers.{}.pre_feedforward_layernorm.weight", "blk.{}.ffn_norm.weight", ("hidden",)),
    TensorRule("model.layers.{}.post_feedforward_layernorm.weight", "blk.{}.post_ffw_norm.weight", ("hidden",)),
)


def _plus_one(tensor: SourceTensor, _sizes: Sizes) -> SourceTensor:
    return tensor.shifted(1.0)


def _gemma_sizes(config: Config) -> Sizes:
    check_activation(config, _ACTIVATIONS, "hidden_activation")
    check_activation(config, _ACTIVATIONS)
    check_absent(config, "attention_bias", "use_bidirectional_attention")
    check_scaling(rope_parameters(config))
    return decoder_sizes(config)


def _tied_gemma_sizes(config: Config) -> Sizes:
    if not tied_unless_said(True)(config):
        raise UnsupportedArchitectureError(
            "the model has an output matrix of its own, which llama.cpp's model of this family does not have",
            "only Gemma models with tied embeddings can be converted",
        )
    return _gemma_sizes(config)


def _gemma2_sizes(config: Config) -> Sizes:
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if real(config, key, 0.0) <= 0:
            raise UnsupportedArchitectureError(
                f"{key} is switched off in config.json, which llama.cpp's Gemma 2 cannot do",
                "only models with it can be converted",
            )
    return _tied_gemma_sizes(config)


def _gemma_metadata(config: Config, sizes: Sizes, name: str = "gemma") -> dict[str, MetadataEntry]:
    entries = decoder_metadata(name, config, sizes)
    # llama.cpp's converter leaves RoPE to the runtime's defaults, which are those of every published model.
    if rope_metadata(name, config, rope_parameters({})) == rope_metadata(name, config, rope_parameters(config)):
        del entries[f"{name}.rope.freq_base"]
    return entries


def _gemma2_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    return {
        **_gemma_metadata(config, sizes, "gemma2"),
        "gemma2.attn_logit_softcapping": float32(real(config, "attn_logit_softcapping")),
        "gemma2.final_logit_softcapping": float32(real(config, "final_logit_softcapping")),
        **_gemma2_windows(config, sizes),
    }


def _gemma2_windows(config: Config, sizes: Sizes) -> Mapping[str, MetadataEntry]:
    """The window and its pattern; llama.cpp's Gemma 2 cannot be without, so one without has windows as wide as the context."""
    every = integer(config, "sliding_window_pattern", 2)
    slides = any(layer_pattern(config, sizes["layers"], every))
    window = uint32(integer(config, "sliding_window") if slides else sizes["context"])
    return {"gemma2.attention.sliding_window": window, **(_unusual_pattern("gemma2", config, sizes, 2) if slides else {})}


def _gemma3_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    entries = decoder_metadata("gemma3", config, sizes)
    local = sliding_rope(config)
    check_scaling(local, ("default",))
    entries["gemma3.rope.freq_base_swa"] = float32(real(local, "rope_theta"))
    if config.get("final_logit_softcapping"):
        entries["gemma3.final_logit_softcapping"] = float32(real(config, "final_logit_softcapping"))
    # llama.cpp aborts on a window that no layer has.
    if any(layer_pattern(config, sizes["layers"], integer(config, "sliding_window_pattern", 6))):
        entries["gemma3.attention.sliding_window"] = uint32(integer(config, "sliding_window"))
        entries |= _unusual_pattern("gemma3", config, sizes, 6)
    return entries


def _unusual_pattern(name: str, config: Config, sizes: Sizes, usual: int) -> Mapping[str, MetadataEntry]:
    """Which layers have a window, where not all but every `usual`-th do: the runtime assumes that unless it is told."""
    every = integer(config, "sliding_window_pattern", usual)
    pattern = layer_pattern(config, sizes["layers"], every)
    if pattern == layer_pattern({}, sizes["layers"], usual):
        return {}
    return {f"{name}.attention.sliding_window_pattern": booleans(pattern)}


def _scale_warning(config: Config, big: int) -> Iterable[str]:
    """A sentence where attention is not scaled as llama.cpp does: by a head's width, with `big` layers by hidden / heads."""
    sizes = decoder_sizes(config)
    scale = real(config, "query_pre_attn_scalar", 256)
    expected = sizes["hidden"] // sizes["heads"] if sizes["layers"] == big else sizes["head_dim"]
    if scale != expected:
        yield (
            f"this model divides its attention scores by the root of {scale:g}, llama.cpp by that of {expected}: "
            "its answers will differ somewhat"
        )


def _shifted(*rules: TensorRule) -> tuple[TensorRule, ...]:
    return adapted(rules, _plus_one)


GEMMA = Architecture(
    gguf_name="gemma",
    family="Gemma",
    classes=("GemmaForCausalLM",),
    base_classes=("GemmaModel",),
    model_types=("gemma",),
    tensors=(EMBEDDING, *_shifted(OUTPUT_NORM, *BLOCK_NORMS), *ATTENTION, *GATED_FFN),
    sizes=_tied_gemma_sizes,
    metadata=_gemma_metadata,
    tied=tied_unless_said(True),
    vocabulary="gemma",
    defaults={"num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192},
)

GEMMA2 = replace(
    GEMMA,
    gguf_name="gemma2",
    family="Gemma 2",
    classes=("Gemma2ForCausalLM",),
    base_classes=("Gemma2Model",),
    model_types=("gemma2",),
    tensors=(EMBEDDING, *_shifted(OUTPUT_NORM, *_BOTH_SIDES), *ATTENTION, *GATED_FFN),
    sizes=_gemma2_sizes,
    metadata=_gemma2_metadata,
    vocabulary="gemma2",
    defaults={
        **GEMMA.defaults,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    warnings=partial(_scale_warning, big=46),
)

GEMMA3 = replace(
    GEMMA,
    gguf_name="gemma3",
    family="Gemma 3 (text)",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    base_classes=("Gemma3TextModel", "Gemma3Model"),
    model_types=("gemma3_text", "gemma3"),
    tensors=(EMBEDDING, OUTPUT, *_shifted(OUTPUT_NORM, *_BOTH_SIDES, *HEAD_NORMS), *ATTENTION, *GATED_FFN),
    sizes=_gemma_sizes,
    metadata=_gemma3_metadata,
    vocabulary="gemma3",
    # The configurations of the larger models leave out most of what is the same for them.
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    },
    warnings=partial(_scale_warning, big=62),
)
