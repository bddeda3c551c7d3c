"""A question with answers to choose from, in the words that a model is asked it, and the set of them that is a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BETWEEN = "\n\n"  # examples and the question, lm-evaluation-harness's fewshot_delimiter

ACCURACY, ACCURACY_NORM = "accuracy", "accuracy_norm"  # the likeliest answer; the likeliest for its length


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Pairs of (context, continuation), one per answer, of which number `answer` is right. `where` is its file and line.

    The continuation's likelihood decides. `lengths` are the answers' characters, by which lm-evaluation-harness normalises (its
    acc_norm); `subject` is the part of the task it belongs to, empty where there is one.
    """

    pairs: tuple[tuple[str, str], ...]
    answer: int
    lengths: tuple[int, ...]
    where: str
    subject: str = ""

    @property
    def solved(self) -> str:
        """As it is shown among examples."""
        return "".join(self.pairs[self.answer])


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The questions of one file or folder. `metric` is the one its results are usually given in.

    `normed` says whether the other, accuracy by length, is given for it at all; `guessed` that only its fields, which another
    task has too, gave it its name. `headings` precede everything, by subject; `examples` are solved ones to show first, by
    subject.
    """

    name: str
    file: str
    metric: str
    normed: bool
    guessed: bool = False
    questions: tuple[Question, ...]
    examples: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    headings: Mapping[str, str] = field(default_factory=dict)

    def opening(self, subject: str, shots: int) -> str:
        """What stands before each question of `subject`: the heading and the first `shots` examples."""
        shown = self.examples.get(subject, ())[:shots]
        return self.headings.get(subject, "") + "".join(example.solved + BETWEEN for example in shown)


def choose_ending(context: str, answers: tuple[str, ...], *, right: int, where: str, subject: str = "") -> Question:
    """One context, each answer after a space (lm-evaluation-harness's target_delimiter)."""
    return Question(
        pairs=tuple((context, f" {answer}") for answer in answers),
        answer=right,
        lengths=tuple(len(answer) for answer in answers),
        where=where,
        subject=subject,
    )
