"""`tinyedge bench`: speed in llama-bench's terms, beside what the machine could do and what other programs do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.bench_lists import check_count, numbers, pairs, words
from tinyedge.cli.bench_output import check_output, give, wanted_format, write
from tinyedge.cli.option_groups import with_option_groups
from tinyedge.cli.output import MAX_TOKENS, on_terminal, printable, status

if TYPE_CHECKING:
    from tinyedge_bench.speed.measure import Listener, Measurement, Options
    from tinyedge_bench.speed.sweep import Sweep

_EXAMPLES = """\b
Examples:
  tinyedge bench demo
  tinyedge bench model.gguf -p 128,512 -n 64 -d 0,1024 --threads 1,2,4
  tinyedge bench a.gguf b.gguf --pg 512,128 --batch 1,4,16 -o results.json
  tinyedge bench model.gguf --kv f16,q8_0 --cool 55C -r 10 -o nightly.sqlite
  tinyedge bench model.gguf --peer llama-bench=build/bin --peer ollama
"""
_MOST_RUNS = 100_000
_MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ, llama-cparams.h


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """A group for `option_groups`: what is measured, every one of them a list."""

    prompt: Annotated[str, typer.Option("-p", "--prompt", metavar="N[,N...]", help="Prompt tokens; 0 leaves it out.")] = "512"
    generate: Annotated[
        str, typer.Option("-n", "--generate", metavar="N[,N...]", help="Generated tokens; 0 leaves it out.")
    ] = "128"
    pg: Annotated[
        list[str] | None,
        typer.Option("--pg", "-pg", metavar="P,N", help="A prompt and tokens after it, timed as one; several."),
    ] = None
    depth: Annotated[str, typer.Option("-d", "--depth", metavar="N[,N...]", help="Tokens in the KV cache before.")] = "0"
    threads: Annotated[
        str | None,
        typer.Option("-t", "--threads", metavar="N[,N...]", help="CPU threads.", show_default="performance cores"),
    ] = None
    kv: Annotated[str, typer.Option("--kv", metavar="TYPE[,TYPE...]", help="KV cache: f16, q8_0, q4_0, ...")] = "f16"
    backend: Annotated[str, typer.Option("--backend", metavar="[auto|cpu|cuda|metal][,...]", help="Where to run.")] = "auto"
    batch: Annotated[
        str, typer.Option("--batch", metavar="N[,N...]", help="Texts side by side, as llama-batched-bench's -npl.")
    ] = "1"

    def sweep(self) -> Sweep:
        """What the lists ask for. A list that cannot be read, or nothing to measure, is wrong usage."""
        from tinyedge.fitting import KV_TYPES
        from tinyedge.machine.cpu import cpu_facts
        from tinyedge_bench.speed.sweep import Sweep

        sweep = Sweep(
            prompts=numbers(self.prompt, "--prompt", 0, MAX_TOKENS),
            generates=numbers(self.generate, "--generate", 0, MAX_TOKENS),
            pairs=pairs(self.pg or (), "--pg"),
            depths=numbers(self.depth, "--depth", 0, MAX_TOKENS),
            threads=(cpu_facts().threads,) if self.threads is None else numbers(self.threads, "--threads", 1, 512),
            kv_types=tuple(word.upper() for word in words(self.kv, "--kv", [name.lower() for name in KV_TYPES])),
            sequences=numbers(self.batch, "--batch", 1, _MOST_SEQUENCES),
        )
        if not sweep.tests:
            raise typer.BadParameter("-p 0 and -n 0 leave nothing to measure")
        lists = (sweep.depths, sweep.threads, sweep.kv_types, sweep.sequences, self.backends())
        check_count(lists, len(sweep.tests))
        return sweep

    def backends(self) -> tuple[str, ...]:
        return words(self.backend, "--backend")


@with_option_groups
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="GGUF files, checkpoints, pulled names, or `demo`.")],
    what: SweepOptions,
    runs: Annotated[int, typer.Option("-r", "--runs", min=1, max=_MOST_RUNS, help="Timed runs of each test.")] = 5,
    gpu_layers: Annotated[
        int | None, typer.Option("--gpu-layers", min=0, metavar="N", help="Layers on the GPU.", show_default="all that fit")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME",
            help="Measure beside: llama-bench=PATH, ollama, llama-cpp-python, mlx-lm=FOLDER; several.",
        ),
    ] = None,
    cool: Annotated[
        str | None,
        typer.Option("--cool", metavar="SECONDS|DEGREES", help="Before each run wait so long (20), or until so cool (55C)."),
    ] = None,
    no_ceilings: Annotated[bool, typer.Option("--no-ceilings", help="Leave out what the machine could do at most.")] = False,
    no_loads: Annotated[bool, typer.Option("--no-loads", help="Leave out load times and peak memory.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write there too, as its suffix says; .sqlite is added to."),
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option("--format", metavar="[md|json|jsonl|csv|sqlite]", help="The format.", show_default="md, or -o's suffix"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Measure tokens per second as llama-bench does, beside the limits of the machine and other programs.

    Random tokens, no tokenizing or sampling in the time, a warm-up. Each round runs every test once, in changing order.
    What cannot be run is listed, the rest is measured. Stopped by Ctrl-C after a full round, it writes the file of -o.
    """
    from tinyedge.native import log
    from tinyedge_bench.speed.measure import Measurement

    sweep = what.sweep()
    options = _options(what, runs, gpu_layers, peer, cool, ceilings=not no_ceilings, loads=not no_loads)
    chosen = wanted_format(format_name, output, json=json)
    if output is not None:
        check_output(output, chosen)
    log.set_verbose(verbose)
    measurement = Measurement(sweep=sweep, options=options)
    _find(models, measurement)
    try:
        with _progress() as listener:
            measurement.listener = listener
            measurement.run()
    except (KeyboardInterrupt, SystemExit):  # SIGTERM, as of a CI job that takes too long, is the latter
        if output is not None and measurement.full_rounds:
            write(measurement.document(), chosen, output)
        raise
    give(measurement.document(), chosen, output)


