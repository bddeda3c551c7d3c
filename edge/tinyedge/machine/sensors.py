"""What keeps a machine from its full speed: heat, supply voltage, clock limits, the governor, the battery.

Every value comes from a file of sysfs (Documentation/ABI of the Linux kernel), on a Raspberry Pi also from its firmware, on
a Mac from `pmset`. What a machine does not tell is None or empty.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tinyedge.machine.system_files import integer, read_integer, read_text

# Names of hwmon drivers that measure the processor: drivers/hwmon of the kernel, and those thermal zones register.
_CPU_CHIPS = re.compile(
    r"coretemp|k10temp|k8temp|zenpower|fam15h_power|scpi_sensors|macsmc.*|.*(cpu|soc|package|bigcore|littlecore).*"
)
_CPU_ZONES = re.compile(r".*(cpu|soc|pkg|package|core|cluster|x86).*", re.IGNORECASE)
_LOWEST_C, _HIGHEST_C = -40.0, 150.0  # beyond, a sensor is not connected

# Bits of the firmware's answer (raspberrypi.com/documentation/computers/os.html, get_throttled); 16 higher: since the start.
_PI_FLAGS = ((0, "under-voltage"), (1, "clock capped"), (2, "throttled"), (3, "soft temperature limit"))
_PI_FILES = ("sys/devices/platform/soc*/*firmware/get_throttled", "sys/devices/platform/*firmware/get_throttled")
_BOOST_DRIVERS = ("intel", "amd", "acpi")  # cpufreq drivers of x86 processors
_SYSTEM = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """What slows the processor: `now`, and at some time `since_boot`, in words. `events` counts those of x86 processors."""

    now: tuple[str, ...] = ()
    since_boot: tuple[str, ...] = ()
    events: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Clock rates in MHz. `now` is the fastest processor's, `limit` what it may be set to and `maximum` what it could do.

    `base` is the rate that the processor's maker guarantees under load, None where the system does not tell. With `boost`
    the maximum is one that few cores reach for a short time.
    """

    now: float | None = None
    limit: float | None = None
    maximum: float | None = None
    base: float | None = None
    boost: bool = False

    @property
    def slow(self) -> float | None:
        """Below this rate under load something holds the processor back: its base, else a share of what it could do."""
        if self.base is not None:
            return 0.95 * self.base
        return None if self.maximum is None else (0.5 if self.boost else 0.75) * self.maximum


@dataclass(frozen=True, slots=True)
class Power:
    """Where the power comes from: `source` is mains or battery; `percent` is the battery's charge, None without one."""

    source: str
    percent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensors:
    """The machine's state now. None, or empty, is what it does not tell."""

    temperature_c: float | None = None
    throttling: Throttling | None = None
    governors: tuple[str, ...] = ()
    clock: Clock = Clock()
    power: Power | None = None


def read_sensors(allowed: Iterable[int] = ()) -> Sensors:
    """This machine's state; `allowed` are the processors whose clocks count."""
    if sys.platform == "darwin":
        battery, heat = _output("pmset", "-g", "batt"), _output("pmset", "-g", "therm")
        return Sensors(power=mac_power(battery), throttling=mac_throttling(heat))
    return linux_sensors(_SYSTEM, allowed)


def linux_sensors(root: Path, allowed: Iterable[int]) -> Sensors:
    """The state as the files under `root` tell it."""
    processors = tuple(allowed)
    return Sensors(
        temperature_c=temperature(root),
        throttling=throttling(root),
        governors=governors(root, processors),
        clock=clock(root, processors),
        power=power(root),
    )


def temperature(root: Path) -> float | None:
    """Degrees Celsius of the hottest sensor of the processor; of any thermal zone where none is the processor's."""
    chips = root / "sys/class/hwmon"
    found = _degrees(
        sensor
        for chip in sorted(chips.glob("hwmon*"))
        if _CPU_CHIPS.fullmatch(read_text(chip / "name").lower())
        for sensor in chip.glob("temp*_input")
    )
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    found = found or _degrees(zone / "temp" for zone in zones if _CPU_ZONES.fullmatch(read_text(zone / "type")))
    return max(found or _degrees(zone / "temp" for zone in zones), default=None)


def _degrees(files: Iterable[Path]) -> list[float]:
    values = (read_integer(file) for file in files)  # thousandths
    return [value / 1000 for value in values if value is not None and _LOWEST_C <= value / 1000 <= _HIGHEST_C]


def throttling(root: Path) -> Throttling | None:
    """What the firmware of a Raspberry Pi or the counters of an x86 processor say; None where there is neither."""
    return pi_throttling(root) or x86_throttling(root)


