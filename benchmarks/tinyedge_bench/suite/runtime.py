"""The runtime beside its references, in turn: generation speed, Python's share of a token, start-up, first token.

    python -m tinyedge_bench.suite.runtime MODEL.gguf --llama-cpp-bin DIR [--runs 7] [--threads N] [--keep NAME]

MODEL should be large enough that generation is bound by memory: quantize the checkpoint that suite.random_checkpoint
makes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from tinyedge.backends import LoadPlan, Request, choose, this_machine
from tinyedge.engine import Engine, context_settings
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import describe_model
from tinyedge.native.context import Context
from tinyedge.native.model import Model
from tinyedge.native.sampler import Sampler
from tinyedge.sampling import Sampling
from tinyedge_bench.results import keep, run_command
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

PROMPT = "Once upon a time"
TOKENS = 128
# What a person would write with llama_cpp alone, without waiting for what it prints.
BARE_SCRIPT = (
    "import sys; from llama_cpp import Llama\n"
    "model = Llama(sys.argv[1], n_ctx=2048, n_threads=int(sys.argv[2]), verbose=False)\n"
    "print(model.create_completion(sys.argv[3], max_tokens=int(sys.argv[4]))['choices'][0]['text'])\n"
)
_OVERHEAD_TOKENS = 300


def _json(command: list[str]) -> Any:
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout)


def _run_speed(model: Path, threads: int) -> float:
    """Tokens/s of `tinyedge run` with sampling, streaming and reporting on."""
    command = [sys.executable, "-m", "tinyedge", "run", str(model), "-p", PROMPT, "-n", str(TOKENS), "--seed", "1", "--json"]
    report = _json([*command, "--threads", str(threads)])
    if report["generated_tokens"] != TOKENS:
        raise RuntimeError(f"the model ended after {report['generated_tokens']} tokens; take another seed or model")
    return float(report["generated_tokens_per_s"])


def _llama_bench_speed(folder: Path, model: Path, threads: int) -> float:
    command = [str(folder / "llama-bench"), "-m", str(model), "-p", "0", "-n", str(TOKENS), "-r", "1", "-o", "json"]
    return float(_json([*command, "-t", str(threads)])[0]["avg_ts"])


def generation(model: Path, folder: Path, threads: int, runs: int) -> dict[str, list[float]]:
    """Tokens/s of each, one run of each in turn."""
    speeds: dict[str, list[float]] = {"run": [], "llama-bench": []}
    for _ in range(runs):
        speeds["llama-bench"].append(_llama_bench_speed(folder, model, threads))
        speeds["run"].append(_run_speed(model, threads))
    return speeds


def overhead(model: Path, runs: int) -> list[float]:
    """Microseconds per token that streaming costs beside the native calls: two loops over the same tokens, in turn."""
    plan = choose(describe_model(read_gguf(model)), Request(threads=1), this_machine())
    sampling = Sampling(temperature=0.0)
    differences = []
    with Engine.open(model, plan) as engine:
        for _ in range(runs):
            started = perf_counter()
            count = sum(chunk.tokens for chunk in engine.stream(PROMPT, sampling, _OVERHEAD_TOKENS))
            streamed = perf_counter() - started
            differences.append((streamed - _native_seconds(engine.model, plan, count)) / count * 1e6)
    return differences


def _native_seconds(model: Model, plan: LoadPlan, count: int) -> float:
    """The same generation with nothing but decode and sample."""
    with Context(model, context_settings(plan)) as context, Sampler(model, Sampling(temperature=0.0)) as sampler:
        started = perf_counter()
        context.decode_all(model.tokenize(PROMPT))
        context.wait()
        token = sampler.sample(context)
        for _ in range(count - 1):
            context.decode(token)
            token = sampler.sample(context)
        return perf_counter() - started


def start_up(model: Path, threads: int, runs: int) -> dict[str, list[float]]:
    """Seconds from the shell: the help page, the first token, and the first token of a bare script over llama_cpp."""
    script = [sys.executable, "-c", BARE_SCRIPT, str(model), str(threads), PROMPT, "1"]
    tinyedge = str(Path(sys.executable).with_name("tinyedge"))
    first = [tinyedge, "run", str(model), "-p", PROMPT, "-n", "1", "--threads", str(threads)]
    seconds: dict[str, list[float]] = {"help": [], "first": [], "bare": []}
    run_command(first)
    for _ in range(runs):
        seconds["first"].append(run_command(first).seconds)
        seconds["bare"].append(run_command(script).seconds)
        seconds["help"].append(run_command([tinyedge, "--help"]).seconds)
    return seconds


def summary(
    speeds: dict[str, list[float]], seconds: dict[str, list[float]], micros: list[float], threads: int
) -> list[dict[str, str]]:
    """A row for each comparison: medians, and the median of the ratios run by run."""

    def middle(values: list[float]) -> float:
        return statistics.median(values)

    def ratio(ours: list[float], theirs: list[float]) -> str:
        return f"{middle([a / b for a, b in zip(ours, theirs, strict=True)]):.3f}"

    theirs = f"llama-bench {middle(speeds['llama-bench']):.1f} tokens/s"
    return [
        {
            "what": f"generation, `tinyedge run`, {threads} threads",
            "ours": f"{middle(speeds['run']):.1f} tokens/s",
            "beside": theirs,
            "ratio": ratio(speeds["run"], speeds["llama-bench"]),
        },
        {
            "what": "from the shell to the first token, file in the page cache",
            "ours": f"{middle(seconds['first']):.2f} s",
            "beside": f"bare llama_cpp script {middle(seconds['bare']):.2f} s",
            "ratio": ratio(seconds["first"], seconds["bare"]),
        },
        {"what": "`tinyedge --help`", "ours": f"{middle(seconds['help']) * 1000:.0f} ms", "beside": "", "ratio": ""},
        {
            "what": "streaming text, beside decode and sample alone (demo model)",
            "ours": f"{max(middle(micros), 0):.0f} µs per token (from {min(micros):.0f} to {max(micros):.0f})",
            "beside": "",
            "ratio": "",
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the runtime beside llama-bench and a bare llama_cpp script.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-cpp-bin", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=this_machine().cpu.threads)
    parser.add_argument("--keep", metavar="NAME", help="keep the result as benchmarks/results/NAME.json")
    options = parser.parse_args()
    speeds = generation(options.model, options.llama_cpp_bin, options.threads, options.runs)
    seconds = start_up(options.model, options.threads, options.runs)
    with tempfile.TemporaryDirectory() as folder:
        demo = convert(demo_tokenizer().parent, Path(folder) / "demo.gguf").path
        micros = overhead(demo, options.runs)
    rows = summary(speeds, seconds, micros, options.threads)
    for row in rows:
        print(" | ".join(filter(None, row.values())))
    if options.keep:
        samples = {"speeds": speeds, "seconds": seconds, "microseconds_per_token": micros}
        print(keep(options.keep, {"benchmark": "runtime", "runs": options.runs, "rows": rows, "samples": samples}))


if __name__ == "__main__":
    main()
