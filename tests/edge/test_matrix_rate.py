"""The matrix ceiling: bounded in time and memory, near numpy's BLAS, kept per machine and build, never trusted blindly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tinyedge.errors import MemoryFitError, NativeError
from tinyedge.machine import matrix_rate
from tinyedge.machine.cpu import cpu_facts
from tinyedge.machine.matrix_rate import (
    TYPES,
    MatrixRate,
    keep_matrix_rate,
    measure_matrix_rate,
    read_matrix_rate,
    this_matrix_rate,
)

FOUND = MatrixRate({1: {"F16": 50e9, "Q4_0": 80e9}, 4: {"F16": 180e9, "Q4_0": 300e9}, 8: {"Q4_0": 200e9}}, "2026-11-21")


BLAS = """
import time
import numpy as np
weights, inputs, best = np.ones((2048, 2304), np.float32), np.ones((2304, 512), np.float32), 1e9
for _ in range(8):
    begun = time.perf_counter()
    weights @ inputs
    best = min(best, time.perf_counter() - begun)
print(2 * 2048 * 2304 * 512 / best)
"""
# In a process of its own: what the tests before have freed would hide, or seem, what is kept.
COST = """
import json, time
import psutil
from tinyedge.machine.matrix_rate import measure_matrix_rate
measure_matrix_rate(seconds=0.1)
before, begun = psutil.Process().memory_info().rss, time.monotonic()
found = measure_matrix_rate("cpu", [1])
seconds, kept = time.monotonic() - begun, psutil.Process().memory_info().rss - before
print(json.dumps({"seconds": seconds, "bytes": kept, "flops": {count: dict(rates) for count, rates in found.flops.items()}}))
"""
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tinyedge"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures with the smallest matrices only."""
    monkeypatch.setattr(matrix_rate, "_SECONDS", 0.01)


def test_it_takes_a_few_seconds_at_most_and_gives_the_memory_back() -> None:
    told = json.loads(subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, check=True).stdout)
    assert told["seconds"] < 9  # about three on a machine that does nothing else
    assert told["bytes"] < 32 << 20
    (rates,) = told["flops"].values()
    assert set(rates) == set(TYPES)
    assert all(rate > 1e8 for rate in rates.values())


def test_float32_is_not_far_from_the_blas_of_numpy() -> None:
    """Both compute with all the vector units of one core; a timing that missed the work would be off by far more."""
    told = subprocess.run([sys.executable, "-c", BLAS], env=os.environ | ONE_THREAD, capture_output=True, text=True, check=True)
    ours = measure_matrix_rate("cpu", [1], seconds=1).at(1)["F32"]
    assert 0.1 < ours / float(told.stdout) < 10


@pytest.mark.skipif(cpu_facts().threads < 2, reason="needs two cores")
def test_two_threads_are_faster_than_one() -> None:
    found = [measure_matrix_rate("cpu", [1, 2], seconds=0.5)]
    while max(rate.flops[2]["F32"] / rate.flops[1]["F32"] for rate in found) < 1.3 and len(found) < 20:
        found.append(measure_matrix_rate("cpu", [1, 2], seconds=0.5))  # two threads wait for each other on a busy machine
    assert max(rate.flops[2]["F32"] / rate.flops[1]["F32"] for rate in found) > 1.3


def test_a_ceiling_is_not_below_what_fewer_threads_reach() -> None:
    assert (FOUND.best(1), FOUND.best(2), FOUND.best(4), FOUND.best(8), FOUND.best(64)) == (80e9, 80e9, 300e9, 300e9, 300e9)
    assert FOUND.at(3) == FOUND.flops[1]
    assert replace(FOUND, flops={4: {"F16": 1e9}}).best(1) == 1e9


@pytest.mark.usefixtures("quick")
def test_what_is_kept_is_found_again_and_completed(cache: Path) -> None:
    assert this_matrix_rate(measure=False) is None
    assert not cache.exists()
    found = this_matrix_rate(threads=2)
    assert found is not None and found.flops.keys() == {1, 2}
    assert set(found.at(1)) == set(found.at(2)) == set(TYPES)
    assert [path.name.split("-")[:2] for path in cache.iterdir()] == [["matrix", "cpu"]]
    kept = this_matrix_rate(threads=2, measure=False)
    assert kept == this_matrix_rate(threads=2) == this_matrix_rate(threads=1)
    more = this_matrix_rate(threads=3)
    assert kept is not None and more is not None
    assert more.flops.keys() == {1, 2, 3}
    assert [round(rate) for rate in more.at(2).values()] == [round(rate) for rate in kept.at(2).values()]
    anew = this_matrix_rate(threads=1, again=True)
    assert anew is not None and anew.at(3) == this_matrix_rate(threads=3, measure=False).at(3)  # type: ignore[union-attr]
    assert anew.at(1) != more.at(1)


