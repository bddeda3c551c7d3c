"""BoolQ (Clark et al., arXiv 1905.10044): dev.jsonl as Google publishes it, SuperGLUE's val.jsonl, or copies on Hugging Face.

lm-evaluation-harness asks SuperGLUE's passages (lm_eval/tasks/super_glue/boolq/default.yaml), which begin with the title of
their article and ` -- `; Google's file has the title in a field of its own.
"""

from __future__ import annotations

from tinyedge_bench.quality.tasks.question import Question, choose_ending
from tinyedge_bench.quality.tasks.rows import Row

_ANSWERS = ("no", "yes")


def fits(row: Row) -> bool:
    return row.has("passage", "question")


def question(row: Row) -> Question:
    title = f"{row.text('title')} -- " if row.has("title") else ""
    context = f"{title}{row.text('passage')}\nQuestion: {row.text('question')}?\nAnswer:"
    return choose_ending(context, _ANSWERS, right=_right(row), where=row.where)


def _right(row: Row) -> int:
    name = "label" if row.has("label") else "answer"
    value = row.fields.get(name)
    return int(value) if isinstance(value, bool) else row.number(name, len(_ANSWERS), "answers")
