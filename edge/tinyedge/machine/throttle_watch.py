"""Whether a run had the machine's full speed: heat, supply and clock from its start to its end."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType

from tinyedge.machine.cpu import cpu_facts
from tinyedge.machine.sensors import (
    Clock,
    Throttling,
    clock,
    governors,
    highest_clock,
    pi_throttling,
    read_sensors,
    temperature,
    throttling,
)

_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConditions:
    """What was seen during a run; None where the machine does not tell.

    `flags` are in the words of `sensors.Throttling`: those in effect at some time of the run, and those that its firmware
    noted during it. Clock rates are the fastest processor's in MHz, looked at once a second from the first second on.
    """

    seconds: float
    flags: tuple[str, ...] = ()
    temperature_start_c: float | None = None
    temperature_max_c: float | None = None
    temperature_end_c: float | None = None
    clock_lowest_mhz: float | None = None
    clock_highest_mhz: float | None = None
    clock_expected_mhz: float | None = None
    governors: tuple[str, ...] = ()

    @property
    def slow_clock(self) -> bool:
        """Whether the clock fell below what the processor should keep up under load."""
        lowest, expected = self.clock_lowest_mhz, self.clock_expected_mhz
        return lowest is not None and expected is not None and lowest < expected

    @property
    def throttled(self) -> bool:
        """Whether something held the machine back."""
        return bool(self.flags) or self.slow_clock

    @property
    def note(self) -> str:
        """What held it back, in one sentence; "" when nothing was seen."""
        parts = list(self.flags)
        if self.slow_clock:
            governor = f", governor {self.governors[0]}" if self.governors else ""
            parts.append(
                f"the clock fell to {self.clock_lowest_mhz:.0f} MHz ({self.clock_expected_mhz:.0f} expected{governor})"
            )
        if not parts:
            return ""
        heat = "" if self.temperature_max_c is None else f" at up to {self.temperature_max_c:.0f} °C"
        return f"the machine was held back during the run{heat}: {', '.join(parts)}"


class ThrottleWatch:
    """Looks at the machine's sensors while something runs: `start`, then `stop`, or as a context manager and `seen`.

    A thread reads a handful of small files once a second. `root` and `processors` say whose files, this machine's by default.
    """

    def __init__(
        self, root: Path = Path("/"), processors: tuple[int, ...] | None = None, interval_s: float = _INTERVAL_S
    ) -> None:
        self._root = root
        self._files = root != Path("/") or sys.platform.startswith("linux")
        cpu = None if processors is not None else cpu_facts()
        self._processors = processors if processors is not None else (cpu.performance_cpus if cpu else ())
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun = 0.0
        self._before: Throttling | None = None
        self._clock = Clock()
        self._temperatures: list[float] = []
        self._clocks: list[float] = []
        self._flags: dict[str, None] = {}
        self.seen: RunConditions | None = None

    def start(self) -> None:
        """Begins to look."""
        self._begun = monotonic()
        self._ended.clear()
        self._temperatures, self._clocks, self._flags = [], [], {}
        self._before = self._throttling()
        if not self._files:
            return
        self._clock = clock(self._root, self._processors)
        self._note_temperature()
        self._thread = threading.Thread(target=self._look, name="tinyedge-sensors", daemon=True)
        self._thread.start()

    def stop(self) -> RunConditions:
        """Ends it; what was seen since `start`."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        after = self._throttling()
        if self._files:
            self._note_temperature()
        if after is not None:
            before = self._before or Throttling()
            new = [word for word in after.since_boot if word not in before.since_boot]
            if after.events is not None and after.events > (before.events or 0):
                new = [f"{after.since_boot[0]} {after.events - (before.events or 0)} times"]
            self._flags.update(dict.fromkeys((*after.now, *new)))
        self.seen = RunConditions(
            seconds=monotonic() - self._begun,
            flags=tuple(self._flags),
            temperature_start_c=self._temperatures[0] if self._temperatures else None,
            temperature_max_c=max(self._temperatures, default=None),
            temperature_end_c=self._temperatures[-1] if self._temperatures else None,
            clock_lowest_mhz=min(self._clocks, default=None),
            clock_highest_mhz=max(self._clocks, default=None),
            clock_expected_mhz=self._clock.slow,
            governors=governors(self._root, self._processors) if self._files else (),
        )
        return self.seen

    def __enter__(self) -> ThrottleWatch:
        self.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def _look(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._note_temperature()
            if (now := highest_clock(self._root, self._processors, "scaling_cur_freq")) is not None:
                self._clocks.append(now)
            flags = pi_throttling(self._root, command=False)
            self._flags.update(dict.fromkeys(flags.now if flags else ()))

    def _note_temperature(self) -> None:
        if (found := temperature(self._root)) is not None:
            self._temperatures.append(found)

    def _throttling(self) -> Throttling | None:
        return throttling(self._root) if self._files else read_sensors().throttling
