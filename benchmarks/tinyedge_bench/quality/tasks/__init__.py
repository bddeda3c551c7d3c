"""Multiple-choice tasks, from local files in the formats they are published in, asked as lm-evaluation-harness asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tinyedge.errors import TaskFileError
from tinyedge_bench.quality.tasks import arc, boolq, hellaswag, mmlu, openbookqa, piqa, winogrande
from tinyedge_bench.quality.tasks.question import ACCURACY, ACCURACY_NORM, Question, Task
from tinyedge_bench.quality.tasks.rows import Row, json_rows, text_lines

__all__ = ["TASKS", "Question", "Task", "read_task"]


@dataclass(frozen=True, slots=True)
class _Form:
    """What the JSON Lines of a task look like, how a question is made of one, and which metric is usual for it."""

    fits: Callable[[Row], bool]
    question: Callable[[Row], Question]
    metric: str


# The metrics are those of TinyLlama's table (its EVAL.md: acc_norm, where lm-evaluation-harness gives one).
_FORMS = {
    "hellaswag": _Form(hellaswag.fits, hellaswag.question, ACCURACY_NORM),
    "winogrande": _Form(winogrande.fits, winogrande.question, ACCURACY),
    "piqa": _Form(piqa.fits, piqa.question, ACCURACY_NORM),
    "boolq": _Form(boolq.fits, boolq.question, ACCURACY),
    "openbookqa": _Form(openbookqa.fits, openbookqa.question, ACCURACY_NORM),
    "arc_easy": _Form(arc.fits, arc.question, ACCURACY_NORM),
    "arc_challenge": _Form(arc.fits, arc.question, ACCURACY_NORM),
    "mmlu": _Form(mmlu.fits, mmlu.question, ACCURACY),
}
TASKS = tuple(_FORMS)

_REMEDY = f"name the task, NAME=FILE, with one of {', '.join(TASKS)}"


def read_task(argument: str) -> Task:
    """The task that `NAME=FILE`, `NAME=FILE,EXAMPLES` or `FILE` names; without a name it is told by the fields.

    EXAMPLES is a file of the same format, its training set, whose first questions are shown solved (`shots`). The folder of
    MMLU has its own, in dev/. A file `STEM-labels.lst` beside STEM.jsonl holds the answers where the lines do not.
    Raises TaskFileError with the line that is wrong.
    """
    name, equals, rest = argument.partition("=")
    if not equals or (name not in _FORMS and Path(argument).exists()):
        name, rest = "", argument
    elif name not in _FORMS:
        raise TaskFileError(f"there is no task {name!r:.40}", _REMEDY)
    first, comma, second = rest.rpartition(",")
    files = [rest] if not comma or Path(rest).exists() else [first, second]
    try:
        return _read(name, *map(Path, files))
    except OSError as error:
        raise TaskFileError(f"cannot read {error.filename or rest}: {error.strerror}", "check the path") from error


def _read(name: str, file: Path, examples: Path | None = None) -> Task:
    guessed, name = not name, name or _guessed(file)
    questions = _questions(name, file, "test")
    if not questions:
        raise TaskFileError(f"{file.name} holds no questions")
    examples = examples or (file if file.is_dir() else None)
    shown: dict[str, tuple[Question, ...]] = {}
    for example in _questions(name, examples, "dev") if examples else ():
        shown[example.subject] = (*shown.get(example.subject, ()), example)
    metric = _FORMS[name].metric
    return Task(
        name=name,
        file=file.name,
        metric=metric,
        normed=metric == ACCURACY_NORM,
        guessed=guessed and name == "arc_easy" and "easy" not in file.name.lower(),  # ARC's challenge has the same fields
        questions=questions,
        examples=shown,
        headings={each.subject: mmlu.heading(each.subject) for each in questions} if name == "mmlu" else {},
    )


def _questions(name: str, file: Path, split: str) -> tuple[Question, ...]:
    if name == "mmlu" and (file.is_dir() or file.suffix == ".csv"):
        files = mmlu.subject_files(file, split) if file.is_dir() else [file]
        return tuple(chain.from_iterable(map(mmlu.csv_questions, files)))
    if file.is_dir():
        raise TaskFileError(f"{file.name} is a folder", f"give the file of {name}'s questions; only MMLU is a folder")
    if name == "hellaswag" and not _first_line(file).lstrip().startswith("{"):
        return tuple(hellaswag.text_questions(file))
    return tuple(map(_FORMS[name].question, json_rows(file, _labels(file))))


def _guessed(file: Path) -> str:
    """The task whose fields the first line has, or whose form the folder or the file."""
    if file.is_dir() or file.suffix == ".csv":
        if file.is_dir() and not mmlu.subject_files(file, "test"):
            raise TaskFileError(f"{file.name} has no test/*_test.csv, which a folder of MMLU has", _REMEDY)
        return "mmlu"
    row = next(_rows_of(file), None)
    fitting = next((name for name, form in _FORMS.items() if row is not None and form.fits(row)), None)
    if fitting is None:
        raise TaskFileError(f"{file.name} is not in the format of any task we know", _REMEDY)
    if fitting == "arc_easy" and "challenge" in file.name.lower():
        return "arc_challenge"
    return fitting


def _rows_of(file: Path) -> Iterator[Row]:
    if not _first_line(file).lstrip().startswith("{"):
        raise TaskFileError(f"{file.name} is not in the format of any task we know", _REMEDY)
    return json_rows(file)


def _first_line(file: Path) -> str:
    return next((line for _, line in text_lines(file) if line.strip()), "")


def _labels(file: Path) -> list[str] | None:
    """The lines of the file of labels beside `file`, None where there is none."""
    beside = file.with_name(f"{file.stem}-labels.lst")
    return [line.strip() for _, line in text_lines(beside) if line.strip()] if beside.is_file() else None
