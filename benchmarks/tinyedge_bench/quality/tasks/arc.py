"""ARC easy and challenge (Clark et al., arXiv 1803.05457) as AI2 publishes them, JSON Lines, or their copy on Hugging Face.

The text asked is that of lm-evaluation-harness (lm_eval/tasks/arc/arc_easy.yaml).
"""

from __future__ import annotations

from tinyedge_bench.quality.tasks.question import Question, choose_ending
from tinyedge_bench.quality.tasks.rows import Row


def fits(row: Row) -> bool:
    return row.has("question", "answerKey") and (row.has("choices") or isinstance(row.fields["question"], dict))


def question(row: Row) -> Question:
    if row.has("choices"):
        stem, answers, right = row.text("question"), *exported_choices(row)
    else:
        stem, answers, right = published(row)
    return choose_ending(f"Question: {stem}\nAnswer:", answers, right=right, where=row.where)


def published(row: Row) -> tuple[str, tuple[str, ...], int]:
    """(stem, answers, which is right) of AI2's {"question": {"stem", "choices": [{"text", "label"}, ...]}, "answerKey"}."""
    asked = row.part("question")
    choices = asked.parts("choices")
    labels = tuple(choice.text("label") for choice in choices)
    return asked.text("stem"), tuple(choice.text("text", blank=True) for choice in choices), _right(row, labels)


def exported_choices(row: Row) -> tuple[tuple[str, ...], int]:
    """(answers, which is right) of Hugging Face's {"choices": {"text": [...], "label": [...]}, "answerKey"}."""
    choices = row.part("choices")
    answers, labels = choices.texts("text"), choices.texts("label")
    if len(answers) != len(labels):
        raise row.error(f'"choices" has {len(answers)} texts and {len(labels)} labels')
    return answers, _right(row, labels)


def _right(row: Row, labels: tuple[str, ...]) -> int:
    key = row.text("answerKey").strip()
    if key not in labels:
        raise row.error(f'"answerKey" is {key!r:.20}, of the labels {", ".join(labels)!r:.80}')
    return labels.index(key)
