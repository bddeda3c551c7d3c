"""`tinyedge eval sweep`: which quantization type of a model is worth its size, measured."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.option_groups import within
from tinyedge.cli.output import MAX_TOKENS, format_bytes, on_terminal, print_json, print_line, printable, status

if TYPE_CHECKING:
    from tinyedge_bench.quality.text import Text
    from tinyedge_bench.result_files import Document

Row = Mapping[str, Any]

_EXAMPLES = """\b
Examples:
  tinyedge eval sweep demo --text story.txt --plot
  tinyedge eval sweep TinyLlama-1.1B-Chat-v1.0 --text wiki.test.raw --chunks 40 -o sweep.json
  tinyedge eval sweep model-f16.gguf --types Q4_K_M,IQ3_XXS,IQ2_M --imatrix imatrix.gguf --text wiki.test.raw
"""


def eval_sweep(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder or file, a GGUF file, or `demo`.")
    ],
    text: Annotated[
        Path, typer.Option("--text", metavar="FILE", help="Measure quality over this text; - is stdin.", show_default=False)
    ],
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
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", callback=within(16, MAX_TOKENS), help="Tokens per window.", show_default="512, or the model's context"
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, max=MAX_TOKENS, help="Move the window by so many tokens.", show_default="--ctx"),
    ] = None,
    chunks: Annotated[
        int | None, typer.Option("--chunks", callback=within(1, MAX_TOKENS), help="Most windows.", show_default="all")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="[NAME=]FILE", help="Ask these multiple-choice questions; several."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", callback=within(1, MAX_TOKENS), help="Most questions per task.", show_default="all")
    ] = None,
    prompt: Annotated[int, typer.Option("--prompt", min=0, max=100_000, help="Prompt tokens of the speed test.")] = 128,
    generate: Annotated[int, typer.Option("--generate", min=0, max=100_000, help="Generated tokens of it.")] = 64,
    runs: Annotated[int, typer.Option("--runs", min=0, max=10_000, help="Timed runs of each; 0 leaves speed out.")] = 3,
    keep_files: Annotated[
        Path | None, typer.Option("--keep-files", metavar="DIR", help="Make the files here and keep them.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=512, help="CPU threads.", show_default="performance cores")
    ] = None,
    backend: Annotated[str, typer.Option("--backend", metavar="[auto|cpu|cuda|metal]", help="Where to run.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.json", help="Write the JSON object to a file too.")
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

    if output is not None:
        check_output(output)
    log.set_verbose(verbose)
    defaults = DEFAULT_TYPES if imatrix is None else DEFAULT_TYPES_WITH_IMATRIX
    wishes = SweepWishes(
        checkpoint=_checkpoint(checkpoint),
        types=defaults if types is None else _listed(types),
        text=_text(text),
        base=base,
        context=ctx,
        stride=stride,
        chunks=chunks,
        tasks=tuple(task or ()),
        limit=limit,
        prompt=prompt,
        generate=generate,
        runs=runs if prompt or generate else 0,
        keep=keep_files,
        threads=threads,
        backend=backend,
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
    names = tuple(filter(None, (name.strip() for name in types.split(","))))
    if not names:
        raise typer.BadParameter("name at least one type, such as Q4_K_M", param_hint="--types")
    return names


def _text(path: Path) -> Text:
    from tinyedge_bench.quality.text import Text

    if str(path) != "-":
        return Text(path=path)
    return Text(path=path, data=b"" if sys.stdin is None else sys.stdin.buffer.read())


def _show(document: Document, output: Path | None, *, as_json: bool, plot: bool) -> None:
    """Writes the results to `output`, and shows them: as JSON, or as a table with a plot below it."""
    if output is not None:
        _write(document, output)
    if as_json:
        print_json(document.as_json())
        return
    for line in table_lines(document):
        print_line(line)
    if plot:
        from tinyedge_bench.report.terminal import size_quality_plot

        print_line("\n" + size_quality_plot(document))
    for line in notes(document):
        status(printable(line, 600))


def _write(document: Document, path: Path) -> None:
    from json import dumps

    from tinyedge_quantize.output_file import new_file

    with new_file(path) as file:
        file.write_at(f"{dumps(document.as_json(), indent=2, allow_nan=False)}\n".encode(), 0)


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


def table_lines(document: Document) -> list[str]:
    """A Markdown table: the base, then a row per type in the order asked for, with the columns that any has a figure for."""
    rows: list[Row] = [document.more["base"], *document.results]
    columns = {
        "type": [f"{printable(str(row['type']), 40)}{' (base)' * (not place)}" for place, row in enumerate(rows)],
        "size": [format_bytes(row["file_bytes"]) for row in rows],
        "bits": [f"{row['bits_per_weight']:.2f}" for row in rows],
        "perplexity": [_estimate(row.get("perplexity"), "value", "error", 4) for row in rows],
        "mean KLD": [_estimate(row.get("divergence"), "mean_kl", "mean_kl_error", 6) for row in rows],
        "same top": [_estimate(row.get("divergence"), "same_top", "same_top_error", 2, share=True) for row in rows],
        "prompt t/s": [_speed(row.get("prompt_tokens_per_s")) for row in rows],
        "gen t/s": [_speed(row.get("generated_tokens_per_s")) for row in rows],
        **{name: [_accuracy(row, name) for row in rows] for name in _task_names(rows)},
        "Pareto": ["yes" if row.get("pareto") else "" for row in rows],
    }
    shown = [(head, cells) for head, cells in columns.items() if any(cells)]
    widths = [max(map(len, (head, *cells))) for head, cells in shown]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    table = [[head for head, _ in shown], rule, *(list(row) for row in zip(*(cells for _, cells in shown), strict=True))]
    return [f"| {' | '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])} |" for row in table]


def _estimate(found: Row | None, value: str, error: str, digits: int, *, share: bool = False) -> str:
    """`84.6701 ± 2.3608`, shares in percent; empty where there is no value."""
    if not found or found.get(value) is None:
        return ""
    scale, unit = (100, "%") if share else (1, "")
    spread = "" if found.get(error) is None else f" ± {scale * found[error]:.{digits}f}"
    return f"{scale * found[value]:.{digits}f}{spread}{unit}"


def _speed(tokens_per_s: float | None) -> str:
    return "" if tokens_per_s is None else f"{tokens_per_s:.1f}"


def _task_names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(task["task"] for row in rows for task in row.get("tasks", ())))


def _accuracy(row: Row, name: str) -> str:
    """The figure that is usual for the task."""
    task = next((task for task in row.get("tasks", ()) if task["task"] == name), None)
    return "" if task is None else _estimate(task, task["metric"], f"{task['metric']}_error", 2, share=True)


def notes(document: Document) -> Iterator[str]:
    """What the figures are, and what is missing: lines for stderr."""
    more, perplexity = document.more, document.results[0]["perplexity"]
    yield f"{more['base']['note']}; {perplexity['tokens']} tokens of {perplexity['text']} scored"
    test = more["speed_test"]
    if test["runs"]:
        parts = [f"{test[key]} {word}" for key, word in (("prompt", "prompt"), ("generate", "generated")) if test[key]]
        runs = f"{test['runs']} run{'s' * (test['runs'] != 1)}"
        yield f"speed: the median of {runs} of {' and '.join(parts)} tokens, {more['speed_order']}"
    for each in document.missing:
        yield f"missing: {each.what} ({each.reason})"
