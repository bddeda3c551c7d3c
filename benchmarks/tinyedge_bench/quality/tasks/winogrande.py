"""WinoGrande (Sakaguchi et al., arXiv 1907.10641): dev.jsonl, with dev-labels.lst beside it or not, or Hugging Face's.

What follows the gap is scored after each of the two names in it: the contexts differ, not the endings
(lm_eval/tasks/winogrande/preprocess_winogrande.py).
"""

from __future__ import annotations

from tinyedge_bench.quality.tasks.question import Question
from tinyedge_bench.quality.tasks.rows import Row


def fits(row: Row) -> bool:
    return row.has("sentence", "option1", "option2")


def question(row: Row) -> Question:
    before, gap, after = row.text("sentence").partition("_")
    if not gap or not after.strip():
        raise row.error('"sentence" has no gap (_), or nothing behind it')
    contexts = tuple(before + row.text(name) for name in ("option1", "option2"))
    return Question(
        pairs=tuple((context, f" {after.strip()}") for context in contexts),
        answer=row.number("answer", 2, "options", first=1),
        lengths=tuple(len(context) for context in contexts),
        where=row.where,
    )
