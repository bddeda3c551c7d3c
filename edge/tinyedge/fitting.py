"""Makes a model fit the memory there is, by a fixed ladder whose every step is told.

The rungs, each tried only when those before it were not enough: a smaller batch where the CPU does the work, which costs a
person nothing that could be measured and leaves TinyLlama its whole context on a board of 1 GB; a shorter context (down to
512 tokens); a Q8_0 KV cache (with as long a context as it allows); fewer layers on the GPU (with the context and the cache as
they were wished for, since that memory is the smaller part then), and there the smaller batch last. All of it is arithmetic
on the header's numbers; nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tinyedge.errors import MemoryFitError
from tinyedge.ggml_types import type_named
from tinyedge.memory import CONTEXT_STEP, DEFAULT_BATCH, MemoryNeed, memory_needed
from tinyedge.model_facts import ModelFacts

# llama.cpp's choice for the cache (kv_cache_types in its common/arg.cpp); K and V are of one type here.
KV_TYPES = ("F16", "Q8_0", "Q4_0", "BF16", "F32", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL")
SHORTEST_CONTEXT = 512  # where the ladder stops: less holds no conversation
SMALL_BATCH = 128
_SMALLER_KV = "Q8_0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Free bytes: `main` memory, and the GPU's when there is one. `shared`: the GPU uses main memory, `gpu` bytes of it."""

    main: int
    gpu: int | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the ladder can change. `gpu_layers` counts the output layer; 0 on the CPU."""

    context: int
    kv_type: str
    gpu_layers: int
    batch: int = DEFAULT_BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Settings that fit, what they take, and what was given up for it, one sentence each."""

    settings: Settings
    need: MemoryNeed
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and the room for it. `repacked` as for `memory_needed`; `longest` is the context the model can make use of."""

    facts: ModelFacts
    room: Room
    longest: int
    flash: bool = True
    repacked: tuple[str, ...] | None = None

    def need(self, settings: Settings) -> MemoryNeed:
        return memory_needed(
            self.facts,
            settings.context,
            batch=settings.batch,
            kv_type=settings.kv_type,
            flash=self.flash,
            repacked=self.repacked,
        )

    def on_gpu(self, settings: Settings) -> int:
        """The bytes of it on the GPU: the output and the last layers with their part of the cache, and the graph's buffers.

        The embedding, which stays in main memory, is counted as a part of the layers.
        """
        if settings.gpu_layers == 0:
            return 0
        need, layers = self.need(settings), max(1, self.facts.layers)
        weights = need.weights_bytes * settings.gpu_layers // (layers + 1)
        cache = need.kv_bytes * (settings.gpu_layers - 1) // layers
        return weights + cache + need.compute_bytes

    def fits(self, settings: Settings) -> bool:
        need, room, on_gpu = self.need(settings), self.room, self.on_gpu(settings)
        if room.gpu is None or settings.gpu_layers == 0:
            return need.total_bytes <= room.main
        if room.shared:
            return on_gpu <= room.gpu and need.total_bytes <= max(room.gpu, room.main)
        return on_gpu <= room.gpu and need.total_bytes - on_gpu + need.compute_bytes <= room.main

    def most_layers(self, settings: Settings) -> int:
        """The most layers, at most those of `settings`, that can be on the GPU; 0 when not one can."""
        counts = range(settings.gpu_layers, 0, -1)
        return next((count for count in counts if self.fits(replace(settings, gpu_layers=count))), 0)


def fit(case: Case, wished: Settings, *, strict: bool = False) -> Fit:
    """The settings nearest to those wished for that fit. Raises MemoryFitError when none do, or `strict` and others must do."""
    if case.fits(wished):
        return Fit(settings=wished, need=case.need(wished), steps=())
    found = next(_rungs(case, wished), None)
    if found is None:
        raise does_not_fit(case, wished)
    if strict:
        raise MemoryFitError(_shortage(case, wished), _offer(wished, found))
    return Fit(settings=found, need=case.need(found), steps=_told(case, wished, found))


def fittable(case: Case, wished: Settings) -> bool:
    """Whether the ladder has a rung that fits."""
    return case.fits(wished) or next(_rungs(case, wished), None) is not None


def quantized(kv_type: str) -> bool:
    """Whether a cache of this type stores blocks: then it needs flash attention and head widths that divide into them."""
    return type_named(kv_type).block_elements > 1


def blocks_divide(facts: ModelFacts, kv_type: str) -> bool:
    """Whether llama.cpp can keep this model's cache in that type: every head's K and V are whole blocks of it."""
    block = type_named(kv_type).block_elements
    return facts.head_dim_k % block == 0 and facts.head_dim_v % block == 0


def _rungs(case: Case, wished: Settings) -> Iterator[Settings]:
    """Settings that fit, the first one being the ladder's answer."""
    small = min(wished.batch, SMALL_BATCH)
    for batch in (wished.batch, small) if wished.gpu_layers else (small,):
        kinds = [replace(wished, batch=batch, kv_type=kind) for kind in _kv_types(case, wished.kv_type)]
        for settings in kinds:
            yield from _shortened(case, settings, case.fits)
        if wished.gpu_layers:
            for settings in kinds:
                for short in _shortened(case, settings, lambda each: case.most_layers(each) > 0):
                    yield replace(short, gpu_layers=case.most_layers(short))