bench.__doc__ = f"{inspect.cleandoc(bench.__doc__ or '')}\n\n{_EXAMPLES}"


def _options(
    what: SweepOptions,
    runs: int,
    gpu_layers: int | None,
    peers: list[str] | None,
    cool: str | None,
    *,
    ceilings: bool,
    loads: bool,
) -> Options:
    from tinyedge.errors import PeerError
    from tinyedge_bench.peers import require_known
    from tinyedge_bench.speed.cooling import Cooling
    from tinyedge_bench.speed.measure import Options

    try:
        cooling = None if cool is None else Cooling.parse(cool)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--cool") from error
    for each in peers or ():
        try:
            require_known(each)
        except PeerError as error:
            raise typer.BadParameter(f"{printable(error.problem)}; {error.remedy}", param_hint="--peer") from error
    return Options(
        runs=runs,
        backends=what.backends(),
        gpu_layers=gpu_layers,
        peers=tuple(dict.fromkeys(peers or ())),
        cooling=cooling,
        ceilings=ceilings,
        loads=loads,
    )


def _find(models: list[str], measurement: Measurement) -> None:
    """Hands the GGUF files of `models` to the measurement, and why there is none for the others."""
    from tinyedge.cli.models import resolve_model
    from tinyedge.errors import TinyEdgeError

    for argument in dict.fromkeys(models):
        try:
            path = resolve_model(argument)
        except TinyEdgeError as error:
            measurement.miss(argument, error)
            continue
        measurement.models.append(path)
        name = Path(argument).name if Path(argument).exists() else argument
        if name not in ("", path.name, *measurement.typed.values()):
            measurement.typed[path] = name


@contextmanager
def _progress() -> Iterator[Listener]:
    """A bar of runs on stderr with what runs now, on a terminal only; sentences on stderr anywhere."""
    from tinyedge_bench.speed.measure import Listener

    if not on_terminal():
        yield Listener(note=_note)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=None)
        yield Listener(
            note=_note,
            running=lambda done, total, what: bar.update(task, completed=done, total=total, description=printable(what, 60)),
        )


def _note(text: str) -> None:
    status(printable(text, 400))
