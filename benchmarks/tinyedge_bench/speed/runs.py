"""Single timed runs of a model that is loaded: what is in the time, and what is kept ready between the runs.

The same as llama.cpp's llama-bench (tools/llama-bench/llama-bench.cpp, `test_prompt` and `test_gen`) and, for texts side by
side, llama-batched-bench: random tokens with BOS first, no tokenizing and no sampling in the time, before it a warm-up of the
whole prompt and one token, an empty cache but for the depth.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, process_time, sleep
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tinyedge.engine import context_settings
from tinyedge.errors import MemoryFitError, NativeError
from tinyedge.load_plan import LoadPlan
from tinyedge.memory import free_memory_bytes, memory_needed, padded_context
from tinyedge.model_facts import ModelFacts
from tinyedge.native.model import Model
from tinyedge.native.sampler import Sampler
from tinyedge.native.sequences import SequenceContext
from tinyedge.sampling import Sampling
from tinyedge_bench.speed.cases import Case

_SEED = 0  # which random tokens does not matter; the same ones in every run make runs equal
_MOST_CONTEXTS = 8
# ggml's threads look for work for some tenths of a second after the last graph before they sleep (ggml-cpu.c,
# ggml_graph_compute_poll_for_work); they would take the processors of the next run's.
_SETTLE_S, _LOOK_S, _IDLE_S = 0.5, 0.004, 0.001
_WAKE_S = 0.02  # clocks rise within a few periods of the kernel's timer

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Sample:
    """The seconds of one run, and those to the first token that follows its prompt: detokenized; None without a prompt."""

    seconds: float
    first_token_s: float | None = None


@dataclass(slots=True)
class _Ready:
    """An open context, the cases that were warmed up in it, and whether it holds its depth and how much more."""

    context: SequenceContext
    warmed: set[Case] = field(default_factory=set)
    filled: bool = False


class Runs:
    """Runs cases on `model`, whose facts and plan are given; closes its contexts at the end of a `with` block.

    `cases` are those to come: the ones that differ only in their prompt and what they generate share a context, and the
    tokens of their depth are processed once. Contexts stay open as long as there is memory for the next.
    """

    def __init__(self, model: Model, facts: ModelFacts, plan: LoadPlan, cases: Iterable[Case]) -> None:
        self._model = model
        self._facts = facts
        self._plan = plan
        self._positions: dict[Case, int] = {}
        for case in cases:
            kind = _kind(case)
            self._positions[kind] = max(self._positions.get(kind, 0), case.positions // case.sequences)
        self._open: OrderedDict[Case, _Ready] = OrderedDict()
        self._sampler = Sampler(model, Sampling(temperature=0.0))
        draw = random.Random(_SEED)
        longest = max(self._positions.values(), default=0)
        self._tokens: Ids = np.array([draw.randrange(model.vocabulary_size) for _ in range(longest)], dtype=np.int32)
        if model.bos is not None:
            self._tokens[:1] = model.bos

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        for ready in self._open.values():
            ready.context.close()
        self._sampler.close()

    def sample(self, case: Case) -> Sample:
        """One timed run. Raises MemoryFitError when there is no memory for its context now, NativeError."""
        self.prepare(case)
        return self.timed(case)

    def prepare(self, case: Case) -> None:
        """Makes the context, warms the case up the first time, and leaves nothing but its depth in the cache.

        The processors are at work then for their next run, as they are in llama-bench, where runs follow each other.
        """
        ready = self._ready(case)
        if case not in ready.warmed:
            self._to_depth(ready, case)
            self._run(ready.context, replace(case, generate=min(case.generate, 1)))
            ready.warmed.add(case)
        settle()
        awake = perf_counter() + _WAKE_S
        while not self._to_depth(ready, case) and perf_counter() < awake:
            ready.context.decode(int(self._tokens[0]))
            ready.context.wait()

    def timed(self, case: Case) -> Sample:
        """The run itself, of a case that was prepared just now."""
        return self._run(self._open[_kind(case)].context, case)

    def _run(self, context: SequenceContext, case: Case) -> Sample:
        run = _run_one if case.sequences == 1 else _run_many
        return run(context, case, self._tokens, self._sampler)

    def _to_depth(self, ready: _Ready, case: Case) -> bool:
        """Leaves the tokens of the depth in the cache and nothing else; whether they had to be computed."""
        context = ready.context
        if ready.filled and case.depth and all(context.forget(each, case.depth) for each in range(case.sequences)):
            return False
        context.clear()
        for read in _prompt_reads(replace(case, prompt=case.depth, depth=0), self._tokens, context):
            context.read(*read)
        ready.filled = True
        return case.depth > 0

    def _ready(self, case: Case) -> _Ready:
        """The context for the case, used last of all from now on."""
        kind = _kind(case)
        if kind in self._open:
            self._open.move_to_end(kind)
        else:
            self._make_room(case)
            self._open[kind] = _Ready(self._new_context(case))
        return self._open[kind]

    def _make_room(self, case: Case) -> None:
        """Closes the contexts that were not used for the longest time until there is memory for this case's."""
        tokens = context_tokens(self._positions[_kind(case)], case.sequences)
        need = memory_needed(self._facts, tokens, batch=self._plan.batch, kv_type=case.kv_type, outputs=case.sequences)
        wanted = need.kv_bytes + need.compute_bytes
        while self._open and (len(self._open) >= _MOST_CONTEXTS or wanted > free_memory_bytes()):
            self._close_oldest()
        if wanted > (free := free_memory_bytes()):
            raise MemoryFitError(
                f"{case.name} needs {wanted >> 20} MiB beside the weights, and {free >> 20} MiB are free",
                "ask for fewer tokens, less depth or fewer sequences",
            )

    def _new_context(self, case: Case) -> SequenceContext:
        settings = replace(
            context_settings(self._plan),
            context=context_tokens(self._positions[_kind(case)], case.sequences),
            threads=case.threads,
            batch_threads=case.threads,
            kv_type=case.kv_type,
            outputs=case.sequences,
            sequences=case.sequences,
        )
        while True:
            try:
                return SequenceContext(self._model, settings)
            except NativeError:  # a GPU's memory is known to its driver only
                if not self._open:
                    raise
                self._close_oldest()

    def _close_oldest(self) -> None:
        _, ready = self._open.popitem(last=False)
        ready.context.close()


