"""How fast this machine reads memory: measured once with 1 to N threads, then kept.

Every generated token reads all of the model's weights, so this rate is what bounds the speed of generation. The rate is the
best of several passes, as STREAM reports it (McCalpin, "Memory bandwidth and machine balance", 1995): whatever disturbs a
pass makes it slower, never faster, and a bound must not lie below what can be reached.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import platform
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from time import monotonic, perf_counter
from types import MappingProxyType
from typing import Any

from tinyedge.cache import cache_folder, write_atomically
from tinyedge.errors import MemoryFitError
from tinyedge.machine.cpu import CpuFacts, cpu_facts
from tinyedge.machine.system_files import integer, read_text

FORMAT = 1  # of the kept file
_MIB = 1 << 20
_CACHES = 8  # the buffer in last-level caches: a cache that keeps part of a long cycle helps with an eighth at most
_LEAST_BYTES, _MOST_BYTES = 64 * _MIB, 1024 * _MIB
_UNKNOWN_CACHE = 64 * _MIB  # macOS does not tell the cache that all of a chip shares: up to 96 MiB
_SMALLEST_BYTES = 8 * _MIB  # with less, starting the threads would be what is measured
_FREE_SHARE = 8  # an eighth of the free memory
_SECONDS = 2.0  # for all thread counts
_LEAST_PASSES = 3
_MOST_RATE = 1e14  # bytes a second; a kept number beyond is damage
_MOST_COUNTS = 10


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second that so many threads read together, and the day when it was measured (ISO 8601)."""

    by_threads: Mapping[int, float]
    measured_at: str

    @property
    def best(self) -> float:
        """The highest rate of any number of threads."""
        return max(self.by_threads.values())

    @property
    def threads(self) -> int:
        """The fewest threads that come within 3% of the highest rate: more of them only wait for memory."""
        return min(count for count, rate in self.by_threads.items() if rate >= 0.97 * self.best)

    def at(self, threads: int) -> float:
        """The rate of `threads` threads, or of the next smaller number that was measured."""
        known = [count for count in self.by_threads if count <= threads]
        return self.by_threads[max(known, default=min(self.by_threads))]


def this_bandwidth(*, measure: bool = True, again: bool = False) -> Bandwidth | None:
    """This machine's bandwidth: the kept one, else one measured and kept now if `measure`. `again` measures in any case.

    None when nothing is kept and nothing could be measured.
    """
    kept = None if again else kept_bandwidth()
    if kept is not None or not (measure or again):
        return kept
    try:
        found = measure_bandwidth()
    except MemoryFitError:
        return None
    keep_bandwidth(found)
    return found


def measure_bandwidth(counts: Iterable[int] | None = None, *, seconds: float = _SECONDS) -> Bandwidth:
    """The bandwidth as measured now, for the numbers of threads in `counts` (by default up to the processors allowed).

    Takes about `seconds`, more on a slow memory since every count is read at least three times. Raises MemoryFitError when
    there is too little free memory for a buffer that no cache holds.
    """
    from tinyedge.memory import free_memory_bytes

    cpu = cpu_facts()
    wanted = thread_counts(cpu) if counts is None else tuple(sorted(set(counts)))
    size = buffer_bytes(last_level_cache(Path("/"), cpu.allowed), free_memory_bytes())
    return Bandwidth(MappingProxyType(_measure(size, wanted, seconds)), date.today().isoformat())


def thread_counts(cpu: CpuFacts) -> tuple[int, ...]:
    """1 to the number of processors; with many of them powers of two, the performance cores and all cores."""
    if cpu.logical <= _MOST_COUNTS:
        return tuple(range(1, cpu.logical + 1))
    powers = (1 << bit for bit in range(int(math.log2(cpu.logical)) + 1))
    return tuple(sorted({*powers, cpu.performance, cpu.physical, cpu.logical}))


