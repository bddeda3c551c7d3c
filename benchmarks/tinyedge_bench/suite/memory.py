"""What `tinyedge plan` says a model needs, beside what running it takes, and beside a bare llama_cpp script.

    python -m tinyedge_bench.suite.memory MODEL.gguf [--runs 3] [--threads N] [--keep NAME]

Each run is a process of its own that reads a prompt and generates some tokens, in turn: `tinyedge run` at two context lengths
and two types of KV cache, then the script. Its memory is looked at 50 times a second. `own` is what only it can hold: KV cache,
buffers, the weights that were copied into the layout of the processor's kernels, Python and its libraries. `mapped` are pages
of files: those of the weights that are used in place are needed, the others can be dropped by the system at any time. A plan,
which reckons without Python, should lie between `own` and `own + mapped`. Linux tells the two apart; elsewhere all is `own`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tinyedge.backends import Request, choose, this_machine
from tinyedge.load_plan import LoadPlan
from tinyedge.memory import memory_needed
from tinyedge.model_facts import ModelFacts
from tinyedge.model_probe import runnable_facts
from tinyedge_bench.results import keep
from tinyedge_bench.suite.runtime import BARE_SCRIPT

PROMPT = "Once upon a time there was a wolf. " * 24
TOKENS = 64
CASES = ((512, "F16"), (2048, "F16"), (2048, "Q8_0"))
_INTERVAL_S = 0.02
_TINYEDGE = [sys.executable, "-m", "tinyedge"]


def planned_bytes(facts: ModelFacts, plan: LoadPlan) -> int:
    """What the plan reckons with: weights, KV cache and compute buffers."""
    return memory_needed(facts, plan.context, batch=plan.batch, kv_type=plan.kv_type).total_bytes


@dataclass(frozen=True, slots=True)
class Watched:
    """The most resident memory of one run of a command, in bytes: its own, and pages of files."""

    own_bytes: int
    mapped_bytes: int


def watch(command: Sequence[str]) -> Watched:
    """Runs a command to its end and looks at its memory meanwhile. Raises RuntimeError when it fails."""
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere) as process:
        own, mapped = [0], [0]
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                now: Any = watched.memory_info()
            except psutil.Error:
                break  # it has just ended
            mapped.append(getattr(now, "shared", 0))
            own.append(now.rss - mapped[-1])
            time.sleep(_INTERVAL_S)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
    return Watched(max(own), max(mapped))


def _commands(model: Path, plans: Sequence[LoadPlan]) -> dict[str, list[str]]:
    threads = str(plans[0].threads)
    return {
        "start": [*_TINYEDGE, "--version"],
        "bare": [sys.executable, "-c", BARE_SCRIPT, str(model), threads, PROMPT, str(TOKENS)],
        **{_name(plan): _run(model, plan) for plan in plans},
    }


def _run(model: Path, plan: LoadPlan) -> list[str]:
    settings = ["--ctx", str(plan.context), "--kv", plan.kv_type, "--threads", str(plan.threads)]
    return [*_TINYEDGE, "run", str(model), "-p", PROMPT, "-n", str(TOKENS), *settings]


def _name(plan: LoadPlan) -> str:
    return f"context {plan.context}, {plan.kv_type} cache"


def measure(model: Path, runs: int, threads: int) -> list[dict[str, Any]]:
    """A row for each command: bytes planned (None for the bare script), bytes measured as medians, every sample."""
    facts, machine = runnable_facts(model), this_machine()
    plans = [choose(facts, Request(context=context, kv_type=kv, threads=threads), machine) for context, kv in CASES]
    seen: dict[str, list[Watched]] = {}
    for _ in range(runs):
        for name, command in _commands(model, plans).items():
            seen.setdefault(name, []).append(watch(command))
            print(f"{name}: {seen[name][-1].own_bytes / 1e6:.0f} MB its own", file=sys.stderr)
    start = statistics.median(each.own_bytes for each in seen.pop("start"))
    planned = {_name(plan): planned_bytes(facts, plan) for plan in plans}
    return [
        {
            "what": name,
            "planned_bytes": planned.get(name),
            "start_bytes": start,
            "own_bytes": statistics.median(each.own_bytes for each in samples),
            "mapped_bytes": statistics.median(each.mapped_bytes for each in samples),
            "samples": [asdict(each) for each in samples],
        }
        for name, samples in seen.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure planned memory beside the peak of a run.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=this_machine().cpu.threads)
    parser.add_argument("--keep", metavar="NAME", help="keep the result as benchmarks/results/NAME.json")
    options = parser.parse_args()
    rows = measure(options.model, options.runs, options.threads)
    for row in rows:
        print(row)
    if options.keep:
        print(keep(options.keep, {"benchmark": "memory", "runs": options.runs, "rows": rows}))


if __name__ == "__main__":
    main()
