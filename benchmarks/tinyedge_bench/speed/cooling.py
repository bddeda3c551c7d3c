"""Waits before a run until a hot board has cooled, or for some seconds where that is what was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from tinyedge.machine.sensors import temperature

LONGEST_S = 600.0
_LOOK_S = 1.0
_SETTLING_S = 30.0  # a board that has not become cooler in so long has reached what its heat sink can do
_STEP_C = 0.3  # below the step of most sensors


@dataclass(frozen=True, slots=True)
class Cooling:
    """What --cool says: so many seconds, or down to a temperature in degrees Celsius; one of them is None."""

    seconds: float | None = None
    degrees: float | None = None

    @classmethod
    def parse(cls, text: str) -> Cooling:
        """`20` or `20s` for seconds, `55C` or `55°C` for a temperature. Raises ValueError, one sentence."""
        match = re.fullmatch(r"(\d{1,4}(?:\.\d{1,3})?)\s*(s|°?c)?", text.strip().lower())
        if match is None:
            raise ValueError(f"it takes seconds like 20 or a temperature like 55C, not {text!r:.40}")
        number, is_heat = float(match[1]), (match[2] or "s") != "s"
        least, most = (20.0, 100.0) if is_heat else (0.0, LONGEST_S)
        if not least <= number <= most:
            unit = "°C" if is_heat else "seconds"
            raise ValueError(f"it takes from {least:g} to {most:g} {unit}, not {number:g}")
        return cls(degrees=number) if is_heat else cls(seconds=number)

    def wait(self, tell: Callable[[str], None], root: Path = Path("/"), *, longest_s: float = LONGEST_S) -> None:
        """Returns when it has cooled, when it cools no further, or after `longest_s`; says what it does through `tell`.

        `root` says whose sensors. Without a sensor it does not wait for a temperature, and says so.
        """
        if self.seconds is not None:
            sleep(self.seconds)
            return
        assert self.degrees is not None
        found = temperature(root)
        if found is None:
            tell("this machine tells no temperature: nothing to wait for; --cool 20 waits for 20 seconds")
            return
        if found > self.degrees:
            tell(f"waiting until it has cooled from {found:.0f} °C to {self.degrees:g} °C")
            self._until_cool(tell, root, found, longest_s)

    def _until_cool(self, tell: Callable[[str], None], root: Path, found: float, longest_s: float) -> None:
        begun = changed = monotonic()
        coolest = found
        while found is not None and found > (self.degrees or 0.0):
            now = monotonic()
            if found < coolest - _STEP_C:
                coolest, changed = found, now
            if now - begun >= longest_s or now - changed >= _SETTLING_S:
                tell(f"it is still at {found:.0f} °C after {now - begun:.0f} s and cools no further: going on")
                return
            sleep(min(_LOOK_S, longest_s))
            found = temperature(root) or 0.0