def _kv_types(case: Case, wished: str) -> tuple[str, ...]:
    """The type wished for, and Q8_0 after it where that is smaller and possible."""
    smaller, kind = type_named(_SMALLER_KV), type_named(wished)
    saves = smaller.block_bytes * kind.block_elements < kind.block_bytes * smaller.block_elements
    return (wished, _SMALLER_KV) if saves and case.flash and blocks_divide(case.facts, _SMALLER_KV) else (wished,)


def _shortened(case: Case, settings: Settings, fits: Callable[[Settings], bool]) -> Iterator[Settings]:
    """`settings` with the longest context that fits, none when even the shortest does not.

    A context beyond what the model was trained on is cut to that at least: a mistyped --ctx shall not take all memory.
    """
    if fits(settings):
        yield settings
        return
    longest = min(settings.context - 1, case.longest)
    shortest = min(SHORTEST_CONTEXT, settings.context, case.longest)
    if longest < shortest or not fits(replace(settings, context=shortest)):
        return
    if fits(whole := replace(settings, context=longest)):
        yield whole
        return
    low, high = shortest // CONTEXT_STEP, longest // CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(replace(settings, context=middle * CONTEXT_STEP)) else (low, middle - 1)
    yield replace(settings, context=max(shortest, low * CONTEXT_STEP))


def _told(case: Case, wished: Settings, found: Settings) -> tuple[str, ...]:
    """What was given up, in the ladder's order, each with what it saved after the steps before it."""
    steps: list[str] = []
    now = wished
    if found.batch != now.batch and not wished.gpu_layers:
        now = replace(now, batch=found.batch)
        steps.append(_batch_step(case, wished, now))
    before = case.need(now)
    if found.context != now.context:
        now = replace(now, context=found.context)
        saved = before.kv_bytes - case.need(now).kv_bytes
        steps.append(f"context {wished.context} -> {found.context} tokens: {size(saved)} of KV cache saved")
    if found.kv_type != now.kv_type:
        kept = case.need(now).kv_bytes
        now = replace(now, kv_type=found.kv_type)
        steps.append(f"KV cache {wished.kv_type} -> {found.kv_type}: {size(kept - case.need(now).kv_bytes)} saved")
    if found.gpu_layers != now.gpu_layers:
        steps.append(
            f"GPU layers {wished.gpu_layers} -> {found.gpu_layers} of {case.facts.layers + 1}: the rest runs on the CPU, slower"
        )
    if found.batch != now.batch:
        steps.append(_batch_step(case, now, replace(now, batch=found.batch)))
    return tuple(steps)


