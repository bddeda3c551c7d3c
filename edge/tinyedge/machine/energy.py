"""The energy that a run took, in joules, where the machine tells it; elsewhere the reason why it does not.

The sources, best first: the energy counters of x86 processors (RAPL), power sensors of the board (hwmon), the discharge of
a laptop's battery, on a Mac `powermetrics`. They do not count the same things, so a result names its source.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Protocol

from tinyedge.machine.energy_mac import PowerMetrics
from tinyedge.machine.system_files import read_integer, read_text

_MICRO = 1e-6
_INTERVAL_S = 0.5  # a power sensor is averaged over some tenths of a second itself; a counter needs no more
_GRAPHICS = ("amdgpu", "i915", "xe", "nouveau", "radeon")  # their sensors leave out the processor
_OTHERS = ("nvme", "drivetemp", "ucsi_source_psy", "corsairpsu")
# Labels of channels that measure the whole board or the whole processor: the ina3221 of Jetson boards, macsmc of Asahi
# Linux, amd_energy and the X-Gene driver.
_WHOLE = ("vdd_in", "pom_5v_in", "total system power", "system", "total", "apm", "socket", "package", "pkg", "cpu power")


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules of `seconds` seconds as `source` measures them; None with the `reason` where nothing does."""

    joules: float | None
    seconds: float
    source: str = ""
    reason: str = ""

    @property
    def watts(self) -> float | None:
        """The mean power."""
        return None if self.joules is None or self.seconds <= 0 else self.joules / self.seconds

    def per_token(self, tokens: int) -> float | None:
        """Joules for each of `tokens`; None when nothing was measured or none was made."""
        return None if self.joules is None or tokens <= 0 else self.joules / tokens


class Source(Protocol):
    """Something that knows how much energy was used since it was first looked at."""

    name: str

    @property
    def complaint(self) -> str:
        """Why there are no readings; "" where that is not known."""

    def look(self) -> None:
        """Takes a reading. Between two of them at most half a second passes while the meter runs."""

    def joules(self) -> float | None:
        """The energy between the first look and the last; None when there were no readings."""

    def close(self) -> None:
        """Ends it."""


class EnergyMeter:
    """Measures between `start` and `stop`, or as a context manager, after which `used` holds the result.

    `root` says whose files; the default is this machine.
    """

    def __init__(self, root: Path = Path("/"), interval_s: float = _INTERVAL_S) -> None:
        self._root = root
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._source: Source | None = None
        self._reason = ""
        self._begun = 0.0
        self.used: Energy | None = None

    def start(self) -> None:
        """Begins to measure."""
        self._source, self._reason = find_source(self._root)
        self._ended.clear()
        self._begun = monotonic()
        if self._source is not None:
            self._source.look()
            self._thread = threading.Thread(target=self._watch, args=(self._source,), name="tinyedge-energy", daemon=True)
            self._thread.start()

    def stop(self) -> Energy:
        """Ends it; the energy used since `start`."""
        self._ended.set()
        seconds = monotonic() - self._begun
        joules, name = None, ""
        if self._source is not None and self._thread is not None:
            self._thread.join()
            self._source.look()
            seconds = monotonic() - self._begun
            joules, name = self._source.joules(), self._source.name
            self._reason = self._source.complaint
            self._source.close()
            self._thread = None
        reason = "" if joules is not None else self._reason or f"{name} gave no reading in {seconds:.1f} s"
        self.used = Energy(joules=joules, seconds=seconds, source=name if joules is not None else "", reason=reason)
        return self.used

    def __enter__(self) -> EnergyMeter:
        self.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def _watch(self, source: Source) -> None:
        while not self._ended.wait(self._interval_s):
            source.look()


def find_source(root: Path) -> tuple[Source | None, str]:
    """The best source of the machine whose files are under `root`; without one, the reason and what could be done."""
    if root == Path("/") and sys.platform == "darwin":
        return PowerMetrics.open()
    rapl, closed = _rapl(root)
    if rapl is not None:
        return rapl, ""
    for find in (_hwmon_counters, _hwmon_power, _battery):
        if (source := find(root)) is not None:
            return source, ""
    if closed:
        return None, f"only root may read {closed}: run `sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj` before"
    return None, "this machine tells no energy or power: it has no RAPL counters, no power sensor, and no battery in use"


class _Counters:
    """Counters of microjoules, each with the value at which it begins again from 0 (0 if never)."""

    complaint = ""

    def __init__(self, name: str, files: dict[Path, int]) -> None:
        self.name = name
        self._files = files
        self._last: dict[Path, int] = {}
        self._micro = 0
        self._looks = 0

    def look(self) -> None:
        for file, span in self._files.items():
            now = read_integer(file)
            if now is None:
                continue
            before = self._last.get(file, now)
            self._micro += now - before if now >= before else now - before + span if span else now
            self._last[file] = now
        self._looks += bool(self._last)

    def joules(self) -> float | None:
        return self._micro * _MICRO if self._looks > 1 else None

    def close(self) -> None:
        self._last.clear()


