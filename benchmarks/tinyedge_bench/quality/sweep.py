"""Several quantization types of one checkpoint, each made, measured against the unquantized model, and freed.

The document of kind "sweep" has a row per type: its size, its quality over a text, its speed, and whether it is on the Pareto
front of size and KL divergence. `more` says what the base is and how it does itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge.errors import EvaluationError, TinyEdgeError
from tinyedge_bench.quality.sweep_files import Base, choose_base, folder_for, plan_files
from tinyedge_bench.quality.text import Text
from tinyedge_bench.result_files import Document, Missing, measured_here
from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.convert import Wishes, open_source

if TYPE_CHECKING:
    from tinyedge_bench.quality.sweep_steps import Steps
    from tinyedge_bench.quality.tasks import Task

# From nearly lossless to a third of F16; of the two that come with an importance matrix IQ3_XXS cannot be made without one.
DEFAULT_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_M", "Q2_K")
DEFAULT_TYPES_WITH_IMATRIX = (*DEFAULT_TYPES, "IQ3_XXS", "IQ2_M")

_INTERLEAVED = "interleaved: each round runs every type once"
_ONE_BY_ONE = "one type after the other, because the disk has no room for all files at once: a machine that warms up counts"

# Told what is going on and what share of the sweep is done, 0 to 1.
Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepWishes:
    """What to measure of which checkpoint; `base` is a type, a file or None for the exact one, `keep` a folder for the files.

    `context`, `stride` and `chunks` cut the text as for `tinyedge eval`. `prompt` and `generate` tokens are timed `runs` times;
    0 runs leave speed out. `threads` None leaves them to the plan.
    """

    checkpoint: Path
    types: tuple[str, ...]
    text: Text
    base: str | None = None
    context: int | None = None
    stride: int | None = None
    chunks: int | None = None
    tasks: tuple[str, ...] = ()
    shots: int = 0
    limit: int | None = None
    prompt: int = 128
    generate: int = 64
    runs: int = 3
    keep: Path | None = None
    threads: int | None = None
    backend: str = "auto"
    conversion: Wishes = field(default_factory=Wishes)


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a sweep; `document` is of the types that were measured."""

    def __init__(self, document: Document) -> None:
        super().__init__()
        self.document = document


def pareto(points: Sequence[tuple[float, float]]) -> tuple[bool, ...]:
    """For each (size, distance): whether no other point is at most as large and at most as far, and less in one of the two."""
    return tuple(
        not any(size <= own and far <= away and (size, far) != (own, away) for size, far in points) for own, away in points
    )


def sweep(wishes: SweepWishes, tell: Tell | None = None) -> Document:
    """The document of the whole sweep. What one type cannot have goes into `missing`; the others are measured.

    Raises a TinyEdgeError for what concerns all types, the checkpoint, the base, the text or the disk, EvaluationError when not
    one type could be measured, and when it is interrupted SweepInterrupted with the types measured until then.
    """
    from tinyedge_bench.quality.sweep_steps import Steps

    wishes.text.check()
    plain = replace(wishes.conversion, controls=Controls())
    with open_source(wishes.checkpoint, wishes.conversion) as source:
        files, missing = plan_files(source, wishes.types, wishes.conversion)
        base = choose_base(wishes.checkpoint, source, wishes.base, plain)
    files = [file for file in files if file.type != base.type]  # it would be compared with itself
    if not files:
        raise _nothing_measured(missing)
    tasks = _read_tasks(wishes, missing)
    with folder_for(wishes.keep, [file.bytes for file in files], base.bytes) as (folder, all_at_once):
        told = tell or (lambda _text, _share: None)
        steps = Steps(wishes, tasks, base, folder, all_at_once=all_at_once, missing=missing, tell=told)
        order = _INTERLEAVED if all_at_once else _ONE_BY_ONE
        try:
            steps.run(files, plain)
        except KeyboardInterrupt:
            if not steps.rows:
                raise
            missing.append(Missing(what="the rest", reason="the sweep was interrupted"))
            raise SweepInterrupted(_document(wishes, steps, base, order, missing)) from None
    if not steps.rows:
        raise _nothing_measured(missing)
    return _document(wishes, steps, base, order, missing)


def _document(wishes: SweepWishes, steps: Steps, base: Base, order: str, missing: Sequence[Missing]) -> Document:
    imatrix = wishes.conversion.controls.imatrix
    more = {
        "checkpoint": wishes.checkpoint.resolve().name,
        "text": wishes.text.name,
        "base": {**steps.base_row, "note": base.why},
        "speed_order": order if wishes.runs else None,
        "speed_test": {"prompt": wishes.prompt, "generate": wishes.generate, "runs": wishes.runs},
        "imatrix": imatrix.path.name if imatrix else None,
    }
    return measured_here("sweep", _with_front(steps.rows), missing, more)


def _with_front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with `pareto`."""
    front = pareto([(row["file_bytes"], row["divergence"]["mean_kl"]) for row in rows])
    return [row | {"pareto": on_it} for row, on_it in zip(rows, front, strict=True)]


def _read_tasks(wishes: SweepWishes, missing: list[Missing]) -> list[Task]:
    """The tasks; one whose file cannot be used, or has too few examples, goes into `missing`."""
    from tinyedge_bench.quality.choices import check_examples
    from tinyedge_bench.quality.tasks import read_task

    tasks = []
    for argument in wishes.tasks:
        try:
            task = read_task(argument)
            check_examples(task, wishes.shots, wishes.limit)
            tasks.append(task)
        except (TinyEdgeError, OSError) as error:
            missing.append(Missing(what=f"task {argument}", reason=str(error)))
    return tasks


def _nothing_measured(missing: Sequence[Missing]) -> EvaluationError:
    reasons = f" ({missing[0].what}: {missing[0].reason})" if missing else ""
    return EvaluationError(f"not one type could be measured{reasons}", "give other --types, or another model")
