"""The two figures that stand beside a model's quality: prompt and generation speed, in a few seconds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from tinyedge.gguf_split import read_model
from tinyedge.load_plan import LoadPlan
from tinyedge.model_facts import describe_model
from tinyedge_bench.speed.cases import Case
from tinyedge_bench.speed.runs import Runs, open_model
from tinyedge_bench.speed.sweep import order


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickSpeed:
    """Tokens per second, each the median of some runs; None for what was not run."""

    prompt_tokens_per_s: float | None
    generated_tokens_per_s: float | None


def quick_speed(path: Path, plan: LoadPlan, *, prompt: int, generate: int, runs: int) -> QuickSpeed:
    """The speed of the GGUF file at `path` as `plan` says, in turn: `prompt` tokens at once, `generate` one by one.

    The file must have passed `check_runnable`. A test of 0 tokens is left out. Raises NativeError, MemoryFitError.
    """
    facts = describe_model(read_model(path))
    cases = [
        Case(prompt=before, generate=after, threads=plan.threads, kv_type=plan.kv_type, backend=plan.backend)
        for before, after in ((prompt, 0), (0, generate))
        if before or after
    ]
    samples: dict[Case, list[float]] = {case: [] for case in cases}
    with open_model(path, plan) as model, Runs(model, facts, plan, cases) as timed:
        for number in range(max(runs, 1)):
            for case in order(cases, number):
                samples[case].append(case.tokens / timed.sample(case).seconds)
    medians = {bool(case.prompt): statistics.median(found) for case, found in samples.items()}
    return QuickSpeed(prompt_tokens_per_s=medians.get(True), generated_tokens_per_s=medians.get(False))
