"""OpenBookQA (Mihaylov et al., arXiv 1809.02789), Main/test.jsonl as AI2 publishes it, or its copy on Hugging Face.

The stem alone is the context, as in lm-evaluation-harness (lm_eval/tasks/openbookqa/openbookqa.yaml).
"""

from __future__ import annotations

import re

from tinyedge_bench.quality.tasks import arc
from tinyedge_bench.quality.tasks.question import Question, choose_ending
from tinyedge_bench.quality.tasks.rows import Row

_ID = re.compile(r"\d+-\d+")  # 7-980; those of ARC, of the same form otherwise, begin with the name of an examination


def fits(row: Row) -> bool:
    return row.has("question_stem", "choices") or (
        arc.fits(row) and not row.has("choices") and _ID.fullmatch(str(row.fields.get("id"))) is not None
    )


def question(row: Row) -> Question:
    if row.has("question_stem"):
        stem, answers, right = row.text("question_stem"), *arc.exported_choices(row)
    else:
        stem, answers, right = arc.published(row)
    return choose_ending(stem, answers, right=right, where=row.where)
