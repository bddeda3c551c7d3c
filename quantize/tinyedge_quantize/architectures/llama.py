"""Llama and what is identical to it: TinyLlama, Llama 2 and 3, SmolLM, Mistral.

Reference: llama.cpp's conversion/llama.py and src/models/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from tinyedge.errors import CheckpointError, UnsupportedArchitectureError
from tinyedge_quantize.architectures.common import (
    ATTENTION,
    ATTENTION_BIASES,
    BLOCK_NORMS,
    EMBEDDING,
    GATED_FFN,
    GATED_FFN_BIASES,
    LLAMA_SCALINGS,
    OUTPUT,
    OUTPUT_NORM,
    check_activation,
    check_scaling,
    decoder_metadata,
    decoder_sizes,
    rope_parameters,
    rope_type,
    window_warning,
)
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes, TensorRule
from tinyedge_quantize.config import integer, real
from tinyedge_quantize.metadata import MetadataEntry, uint32
from tinyedge_quantize.tensors import ConstantRows, SourceTensor

_ROTARY = {"attn_q": "heads", "attn_k": "kv_heads"}
ROPE_FACTORS = TensorRule("rope_freqs.weight", "rope_freqs.weight", ("rope_pairs",), optional=True)

TENSORS = (
    EMBEDDING,
    OUTPUT_NORM,
    OUTPUT,
    ROPE_FACTORS,
    *BLOCK_NORMS,
    *(replace(rule, rotary=_ROTARY.get(rule.target.split(".")[2])) for rule in ATTENTION + ATTENTION_BIASES),
    *GATED_FFN,
    *GATED_FFN_BIASES,
)


def llama_sizes(config: Config) -> Sizes:
    """The sizes in a Llama configuration; what it may leave out has transformers' LlamaConfig default."""
    if config.get("num_local_experts"):
        raise UnsupportedArchitectureError("the model is a mixture of experts", "only dense Llama models can be converted")
    check_activation(config, ("silu", "swish"))
    check_scaling(rope_parameters(config), LLAMA_SCALINGS)
    return decoder_sizes(config)


def llama_metadata(config: Config, sizes: Sizes, name: str = "llama") -> dict[str, MetadataEntry]:
    """GGUF's llama.* keys in the order llama.cpp's converter writes them; `name` is that of an architecture derived from it."""
    return {
        **decoder_metadata(name, config, sizes),
        f"{name}.vocab_size": uint32(sizes["vocabulary"]),
        f"{name}.rope.dimension_count": uint32(sizes["head_dim"]),
    }


def llama3_rope_factors(config: Config, sizes: Sizes) -> Iterable[SourceTensor]:
    """The divisors of the rotary frequencies that Llama 3.1 and later scale by; nothing for other scalings.

    The rule is Meta's (llama-models, models/llama3, apply_scaling). llama.cpp's converter computes it with torch in float32,
    where a number divided by a tensor is the tensor's reciprocal times that number; the results are the same, bit for bit.
    """
    rope = rope_parameters(config)
    if rope_type(rope) != "llama3":
        return
    base, dim = real(rope, "rope_theta"), sizes["head_dim"]
    factor, low, high = real(rope, "factor", 8.0), real(rope, "low_freq_factor", 1.0), real(rope, "high_freq_factor", 4.0)
    original = integer(rope, "original_max_position_embeddings", sizes["context"])
    if min(low, factor, base) < 1e-6 or high <= low:
        raise CheckpointError(
            "the llama3 rope_scaling in config.json has impossible factors", "check that config.json is undamaged"
        )
    one, exponents = np.float32(1.0), np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    factors = []
    for frequency in one / np.power(base, exponents.astype(np.float64)).astype(np.float32):
        wavelength = one / frequency * np.float32(2 * math.pi)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (one / wavelength * np.float32(original) - np.float32(low)) / np.float32(high - low)
            factors.append(float(one / ((one - smooth) / np.float32(factor) + smooth)))
    values = np.array(factors, np.float32)
    yield SourceTensor("rope_freqs.weight", values.shape, "F32", ConstantRows(values))


LLAMA = Architecture(
    gguf_name="llama",
    family="Llama 1, 2, 3.x, TinyLlama, SmolLM 1 and 2",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    base_classes=("LlamaModel",),
    model_types=("llama",),
    tensors=TENSORS,
    sizes=llama_sizes,
    metadata=llama_metadata,
    generated=llama3_rope_factors,
)

MISTRAL = replace(
    LLAMA,
    family="Mistral",
    classes=("MistralForCausalLM",),
    base_classes=("MistralModel",),
    model_types=("mistral",),
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    warnings=window_warning,
)
