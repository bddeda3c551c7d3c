"""PIQA (Bisk et al., arXiv 1911.11641): valid.jsonl with valid-labels.lst beside it, or its copy on Hugging Face.

The text asked is that of lm-evaluation-harness (lm_eval/tasks/piqa/piqa.yaml).
"""

from __future__ import annotations

from tinyedge_bench.quality.tasks.question import Question, choose_ending
from tinyedge_bench.quality.tasks.rows import Row


def fits(row: Row) -> bool:
    return row.has("goal", "sol1", "sol2")


def question(row: Row) -> Question:
    answers = (row.text("sol1", blank=True), row.text("sol2", blank=True))
    right = row.number("label", 2, "solutions")
    return choose_ending(f"Question: {row.text('goal')}\nAnswer:", answers, right=right, where=row.where)
