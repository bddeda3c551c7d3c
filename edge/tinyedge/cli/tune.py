"""`tinyedge tune`: measures this machine's best settings for a model and keeps them for `run` and `chat`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.output import format_seconds, on_terminal, print_json, print_line, status

if TYPE_CHECKING:
    from tinyedge.backends import LoadPlan
    from tinyedge.tuning import Row, Tuning

_MOST_S = 600.0


def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a checkpoint, a pulled name, or `demo`.")],
    seconds: Annotated[float, typer.Option("--seconds", min=5, max=_MOST_S, help="How long it may take.")] = 110.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and show, keep nothing.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Measure nothing; forget what was kept for this model.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, with every row.")] = False,
) -> None:
    """Measure thread counts, affinity, batch sizes and more on this machine; keep the winner for models of this shape.

    `run` and `chat` use what was kept; what you ask for there comes first. Example: tinyedge tune model.gguf
    """
    from math import isnan
    from time import monotonic, perf_counter

    from tinyedge import tuned
    from tinyedge.backends import Request, choose, this_machine
    from tinyedge.cli.models import resolve_model
    from tinyedge.errors import OutputError
    from tinyedge.machine.cpu import cpu_facts
    from tinyedge.model_probe import runnable_facts
    from tinyedge.tuning import tune as find
    from tinyedge.tuning import usual_stages
    from tinyedge.tuning_runs import TuningRuns, can_lock

    if isnan(seconds):
        raise typer.BadParameter("nan is no time", param_hint="--seconds")
    path = resolve_model(model)
    facts = runnable_facts(path)
    if forget:
        known = tuned.forget(facts)
        status("forgotten: the defaults are used for models of this shape again" if known else "there was nothing to forget")
        return
    if not dry_run:
        tuned.check_writable()  # better now than when all is measured
    plan = choose(facts, Request(), this_machine())
    if plan.backend != "cpu":
        plan = choose(facts, Request(backend="cpu"), this_machine())
    status(plan.reason)
    cpu = cpu_facts()
    begun = perf_counter()
    with TuningRuns(path, facts, plan) as runs, _progress() as progress:
        prompt_tokens = runs.prepare()
        stages = usual_stages(
            logical=cpu.logical,
            physical=cpu.physical,
            performance=cpu.performance,
            performance_cpus=cpu.performance_cpus,
            allowed=cpu.allowed,
            prompt_tokens=prompt_tokens,
            can_lock=can_lock(facts.weight_bytes),
        )
        found = find(runs.default, stages, runs.measure, monotonic, seconds - (perf_counter() - begun), progress)
    took = perf_counter() - begun
    where, failed = None, None
    try:
        if found.faster and not dry_run:
            where = tuned.keep(facts, found.winner, found.gains)
        elif not dry_run:
            tuned.forget(facts)
    except OutputError as error:  # what was measured is worth showing all the same
        failed = error
    if json:
        print_json(_object(found, plan, str(where) if where else None, took))
    else:
        for line in _table(found.rows):
            print_line(line)
    if failed is not None:
        raise failed
    if json:
        return
    for line in _verdict(found, took, str(where) if where else None, dry_run=dry_run):
        status(line)


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None] | None]:
    if not on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tuning", total=1.0)
        yield lambda title, share: bar.update(task, description=title, completed=share)


def _table(rows: tuple[Row, ...]) -> list[str]:
    """A Markdown table of what was measured."""
    head = ("what", "setting", "test", "t/s", "ratio", "runs", "")
    cells = [
        (
            row.stage,
            row.label,
            row.test,
            "-" if row.tokens_per_s is None else f"{row.tokens_per_s:.2f}",
            "-" if row.ratio is None else f"{row.ratio:.3f}",
            str(row.samples),
            "taken" if row.taken else row.note,
        )
        for row in rows
    ]
    widths = [max(len(row[column]) for row in (head, *cells)) for column in range(len(head))]
    rights = (3, 4, 5)

    def line(row: tuple[str, ...]) -> str:
        parts = [c.rjust(w) if i in rights else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(parts)} |"

    rule = "|".join("-" * (w + 1) + ":" if i in rights else "-" * (w + 2) for i, w in enumerate(widths))
    return [line(head), f"|{rule}|", *map(line, cells)]


def _verdict(found: Tuning, took: float, where: str | None, *, dry_run: bool) -> list[str]:
    from tinyedge.tuned import describe
    from tinyedge.tuning import GENERATION, PROMPT

    lines = [] if found.complete else ["not everything was tried: --seconds gives it more time"]
    if not found.faster:
        default = describe(found.default)
        return [*lines, f"the default is the best, nothing is faster beyond the noise: {default} ({format_seconds(took)})"]
    gains = f"generation x{found.gains[GENERATION]:.2f}, prompt x{found.gains[PROMPT]:.2f} beside the default"
    lines.append(f"the winner: {describe(found.winner)}: {gains} ({format_seconds(took)})")
    if dry_run:
        lines.append("kept nothing, as asked")
    else:
        lines.append(f"kept in {where}; `run` and `chat` use it" if where else "not kept: there is no home folder")
    return lines


def _object(found: Tuning, plan: LoadPlan, where: str | None, took: float) -> dict[str, Any]:
    return {
        "backend": plan.backend,
        "default": asdict(found.default),
        "winner": asdict(found.winner),
        "faster": found.faster,
        "gains": found.gains,
        "complete": found.complete,
        "seconds": took,
        "kept_in": where,
        "rows": [asdict(row) for row in found.rows],
    }
