"""How many threads are worth starting: physical performance cores that this process may use.

llama.cpp waits for its slowest thread after every operation, so a second thread on one core, an efficiency core or more
threads than the cgroup's quota make generation slower, not faster. Read from the system's own description: sysfs,
cgroup files and the affinity mask on Linux, sysctl on macOS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tinyedge.machine.system_files import cgroup_values, integer, read_integer, read_text

# A core below this share of the fastest core's capacity is an efficiency core. Kernel capacities: Cortex-A55 beside A76
# about 0.4, beside X1 0.25; A78 beside X1 about 0.8. Clock rates alone lie closer together: 1.8 to 2.4 GHz on an RK3588.
_CAPACITY_SHARE = 0.7
_CLOCK_SHARE = 0.8

Sysctl = Callable[[str], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    """The processor as this process may use it. `quota` is the cgroup's limit in cores, None where there is none.

    `logical`, `physical` and `performance` count what the affinity mask leaves. `allowed` are the numbers of the processors
    in that mask and `performance_cpus` one for each performance core, both empty where the system has no such numbers.
    `online` counts the machine's processors, whoever may use them.
    """

    name: str
    logical: int
    physical: int
    performance: int
    quota: float | None
    allowed: tuple[int, ...] = ()
    performance_cpus: tuple[int, ...] = ()
    online: int = 0

    @property
    def efficiency(self) -> int:
        """The cores that are slower than the performance cores."""
        return self.physical - self.performance

    @property
    def threads(self) -> int:
        """The number of threads to start: performance cores within the quota, at least one."""
        return max(1, self.performance if self.quota is None else min(self.performance, int(self.quota)))

    @property
    def reason(self) -> str:
        """Where `threads` comes from, in a few words."""
        if self.quota is not None and int(self.quota) < self.performance:
            return f"a CPU quota of {self.quota:g}"
        if self.performance < self.physical:
            return f"{self.performance} performance of {self.physical} cores"
        return f"{self.physical} physical core{'s' if self.physical > 1 else ''}"


def cpu_facts() -> CpuFacts:
    """The facts of this machine and process."""
    if sys.platform == "darwin":
        return mac_facts(_sysctl)
    if sys.platform.startswith("linux"):
        return linux_facts(Path("/"), os.sched_getaffinity(0))
    count = os.cpu_count() or 1
    return CpuFacts(name="", logical=count, physical=count, performance=count, quota=None, online=count)


def linux_facts(root: Path, allowed: Collection[int]) -> CpuFacts:
    """The facts as the file system under `root` and the affinity mask `allowed` tell them."""
    folder = root / "sys/devices/system/cpu"
    cores: dict[str, int] = {}  # siblings of a core -> the first allowed of them
    for cpu in sorted(allowed):
        topology = folder / f"cpu{cpu}" / "topology"
        siblings = read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list") or str(cpu)
        cores.setdefault(siblings, cpu)
    first = tuple(cores.values())
    fast = _performance_cores(root, first)
    return CpuFacts(
        name=_linux_name(root),
        logical=len(allowed),
        physical=len(first),
        performance=len(fast),
        quota=min(cgroup_values(root, "cpu", _limit_v2, _limit_v1), default=None),
        allowed=tuple(sorted(allowed)),
        performance_cpus=fast,
        online=max(len(allowed), len(cpu_list(read_text(folder / "online")))),
    )


def _performance_cores(root: Path, cores: tuple[int, ...]) -> tuple[int, ...]:
    """Those of `cores` that are as fast as the fastest, by the best evidence there is; all when there is none."""
    hybrid = read_text(root / "sys/devices/cpu_core/cpus")  # Intel's performance cores, where there are others too
    if hybrid:
        fast = cpu_list(hybrid)
        return tuple(core for core in cores if core in fast) or cores
    folder = root / "sys/devices/system/cpu"
    for name, share in (("cpu_capacity", _CAPACITY_SHARE), ("cpufreq/cpuinfo_max_freq", _CLOCK_SHARE)):
        speeds = {core: speed for core in cores if (speed := read_integer(folder / f"cpu{core}" / name)) is not None}
        if len(speeds) == len(cores) and max(speeds.values(), default=0) > 0:
            floor = share * max(speeds.values())
            return tuple(core for core in cores if speeds[core] >= floor)
    return cores


def cpu_list(text: str) -> frozenset[int]:
    """The processors in the kernel's list format: `0-3,8` is {0, 1, 2, 3, 8}."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


def _limit_v2(folder: Path) -> float | None:
    quota, _, period = read_text(folder / "cpu.max").partition(" ")
    return _cores(integer(quota), integer(period))


def _limit_v1(folder: Path) -> float | None:
    return _cores(read_integer(folder / "cpu.cfs_quota_us"), read_integer(folder / "cpu.cfs_period_us"))


def _cores(quota: int | None, period: int | None) -> float | None:
    """The cores that `quota` microseconds in each `period` are; None without a limit, which version 1 writes as -1."""
    return quota / period if quota is not None and quota >= 0 and period else None


def _linux_name(root: Path) -> str:
    """`AMD EPYC 7B13`, `Raspberry Pi 5 Model B Rev 1.0`; empty when nothing says it."""
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "model") and not value.strip().isdigit():  # x86 numbers its models too
            return value.strip()
    return read_text(root / "proc/device-tree/model")


def mac_facts(sysctl: Sysctl) -> CpuFacts:
    """The facts as `sysctl -n NAME` tells them; `perflevel0` are the performance cores of Apple silicon."""

    def number(name: str) -> int:
        text = sysctl(name) or ""
        return int(text) if text.isdigit() else 0

    logical = number("hw.logicalcpu") or os.cpu_count() or 1
    physical = number("hw.physicalcpu") or logical
    return CpuFacts(
        name=sysctl("machdep.cpu.brand_string") or "",
        logical=logical,
        physical=physical,
        performance=number("hw.perflevel0.physicalcpu") or physical,
        quota=None,
        online=logical,
    )


def _sysctl(name: str) -> str | None:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
