"""`tinyedge eval`: how good models are, over a text, against a base and on multiple-choice tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.evaluate_options import QualityOptions, TaskOptions, given_text
from tinyedge.cli.option_groups import USAGE_ERROR, with_option_groups

if TYPE_CHECKING:
    from tinyedge_bench.quality.evaluation import Subject
    from tinyedge_bench.quality.models import OpenModel
    from tinyedge_bench.result_files import Document

_EXAMPLES = """\b
Examples:
  tinyedge eval demo --text story.txt
  tinyedge eval model-Q4_K_M.gguf --text wiki.test.raw --base model-f16.gguf
  tinyedge eval step-*.gguf --task hellaswag=hellaswag_val.jsonl --plot
  tinyedge eval a.gguf b.gguf --text wiki.test.raw --chunks 50 -o eval.json
"""
DEFAULT_TYPE = "F16"  # of a checkpoint, which is to be measured as it is


@with_option_groups
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="GGUF files, checkpoints, pulled names, or `demo`.", show_default=False),
    ],
    *,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Measure perplexity over this text; - is stdin.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Measure KL divergence from this model, best the F16 one.")
    ] = None,
    asked: TaskOptions,
    how: QualityOptions,
    type_name: Annotated[
        str, typer.Option("-t", "--type", metavar="TYPE", help="What a checkpoint is converted to before.")
    ] = DEFAULT_TYPE,
    gpu_layers: Annotated[
        int | None, typer.Option("--gpu-layers", min=0, help="Layers on the GPU.", show_default="all that fit")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the results to FILE.json, FILE.csv or FILE.md too."),
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw accuracies, or perplexity, over the models as given.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Measure how good models are: perplexity, KL divergence from a base, multiple-choice tasks. One table for all.

    Perplexity and KL divergence are llama-perplexity's, without a file of logits between.
    """
    from tinyedge.cli.evaluate_output import check_output
    from tinyedge.cli.evaluate_progress import progress_bar
    from tinyedge.native import log
    from tinyedge_bench.quality.evaluation import Evaluation, Wanted

    if text is None and not asked.task:
        raise USAGE_ERROR("give a text with --text, or questions with --task")
    if base is not None and text is None:
        raise typer.BadParameter("a base is compared over a text: give one with --text", param_hint="--base")
    if output is not None:
        check_output(output, "quality")
    log.set_verbose(verbose)
    wanted = Wanted(
        text=None if text is None else given_text(text),
        context=how.ctx,
        stride=how.stride,
        chunks=how.chunks,
        tasks=tuple(asked.task or ()),
        shots=asked.shots,
        limit=asked.limit,
        threads=how.threads,
        backend=how.backend,
        gpu_layers=gpu_layers,
    )
    evaluation = Evaluation(
        subjects=_subjects(models, type_name, quiet=json),
        wanted=wanted,
        base=None if base is None else _subjects([base], type_name, quiet=json)[0],
        opened=_tell_once(asked_context=how.ctx is not None, quiet=json),
    )
    try:
        with progress_bar(quiet=json) as evaluation.progress:
            evaluation.run()
    except KeyboardInterrupt:
        if evaluation.results:  # hours of work, it may be
            _show(evaluation.document(), output, as_json=json, plot=plot)
        raise
    _show(evaluation.document(), output, as_json=json, plot=plot)


evaluate.__doc__ = f"{inspect.cleandoc(evaluate.__doc__ or '')}\n\n{_EXAMPLES}"


def _show(document: Document, output: Path | None, *, as_json: bool, plot: bool) -> None:
    from tinyedge.cli.evaluate_lines import notes, table_lines
    from tinyedge.cli.evaluate_output import Form, show
    from tinyedge_bench.report.terminal import progress_plot

    show(document, Form(table=table_lines, plot=progress_plot, notes=notes), output, as_json=as_json, plot=plot)


def _subjects(arguments: Sequence[str], type_name: str, *, quiet: bool) -> list[Subject]:
    """The models that `arguments` name, each found (and a checkpoint converted) when its turn comes.

    They are called by the names of their files where these differ as the arguments do.
    """
    from tinyedge.cli.models import resolve_model
    from tinyedge_bench.quality.evaluation import Subject

    short = [PurePath(argument).name for argument in arguments]
    names = short if len(set(short)) == len(set(arguments)) else arguments
    return [
        Subject(name=name, find=partial(resolve_model, argument, quiet=quiet, type_name=type_name))
        for name, argument in zip(names, arguments, strict=True)
    ]


def _tell_once(*, asked_context: bool, quiet: bool) -> Callable[[OpenModel], None]:
    """Says how a model is run when that is not how the one before was."""
    said: list[str] = []

    def opened(model: OpenModel) -> None:
        from tinyedge.cli.load_options import tell

        reason = model.plan.reason
        if not asked_context:
            reason = reason.removesuffix(" (as asked)")  # by us, of the plan
        if not quiet and said[-1:] != [reason]:
            tell(replace(model.plan, reason=reason))
        said.append(reason)

    return opened
