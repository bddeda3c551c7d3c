"""The memory's bandwidth: near what a reader in C gets, bounded in time and memory, kept per machine, never trusted blindly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from system_tree import write_tree

from tinyedge.cache import write_atomically
from tinyedge.errors import MemoryFitError
from tinyedge.machine.bandwidth import (
    Bandwidth,
    buffer_bytes,
    keep_bandwidth,
    kept_bandwidth,
    last_level_cache,
    machine_key,
    measure_bandwidth,
    read_bandwidth,
    this_bandwidth,
    thread_counts,
)
from tinyedge.machine.cpu import CpuFacts
from tinyedge.native.memory_read import MemoryBuffer

MIB = 1 << 20
FOUND = Bandwidth({1: 10e9, 2: 19.6e9, 3: 20e9, 4: 19e9}, "2026-11-21")

READER = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
typedef unsigned long long word __attribute__((vector_size(64)));
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
static size_t part; static char *memory; static volatile unsigned long long sink;
static void *reader(void *number) {
    word a = {0}, b = {0}, c = {0}, d = {0};
    const word *at = (const word *)(memory + (size_t)number * part);
    for (size_t i = 0; i < part / 64; i += 4) { a ^= at[i]; b ^= at[i + 1]; c ^= at[i + 2]; d ^= at[i + 3]; }
    a ^= b ^ c ^ d;
    sink += a[0];
    return 0;
}
int main(int count, char **arguments) {
    int threads = atoi(arguments[1]);
    size_t size = (size_t)atol(arguments[2]);
    double best = 1e9;
    part = size / threads / 4096 * 4096;
    memory = aligned_alloc(1 << 21, size);
    memset(memory, 1, size);
    for (int pass = 0; pass < 30; pass++) {
        pthread_t thread[64];
        double begun = now();
        for (long i = 0; i < threads; i++) pthread_create(&thread[i], 0, reader, (void *)i);
        for (int i = 0; i < threads; i++) pthread_join(thread[i], 0);
        double seconds = now() - begun;
        if (seconds < best) best = seconds;
    }
    printf("%f\n", part * threads / best);
    return count == 0;
}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tinyedge"


@pytest.mark.skipif(
    shutil.which("gcc") is None or not sys.platform.startswith("linux"),
    reason="needs a C compiler for the reader to compare with",
)
def test_it_comes_near_to_a_reader_in_c(tmp_path: Path) -> None:
    source, program = tmp_path / "reader.c", tmp_path / "reader"
    source.write_text(READER)
    subprocess.run(["gcc", "-O3", "-march=native", "-Wno-psabi", "-pthread", str(source), "-o", str(program)], check=True)
    threads = min(2, len(os.sched_getaffinity(0)))
    shares = []
    for _ in range(3):  # other programs and, on a virtual machine, other guests take their part of the memory's time
        ours = measure_bandwidth([threads], seconds=0.5).best
        told = subprocess.run([program, str(threads), str(256 * MIB)], capture_output=True, text=True, check=True)
        shares.append(ours / float(told.stdout))
    assert max(shares) > 0.8, shares


def test_it_takes_a_few_seconds_at_most_and_gives_the_memory_back() -> None:
    import psutil

    before, begun = psutil.Process().memory_info().rss, time.monotonic()
    found = measure_bandwidth()
    assert time.monotonic() - begun < 6  # about two on a machine that does nothing else
    assert psutil.Process().memory_info().rss - before < 32 * MIB
    assert sorted(found.by_threads) == list(found.by_threads)
    assert found.best > 1e8


def test_reading_takes_time_in_proportion_and_leaves_other_threads_running() -> None:
    import threading

    buffer, ticks, ended = MemoryBuffer(256 * MIB), [0], threading.Event()

    def tick() -> None:
        while not ended.is_set():
            ticks[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        begun = time.perf_counter()
        for _ in range(20):
            buffer.read(0, buffer.size)
        seconds = time.perf_counter() - begun
    finally:
        ended.set()
        thread.join()
        buffer.close()
    assert 20 * 256 * MIB / seconds < 2e12, "memory was not read"
    assert ticks[0] > 5


def test_only_the_buffer_is_read() -> None:
    buffer = MemoryBuffer(MIB)
    for start, count in ((0, MIB + 1), (MIB, 1), (-1, 2), (1, MIB)):
        with pytest.raises(ValueError, match="not in a buffer"):
            buffer.read(start, count)
    buffer.read(MIB, 0)
    buffer.close()


@pytest.mark.parametrize(
    ("cache_mib", "free_mib", "mib"),
    [
        (32, 20_000, 256),  # this is eight times the cache
        (1, 700, 64),  # a Raspberry Pi with 1 GB
        (0.5, 250, 31),  # a Zero 2 W: an eighth of what is free
        (768, 300_000, 1024),  # a server's cache: the upper limit
        (0, 3000, 375),  # a Mac does not tell
        (0, 300, 37),
    ],
)
def test_the_buffer_exceeds_the_cache_and_spares_the_memory(cache_mib: float, free_mib: int, mib: int) -> None:
    assert buffer_bytes(int(cache_mib * MIB), free_mib * MIB) == mib * MIB


@pytest.mark.parametrize(("cache_mib", "free_mib"), [(32, 400), (1, 40), (0, 0), (0, -1)])
def test_too_little_memory_is_refused(cache_mib: int, free_mib: int) -> None:
    with pytest.raises(MemoryFitError, match="--again"):
        buffer_bytes(cache_mib * MIB, free_mib * MIB)


def test_shared_caches_count_once(tmp_path: Path) -> None:
    files = {}
    for cpu in range(4):
        folder = f"sys/devices/system/cpu/cpu{cpu}/cache"
        for index, (level, kind, size, shared) in enumerate(
            [
                (1, "Data", "32K", str(cpu)),
                (1, "Instruction", "64K", str(cpu)),
                (2, "Unified", "1M", "0-1" if cpu < 2 else "2-3"),
            ]
        ):
            files |= {
                f"{folder}/index{index}/level": str(level),
                f"{folder}/index{index}/type": kind,
                f"{folder}/index{index}/size": size,
                f"{folder}/index{index}/shared_cpu_list": shared,
            }
    root = write_tree(tmp_path, files)
    assert last_level_cache(root, range(4)) == 2 * MIB
    assert last_level_cache(root, [2]) == MIB
    assert last_level_cache(tmp_path / "nothing", range(4)) == 0


@pytest.mark.parametrize(
    ("logical", "performance", "counts"), [(1, 1, (1,)), (4, 4, (1, 2, 3, 4)), (32, 12, (1, 2, 4, 8, 12, 16, 32))]
)
def test_few_processors_are_all_tried_and_many_in_steps(logical: int, performance: int, counts: tuple[int, ...]) -> None:
    cpu = CpuFacts(name="", logical=logical, physical=max(performance, logical // 2), performance=performance, quota=None)
    assert thread_counts(cpu) == counts


def test_the_fewest_threads_that_fill_the_memory_are_named() -> None:
    assert (FOUND.best, FOUND.threads) == (20e9, 2)
    assert (FOUND.at(1), FOUND.at(3), FOUND.at(64), FOUND.at(0)) == (10e9, 20e9, 19e9, 10e9)


def test_what_is_kept_is_found_again(cache: Path) -> None:
    assert kept_bandwidth() is None
    path = keep_bandwidth(FOUND)
    assert path is not None and path.parent == cache
    assert kept_bandwidth() == FOUND
    assert this_bandwidth() == FOUND
    assert [each.name for each in cache.iterdir()] == [path.name]


def test_without_measuring_nothing_is_measured(cache: Path) -> None:
    assert this_bandwidth(measure=False) is None
    assert not cache.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        "{}",
        '{"format": 99, "measured_at": "2026-11-21", "bytes_per_s_by_threads": {"1": 1e10}}',
        '{"format": 1, "measured_at": "2026-11-21", "bytes_per_s_by_threads": {}}',
        '{"format": 1, "measured_at": "2026-11-21", "bytes_per_s_by_threads": {"0": 1e10}}',
        '{"format": 1, "measured_at": "2026-11-21", "bytes_per_s_by_threads": {"1": 1e99}}',
        '{"format": 1, "measured_at": "2026-11-21", "bytes_per_s_by_threads": {"1": NaN}}',
        f'{{"format": 1, "measured_at": "2026-11-21", "bytes_per_s_by_threads": {{"1": {10**400}}}}}',
        '{"format": 1, "measured_at": "2026-11-21", "bytes_per_s_by_threads": {"1": -1}}',
        '{"format": 1, "measured_at": "2026-11-21", "bytes_per_s_by_threads": {"one": 1}}',
        '{"format": 1, "measured_at": "2026-11-21", "bytes_per_s_by_threads": [1]}',
        '{"format": 1, "measured_at": "\\u001b[2J", "bytes_per_s_by_threads": {"1": 1e10}}',
        "\udcff",
    ],
    ids=lambda text: text[-30:].encode("ascii", "replace").decode(),
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bandwidth.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_bandwidth(path) is None


def test_a_damaged_file_is_made_anew(cache: Path) -> None:
    path = keep_bandwidth(FOUND)
    assert path is not None and path.parent == cache
    path.write_text("{")
    found = this_bandwidth()
    assert found is not None and found != FOUND
    assert json.loads(path.read_text())["measured_at"] == found.measured_at


def test_where_nothing_can_be_kept_it_is_still_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_bandwidth(FOUND) is None
    assert kept_bandwidth() is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity mask")
def test_another_affinity_mask_is_another_machine() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two processors")
    whole = machine_key()
    assert machine_key() == whole
    code = "from tinyedge.machine.bandwidth import machine_key; import os; os.sched_setaffinity(0, {%d}); print(machine_key())"
    narrow = subprocess.run([sys.executable, "-c", code % min(allowed)], capture_output=True, text=True, check=True)
    assert narrow.stdout.strip() != whole


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "new" / "kept"
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    folder = tmp_path / "taken"
    (folder / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_atomically(folder, b"content")
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
    assert folder.is_dir()
