"""`tinyedge eval`: how good models are, over a text, against a base and on multiple-choice tasks."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.option_groups import within
from tinyedge.cli.output import MAX_TOKENS

if TYPE_CHECKING:
    from tinyedge_bench.quality.evaluation import Subject
    from tinyedge_bench.quality.models import OpenModel
    from tinyedge_bench.quality.text import Text

_EXAMPLES = """\b
Examples:
  tinyedge eval demo --text story.txt
  tinyedge eval model-Q4_K_M.gguf --text wiki.test.raw --base model-f16.gguf
  tinyedge eval step-*.gguf --task hellaswag=hellaswag_val.jsonl --limit 400 --plot
  tinyedge eval a.gguf b.gguf --text wiki.test.raw --chunks 50 -o quality.json
"""
DEFAULT_TYPE = "F16"  # of a checkpoint, which is to be measured as it is


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="GGUF files, checkpoints, pulled names, or `demo`.", show_default=False),
    ],
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Measure perplexity over this text; - is stdin.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Measure KL divergence from this model, best the F16 one.")
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", callback=within(16, MAX_TOKENS), help="Tokens per window.", show_default="512, or the model's context"
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", callback=within(1, MAX_TOKENS), help="Tokens from window to window.", show_default="--ctx"),
    ] = None,
    chunks: Annotated[
        int | None, typer.Option("--chunks", callback=within(1, MAX_TOKENS), help="Most windows.", show_default="all")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="[NAME=]FILE", help="Ask these multiple-choice questions; several."),
    ] = None,
    shots: Annotated[int, typer.Option("--shots", min=0, max=100, help="Solved examples before each question.")] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", callback=within(1, MAX_TOKENS), help="Most questions per task.", show_default="all")
    ] = None,
    type_name: Annotated[
        str, typer.Option("-t", "--type", metavar="TYPE", help="What a checkpoint is converted to before.")
    ] = DEFAULT_TYPE,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=512, help="CPU threads.", show_default="performance cores")
    ] = None,
    backend: Annotated[str, typer.Option("--backend", metavar="[auto|cpu|cuda|metal]", help="Where to run.")] = "auto",
    gpu_layers: Annotated[
        int | None, typer.Option("--gpu-layers", min=0, help="Layers on the GPU.", show_default="all that fit")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.json", help="Write the JSON object to a file too.")
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw accuracies, or perplexity, over the models as given.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Measure how good models are: perplexity, KL divergence from a base, multiple-choice tasks. One table for all.

    Perplexity and KL divergence are llama-perplexity's, without a file of logits between.
    """
    from tinyedge.cli.evaluate_output import check_output, show
    from tinyedge.cli.evaluate_progress import progress_bar
    from tinyedge.native import log
    from tinyedge_bench.quality.evaluation import Evaluation, Wanted

    if text is None and not task:
        raise typer.BadParameter("give a text with --text, or questions with --task", param_hint="--text")
    if base is not None and text is None:
        raise typer.BadParameter("a base is compared over a text: give one with --text", param_hint="--base")
    if output is not None:
        check_output(output)
    log.set_verbose(verbose)
    wanted = Wanted(
        text=None if text is None else _text(text),
        context=ctx,
        stride=stride,
        chunks=chunks,
        tasks=tuple(task or ()),
        shots=shots,
        limit=limit,
        threads=threads,
        backend=backend,
        gpu_layers=gpu_layers,
    )
    evaluation = Evaluation(
        subjects=[_subject(name, type_name, quiet=json) for name in models],
        wanted=wanted,
        base=None if base is None else _subject(base, type_name, quiet=json),
        opened=_tell_once(quiet=json),
    )
    try:
        with progress_bar(quiet=json) as evaluation.progress:
            evaluation.run()
    except KeyboardInterrupt:
        if evaluation.results:  # hours of work, it may be
            show(evaluation.document(), output, as_json=json, plot=plot)
        raise
    show(evaluation.document(), output, as_json=json, plot=plot)


evaluate.__doc__ = f"{inspect.cleandoc(evaluate.__doc__ or '')}\n\n{_EXAMPLES}"


def _text(path: Path) -> Text:
    from tinyedge_bench.quality.text import Text

    if str(path) != "-":
        return Text(path=path)
    return Text(path=path, data=b"" if sys.stdin is None else sys.stdin.buffer.read())


def _subject(argument: str, type_name: str, *, quiet: bool) -> Subject:
    """The model that `argument` names, found (and a checkpoint converted) when its turn comes."""
    from tinyedge.cli.models import resolve_model
    from tinyedge_bench.quality.evaluation import Subject

    return Subject(name=argument, find=lambda: resolve_model(argument, quiet=quiet, type_name=type_name))


def _tell_once(*, quiet: bool) -> Callable[[OpenModel], None]:
    """Says how a model is run when that is not how the one before was."""
    said: list[str] = []

    def opened(model: OpenModel) -> None:
        from tinyedge.cli.load_options import tell

        if not quiet and said[-1:] != [model.plan.reason]:
            tell(model.plan)
        said.append(model.plan.reason)

    return opened
