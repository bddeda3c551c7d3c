"""What memory the machine has, and what it swaps to: the facts behind `tinyedge devices`."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tinyedge.machine.system_files import cgroup_values, integer, read_integer, read_text
from tinyedge.memory import free_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """Memory in bytes. `available` can be used without swapping, within the limits of this process's control groups.

    `swap_total` and `swap_free` count all swap, `zram_total` what of it is compressed memory. `cgroup_limit` is the tightest
    limit below the machine's memory, None where there is none.
    """

    total: int
    available: int
    swap_total: int = 0
    swap_free: int = 0
    zram_total: int = 0
    cgroup_limit: int | None = None


def memory_facts() -> MemoryFacts:
    """The memory of this machine as this process may use it."""
    import psutil

    if sys.platform.startswith("linux"):
        return replace(linux_memory(Path("/")), available=free_memory_bytes())
    swap = psutil.swap_memory()
    return MemoryFacts(
        total=psutil.virtual_memory().total, available=free_memory_bytes(), swap_total=swap.total, swap_free=swap.free
    )


def linux_memory(root: Path) -> MemoryFacts:
    """The memory as the files under `root` tell it; `available` is the machine's, whatever the limits."""
    table = {
        key: (integer(value.removesuffix("kB").strip()) or 0) << 10
        for key, _, value in (line.partition(":") for line in read_text(root / "proc/meminfo").splitlines())
    }
    total = table.get("MemTotal", 0)
    limit = min(cgroup_values(root, "memory", _limit_v2, _limit_v1), default=None)
    return MemoryFacts(
        total=total,
        available=table.get("MemAvailable", table.get("MemFree", 0)),
        swap_total=table.get("SwapTotal", 0),
        swap_free=table.get("SwapFree", 0),
        zram_total=_zram(root),
        # Without a limit, version 1 writes the largest number of pages that it can count.
        cgroup_limit=None if limit is None or (total and limit >= total) else int(limit),
    )


def _zram(root: Path) -> int:
    """The size of the compressed devices that are swapped to: `/dev/zram0 partition 1048572 0 100` in /proc/swaps, in KiB."""
    rows = (line.split() for line in read_text(root / "proc/swaps").splitlines())
    return sum((integer(row[2]) or 0) << 10 for row in rows if len(row) > 2 and row[0].startswith("/dev/zram"))


def _limit_v2(folder: Path) -> int | None:
    return read_integer(folder / "memory.max")  # the word max is no number


def _limit_v1(folder: Path) -> int | None:
    return read_integer(folder / "memory.limit_in_bytes")


def locked_bytes() -> int | None:
    """How much memory of this process cannot be swapped out; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmLck:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
