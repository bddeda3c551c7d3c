"""Finds the settings that run a model fastest on this machine, and takes none that is not faster beyond the noise.

`tune` is pure: what a sample costs comes from the function it is given, so its decisions can be tested without a model. One
thing is varied at a time, in the order of what it is worth; candidates and the best so far are sampled in turn, so that a
machine that grows hot or gets another task slows them all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tinyedge.load_plan import Setting

# A candidate is taken when the median of its paired ratios is above this, and nearly every pair agrees.
_GAIN = 1.02
_AGREEING = 0.8
# One that is so much slower in its first sample is not sampled again.
_HOPELESS = 0.8
_ROUNDS = 5
_LEAST_PAIRS = 3
_FINAL_ROUNDS = 7
# In the end neither speed may have lost more than this beside the default's.
_LOSS = 0.98

PROMPT, GENERATION, DEEP = "prompt", "generation", "generation, deep"


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
    """The best setting within `budget_s` seconds of `clock`, of which what the final duel takes is kept for it.

    `progress` is told what is measured and the share of the budget that is spent.
    """
    watch = _Watch(measure, clock, budget_s)
    best, rows, complete = default, list[Row](), True

    def tell(title: str) -> None:
        if progress is not None:
            progress(title, watch.spent)

    for stage in stages:
        found = [(label, setting) for label, setting in stage.candidates(best) if setting != best]
        if not found:
            continue
        if watch.late:
            complete = False
            break
        tell(stage.title)
        stage_rows, best = _stage(stage, best, found, watch)
        rows += stage_rows
    winner, gains = default, {PROMPT: 1.0, GENERATION: 1.0}
    if best != default:
        tell("the winner against the default")
        gains, duel_rows = _duel(default, best, watch)
        if min(gains.values()) >= _LOSS and max(gains.values()) >= _GAIN:
            winner = best
        rows += [replace(row, taken=row.label == "the best" and winner == best) for row in duel_rows]
    return Tuning(default=default, winner=winner, rows=tuple(rows), gains=gains, complete=complete)


class _Watch:
    """Measures, and knows how much of the budget is left for it when the final duel must have its part."""

    def __init__(self, measure: Measure, clock: Callable[[], float], budget_s: float) -> None:
        self._measure, self._clock, self._budget_s = measure, clock, budget_s
        self._begun = clock()
        self._longest: dict[str, float] = {}

    def __call__(self, setting: Setting, test: str) -> float:
        started = self._clock()
        speed = self._measure(setting, test)
        self._longest[test] = max(self._longest.get(test, 0.0), self._clock() - started)
        return speed

    @property
    def spent(self) -> float:
        return (self._clock() - self._begun) / self._budget_s

    @property
    def late(self) -> bool:
        """Whether there is only time for the duel: the fewest pairs of samples of each test."""
        sample = self._longest.get(GENERATION, 0.0) + self._longest.get(PROMPT, self._longest.get(GENERATION, 0.0))
        return self.spent * self._budget_s + 2 * _LEAST_PAIRS * sample > self._budget_s

    @property
    def over(self) -> bool:
        return self.spent > 1.0


def _stage(stage: Stage, best: Setting, found: list[tuple[str, Setting]], watch: _Watch) -> tuple[list[Row], Setting]:
    """The rows of a stage and the setting that it leaves as the best."""
    reference = [watch(best, stage.test)]
    samples: dict[str, list[float]] = {}
    refused: dict[str, str] = {}
    for label, setting in found:
        try:
            samples[label] = [watch(setting, stage.test)]
        except SettingRefused as reason:
            refused[label] = str(reason)
    for _ in range(_ROUNDS - 1):
        racing = [(label, setting) for label, setting in found if _may_win(samples.get(label, []), reference)]
        if watch.late or not racing:
            break
        reference.append(watch(best, stage.test))
        for label, setting in racing:
            if not watch.late:
                samples[label].append(watch(setting, stage.test))
    ratios = {label: _ratios(values, reference) for label, values in samples.items()}
    better = [label for label, values in ratios.items() if _beyond_noise(values)]
    winner = max(better, key=lambda label: statistics.median(ratios[label]), default=None)
    taken = None if stage.changes_text else winner
    rows = [_row(stage.title, "the best so far", stage.test, reference, [1.0], taken=False)]
    for label, _ in found:
        note = refused.get(label, "changes the text, so it is for --kv" if stage.changes_text else "")
        row = _row(stage.title, label, stage.test, samples.get(label, []), ratios.get(label, []), taken=label == taken)
        rows.append(replace(row, note=note))
    return rows, best if taken is None else dict(found)[taken]


def _row(stage: str, label: str, test: str, speeds: list[float], ratios: list[float], *, taken: bool) -> Row:
    return Row(
        stage=stage,
        label=label,
        test=test,
        tokens_per_s=statistics.median(speeds) if speeds else None,
        ratio=statistics.median(ratios) if ratios else None,
        samples=len(speeds),
        taken=taken,
    )


def _ratios(values: list[float], reference: list[float]) -> list[float]:
    return [value / other for value, other in zip(values, reference, strict=False)]


def _may_win(values: list[float], reference: list[float]) -> bool:
    """Whether the rounds that are left could still make it a winner; each of them has to be worth its time."""
    ratios = _ratios(values, reference)
    left = _ROUNDS - len(ratios)
    gaining = sum(ratio >= _GAIN for ratio in ratios) + left
    agreeing = sum(ratio > 1.0 for ratio in ratios) + left
    return bool(ratios) and gaining > _ROUNDS // 2 and agreeing >= _AGREEING * _ROUNDS and ratios[0] >= _HOPELESS


def _beyond_noise(ratios: list[float]) -> bool:
    agreeing = sum(ratio > 1.0 for ratio in ratios) / len(ratios)
    return len(ratios) >= _LEAST_PAIRS and statistics.median(ratios) >= _GAIN and agreeing >= _AGREEING


def _duel(default: Setting, best: Setting, watch: _Watch) -> tuple[dict[str, float], list[Row]]:
    """The median of the paired ratios of `best` to `default`, for each test; the order changes from pair to pair."""
    speeds: dict[tuple[str, Setting], list[float]] = {
        (test, setting): [] for test in (PROMPT, GENERATION) for setting in (default, best)
    }
    for turn in range(_FINAL_ROUNDS):
        for test in (PROMPT, GENERATION):
            if not (watch.over and turn >= _LEAST_PAIRS):
                for setting in (best, default) if turn % 2 else (default, best):
                    speeds[test, setting].append(watch(setting, test))
    ratios = {test: _ratios(speeds[test, best], speeds[test, default]) for test in (PROMPT, GENERATION)}
    title = "the last duel"
    rows = [
        row
        for test in (PROMPT, GENERATION)
        for row in (
            _row(title, "the default", test, speeds[test, default], [1.0], taken=False),
            _row(title, "the best", test, speeds[test, best], ratios[test], taken=False),
        )
    ]
    rows = [row for row in rows if row.label == "the default"] + [row for row in rows if row.label == "the best"]
    return {test: statistics.median(values) for test, values in ratios.items()}, rows


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
