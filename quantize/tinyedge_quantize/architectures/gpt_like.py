"""What the families in the line of GPT share: biases everywhere, heads that divide the hidden size, RoPE left unsaid.

Their converters in llama.cpp (conversion/phi.py, gptneox.py, gpt2.py, stablelm.py, mpt.py) write no theta and no scaling of
RoPE, which the runtime then takes to be 10000 and none. We write them where they differ from that, or refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tinyedge.errors import CheckpointError
from tinyedge_quantize.architectures.common import check_heads, check_scaling, rope_metadata
from tinyedge_quantize.architectures.table import Config, TensorRule
from tinyedge_quantize.config import real
from tinyedge_quantize.metadata import MetadataEntry

# llama.cpp computes the approximation by tanh for all of these, as its converter accepts them all.
GELUS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "gelu_accurate")
# What llama.cpp rotates by when the file does not say (llama-model.cpp, `rope_freq_base_train`).
_ASSUMED_THETA = 10000.0


def with_biases(*rules: TensorRule) -> tuple[TensorRule, ...]:
    """Each rule of a weight followed by that of its bias, which has a value for each row."""
    return tuple(each for rule in rules for each in (rule, bias_of(rule)))


def bias_of(rule: TensorRule) -> TensorRule:
    """The rule of the bias that goes with a weight's."""
    source, target = rule.source.removesuffix("weight"), rule.target.removesuffix("weight")
    return replace(rule, source=f"{source}bias", target=f"{target}bias", shape=rule.shape[:1])


def multi_head_sizes(*, layers: int, hidden: int, heads: int, ffn: int, vocabulary: int, context: int) -> dict[str, int]:
    """The sizes of a model in which each head has a key and value of its own and is hidden / heads wide."""
    head_dim = hidden // heads
    if head_dim * heads != hidden:
        raise CheckpointError(
            f"the configuration has {heads} heads in a hidden size of {hidden}, which they do not divide",
            "check that config.json belongs to this checkpoint",
        )
    check_heads(layers, heads, heads, head_dim)
    return {
        "layers": layers,
        "hidden": hidden,
        "ffn": ffn,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": head_dim,
        "queries": hidden,
        "keys": hidden,
        "qkv": 3 * hidden,
        "vocabulary": vocabulary,
        "context": context,
    }


def unassumed_rope(name: str, config: Config, rope: Mapping[str, Any]) -> dict[str, MetadataEntry]:
    """The entries about RoPE that say something other than what the runtime assumes."""
    check_scaling(rope)
    entries = rope_metadata(name, config, rope)
    if real(rope, "rope_theta") == _ASSUMED_THETA:
        del entries[f"{name}.rope.freq_base"]
    return entries
