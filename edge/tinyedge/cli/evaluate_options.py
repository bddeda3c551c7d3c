"""The options that `tinyedge eval` and `tinyedge eval sweep` share: the text and its windows, questions, where to run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.option_groups import within
from tinyedge.cli.output import MAX_TOKENS

if TYPE_CHECKING:
    from tinyedge_bench.quality.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """A group for `option_groups`: which questions are asked, and how."""

    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="[NAME=]FILE[,EXAMPLES]",
            help="Questions as published: hellaswag, winogrande, piqa, boolq, openbookqa, arc_easy, arc_challenge, mmlu (a "
            "folder); several.",
        ),
    ] = None
    shots: Annotated[int, typer.Option("--shots", min=0, max=100, help="Solved examples before each question.")] = 0
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", callback=within(1, MAX_TOKENS), help="Most questions per task, of MMLU per subject.", show_default="all"
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityOptions:
    """A group for `option_groups`: which windows of a text are read, and where."""

    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", callback=within(16, MAX_TOKENS), help="Tokens per window.", show_default="512, or the model's context"
        ),
    ] = None
    stride: Annotated[
        int | None,
        typer.Option("--stride", callback=within(1, MAX_TOKENS), help="Tokens from window to window.", show_default="--ctx"),
    ] = None
    chunks: Annotated[
        int | None, typer.Option("--chunks", callback=within(1, MAX_TOKENS), help="Most windows.", show_default="all")
    ] = None
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=512, help="CPU threads.", show_default="performance cores")
    ] = None
    backend: Annotated[str, typer.Option("--backend", metavar="[auto|cpu|cuda|metal]", help="Where to run.")] = "auto"


def given_text(path: Path) -> Text:
    """The text that --text names; standard input, read to its end, for `-`."""
    from tinyedge_bench.quality.text import Text

    if str(path) != "-":
        return Text(path=path)
    return Text(path=path, data=b"" if sys.stdin is None else sys.stdin.buffer.read())
