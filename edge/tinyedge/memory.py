"""How much memory a model needs at a given context, and how much there is.

The KV cache follows llama.cpp's rule exactly; the compute buffer is an upper bound fitted to what ggml's allocator makes of
the llama graph, since the true size comes out of a best-fit packing that only ggml itself can repeat.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tinyedge.ggml_types import type_named
from tinyedge.model_facts import ModelFacts

CONTEXT_STEP = 256  # llama-context.cpp pads n_ctx to it
DEFAULT_BATCH = 512
# llama_vocab holds each token three times (by id, by text, as a piece): measured 180 bytes a token for 32000 tokens.
_VOCABULARY_BYTES = 256
_FIXED_BYTES = 1 << 20
_INPUT_BYTES = 64  # positions, cache indices and output ids of a token, rounded up
# What ggml-cpu's repack.cpp copies into another layout: the feature (the kernel's word) without which it does so for no type,
# and the types, the embedding of a tied output included. It has no such kernels for 32-bit ARM.
_REPACKED = {
    "x86_64": ("avx2", ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4")),
    "aarch64": ("asimddp", ("Q4_0", "Q4_K", "Q2_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0")),
}
_SAME = {"arm64": "aarch64", "AMD64": "x86_64"}
_CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a model takes when it runs on the CPU: weights, KV cache, and everything needed to compute."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def memory_needed(
    facts: ModelFacts,
    context: int,
    *,
    batch: int = DEFAULT_BATCH,
    kv_type: str = "F16",
    outputs: int = 1,
    flash: bool = True,
    repacked: Collection[str] | None = None,
) -> MemoryNeed:
    """What running the model at `context` tokens takes, `batch` tokens per graph and logits for `outputs` of them.

    Without `flash` attention the graph holds the attention scores. `repacked` are the types of `repacked_types`, by default
    those of this machine.
    """
    cells = padded_context(context)
    batch, outputs = min(batch, max(context, 1)), max(outputs, 1)
    copied = repacked_types(platform.machine()) if repacked is None else repacked
    return MemoryNeed(
        weights_bytes=facts.weight_bytes + (facts.tied_bytes if facts.embedding_type in copied else 0),
        kv_bytes=_kv_bytes(facts, cells, kv_type),
        compute_bytes=_compute_bytes(facts, batch, outputs, graph_bytes(facts, cells, batch, outputs, kv_type, flash)),
    )


def repacked_types(architecture: str, features: Collection[str] | None = None) -> tuple[str, ...]:
    """The weight types that ggml repacks on a CPU, of which a tied embedding is held twice.

    `architecture` is the machine's name for it (x86_64, aarch64, armv7l); `features` are the kernel's words for what the CPU
    can do, None where they are not known: then all that may be repacked on it.
    """
    needed, types = _REPACKED.get(_SAME.get(architecture, architecture), ("", ()))
    return types if features is None or needed in features else ()


def padded_context(context: int) -> int:
    """The cells llama.cpp allocates for a context: the next multiple of 256."""
    return -(-max(context, 1) // CONTEXT_STEP) * CONTEXT_STEP


def largest_context_that_fits(
    facts: ModelFacts,
    free_bytes: int,
    *,
    batch: int = DEFAULT_BATCH,
    kv_type: str = "F16",
    outputs: int = 1,
    flash: bool = True,
    repacked: Collection[str] | None = None,
) -> int:
    """The longest context in steps of 256, at most the trained one, that `free_bytes` can hold; 0 when none can."""
    trained = facts.context or NO_LIMIT
    low, high = 0, -(-min(trained, 1 << 24) // CONTEXT_STEP)
    while low < high:
        steps = (low + high + 1) // 2
        need = memory_needed(
            facts, steps * CONTEXT_STEP, batch=batch, kv_type=kv_type, outputs=outputs, flash=flash, repacked=repacked
        )
        low, high = (steps, high) if need.total_bytes <= free_bytes else (low, steps - 1)
    return min(low * CONTEXT_STEP, trained)


def free_memory_bytes() -> int:
    """Memory that can be used without swapping, within the limits of the cgroup that this process runs in."""
    import psutil

    free = [psutil.virtual_memory().available, *map(_cgroup_free, _cgroups())]
    return max(0, min(free))


def _kv_bytes(facts: ModelFacts, cells: int, kv_type: str) -> int:
    """llama-kv-cache.cpp: a row of K and one of V per layer and cell; exact for attention without a sliding window."""
    kind = type_named(kv_type)
    blocks = facts.key_width // kind.block_elements + facts.value_width // kind.block_elements
    return cells * blocks * kind.block_bytes


def _compute_bytes(facts: ModelFacts, batch: int, outputs: int, graph: int) -> int:
    """The graph's buffers, the rows of logits, the quantized input of a matrix product, the vocabulary's tables."""
    logits = 4 * facts.vocabulary * outputs
    quantized_input = 2 * batch * max(facts.ffn, facts.hidden)  # the work buffer of ggml_graph_plan
    tables = facts.vocabulary * _VOCABULARY_BYTES + _FIXED_BYTES
    return graph + logits + quantized_input + tables


def graph_bytes(facts: ModelFacts, cells: int, batch: int, outputs: int, kv_type: str = "F16", flash: bool = True) -> int:
    """At least what llama.cpp prints as `CPU compute buffer size`.

    The graph is widest in a feed-forward layer (gate, up and their product beside four rows of the residual stream), in
    attention (Q, its rotation and the output, K, V), or at the logits; the mask lives through all layers. Flash attention
    has an F16 mask and takes an F32 cache through an F16 copy of one layer; without it the scores of every head are F32.
    """
    query = facts.heads * facts.head_dim_k
    key = facts.kv_heads * (facts.head_dim_k + facts.head_dim_v)
    residual = 4 * facts.hidden
    attention = 3 * query + 2 * key if flash else query + key + facts.heads * cells
    widest = residual + max(3 * facts.ffn * max(facts.experts_used, 1), attention)
    head = 4 * facts.vocabulary * min(outputs, batch) + 4 * batch * residual
    mask = (2 if flash else 4) * batch * cells
    copied = 2 * key * cells if flash and kv_type == "F32" else 0
    return max(4 * batch * widest, head) + mask + copied + _INPUT_BYTES * (batch + 1024)


def _cgroups() -> list[Path]:
    """The memory cgroups of this process, own one first and its parents after it, of version 2 and 1."""
    groups: list[Path] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return groups
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = _CGROUP if not controllers else _CGROUP / "memory" if controllers == "memory" else None
        if root is None:
            continue
        group = root / path.lstrip("/")
        groups += [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return groups


def _cgroup_free(group: Path) -> int:
    """Limit less use in one cgroup, file cache that can be dropped counted as free; huge when there is no limit."""
    version_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
    limit_name, used_name, cache_names = version_2 if (group / version_2[0]).exists() else version_1
    try:
        limit = (group / limit_name).read_text().strip()
        if limit == "max" or int(limit) >= NO_LIMIT:
            return NO_LIMIT
        used = int((group / used_name).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(limit) - used + sum(int(stat.get(name, 0)) for name in cache_names)
    except (OSError, ValueError):
        return NO_LIMIT
