"""Finds the settings that run a model fastest on this machine, and takes none that is not faster beyond the noise.

`tune` is pure: what a sample costs comes from the function it is given, so its decisions can be tested without a model. One
thing is varied at a time, in the order of what it is worth; candidates and the best so far are sampled in turn, so that a
machine that grows hot or gets another task slows them all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

# A candidate is taken when the median of its paired ratios is above this, and nearly every pair agrees.
_GAIN = 1.02
_AGREEING = 0.8
# One that is so much slower in its first sample is not sampled again.
_HOPELESS = 0.8
_ROUNDS = 5
_FINAL_ROUNDS = 7
# In the end neither speed may have lost more than this beside the default's.
_LOSS = 0.98

PROMPT, GENERATION, DEEP = "prompt", "generation", "generation, deep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What can be tuned. `affinity` are CPU numbers, all when empty; `batch` is in tokens."""

    threads: int
    batch_threads: int
    batch: int
    flash: str = "auto"
    kv_type: str = "F16"
    affinity: tuple[int, ...] = ()
    mmap: bool = True
    mlock: bool = False


# Tokens per second of one sample of a test with a setting. Raises SettingRefused when llama.cpp will not have it.
Measure = Callable[[Setting, str], float]


class SettingRefused(Exception):  # noqa: N818 - no error, an answer
    """A setting that cannot be measured here, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One thing to vary: the candidates are made from the best setting so far. `changes_text` ones are shown, not taken."""

    title: str
    test: str
    candidates: Callable[[Setting], Sequence[tuple[str, Setting]]]
    changes_text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a candidate of a stage. `ratio` is the median of its pairs with the best before the stage."""

    stage: str
    label: str
    test: str
    tokens_per_s: float | None
    ratio: float | None
    samples: int
    taken: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What was found. `gains` are the ratios of the best to the default in the final duel, by test; 1 without a duel."""

    default: Setting
    winner: Setting
    rows: tuple[Row, ...]
    gains: dict[str, float]
    complete: bool

    @property
    def faster(self) -> bool:
        return self.winner != self.default


def tune(
    default: Setting,
    stages: Sequence[Stage],
    measure: Measure,
    clock: Callable[[], float],
    budget_s: float,
    progress: Callable[[str, float], None] | None = None,
) -> Tuning:
    """The best setting within `budget_s` seconds of `clock`; a quarter of them are kept for the final duel.

    `progress` is told what is measured and the share of the budget that is spent.
    """
    begun = clock()
    best, rows, complete = default, list[Row](), True

    def spent() -> float:
        return (clock() - begun) / budget_s

    for stage in stages:
        found = [(label, setting) for label, setting in stage.candidates(best) if setting != best]
        if not found:
            continue
        if spent() > 0.75:
            complete = False
            break
        if progress is not None:
            progress(stage.title, spent())
        stage_rows, choice = _stage(stage, best, found, measure, lambda: spent() > 0.75)
        rows += stage_rows
        best = choice
    winner, gains = default, {PROMPT: 1.0, GENERATION: 1.0}
    if best != default:
        if progress is not None:
            progress("the winner against the default", spent())
        gains = _duel(default, best, measure, lambda: spent() > 1.0)
        if min(gains.values()) >= _LOSS and max(gains.values()) >= _GAIN:
            winner = best
    return Tuning(default=default, winner=winner, rows=tuple(rows), gains=gains, complete=complete)


def _stage(
    stage: Stage, best: Setting, found: list[tuple[str, Setting]], measure: Measure, late: Callable[[], bool]
) -> tuple[list[Row], Setting]:
    """The rows of a stage and the setting that it leaves as the best."""
    reference = [measure(best, stage.test)]
    samples: dict[str, list[float]] = {}
    refused: dict[str, str] = {}
    for label, setting in found:
        try:
            samples[label] = [measure(setting, stage.test)]
        except SettingRefused as reason:
            refused[label] = str(reason)
    racing = [(label, setting) for label, setting in found if label in samples]
    racing = [(label, setting) for label, setting in racing if samples[label][0] >= _HOPELESS * reference[0]]
    for _ in range(_ROUNDS - 1):
        if late() or not racing:
            break
        reference.append(measure(best, stage.test))
        for label, setting in racing:
            if not late():
                samples[label].append(measure(setting, stage.test))
    ratios = {label: [a / b for a, b in zip(values, reference, strict=False)] for label, values in samples.items()}
    better = [label for label, values in ratios.items() if _beyond_noise(values)]
    winner = max(better, key=lambda label: statistics.median(ratios[label]), default=None)
    taken = None if stage.changes_text else winner
    rows = [Row(stage=stage.title, label="as before", test=stage.test, tokens_per_s=statistics.median(reference), ratio=1.0,
                samples=len(reference), taken=taken is None)]  # fmt: skip
    for label, _ in found:
        values = samples.get(label)
        rows.append(
            Row(
                stage=stage.title,
                label=label,
                test=stage.test,
                tokens_per_s=statistics.median(values) if values else None,
                ratio=statistics.median(ratios[label]) if values else None,
                samples=len(values or ()),
                taken=label == taken,
                note=refused.get(label, "changes the text, so it is for --kv" if stage.changes_text else ""),
            )
        )
    return rows, best if taken is None else dict(found)[taken]