class _Power:
    """A power in watts that is read again and again; the energy is the area under it, by trapezoids."""

    complaint = ""

    def __init__(self, name: str, watts: Callable[[], float | None]) -> None:
        self.name = name
        self._watts = watts
        self._last: tuple[float, float] | None = None
        self._joules: float | None = None

    def look(self) -> None:
        watts, now = self._watts(), monotonic()
        if watts is None:
            return
        if self._last is not None:
            before, then = self._last
            self._joules = (self._joules or 0.0) + (before + watts) / 2 * (now - then)
        self._last = watts, now

    def joules(self) -> float | None:
        return self._joules

    def close(self) -> None:
        self._last = None


def _rapl(root: Path) -> tuple[_Counters | None, str]:
    """The counters of the processor packages and of the memory beside them; else the file that only root may read, or "".

    `intel-rapl:0` is a package, `intel-rapl:0:0` a part of it (AMD's have the same names). Memory (dram) is the one part
    that a package does not contain.
    """
    files, names, closed = {}, [], ""
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name, file = read_text(zone / "name"), zone / "energy_uj"
        if not (name.startswith("package") or name == "dram"):
            continue
        if read_integer(file) is None:
            closed = closed or ("/" + str(file.relative_to(root)) if file.exists() else "")
            continue
        files[file] = read_integer(zone / "max_energy_range_uj") or 0
        names.append("memory" if name == "dram" else "processor")
    if not files or "processor" not in names:
        return None, closed
    return _Counters(f"RAPL ({' and '.join(dict.fromkeys(sorted(names, reverse=True)))})", files), ""


def _hwmon_counters(root: Path) -> _Counters | None:
    """The energy counters of one hwmon chip."""
    for chip, name in _chips(root):
        files = _whole({file: _label(file) for file in sorted(chip.glob("energy*_input")) if read_integer(file) is not None})
        if files:
            return _Counters(f"hwmon {name}", dict.fromkeys(files, 0))
    return None


def _hwmon_power(root: Path) -> _Power | None:
    """The power sensors of one hwmon chip: power in microwatts, or voltage (mV) and current (mA) of the same number."""
    for chip, name in _chips(root):
        inputs = [*sorted(chip.glob("power*_input")), *sorted(chip.glob("power*_average"))]
        files = _whole({file: _label(file) for file in inputs if read_integer(file) is not None})
        if files:
            return _Power(f"hwmon {name}", partial(_sum_micro, files))
        currents = {
            file: _label(chip / file.name.replace("curr", "in"))
            for file in sorted(chip.glob("curr*_input"))
            if read_integer(file) is not None and read_integer(chip / file.name.replace("curr", "in")) is not None
        }
        whole = [file for file, label in currents.items() if label in _WHOLE]  # without labels it could be any rail
        if whole:
            return _Power(f"hwmon {name}", partial(_sum_products, whole))
    return None


def _chips(root: Path) -> list[tuple[Path, str]]:
    """The folders and names of the hwmon chips that may measure the board or the processor."""
    found = ((chip, read_text(chip / "name")) for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")))
    return [(chip, name) for chip, name in found if name not in (*_GRAPHICS, *_OTHERS) and not name.startswith(("BAT", "AC"))]


def _label(file: Path) -> str:
    return read_text(file.with_name(file.name.rsplit("_", 1)[0] + "_label")).lower()


def _whole(labels: dict[Path, str]) -> list[Path]:
    """The channels that together measure all of it: those labelled so, or the only one there is. Rails may overlap."""
    whole = [
        file for file, label in labels.items() if label.rstrip("0123456789").removeprefix("e") in _WHOLE or label in _WHOLE
    ]
    if any(word in labels[file] for file in whole for word in ("total", "vdd_in", "pom_5v_in", "system")):
        return whole[:1]
    return whole or (list(labels) if len(labels) == 1 else [])


def _sum_micro(files: list[Path]) -> float | None:
    values = [read_integer(file) for file in files]
    return None if None in values else sum(value for value in values if value is not None) * _MICRO


def _sum_products(currents: list[Path]) -> float | None:
    pairs = [(read_integer(file), read_integer(file.with_name(file.name.replace("curr", "in")))) for file in currents]
    known = [(ma, mv) for ma, mv in pairs if ma is not None and mv is not None]
    return sum(ma * mv for ma, mv in known) * _MICRO if len(known) == len(pairs) else None


def _battery(root: Path) -> _Power | None:
    """The discharge of the machine's batteries; None while they are not discharging, when they tell nothing of its use."""
    batteries = [
        supply
        for supply in sorted((root / "sys/class/power_supply").glob("*"))
        if read_text(supply / "type") == "Battery" and read_text(supply / "scope") != "Device"
    ]
    used = [each for each in batteries if read_text(each / "status") == "Discharging" and _discharge(each) is not None]
    if not used:
        return None

    def watts() -> float | None:
        known = [power for each in used if (power := _discharge(each)) is not None]
        return sum(known) if known else None

    return _Power("the battery's discharge (whole machine)", watts)


def _discharge(battery: Path) -> float | None:
    """Watts that leave a battery: power_now in microwatts, or current_now and voltage_now in their millionths."""
    power = read_integer(battery / "power_now")
    if power is not None:
        return abs(power) * _MICRO  # negative while discharging with some drivers
    current, voltage = read_integer(battery / "current_now"), read_integer(battery / "voltage_now")
    return None if current is None or voltage is None else abs(current) * _MICRO * voltage * _MICRO
