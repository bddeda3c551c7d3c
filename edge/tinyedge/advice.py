"""Which quantization type of a model suits a machine, how long a context fits, and how fast it will be.

Pure arithmetic on shapes, free memory and measured bandwidth. A model is weighed without its file: the shapes of well-known
ones are in a table, and any other size is taken for the nearest of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinyedge.ceiling import bytes_per_token
from tinyedge.ggml_types import row_bytes
from tinyedge.memory import MemoryNeed, largest_context_that_fits, memory_needed
from tinyedge.model_facts import ModelFacts

ADVISED_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
USUAL_TYPE = "Q4_K_M"
# The most bits per weight that these types make of the models of SHAPES: of those whose rows divide into blocks of 256, and of
# those whose rows do not, which get larger types in their place.
_BITS = {
    "Q8_0": (8.52, 8.52),
    "Q6_K": (6.57, 8.13),
    "Q5_K_M": (5.77, 6.71),
    "Q4_K_M": (5.02, 6.35),
    "Q3_K_M": (4.19, 5.67),
    "Q2_K": (3.39, 5.40),
}

# The share of the ceiling that llama.cpp reaches generating on CPUs: 0.92 to 0.95 on two EPYC cores with AVX-512 (TinyLlama
# Q4_K_M, llama-bench beside the bandwidth measured right before); on boards, published tokens/s times bytes read over a
# measured read rate: Raspberry Pi 4 3.1 to 3.4 of 5.6 GB/s (ollama-benchmark pull request 9; STREAM by sci-pi.org.uk).
EFFICIENCY = (0.55, 0.95)

COMFORTABLE = 10.0  # tokens per second: above it text comes faster than most people read (238 words a minute, Brysbaert 2019)
_DEPTH = 512  # tokens in the cache for the speeds
_CACHES = 2  # what is read in a cycle and takes less than twice the cache comes from it in part
_USEFUL_CONTEXT = 2048
_LONGEST_CONTEXT = 8192  # what a plan takes unasked
_SHORTEST_CONTEXT = 512


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of the llama family without its weights: what its config.json says."""

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    tied: bool = False

    @property
    def tensors(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """GGUF names and shapes as (rows, columns), in llama.cpp's order: first those outside the layers, then by name."""
        hidden, query, key = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer: tuple[tuple[str, tuple[int, ...]], ...] = (
            ("attn_k.weight", (key, hidden)),
            ("attn_norm.weight", (hidden,)),
            ("attn_output.weight", (hidden, query)),
            ("attn_q.weight", (query, hidden)),
            ("attn_v.weight", (key, hidden)),
            ("ffn_down.weight", (hidden, self.ffn)),
            ("ffn_gate.weight", (self.ffn, hidden)),
            ("ffn_norm.weight", (hidden,)),
            ("ffn_up.weight", (self.ffn, hidden)),
        )
        output: tuple[tuple[str, tuple[int, ...]], ...] = () if self.tied else (("output.weight", (self.vocabulary, hidden)),)
        return (
            *output,
            ("output_norm.weight", (hidden,)),
            ("token_embd.weight", (self.vocabulary, hidden)),
            *((f"blk.{number}.{name}", shape) for number in range(self.layers) for name, shape in layer),
        )

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors)

    def facts(self, type_name: str, types: Sequence[str]) -> ModelFacts:
        """The facts of its file when each of `tensors` has the ggml type of the same place in `types`."""
        sizes = {
            name: math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
            for (name, shape), kind in zip(self.tensors, types, strict=True)
        }
        kinds = dict(zip(sizes, types, strict=True))
        return ModelFacts(
            architecture="llama",
            name=self.name,
            file_type=type_name,
            parameters=self.parameters,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim_k=self.head_dim,
            head_dim_v=self.head_dim,
            ffn=self.ffn,
            experts=0,
            experts_used=0,
            vocabulary=self.vocabulary,
            context=self.context,
            tokenizer="",
            chat_template=False,
            key_width=self.layers * self.kv_heads * self.head_dim,
            value_width=self.layers * self.kv_heads * self.head_dim,
            embedding_type=kinds["token_embd.weight"],
            tied_bytes=sizes["token_embd.weight"] if self.tied else 0,
            tensor_types=(),
            weight_bytes=sum(sizes.values()),
            file_bytes=sum(sizes.values()),
        )