def _beyond_noise(ratios: list[float]) -> bool:
    agreeing = sum(ratio > 1.0 for ratio in ratios) / len(ratios)
    return len(ratios) >= 3 and statistics.median(ratios) >= _GAIN and agreeing >= _AGREEING


def _duel(default: Setting, best: Setting, measure: Measure, late: Callable[[], bool]) -> dict[str, float]:
    """The median of the paired ratios of `best` to `default`, for each test; the order changes from pair to pair."""
    ratios: dict[str, list[float]] = {PROMPT: [], GENERATION: []}
    for turn in range(_FINAL_ROUNDS):
        for test, values in ratios.items():
            if late() and len(values) >= 3:
                continue
            first, second = (best, default) if turn % 2 else (default, best)
            speeds = {setting: measure(setting, test) for setting in (first, second)}
            values.append(speeds[best] / speeds[default])
    return {test: statistics.median(values) for test, values in ratios.items()}


def usual_stages(
    *,
    logical: int,
    physical: int,
    performance: int,
    performance_cpus: tuple[int, ...],
    allowed: tuple[int, ...],
    prompt_tokens: int,
    can_lock: bool,
) -> tuple[Stage, ...]:
    """What is worth trying on a machine with these processors; `prompt_tokens` is the longest prompt a sample reads."""
    counts = _thread_counts(logical, physical, performance)
    # A sample is one batch of its own length where the batch may be larger.
    batches = [size for size in (32, 64, 128, 256) if size < prompt_tokens]

    def threads(best: Setting) -> list[tuple[str, Setting]]:
        return [(_threads(count), replace(best, threads=count)) for count in counts]

    def batch_threads(best: Setting) -> list[tuple[str, Setting]]:
        return [(_threads(count), replace(best, batch_threads=count)) for count in counts]

    def batch_size(best: Setting) -> list[tuple[str, Setting]]:
        return [(f"{count} tokens", replace(best, batch=count)) for count in batches]

    def affinity(best: Setting) -> list[tuple[str, Setting]]:
        masks = {"bound to the performance cores": performance_cpus, "bound to every core": allowed}
        masks = {label: cpus for label, cpus in masks.items() if max(best.threads, best.batch_threads) <= len(cpus)}
        unique = {cpus: label for label, cpus in reversed(masks.items())}
        return [(label, replace(best, affinity=cpus)) for cpus, label in unique.items()]

    return (
        Stage(title="threads", test=GENERATION, candidates=threads),
        Stage(title="threads for the prompt", test=PROMPT, candidates=batch_threads),
        Stage(title="affinity", test=GENERATION, candidates=affinity),
        Stage(title="batch size", test=PROMPT, candidates=batch_size),
        Stage(title="flash attention", test=DEEP, candidates=lambda best: [("off", replace(best, flash="off"))]),
        Stage(
            title="weights",
            test=GENERATION,
            candidates=lambda best: [("read, not mapped", replace(best, mmap=False))]
            + ([("locked in memory", replace(best, mlock=True))] if can_lock else []),
        ),
        Stage(
            title="KV cache type",
            test=DEEP,
            candidates=lambda best: [(kind, replace(best, kv_type=kind, flash="on")) for kind in ("Q8_0", "Q4_0")],
            changes_text=True,
        ),
    )  # fmt: skip


def _thread_counts(logical: int, physical: int, performance: int) -> list[int]:
    """Numbers of threads worth trying: all of each kind, one fewer, half, and one."""
    wanted = {logical, physical, performance, performance - 1, physical - 1, (performance + 1) // 2, 1}
    return sorted(count for count in wanted if 1 <= count <= logical)


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count != 1 else "")