def test_another_build_or_machine_has_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyedge.native import library

    keys = {matrix_rate._key(library.devices())}
    told = library.versions()
    for other in (replace(told, llama_cpp_python="0.3.99"), replace(told, system_info="CPU : NEON = 1"), told):
        monkeypatch.setattr(library, "versions", lambda other=other: other)
        keys.add(matrix_rate._key(library.devices()))
    assert len(keys) == 3
    monkeypatch.setattr(matrix_rate, "machine_key", lambda: "another")
    assert matrix_rate._key(library.devices()) not in keys
    assert matrix_rate._key(()) not in keys


def file(**changed: object) -> str:
    content = {"format": 1, "measured_at": "2026-11-21", "flops_by_threads": {"1": {"F16": 1e10}}}
    return json.dumps({key: value for key, value in (content | changed).items() if value is not None})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        "{}",
        "\udcff",
        file(format=99),
        file(measured_at="\033[2J"),
        file(measured_at=None),
        *(
            file(flops_by_threads=wrong)
            for wrong in (
                [],
                {},
                {"1": {}},
                {"1": 1e10},
                {"0": {"F16": 1e10}},
                {"-1": {"F16": 1e10}},
                {"99999999": {"F16": 1e10}},
                {"one": {"F16": 1e10}},
                {"1": {"\033[2J": 1e10}},
                {"1": {"F16": 1e99}},
                {"1": {"F16": 10**400}},
                {"1": {"F16": float("nan")}},
                {"1": {"F16": -1}},
                {"1": {"F16": None}},
                {"1": {"F16": 1e10}, "2": {}},
                {"1" * 5000: {"F16": 1e10}},
            )
        ),
        file()[:-1] + " " * (1 << 16) + "}",
    ],
    ids=lambda text: text[-30:].encode("ascii", "replace").decode(),
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "matrix.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_matrix_rate(path) is None


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "matrix.json"
    assert keep_matrix_rate(path, FOUND)
    assert read_matrix_rate(path) == FOUND
    path.write_text(file())
    assert read_matrix_rate(path) is not None
    assert not keep_matrix_rate(path / "below a file", FOUND)


@pytest.mark.usefixtures("quick")
def test_a_damaged_file_is_made_anew_and_a_lost_folder_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this_matrix_rate(threads=1)
    (path,) = cache.iterdir()
    path.write_text("{")
    assert this_matrix_rate(threads=1) is not None
    assert read_matrix_rate(path) is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    assert this_matrix_rate(threads=1) is not None


def test_a_backend_without_a_device_has_no_rate(cache: Path) -> None:
    for backend in ("hexagon", "../../x", ""):
        assert this_matrix_rate(backend) is None
        with pytest.raises(NativeError, match="tinyedge devices"):
            measure_matrix_rate(backend)
    assert not cache.exists()


@pytest.mark.parametrize("counts", [[], [0], [-1, 2]])
def test_no_thread_measures_nothing(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        measure_matrix_rate("cpu", counts)


def test_too_little_memory_is_no_rate(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyedge.memory.free_memory_bytes", lambda: 40 << 20)
    with pytest.raises(MemoryFitError, match="40 MiB of free memory"):
        measure_matrix_rate("cpu", [1])
    assert this_matrix_rate() is None
    assert not cache.exists()


@pytest.mark.parametrize(("free_mib", "columns"), [(150, [1280]), (700, [1280, 2304]), (2000, [1280, 2304, 4352])])
def test_a_small_board_measures_with_small_matrices(free_mib: int, columns: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyedge.native.library import devices

    (cpu,) = (device for device in devices() if device.type == "cpu")
    monkeypatch.setattr("tinyedge.memory.free_memory_bytes", lambda: free_mib << 20)
    assert [shape.columns for shape in matrix_rate._fitting(cpu, "F32")] == columns
