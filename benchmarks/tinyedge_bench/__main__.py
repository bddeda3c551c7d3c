"""Runs the project's own suite, benchmarks/suite.toml, and keeps the results that the README's figures are made from.

    python -m tinyedge_bench --list
    python -m tinyedge_bench [NAME...] [--llama-cpp-bin DIR] [--text FILE] [--runs N] [--models DIR]

One after the other, on a machine that does nothing else. What a benchmark needs and was not given leaves it out, and the end
says so; of one that was asked for by name that is a failure. A result replaces the kept one when the whole benchmark went well.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

from tinyedge.cache import cache_folder
from tinyedge_bench.results import RESULTS
from tinyedge_bench.suite.entries import SUITE, Benchmark, Suite, SuiteModel, read_suite
from tinyedge_bench.suite.random_checkpoint import SHAPES, demo_tokenizer, make_checkpoint
from tinyedge_quantize.convert import convert


def model_paths(model: SuiteModel, folder: Path) -> dict[str, Path]:
    """Its checkpoint and its GGUF file, by the names of their places; made in `folder` where they are not there yet."""
    checkpoint = folder / model.name if model.shape else demo_tokenizer().parent
    if model.shape and not (checkpoint / "model.safetensors").exists():
        print(f"making {model.name}: {model.about}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=folder) as new:
            made = Path(new) / model.name
            make_checkpoint(made, SHAPES[model.shape], demo_tokenizer())
            made.rename(checkpoint)
    path = folder / f"{model.name}-{model.type_name}.gguf"
    convert(checkpoint, path, model.type_name)
    return {model.name: path, f"{model.name}_checkpoint": checkpoint}


def run(suite: Suite, benchmark: Benchmark, given: Mapping[str, object], runs: int | None, folder: Path) -> int:
    """Runs one benchmark to its end; the exit status of its command."""
    with tempfile.TemporaryDirectory(dir=RESULTS) as new:
        result = Path(new) / f"{benchmark.name}.json"
        values: dict[str, object] = {**given, "runs": runs or benchmark.runs, "name": benchmark.name, "result": result}
        for model in suite.models_of(benchmark):
            values |= model_paths(model, folder)
        command = benchmark.arguments(values)
        print(f"$ {shlex.join(command)}", file=sys.stderr)
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        if status == 0 and result.exists():
            result.replace(RESULTS / result.name)
    return status


def main() -> int:
    if not SUITE.is_file():
        print(f"error: {SUITE.name} is not part of the installed package: run this in a clone of tinyedge", file=sys.stderr)
        return 1
    suite = read_suite()
    options = _options(suite)
    if options.list:
        for benchmark in suite.benchmarks:
            needs = "".join(f", {_flag(name)}" for name in sorted(suite.needs(benchmark)))
            plural = "s" * (benchmark.runs != 1)
            print(f"{benchmark.name}: {benchmark.about} ({benchmark.runs} run{plural}{needs})")
        return 0
    given = {name: value for name in _given(suite) if (value := getattr(options, name)) is not None}
    folder: Path = options.models or cache_folder() / "suite"
    folder.mkdir(parents=True, exist_ok=True)
    ends: dict[str, str] = {}
    for benchmark in suite.chosen(options.names):
        lacking = sorted(suite.needs(benchmark) - given.keys())
        if lacking:
            ends[benchmark.name] = f"left out, it needs {', '.join(map(_flag, lacking))}"
            continue
        begun = perf_counter()
        status = run(suite, benchmark, given, options.runs, folder)
        ends[benchmark.name] = f"failed with {status}" if status else f"done in {perf_counter() - begun:.0f} s"
    for name, end in ends.items():
        print(f"{name}: {end}")
    undone = [
        name for name, end in ends.items() if not end.startswith("done") and (name in options.names or end.startswith("failed"))
    ]
    return int(bool(undone))


def _options(suite: Suite) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tinyedge_bench", description=f"Run the suite in {SUITE.name}.")
    names = tuple(benchmark.name for benchmark in suite.benchmarks)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks; all by default")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each, in place of the suite's numbers")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="where the models lie or are made, 3 GB (default: the cache)"
    )
    for name in _given(suite):
        needing = ", ".join(benchmark.name for benchmark in suite.benchmarks if name in benchmark.places)
        parser.add_argument(_flag(name), type=_place, metavar="PATH", help=f"for {needing}")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; choose from {', '.join(names)}")
    return options


def _given(suite: Suite) -> list[str]:
    return sorted({name for benchmark in suite.benchmarks for name in suite.needs(benchmark)})


def _place(text: str) -> Path:
    path = Path(text).absolute()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} is not there")
    return path


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