def pi_throttling(root: Path, *, command: bool = True) -> Throttling | None:
    """The flags of a Raspberry Pi's firmware: from sysfs, else from `vcgencmd` if `command` and it is installed here."""
    text = next((text for pattern in _PI_FILES for file in root.glob(pattern) if (text := read_text(file))), "")
    if not text and command and root == _SYSTEM and shutil.which("vcgencmd"):
        text = _output("vcgencmd", "get_throttled").removeprefix("throttled=")
    digits = text.strip().lower().removeprefix("0x")
    if not re.fullmatch("[0-9a-f]{1,8}", digits):
        return _supply_alarm(root)
    bits = int(digits, 16)
    return Throttling(
        now=tuple(word for bit, word in _PI_FLAGS if bits >> bit & 1),
        since_boot=tuple(word for bit, word in _PI_FLAGS if bits >> (bit + 16) & 1),
    )


def _supply_alarm(root: Path) -> Throttling | None:
    """What the mainline kernel's driver for a Raspberry Pi tells: whether the voltage fell in the last seconds."""
    for chip in (root / "sys/class/hwmon").glob("hwmon*"):
        if read_text(chip / "name") == "rpi_volt" and (alarm := read_text(chip / "in0_lcrit_alarm")) in ("0", "1"):
            return Throttling(now=("under-voltage",) if alarm == "1" else ())
    return None


def x86_throttling(root: Path) -> Throttling | None:
    """The times that a core was slowed for heat since the start; None where the processor does not count them."""
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")
    counts = [read_integer(folder / name) for folder in folders for name in ("core_throttle_count", "package_throttle_count")]
    known = [count for count in counts if count is not None]
    if not known:
        return None
    return Throttling(since_boot=("slowed for heat",) if any(known) else (), events=max(known))


def mac_throttling(text: str) -> Throttling | None:
    """What `pmset -g therm` says: CPU_Speed_Limit in percent; None where it says nothing of it."""
    match = re.search(r"CPU_Speed_Limit\s*=\s*(\d{1,3})\b", text)
    if match is None:
        return None
    return Throttling(now=(f"slowed for heat to {match[1]}%",) if int(match[1]) < 100 else ())


def governors(root: Path, processors: Iterable[int]) -> tuple[str, ...]:
    """The names of the clock governors of `processors`, each once."""
    files = (root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor" for cpu in processors)
    return tuple(dict.fromkeys(filter(None, map(read_text, files))))


def clock(root: Path, processors: Iterable[int]) -> Clock:
    """The clock rates of the fastest of `processors`; empty where sysfs has none, as in most virtual machines."""
    cpus = tuple(processors)
    folders = [root / f"sys/devices/system/cpu/cpu{cpu}" for cpu in cpus]
    nominal = max((read_integer(folder / "acpi_cppc/nominal_freq") or 0 for folder in folders), default=0)  # MHz
    return Clock(
        now=highest_clock(root, cpus, "scaling_cur_freq"),
        limit=highest_clock(root, cpus, "scaling_max_freq"),
        maximum=highest_clock(root, cpus, "cpuinfo_max_freq"),
        base=highest_clock(root, cpus, "base_frequency") or nominal or None,
        boost=any(read_text(folder / "cpufreq/scaling_driver").startswith(_BOOST_DRIVERS) for folder in folders),
    )


def highest_clock(root: Path, processors: Iterable[int], name: str) -> float | None:
    """The highest rate in MHz that the cpufreq files `name` of `processors` give; None where there is none."""
    values = (read_integer(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/{name}") for cpu in processors)  # kHz
    return max((value / 1000 for value in values if value), default=None)


def power(root: Path) -> Power | None:
    """Mains or battery, as the power supplies of the machine itself say; None where none is listed."""
    mains, percent, discharging = False, None, None
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        if read_text(supply / "scope") == "Device":  # the battery of a mouse or a keyboard
            continue
        if read_text(supply / "type") == "Battery":
            percent = read_integer(supply / "capacity") if percent is None else percent
            discharging = discharging or read_text(supply / "status") == "Discharging"
        else:
            mains = mains or read_text(supply / "online") == "1"
    if discharging is None:
        return Power("mains") if mains else None
    return Power("battery" if discharging and not mains else "mains", percent)


def mac_power(text: str) -> Power | None:
    """What `pmset -g batt` says: `Now drawing from 'Battery Power'` and `-InternalBattery-0 (id=1) 85%; discharging; ...`."""
    source = re.search(r"drawing from '([A-Za-z]+) Power'", text)
    charge = re.search(r"\b(\d{1,3})%;", text)
    if source is None:
        return None
    return Power("battery" if source[1] == "Battery" else "mains", integer(charge[1]) if charge else None)


def _output(*command: str) -> str:
    """What a command prints; "" when it fails or cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
