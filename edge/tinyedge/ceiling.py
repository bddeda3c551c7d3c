"""The bytes that a generated token reads, and how many tokens a second the memory's bandwidth therefore allows.

To make one token, every weight is multiplied once and so is read once, and attention reads the keys and values of all
tokens before it. Activations stay in the caches. So bytes per token over bytes per second bounds the speed from above.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyedge.ggml_types import BY_NAME, type_named
from tinyedge.model_facts import ModelFacts


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What one generated token reads, in bytes."""

    weights: int
    kv: int

    @property
    def total(self) -> int:
        return self.weights + self.kv

    def ceiling(self, bandwidth: float) -> float:
        """Tokens per second when `bandwidth` bytes are read in a second; 0 for a model without weights."""
        return bandwidth / self.total if self.total else 0.0


def bytes_per_token(facts: ModelFacts, depth: int, kv_type: str = "F16") -> TokenBytes:
    """What generating the token after `depth` others reads.

    All weights count but the embedding, of which one row is read; an embedding that is also the output matrix counts. The
    experts of a mixture count in the share of them that is used. The cache counts without the windows that some layers of
    some architectures limit themselves to.
    """
    used = facts.experts_used / facts.experts if facts.experts and facts.experts_used <= facts.experts else 1.0
    unused_experts = facts.expert_bytes - int(facts.expert_bytes * used)
    return TokenBytes(
        weights=max(0, facts.weight_bytes - _rows_not_read(facts) - unused_experts),
        kv=depth * kv_bytes_per_token(facts, kv_type),
    )


def kv_bytes_per_token(facts: ModelFacts, kv_type: str) -> int:
    """Bytes of the K and V that one token adds to the cache, over all layers. Raises KeyError for an unknown type."""
    kind = type_named(kv_type)
    return (facts.key_width // kind.block_elements + facts.value_width // kind.block_elements) * kind.block_bytes


def _rows_not_read(facts: ModelFacts) -> int:
    """Bytes of the embedding but for one row; 0 where it also serves as the output matrix."""
    kind = BY_NAME.get(facts.embedding_type)
    if facts.tied_bytes or kind is None:
        return 0
    return facts.hidden // kind.block_elements * kind.block_bytes * max(0, facts.vocabulary - 1)