def buffer_bytes(cache_bytes: int, free_bytes: int) -> int:
    """Bytes to read, whole MiB: eight times the last-level cache, at least 64 MiB, at most an eighth of what is free.

    A cache of 0 bytes is one that is not known. Raises MemoryFitError when that is less than twice the cache.
    """
    size = (
        min(max(_CACHES * (cache_bytes or _UNKNOWN_CACHE), _LEAST_BYTES), _MOST_BYTES, free_bytes // _FREE_SHARE) // _MIB * _MIB
    )
    if size < max(2 * min(cache_bytes, _MOST_BYTES // 2), _SMALLEST_BYTES):
        raise MemoryFitError(
            f"{max(free_bytes, 0) // _MIB} MiB of free memory are too little to measure how fast memory is read",
            "close other programs and run `tinyedge devices --again`",
        )
    return size


def last_level_cache(root: Path, processors: Iterable[int]) -> int:
    """Bytes of the largest caches that `processors` share, each counted once; 0 where sysfs under `root` does not tell."""
    caches: dict[tuple[int, str], int] = {}
    for cpu in processors:
        for index in (root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index[0-9]*"):
            size, level = read_text(index / "size"), integer(read_text(index / "level")) or 0
            factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1:], 1)
            shared = read_text(index / "shared_cpu_list") or str(cpu)
            if read_text(index / "type") != "Instruction":
                caches[level, shared] = (integer(size.rstrip("KMG")) or 0) * factor
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def _measure(size: int, counts: tuple[int, ...], seconds: float) -> dict[int, float]:
    """The best rate of each count in `seconds` for all together."""
    from tinyedge.native.memory_read import MemoryBuffer

    try:
        buffer = MemoryBuffer(size)
    except (OSError, MemoryError) as error:
        raise MemoryFitError(f"the system gives no {size // _MIB} MiB of memory to measure with") from error
    try:
        readings = {count: _Reading(buffer, count) for count in counts}
        best = {count: reading.seconds() for count, reading in readings.items()}  # warms the processors up
        until = monotonic() + seconds
        for done in itertools.count(1):  # in turns, so that what disturbs for a while disturbs all counts alike
            best = {count: min(best[count], reading.seconds()) for count, reading in readings.items()}
            if done >= _LEAST_PASSES and monotonic() > until:
                break
        return {count: reading.bytes / best[count] for count, reading in readings.items()}
    finally:
        buffer.close()


class _Reading:
    """One buffer read by a number of threads, each its own part of it."""

    def __init__(self, buffer: Any, threads: int) -> None:
        self._buffer = buffer
        self._part = buffer.size // threads // 4096 * 4096
        self._threads = threads
        self.bytes = self._part * threads

    def seconds(self) -> float:
        """The time of one pass: from the first thread's start to the last one's end."""
        spans: list[tuple[float, float]] = []
        together = threading.Barrier(self._threads)

        def read(number: int) -> None:
            together.wait()
            begun = perf_counter()
            self._buffer.read(number * self._part, self._part)
            spans.append((begun, perf_counter()))

        workers = [threading.Thread(target=read, args=(number,)) for number in range(self._threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return max(end for _, end in spans) - min(begun for begun, _ in spans)


def kept_bandwidth() -> Bandwidth | None:
    """What was measured on this machine before; None when nothing was or what is kept is damaged. Measures nothing."""
    path = _path()
    return None if path is None else read_bandwidth(path)


def keep_bandwidth(found: Bandwidth) -> Path | None:
    """Keeps `found` for this machine; the file, or None where nothing can be kept: then it is measured again next time."""
    path = _path()
    if path is None:
        return None
    rates = {str(count): round(rate) for count, rate in found.by_threads.items()}
    text = json.dumps({"format": FORMAT, "measured_at": found.measured_at, "bytes_per_s_by_threads": rates}, indent=1)
    try:
        write_atomically(path, text.encode())
    except OSError:
        return None
    return path


def read_bandwidth(path: Path) -> Bandwidth | None:
    """The bandwidth kept at `path`; None for a file that is not there or not as `keep_bandwidth` writes it."""
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(1 << 16))
        rates = {int(count): float(rate) for count, rate in told["bytes_per_s_by_threads"].items()}
        day = date.fromisoformat(told["measured_at"]).isoformat()
        whole = told["format"] == FORMAT and rates and all(n > 0 and 0 < rate < _MOST_RATE for n, rate in rates.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return Bandwidth(MappingProxyType(rates), day) if whole else None


def _path() -> Path | None:
    folder = cache_folder(needed=False)
    return None if folder is None else folder / f"bandwidth-{machine_key()}.json"


def machine_key() -> str:
    """16 hexadecimal digits that name this machine as this process may use it: its processors, their number, its memory.

    Another affinity mask or quota is another machine, another host name is not. The memory counts in steps of 64 MiB, since
    a kernel that reserves a little more is no other machine.
    """
    import psutil

    cpu, memory = cpu_facts(), psutil.virtual_memory().total >> 26
    facts = (platform.machine(), cpu.name, cpu.physical, cpu.performance, cpu.allowed, cpu.quota, cpu.online, memory)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
