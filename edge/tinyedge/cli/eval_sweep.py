"""`tinyedge eval sweep`: which quantization type of a model is worth its size, measured."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.evaluate_options import QualityOptions, TaskOptions, given_text
from tinyedge.cli.option_groups import with_option_groups
from tinyedge.cli.output import on_terminal, printable

if TYPE_CHECKING:
    from tinyedge_bench.result_files import Document

_EXAMPLES = """\b
Examples:
  tinyedge eval sweep demo --text story.txt --plot
  tinyedge eval sweep TinyLlama-1.1B --text wiki.test.raw --chunks 40
  tinyedge eval sweep f16.gguf --types Q8_0,Q4_K_M --text wiki.txt -o out.json
  tinyedge eval sweep f16.gguf --text wiki.test.raw --imatrix imatrix.gguf
"""


@with_option_groups
def eval_sweep(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder or file, a GGUF file, or `demo`.")
    ],
    text: Annotated[
        Path, typer.Option("--text", metavar="FILE", help="Measure quality over this text; - is stdin.", show_default=False)
    ],
    *,
    types: Annotated[
        str | None,
        typer.Option(
            "--types",
            metavar="TYPE[,TYPE...]",
            help="What to make.",
            show_default="Q8_0 down to Q2_K; with --imatrix also IQ2_M",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help="Importance matrix, from `tinyedge imatrix`.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="[F16|BF16|F32|FILE]", help="What to compare with.", show_default="the weights unchanged"
        ),
    ] = None,
    asked: TaskOptions,
    how: QualityOptions,
    prompt: Annotated[int, typer.Option("-p", "--prompt", min=0, max=100_000, help="Prompt tokens of the speed test.")] = 128,
    generate: Annotated[int, typer.Option("-n", "--generate", min=0, max=100_000, help="Generated tokens of it.")] = 64,
    runs: Annotated[int, typer.Option("-r", "--runs", min=0, max=10_000, help="Timed runs of each; 0 leaves speed out.")] = 3,
    keep_files: Annotated[
        Path | None, typer.Option("--keep-files", metavar="DIR", help="Make the files here and keep them.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the results to FILE.json, FILE.csv or FILE.md too."),
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw size against KL divergence.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Quantize a model to several types and measure each: size, perplexity, KL divergence from the original, speed.

    A type that no other beats in both size and divergence is on the Pareto front. The files are made in a folder that vanishes
    in the end: under TMPDIR, or here.
    """
    from tinyedge.cli.evaluate_output import check_output
    from tinyedge.cli.quantize_options import QuantizeOptions
    from tinyedge.native import log
    from tinyedge_bench.quality.sweep import DEFAULT_TYPES, DEFAULT_TYPES_WITH_IMATRIX, SweepInterrupted, SweepWishes, sweep

    defaults = DEFAULT_TYPES if imatrix is None else DEFAULT_TYPES_WITH_IMATRIX
    names = defaults if types is None else _listed(types)
    if output is not None:
        check_output(output, "sweep")
    log.set_verbose(verbose)
    wishes = SweepWishes(
        checkpoint=_checkpoint(checkpoint),
        types=names,
        text=given_text(text),
        base=base,
        context=how.ctx,
        stride=how.stride,
        chunks=how.chunks,
        tasks=tuple(asked.task or ()),
        shots=asked.shots,
        limit=asked.limit,
        prompt=prompt,
        generate=generate,
        runs=runs if prompt or generate else 0,
        keep=keep_files,
        threads=how.threads,
        backend=how.backend,
        conversion=QuantizeOptions(imatrix=imatrix).wishes(),
    )
    try:
        with _progress(quiet=json) as tell:
            document = sweep(wishes, tell)
    except SweepInterrupted as interrupted:  # hours of work, it may be
        _show(interrupted.document, output, as_json=json, plot=plot)
        raise
    _show(document, output, as_json=json, plot=plot)


eval_sweep.__doc__ = f"{inspect.cleandoc(eval_sweep.__doc__ or '')}\n\n{_EXAMPLES}"


def _checkpoint(argument: str) -> Path:
    from tinyedge.cli.models import demo_checkpoint, named_path

    return named_path(argument, "CHECKPOINT") or demo_checkpoint()


def _listed(types: str) -> tuple[str, ...]:
    """The names, each of a type that there is. Raises UnknownTypeError."""
    from tinyedge_quantize.recipes import find_recipe

    names = tuple(filter(None, (name.strip() for name in types.split(","))))
    if not names:
        raise typer.BadParameter("name at least one type, such as Q4_K_M", param_hint="--types")
    return tuple(find_recipe(name).name for name in names)


def _show(document: Document, output: Path | None, *, as_json: bool, plot: bool) -> None:
    from tinyedge.cli.eval_sweep_lines import notes, table_lines
    from tinyedge.cli.evaluate_output import Form, show
    from tinyedge_bench.report.terminal import size_quality_plot

    show(document, Form(table=table_lines, plot=size_quality_plot, notes=notes), output, as_json=as_json, plot=plot)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, float], None] | None]:
    """A bar of the whole sweep on stderr, on a terminal only, with what is going on beside it."""
    if quiet or not on_terminal():
        yield None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeRemainingColumn(compact=True),
        rich.TextColumn("{task.description}", markup=False),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, completed=share, description=printable(what, 60))