# From their config.json on the Hugging Face hub; biases, which are small, are left out.
SHAPES = (
    Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, 8192, tied=True),
    Shape("SmolLM2-360M", 32, 960, 2560, 15, 5, 64, 49152, 8192, tied=True),
    Shape("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936, 32768, tied=True),
    Shape("TinyLlama-1.1B", 22, 2048, 5632, 32, 4, 64, 32000, 2048),
    Shape("SmolLM2-1.7B", 24, 2048, 8192, 32, 32, 64, 49152, 8192, tied=True),
    Shape("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256, 131072, tied=True),
    Shape("Phi-3-mini-3.8B", 32, 3072, 8192, 32, 32, 96, 32064, 4096),
    Shape("Mistral-7B", 32, 4096, 14336, 32, 8, 128, 32768, 32768),
    Shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, 131072),
    Shape("Llama-2-13B", 40, 5120, 13824, 40, 40, 128, 32000, 4096),
    Shape("Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128, 128256, 131072),
)
TINYLLAMA = SHAPES[3]


def nearest_shape(parameters: int) -> Shape:
    """The shape of the table whose number of parameters is nearest, by ratio."""
    return min(SHAPES, key=lambda shape: abs(math.log(shape.parameters / parameters)))


def largest_type(facts: ModelFacts, weight_bytes: int) -> str | None:
    """The best of ADVISED_TYPES that makes the model smaller than it is and its weights take at most `weight_bytes`.

    An estimate from the header alone; None when no type does.
    """
    uneven = facts.hidden % 256 != 0
    smaller = ADVISED_TYPES[ADVISED_TYPES.index(facts.file_type) + 1 :] if facts.file_type in ADVISED_TYPES else ADVISED_TYPES
    most = min(8 * weight_bytes, facts.parameters * facts.bits_per_weight)
    return next((kind for kind in smaller if facts.parameters and _BITS[kind][uneven] * facts.parameters < most), None)


def scaled(facts: ModelFacts, parameters: int) -> ModelFacts:
    """`facts` with the weights of a model of so many parameters, the rest as it is."""
    ratio = parameters / facts.parameters
    return replace(
        facts,
        parameters=parameters,
        weight_bytes=int(facts.weight_bytes * ratio),
        file_bytes=int(facts.file_bytes * ratio),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A model in one type on one machine.

    `context` is the longest that fits, at most 8192 and what it was trained on; 0 when not even the weights and a short one
    do. Speeds are tokens per second with 512 tokens in the context (fewer in a shorter one): `ceiling` is what the memory's
    bandwidth allows, `low` to `high` what to expect; all None when the bandwidth is not known, or does not bound the speed
    because the processor's caches hold what a token reads: `cached`.
    """

    type: str
    bits_per_weight: float
    weights_bytes: int
    context: int
    need: MemoryNeed
    ceiling: float | None
    low: float | None
    high: float | None
    cached: bool = False

    @property
    def fits(self) -> bool:
        return self.context > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The options, best quality first, and the one to take: None when none fits. `reason` says why that one."""

    options: tuple[Option, ...]
    chosen: Option | None
    reason: str
    depth: int


def advise(models: Sequence[ModelFacts], free_bytes: int, bandwidth: float | None, cache_bytes: int = 0) -> Advice:
    """The advice for one model in several types on a machine; the numbers as for `weigh`."""
    options = tuple(weigh(facts, free_bytes, bandwidth, cache_bytes) for facts in models)
    options = tuple(sorted(options, key=lambda option: -option.bits_per_weight))
    chosen, reason = _choose(options, min(_USEFUL_CONTEXT, models[0].context or _USEFUL_CONTEXT))
    return Advice(options=options, chosen=chosen, reason=reason, depth=_depth(models[0], _LONGEST_CONTEXT))


def weigh(facts: ModelFacts, free_bytes: int, bandwidth: float | None, cache_bytes: int = 0) -> Option:
    """One model in one type on a machine with `free_bytes` of memory that reads `bandwidth` bytes per second.

    `cache_bytes` are those of its last-level caches, 0 where they are not known.
    """
    trained = min(facts.context or _LONGEST_CONTEXT, _LONGEST_CONTEXT)
    fitting = min(largest_context_that_fits(facts, free_bytes), trained)
    context = fitting if fitting >= min(trained, _SHORTEST_CONTEXT) else 0
    read = bytes_per_token(facts, _depth(facts, context or trained))
    cached = read.total < _CACHES * cache_bytes
    ceiling = read.ceiling(bandwidth) if bandwidth and not cached else None
    low, high = (None, None) if ceiling is None else (EFFICIENCY[0] * ceiling, EFFICIENCY[1] * ceiling)
    return Option(
        type=facts.file_type,
        bits_per_weight=facts.bits_per_weight,
        weights_bytes=facts.weight_bytes,
        context=context,
        need=memory_needed(facts, context or min(trained, _SHORTEST_CONTEXT)),
        ceiling=ceiling,
        low=low,
        high=high,
        cached=cached,
    )


def _depth(facts: ModelFacts, context: int) -> int:
    return min(_DEPTH, context, facts.context or _DEPTH)


def _choose(options: tuple[Option, ...], useful: int) -> tuple[Option | None, str]:
    """The best quality that fits with a useful context and is comfortably fast; else the usual type, or what comes nearest.

    Types smaller than the usual one are taken for room alone: what they lose in quality, no speed makes good.
    """
    fitting = [option for option in options if option.fits]
    if not fitting:
        return None, "no type of it fits the free memory"
    roomy = [option for option in fitting if option.context >= useful]
    candidates = roomy or [max(fitting, key=lambda option: option.context)]
    if len(options) == 1:
        return candidates[0], "it fits" if roomy else f"it fits, but with a context of only {candidates[0].context} tokens"
    usual = next((option.bits_per_weight for option in options if option.type == USUAL_TYPE), 0.0)
    good = [option for option in candidates if option.bits_per_weight >= usual]
    if not roomy:
        chosen = candidates[0]
        return chosen, f"the one that leaves room for the longest context, {chosen.context} tokens"
    if not good:
        return candidates[0], "the best quality that fits"
    quick = [option for option in good if option.cached or (option.low is not None and option.low >= COMFORTABLE)]
    if quick:
        return quick[0], f"the best quality that fits and makes {COMFORTABLE:.0f} tokens/s or more, faster than one reads"
    if good[-1].low is None:
        return good[-1], "a good quality for its size; how fast this machine reads memory was not measured"
    return good[-1], f"no good type makes {COMFORTABLE:.0f} tokens/s for sure here, and this one is the fastest of them"
