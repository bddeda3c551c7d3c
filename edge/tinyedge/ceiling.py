"""What a model asks of the machine: bytes read for a generated token, floating-point operations for a prompt.

To make one token, every weight is multiplied once and so is read once, and attention reads the keys and values of all
tokens before it. Activations stay in the caches. So bytes per token over bytes per second bounds the speed from above.
A prompt reads each weight once for many tokens, so that its operations over operations per second are what bounds it
(Williams, Waterman and Patterson, "Roofline", 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyedge.ggml_types import BY_NAME, type_named
from tinyedge.model_facts import ModelFacts


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What one step of generation reads, in bytes: one token, or one of each of several sequences."""

    weights: int
    kv: int

    @property
    def total(self) -> int:
        return self.weights + self.kv

    def ceiling(self, bandwidth: float) -> float:
        """Steps per second when `bandwidth` bytes are read in a second; 0 for a model without weights."""
        return bandwidth / self.total if self.total else 0.0


def bytes_per_token(facts: ModelFacts, depth: int, kv_type: str = "F16") -> TokenBytes:
    """What generating the token after `depth` others reads.

    All weights count but the embedding, of which one row is read; an embedding that is also the output matrix counts. The
    experts of a mixture count in the share of them that is used. The cache counts without the windows that some layers of
    some architectures limit themselves to.
    """
    return step_bytes(facts, depth, kv_type)


def step_bytes(facts: ModelFacts, depth: int, kv_type: str = "F16", sequences: int = 1) -> TokenBytes:
    """What one step reads that generates the token after `depth` others for each of `sequences` sequences side by side.

    As for one token, with the weights read once for all and a cache for each. Of a mixture's experts count as many as
    sequences that choose independently and evenly would use: 1 - (1 - used / experts) ** sequences of them.
    """
    used = 1 - (1 - _experts_share(facts)) ** sequences
    unused_experts = facts.expert_bytes - int(facts.expert_bytes * used)
    return TokenBytes(
        weights=max(0, facts.weight_bytes - _rows_not_read(facts, sequences) - unused_experts),
        kv=sequences * depth * kv_bytes_per_token(facts, kv_type),
    )


def kv_bytes_per_token(facts: ModelFacts, kv_type: str) -> int:
    """Bytes of the K and V that one token adds to the cache, over all layers. Raises KeyError for an unknown type."""
    kind = type_named(kv_type)
    return (facts.key_width // kind.block_elements + facts.value_width // kind.block_elements) * kind.block_bytes


def prompt_flops(facts: ModelFacts, tokens: int, depth: int = 0) -> float:
    """Floating-point operations that reading `tokens` tokens after `depth` others takes, for the logits of the last one.

    Two for each weight and token, a multiplication and an addition (Kaplan et al., "Scaling Laws for Neural Language Models",
    2020, section 2.1), and two for each value of K and V and each head that looks at it (Chowdhery et al., "PaLM", 2022,
    appendix B). A token sees those before it and itself: what a kernel computes beyond and masks does not count. As llama.cpp
    does (src/models/llama.cpp, `inp_out_ids`), the output matrix and the last layer's feed-forward part count for the last
    token only and the embedding, which is looked up, not at all. A prompt in several batches has one such token in each; only
    one is counted.

    Layers are taken to be alike. The experts of a mixture count in the share of them that a token uses, and are as large a
    part of the weights as of their bytes. Norms count as if they were matrices: 0.01% of TinyLlama.
    """
    if tokens < 1 or not facts.layers:
        return 0.0
    matrix = facts.vocabulary * facts.hidden  # the embedding, and the output
    experts = facts.parameters * facts.expert_bytes / facts.weight_bytes if facts.weight_bytes else 0.0
    layers = facts.parameters - matrix * (1 if facts.tied_bytes else 2) - experts * (1 - _experts_share(facts))
    last_feed_forward = max(0.0, (layers - _attention_weights(facts)) / facts.layers)
    multiplied = tokens * layers - (tokens - 1) * last_feed_forward + matrix
    seen = tokens * depth + tokens * (tokens + 1) / 2
    return max(0.0, 2 * multiplied + 2 * seen * (facts.key_width + facts.value_width) * _heads_per_value(facts))


def _attention_weights(facts: ModelFacts) -> float:
    """The weights of all matrices that make Q, K and V and join the heads again."""
    values = facts.key_width + facts.value_width
    return facts.hidden * values * (1 + _heads_per_value(facts))


def _heads_per_value(facts: ModelFacts) -> float:
    """The heads that share one head of K and V."""
    return facts.heads / facts.kv_heads if facts.kv_heads else 0.0


def _experts_share(facts: ModelFacts) -> float:
    """The share of a mixture's experts that one token uses; 1 for a model that has none or does not tell."""
    return facts.experts_used / facts.experts if facts.experts and facts.experts_used <= facts.experts else 1.0


def _rows_not_read(facts: ModelFacts, sequences: int) -> int:
    """Bytes of the embedding but for one row of each sequence; 0 where it also serves as the output matrix."""
    kind = BY_NAME.get(facts.embedding_type)
    if facts.tied_bytes or kind is None:
        return 0
    return facts.hidden // kind.block_elements * kind.block_bytes * max(0, facts.vocabulary - sequences)
