"""Heat, clock, throttling and energy of single runs, and of all runs of a case together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tinyedge.machine.cpu import cpu_facts
from tinyedge.machine.energy import Energy, EnergyMeter
from tinyedge.machine.sensors import highest_clock
from tinyedge.machine.throttle_watch import RunConditions, ThrottleWatch

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the sensors saw of one run. `clocks_mhz` are the fastest processor's just before and just after."""

    conditions: RunConditions
    energy: Energy
    clocks_mhz: tuple[float | None, float | None] = (None, None)


class Sensors:
    """Watches runs through the files under `root`, this machine's by default, for the processors that may be used."""

    def __init__(self, root: Path = Path("/"), processors: tuple[int, ...] | None = None) -> None:
        self._root = root
        self._processors = cpu_facts().performance_cpus if processors is None else processors
        self._watch = ThrottleWatch(root, self._processors)
        self._meter = EnergyMeter(root)

    def during(self, run: Callable[[], _T]) -> tuple[_T, Observed]:
        """What `run` returns, and what was seen meanwhile."""
        before = self._clock()
        with self._watch, self._meter:
            result = run()
        conditions, energy = self._watch.seen, self._meter.used
        assert conditions is not None
        assert energy is not None
        return result, Observed(conditions=conditions, energy=energy, clocks_mhz=(before, self._clock()))

    def _clock(self) -> float | None:
        return highest_clock(self._root, self._processors, "scaling_cur_freq")


def temperatures(seen: Sequence[Observed]) -> list[float] | None:
    """Degrees Celsius before the first run, the most during all, after the last; None where the machine does not tell."""
    first, last = seen[0].conditions.temperature_start_c, seen[-1].conditions.temperature_end_c
    most = max((each.conditions.temperature_max_c or first or 0.0 for each in seen), default=None)
    return None if first is None or most is None or last is None else [first, most, last]


def clocks(seen: Sequence[Observed]) -> list[float] | None:
    """MHz before the first run, the least during all, after the last; None where the machine does not tell.

    Runs shorter than a second are seen at their start and end only.
    """
    first, last = seen[0].clocks_mhz[0], seen[-1].clocks_mhz[1]
    during = [each.conditions.clock_lowest_mhz for each in seen]
    known = [rate for rate in (*during, *(each.clocks_mhz[1] for each in seen)) if rate is not None]
    return None if first is None or last is None else [first, min(known), last]


def throttled(seen: Sequence[Observed]) -> list[str]:
    """What held the machine back during any of the runs, in words, each once."""
    words: dict[str, None] = {}
    for each in seen:
        words.update(dict.fromkeys(each.conditions.flags))
        if each.conditions.slow_clock:
            words["slow clock"] = None
    return list(words)


def held_back(seen: Sequence[Observed]) -> str:
    """The first run's note that has one: what held the machine back, in one sentence; "" when nothing did."""
    return next((each.conditions.note for each in seen if each.conditions.throttled), "")


def joules_per_token(seen: Sequence[Observed], tokens: int) -> tuple[float | None, str]:
    """The energy of a token over all runs of `tokens` each, and where it is from or why it is not known."""
    known = [each.energy.joules for each in seen if each.energy.joules is not None]
    if len(known) < len(seen):
        return None, next(each.energy.reason for each in seen if each.energy.joules is None)
    return sum(known) / (len(seen) * tokens), seen[0].energy.source
