"""`tinyedge bench`: prompt processing and generation speed in the columns that a llama-bench user knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.option_groups import within
from tinyedge.cli.output import (
    MAX_TOKENS,
    format_bytes,
    format_count,
    on_terminal,
    print_json,
    print_line,
    printable,
    status,
)

if TYPE_CHECKING:
    from tinyedge.backends import LoadPlan, Machine
    from tinyedge.model_facts import ModelFacts
    from tinyedge_bench.speed.measure import Summary

_EXAMPLES = """\b
Examples:
  tinyedge bench demo
  tinyedge bench model.gguf -p 512 -n 128 -r 10
  tinyedge bench model.gguf -p 0 --threads 1,2,4 --json
"""


def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a checkpoint folder or file, or `demo`.")],
    prompt: Annotated[
        int, typer.Option("-p", "--prompt", callback=within(0, MAX_TOKENS), help="Prompt tokens; 0 leaves it out.")
    ] = 512,
    generate: Annotated[
        int, typer.Option("-n", "--generate", callback=within(0, MAX_TOKENS), help="Generated tokens; 0 leaves it out.")
    ] = 128,
    runs: Annotated[int, typer.Option("-r", "--runs", min=1, max=100_000, help="Timed runs of each test.")] = 5,
    threads: Annotated[
        str | None,
        typer.Option("-t", "--threads", metavar="N[,N...]", help="CPU threads.", show_default="performance cores"),
    ] = None,
    backend: Annotated[str, typer.Option(metavar="[auto|cpu|cuda|metal]", help="Where to run.")] = "auto",
    gpu_layers: Annotated[int | None, typer.Option(min=0, help="Layers on the GPU.", show_default="all that fit")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, with every sample.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Measure tokens per second as llama-bench does: random tokens, no tokenizing or sampling in the time, a warm-up."""
    from tinyedge.backends import Request, choose, this_machine
    from tinyedge.cli.models import resolve_model
    from tinyedge.model_probe import runnable_facts
    from tinyedge.native import log
    from tinyedge_bench.speed.measure import measure, summarise, workloads

    tests = workloads(prompt, generate)
    if not tests:
        raise typer.BadParameter("-p 0 and -n 0 leave nothing to measure")
    counts = _thread_counts(threads)
    path = resolve_model(model)
    facts, machine = runnable_facts(path), this_machine()
    context = max(test.tokens for test in tests)
    plans = [
        choose(facts, Request(backend=backend, gpu_layers=gpu_layers, context=context, threads=count, strict=True), machine)
        for count in counts
    ]
    log.set_verbose(verbose)
    status(plans[0].reason)
    with _progress(len(plans) * len(tests) * runs) as advance:
        timed = []
        for run in measure(path, plans, tests, runs):
            timed.append(run)
            advance()
    summaries = summarise(timed)
    if json:
        print_json(_report_object(path, facts, plans[0], machine, summaries))
        return
    for line in _table(facts, plans[0], summaries):
        print_line(line)
    for line in _notes(machine, summaries):
        status(line)


bench.__doc__ = f"{bench.__doc__}\n\n{_EXAMPLES}"


def _thread_counts(threads: str | None) -> list[int | None]:
    """The numbers in `1,2,4`; [None] leaves the choice to the plan."""
    if threads is None:
        return [None]
    parts = [part.strip() for part in threads.split(",")]
    if not all(re.fullmatch("0{0,9}[1-9][0-9]{0,2}", part) and int(part) <= 512 for part in parts):
        raise typer.BadParameter(f"--threads takes numbers from 1 to 512 like 4 or 1,2,4, not {printable(threads, 40)!r}")
    return list(dict.fromkeys(int(part) for part in parts))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar of runs on stderr, on a terminal only. Yields a function to call after each run."""
    if not on_terminal():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=total)
        yield lambda: progress.advance(task)


def _table(facts: ModelFacts, plan: LoadPlan, summaries: tuple[Summary, ...]) -> list[str]:
    """A Markdown table as llama-bench prints it, with median and run count added."""
    head = ("model", "size", "params", "backend", "threads", "test", "t/s", "median", "runs")
    rows = [
        (
            f"{printable(facts.architecture, 40)} {facts.file_type}",
            format_bytes(facts.weight_bytes),
            format_count(facts.parameters),
            plan.backend.upper(),
            str(summary.threads),
            summary.test.name,
            f"{summary.mean:.2f} ± {summary.stddev:.2f}",
            f"{summary.median:.2f}",
            str(len(summary.samples)),
        )
        for summary in summaries
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: tuple[str, ...]) -> str:
        padded = [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = f"| {'-' * widths[0]} | {' | '.join('-' * (width - 1) + ':' for width in widths[1:])} |"
    return [line(head), rule, *map(line, rows)]


def _notes(machine: Machine, summaries: tuple[Summary, ...]) -> list[str]:
    """The machine and build under the table, and what to doubt about the numbers."""
    facts, build = _machine_object(machine), _build_object()
    return [
        f"{facts['cpu'] or facts['architecture']}, {facts['physical_cores']} physical cores, "
        f"{format_bytes(facts['memory_bytes'])} of memory; llama-cpp-python {build['llama_cpp_python']}, ggml {build['ggml']}",
        *(f"note: {warning}" for summary in summaries if (warning := summary.warning)),
    ]


def _machine_object(machine: Machine) -> dict[str, Any]:
    import platform

    main = next((device for device in machine.devices if device.kind == "cpu"), None)
    return {
        "cpu": machine.cpu.name,
        "architecture": platform.machine(),
        "system": platform.platform(),
        "logical_cores": machine.cpu.logical,
        "physical_cores": machine.cpu.physical,
        "performance_cores": machine.cpu.performance,
        "cpu_quota": machine.cpu.quota,
        "memory_bytes": main.memory_total if main else 0,
        "free_memory_bytes": machine.free_bytes,
    }


def _build_object() -> dict[str, Any]:
    from tinyedge import __version__
    from tinyedge.native.library import versions

    return {"tinyedge": __version__, **asdict(versions())}


def _report_object(
    path: Path, facts: ModelFacts, plan: LoadPlan, machine: Machine, summaries: tuple[Summary, ...]
) -> dict[str, Any]:
    return {
        "model": str(path),
        "architecture": facts.architecture,
        "type": facts.file_type,
        "size_bytes": facts.weight_bytes,
        "params": facts.parameters,
        "backend": plan.backend,
        "device": plan.device.description,
        "gpu_layers": plan.gpu_layers,
        "kv_type": plan.kv_type,
        "results": [
            {
                "test": summary.test.name,
                "tokens": summary.test.tokens,
                "threads": summary.threads,
                "median_tokens_per_s": summary.median,
                "mean_tokens_per_s": summary.mean,
                "stddev_tokens_per_s": summary.stddev,
                "runs": len(summary.samples),
                "samples_tokens_per_s": list(summary.samples),
                "warning": summary.warning,
            }
            for summary in summaries
        ],
        "machine": _machine_object(machine),
        "build": _build_object(),
    }
