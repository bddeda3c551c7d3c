"""Prompt processing and generation speed, measured as llama-bench does, so that the numbers compare.

Random tokens with BOS first, no tokenizing and no sampling in the time, a warm-up, an empty KV cache before each run
(llama.cpp tools/llama-bench/llama-bench.cpp, `test_prompt` and `test_gen`).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from tinyedge.backends import LoadPlan
from tinyedge.engine import context_settings
from tinyedge.native.context import Context
from tinyedge.native.model import Model

_SEED = 0  # which random tokens does not matter, the same ones in every run make runs equal

# Runs that spread wider than this share of their median say more about the machine's other work than about the model.
_NOISE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Workload:
    """What is timed: `tokens` of a prompt in batches (pp), or generated one by one (tg)."""

    kind: str
    tokens: int

    @property
    def name(self) -> str:
        """llama-bench's name for it: pp512, tg128."""
        return f"{self.kind}{self.tokens}"


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run."""

    test: Workload
    threads: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.test.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Summary:
    """All runs of one test at one number of threads, in tokens per second."""

    test: Workload
    threads: int
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def stddev(self) -> float:
        """Of the sample (divided by n - 1), as llama-bench gives it; 0 for a single run."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def warning(self) -> str | None:
        """What to doubt about these numbers, and what helps."""
        if len(self.samples) < 3:
            return f"{self.test.name}: fewer than 3 runs cannot tell the spread; use -r 5 or more"
        low, high = min(self.samples), max(self.samples)
        share = (high - low) / self.median
        if share <= _NOISE_SHARE:
            return None
        return f"{self.test.name}: runs differ by {share:.0%} ({low:.1f} to {high:.1f}); close other programs and let it cool"


def workloads(prompt: int, generate: int) -> tuple[Workload, ...]:
    """The tests to run: prompt processing first, each left out at 0 tokens."""
    return tuple(Workload(kind, tokens) for kind, tokens in (("pp", prompt), ("tg", generate)) if tokens > 0)


def measure(path: Path, plans: Sequence[LoadPlan], tests: Sequence[Workload], repetitions: int) -> Iterator[Run]:
    """Yields every timed run of the GGUF file at `path` as it is done: each plan's tests, `repetitions` times each.

    The plans may differ in threads only: the weights are loaded once, for the first.
    """
    first = plans[0]
    on_gpu = first.backend != "cpu"
    with Model(path, device=first.device.name if on_gpu else None, gpu_layers=first.gpu_layers) as model:
        for plan in plans:
            for test in tests:
                with Context(model, replace(context_settings(plan), context=test.tokens)) as context:
                    yield from _repeat(context, test, plan.threads, _random_tokens(model, test.tokens), repetitions)


def _random_tokens(model: Model, count: int) -> list[int]:
    """`count` tokens, the first being BOS where the model wants one."""
    draw = random.Random(_SEED)
    tokens = [draw.randrange(model.vocabulary_size) for _ in range(count)]
    return tokens if model.bos is None else [model.bos, *tokens[1:]]


def _repeat(context: Context, test: Workload, threads: int, tokens: list[int], repetitions: int) -> Iterator[Run]:
    once = _process if test.kind == "pp" else _generate
    once(context, tokens if test.kind == "pp" else tokens[:1])  # the warm-up, as long as llama-bench's
    for _ in range(repetitions):
        context.clear()
        started = perf_counter()
        once(context, tokens)
        yield Run(test, threads, perf_counter() - started)


def _process(context: Context, tokens: list[int]) -> None:
    context.decode_all(tokens)
    context.wait()


def _generate(context: Context, tokens: list[int]) -> None:
    for token in tokens:
        context.decode(token)
        context.wait()


def summarise(runs: Iterable[Run]) -> tuple[Summary, ...]:
    """One summary per test and number of threads, in the order of their first runs."""
    groups: dict[tuple[Workload, int], list[float]] = {}
    for run in runs:
        groups.setdefault((run.test, run.threads), []).append(run.tokens_per_second)
    return tuple(Summary(test, threads, tuple(samples)) for (test, threads), samples in groups.items())
