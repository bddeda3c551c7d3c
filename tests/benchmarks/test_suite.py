"""The project's own suite: what suite.toml says, what it comes to, and that every benchmark has been kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinyedge_bench.__main__ import model_paths
from tinyedge_bench.results import RESULTS
from tinyedge_bench.suite.entries import Benchmark, read_suite
from tinyedge_bench.suite.memory import CASES, measure, watch

SUITE = read_suite()


def test_every_place_of_a_command_is_a_model_an_option_or_known() -> None:
    filled = {name: f"<{name}>" for benchmark in SUITE.benchmarks for name in benchmark.places}
    for benchmark in SUITE.benchmarks:
        assert not [part for part in benchmark.arguments(filled) if "{" in part]
        assert SUITE.models_of(benchmark) or benchmark.name == "board_wheels"


def test_a_command_becomes_a_module_of_the_suite_or_tinyedge_itself() -> None:
    one = Benchmark(name="one", about="", runs=3, command=("memory", "{demo}", "--runs", "{runs}"))
    assert one.arguments({"demo": Path("a b.gguf"), "runs": 3})[1:] == [
        "-m", "tinyedge_bench.suite.memory", "a b.gguf", "--runs", "3",
    ]  # fmt: skip
    other = Benchmark(name="other", about="", runs=3, command=("tinyedge", "bench"), python="{theirs}")
    assert other.arguments({"theirs": "python9"}) == ["python9", "-m", "tinyedge", "bench"]
    with pytest.raises(KeyError):
        one.arguments({})


@pytest.mark.parametrize("benchmark", SUITE.benchmarks, ids=lambda each: each.name)
def test_every_benchmark_has_a_kept_result_with_machine_and_date(benchmark: Benchmark) -> None:
    kept = json.loads((RESULTS / f"{benchmark.name}.json").read_text())
    assert kept["machine"]["cpu"]
    assert kept.get("date") or kept["machine"].get("date") or all("machine" in row for row in kept["wheels"].values())


def test_the_demo_model_is_made_where_it_is_wanted(tmp_path: Path) -> None:
    (demo,) = (each for each in SUITE.models if each.name == "demo")
    paths = model_paths(demo, tmp_path)
    assert paths["demo"].parent == tmp_path
    assert paths["demo"].stat().st_size > 1 << 20
    assert (paths["demo_checkpoint"] / "config.json").exists()


def test_a_benchmark_that_is_not_there_or_lacks_something_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinyedge_bench", "--models", str(tmp_path)]
    unknown = subprocess.run([*command, "sped"], capture_output=True, text=True)
    assert (unknown.returncode, "no benchmark sped" in unknown.stderr) == (2, True)
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True).stdout.splitlines()
    assert len(listed) == len(SUITE.benchmarks) and listed[-1].endswith("(1 run)") and "(3 runs, --text)" in "".join(listed)
    lacking = subprocess.run([*command, "quality"], capture_output=True, text=True)
    assert (lacking.returncode, lacking.stdout) == (1, "quality: left out, it needs --text\n")


def test_an_installed_package_has_no_suite_and_says_so(tmp_path: Path) -> None:
    shutil.copytree(
        RESULTS.parent / "tinyedge_bench", tmp_path / "tinyedge_bench", ignore=shutil.ignore_patterns("__pycache__")
    )
    command = [sys.executable, "-m", "tinyedge_bench", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: suite.toml is not part of the installed package: run this in a clone of tinyedge\n"


def test_memory_is_planned_for_each_run_and_watched(tmp_path: Path) -> None:
    (demo,) = (each for each in SUITE.models if each.name == "demo")
    bare, *rows = measure(model_paths(demo, tmp_path)["demo"], 1, 1)
    assert bare["what"] == "bare"
    assert bare["planned_bytes"] is None
    assert [row["what"] for row in rows] == [f"context {context}, {kv} cache" for context, kv in CASES]
    for row in rows:
        assert 0 < row["own_bytes"] < row["planned_bytes"] + row["start_bytes"] + (64 << 20)
        assert row["samples"] == [{"own_bytes": row["own_bytes"], "mapped_bytes": row["mapped_bytes"]}]


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="failed with 3"):
        watch([sys.executable, "-c", "raise SystemExit(3)"])
