"""Kept results: JSON files in benchmarks/results, each with the machine and versions it was measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results"


@dataclass(frozen=True)
class Finished:
    """One run of a command: wall-clock and processor seconds, and the peak resident memory of the process, in bytes."""

    seconds: float
    peak_rss_bytes: int
    cpu_seconds: float = 0.0

    @property
    def busy(self) -> float:
        """The share of all processors' time from start to end that the command used, its start and end included."""
        return self.cpu_seconds / self.seconds / (os.cpu_count() or 1)


def run_command(command: Sequence[str], environment: dict[str, str] | None = None) -> Finished:
    """Runs a command to its end; raises RuntimeError with its last lines when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | (environment or {}),
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
    unit = 1 if platform.system() == "Darwin" else 1024
    return Finished(seconds, usage.ru_maxrss * unit, usage.ru_utime + usage.ru_stime)


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory, system and library versions; no host name, no path."""
    import psutil

    from tinyedge.backends import this_machine
    from tinyedge.version import version_lines

    machine = this_machine()
    return {
        "cpu": machine.cpu.name,
        "cores": os.cpu_count(),
        "ram_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": version_lines(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def median(values: Sequence[float]) -> float:
    """The median, rounded to what a clock on a shared machine can tell."""
    return round(statistics.median(values), 4)


def keep(name: str, result: dict[str, Any]) -> Path:
    """Writes benchmarks/results/NAME.json, the machine's facts added."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine_facts(), **result}, indent=2) + "\n")
    return path


def kept(name: str) -> dict[str, Any]:
    """The result NAME as kept; raises FileNotFoundError when it was never measured."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not in {RESULTS.name}/: measure {name} first")
    value: dict[str, Any] = json.loads(path.read_text())
    return value
