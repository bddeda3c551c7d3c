"""MMLU (Hendrycks et al., arXiv 2009.03300): the published folder of CSV files, one of them, or JSON Lines from Hugging Face.

The text asked is that of lm-evaluation-harness (lm_eval/tasks/mmlu/default): a heading that names the subject, also when no
examples are shown, the answers listed, and their letters scored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tinyedge.errors import TaskFileError
from tinyedge_bench.quality.tasks.question import Question, choose_ending
from tinyedge_bench.quality.tasks.rows import Row, checked_text, csv_rows

_LETTERS = ("A", "B", "C", "D")
_COLUMNS = 2 + len(_LETTERS)
_SPLIT = re.compile(r"_(?:test|dev|val)\Z")


def fits(row: Row) -> bool:
    return row.has("question", "choices", "answer")


def question(row: Row) -> Question:
    """Of {"question", "subject", "choices": [4 texts], "answer": 0 to 3}."""
    answers, subject = row.texts("choices"), row.text("subject", blank=True) if row.has("subject") else ""
    if len(answers) != len(_LETTERS):
        raise row.error(f'"choices" has {len(answers)} answers, not {len(_LETTERS)}')
    return _asked(row.text("question"), answers, row.number("answer", len(_LETTERS), "choices"), row.where, subject)


def csv_questions(path: Path) -> Iterator[Question]:
    """Of one subject, named by its file: question, four answers, the letter of the right one. Raises TaskFileError, OSError."""
    subject = _SPLIT.sub("", path.stem)
    for where, fields in csv_rows(path, _COLUMNS):
        asked, *answers, letter = (
            checked_text(value, f"column {column}", where, blank=column > 1) for column, value in enumerate(fields, 1)
        )
        if letter.strip() not in _LETTERS:
            raise TaskFileError(f"{where}: the answer is {letter!r:.20}, not one of {', '.join(_LETTERS)}")
        yield _asked(asked, tuple(answers), _LETTERS.index(letter.strip()), where, subject)


def subject_files(folder: Path, split: str) -> list[Path]:
    """The CSV files of a split (`test`, `dev`), sorted by subject."""
    return sorted((folder / split).glob(f"*_{split}.csv"))


def heading(subject: str) -> str:
    about = f" about {subject.replace('_', ' ')}" if subject else ""
    return f"The following are multiple choice questions (with answers){about}.\n\n"


def _asked(question: str, answers: tuple[str, ...], right: int, where: str, subject: str) -> Question:
    listed = "\n".join(f"{letter}. {answer}" for letter, answer in zip(_LETTERS, answers, strict=True))
    return choose_ending(f"{question.strip()}\n{listed}\nAnswer:", _LETTERS, right=right, where=where, subject=subject)