def _batch_step(case: Case, before: Settings, after: Settings) -> str:
    saved = case.need(before).compute_bytes - case.need(after).compute_bytes
    return f"batch {before.batch} -> {after.batch} tokens: {size(saved)} of buffers saved, prompts may be read slower"


def _offer(wished: Settings, found: Settings) -> str:
    """What to ask for instead: the options that differ."""
    options = (
        ("--ctx", wished.context, found.context),
        ("--kv", wished.kv_type, found.kv_type.lower() if found.kv_type != wished.kv_type else wished.kv_type),
        ("--gpu-layers", wished.gpu_layers, found.gpu_layers),
        ("--batch", wished.batch, found.batch),
    )
    changed = " ".join(f"{name} {new}" for name, old, new in options if new != old)
    if found == replace(wished, context=found.context):
        return f"a context of {found.context} tokens fits: {changed}"
    return f"this fits: {changed}"


def smallest(case: Case, wished: Settings) -> Settings:
    """The ladder's last rung: the settings that take least of all that it tries."""
    return Settings(
        context=min(wished.context, SHORTEST_CONTEXT, case.longest),
        kv_type=_kv_types(case, wished.kv_type)[-1],
        gpu_layers=min(wished.gpu_layers, 1),
        batch=min(wished.batch, SMALL_BATCH),
    )


def does_not_fit(case: Case, wished: Settings) -> MemoryFitError:
    """The refusal when no rung fits: the numbers of the last one, and what would help."""
    last = smallest(case, wished)
    problem = _shortage(case, last, "at least ")
    if last.context > CONTEXT_STEP and fittable(case, replace(wished, context=CONTEXT_STEP)):
        return MemoryFitError(problem, f"a context of {CONTEXT_STEP} tokens fits: --ctx {CONTEXT_STEP}")
    facts, need = case.facts, case.need(last)
    from tinyedge.advice import largest_type  # needed for a refusal alone

    kind = largest_type(facts, _free(case, last) - (need.total_bytes - facts.weight_bytes))
    if kind is None:
        return MemoryFitError(problem, "no type of it is small enough: free some memory or choose a smaller model")
    return MemoryFitError(problem, f"quantize it to {kind}; this file has {facts.bits_per_weight:.1f} bits per weight")


def _shortage(case: Case, settings: Settings, least: str = "") -> str:
    need, room = case.need(settings), case.room
    split = room.gpu is not None and not room.shared and 0 < settings.gpu_layers <= case.facts.layers
    free = f"{size(room.main)} and {size(room.gpu or 0)} on the GPU" if split else size(_free(case, settings))
    return (
        f"the model needs {least}{size(need.total_bytes)} (weights {size(need.weights_bytes)}, KV cache {size(need.kv_bytes)} "
        f"for {settings.context} tokens, compute buffers {size(need.compute_bytes)}) and {free} are free"
    )


def _free(case: Case, settings: Settings) -> int:
    """The room for the whole model: the GPU's when all of it is to be there, otherwise both together."""
    room = case.room
    if room.gpu is None or settings.gpu_layers == 0:
        return room.main
    if settings.gpu_layers > case.facts.layers:
        return room.gpu
    return max(room.gpu, room.main) if room.shared else room.gpu + room.main


def size(count: int) -> str:
    """`640 KiB`, `2.4 MiB`, `637 MiB`, `1670 MiB`, `11.2 GiB`: MiB up to 10 GiB, where the ladder's sentences compare them."""
    if count < 1024:
        return f"{max(0, count)} B"
    unit, name = (1 << 30, "GiB") if count >= 10 << 30 else (1 << 20, "MiB") if count >= 1023.5 * 1024 else (1024, "KiB")
    value = count / unit
    return f"{value:.1f} {name}" if value < 9.95 or name == "GiB" else f"{value:.0f} {name}"
