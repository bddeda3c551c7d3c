"""The bar of `tinyedge eval`: which model, how far, and the perplexity so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from tinyedge.cli.output import counting_bar, on_terminal, printable

if TYPE_CHECKING:
    from tinyedge_bench.quality.evaluation import Step


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Callable[[Step], None]]:
    """A bar for each measurement on stderr, on a terminal only, gone when it is done. Yields what takes each step."""
    if quiet or not on_terminal():
        yield lambda _: None
        return
    with ExitStack() as shown:
        bar: Any = None
        measured: tuple[str, str] | None = None

        def progress(step: Step) -> None:
            nonlocal bar, measured
            if step.done >= step.total:
                shown.close()
                measured = None
                return
            if measured != (step.model, step.what):
                shown.close()  # of a measurement that failed
                bar = shown.enter_context(counting_bar(step.unit))
                bar.add_task("", total=step.total)
                measured = step.model, step.what
            bar.update(bar.task_ids[0], completed=step.done, description=_description(step))

        yield progress


def _description(step: Step) -> str:
    known = step.estimate is not None and step.estimate == step.estimate  # not NaN
    so_far = f", perplexity {step.estimate:.4f}" if known else ""
    return f"{printable(step.model, 40)}: {printable(step.what, 40)}{so_far}"