def open_model(path: Path, plan: LoadPlan) -> Model:
    """The weights of the GGUF file at `path`, which must have passed `check_runnable`, where `plan` wants them."""
    on_gpu = plan.backend != "cpu"
    return Model(path, device=plan.device.name if on_gpu else None, gpu_layers=plan.gpu_layers)


def _kind(case: Case) -> Case:
    """The case without its tokens: those alike run in one context."""
    return replace(case, prompt=0, generate=0)


def context_tokens(positions: int, sequences: int) -> int:
    """The size of a context for texts of so many positions side by side: llama.cpp gives each a multiple of 256."""
    return positions if sequences == 1 else padded_context(positions) * sequences


def settle() -> None:
    """Returns when this process's threads have stopped looking for work, after half a second at most."""
    until = perf_counter() + _SETTLE_S
    while perf_counter() < until:
        before = process_time()
        sleep(_LOOK_S)
        if process_time() - before < _IDLE_S:
            return


def _run_one(context: SequenceContext, case: Case, tokens: Ids, sampler: Sampler) -> Sample:
    """A prompt in batches, then tokens one by one: two times, added. What is between them is not in llama-bench's."""
    prompt, generated = tokens[: case.prompt].tolist(), tokens[: case.generate].tolist()
    seconds, first_token_s = 0.0, None
    if prompt:
        begun = perf_counter()
        context.decode_all(prompt)
        context.wait()
        seconds = perf_counter() - begun
        context.model.piece(sampler.sample(context))
        first_token_s = perf_counter() - begun
    if generated:
        begun = perf_counter()
        for token in generated:
            context.decode(token)
            context.wait()
        seconds += perf_counter() - begun
    return Sample(seconds, first_token_s)


def _run_many(context: SequenceContext, case: Case, tokens: Ids, _: Sampler) -> Sample:
    """The same for texts side by side: a batch has tokens of all prompts, then one token of every text."""
    reads, steps = _prompt_reads(case, tokens, context), _steps(case, tokens, context)
    seconds, first_token_s = 0.0, None
    if reads:
        begun = perf_counter()
        for read in reads:
            logits = context.read(*read)
        seconds = perf_counter() - begun
        for token in logits.argmax(axis=1):
            context.model.piece(int(token))
        first_token_s = perf_counter() - begun
    begun = perf_counter()
    for step in steps:
        context.read(*step)
    return Sample(seconds + (perf_counter() - begun if steps else 0.0), first_token_s)


def _prompt_reads(case: Case, tokens: Ids, context: SequenceContext) -> list[tuple[Ids, Ids, Ids, Ids]]:
    """The batches of the prompts: tokens, positions, sequences, and whether logits are wanted: those of each text's last."""
    part = max(1, context.room // case.sequences)
    return [
        _batch(case, tokens, context, start, min(start + part, case.prompt), case.depth, last=case.prompt)
        for start in range(0, case.prompt, part)
    ]


def _steps(case: Case, tokens: Ids, context: SequenceContext) -> list[tuple[Ids, Ids, Ids, Ids]]:
    """The batches of the generation, a token of every text in each, all with logits."""
    before = case.depth + case.prompt
    return [_batch(case, tokens, context, index, index + 1, before, last=index + 1) for index in range(case.generate)]


def _batch(
    case: Case, tokens: Ids, context: SequenceContext, start: int, end: int, before: int, *, last: int
) -> tuple[Ids, Ids, Ids, Ids]:
    """Tokens `start` up to `end` of every text, each text with others, at the positions after `before`."""
    places = np.arange(start, end, dtype=np.int32)
    sequences = np.repeat(np.arange(case.sequences, dtype=np.int32), len(places))
    own = (
        tokens[places][np.newaxis, :] + np.arange(case.sequences, dtype=np.int32)[:, np.newaxis]
    ) % context.model.vocabulary_size
    wanted = (places == last - 1).astype(np.int32)
    return own.ravel(), np.tile(places + before, case.sequences), sequences, np.tile(wanted, case.sequences)
