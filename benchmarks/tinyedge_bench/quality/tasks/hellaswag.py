"""HellaSwag (Zellers et al., arXiv 1905.07830): hellaswag_val.jsonl, its copy on Hugging Face, llama.cpp's text of six lines.

The text asked is that of lm-evaluation-harness (lm_eval/tasks/hellaswag/utils.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tinyedge.errors import TaskFileError
from tinyedge_bench.quality.tasks.question import Question, choose_ending
from tinyedge_bench.quality.tasks.rows import Row, checked_text, text_lines

_ENDINGS = 4


def fits(row: Row) -> bool:
    return row.has("ctx_a", "ctx_b", "endings")


def question(row: Row) -> Question:
    endings = tuple(_cleaned(ending) for ending in row.texts("endings"))
    context = f"{row.text('ctx_a', blank=True)} {row.text('ctx_b', blank=True).capitalize()}"
    right = row.number("label", len(endings), "endings")
    return choose_ending(_cleaned(f"{row.text('activity_label')}: {context}"), endings, right=right, where=row.where)


def text_questions(path: Path) -> Iterator[Question]:
    """Of llama.cpp's form: the context, the number of the right ending, four endings, all cleaned already.

    tools/perplexity/perplexity.cpp, `hellaswag_score`.
    """
    lines = text_lines(path)
    while block := [(number, line.rstrip("\r\n")) for number, line in islice(lines, 2 + _ENDINGS)]:
        number = block[0][0]
        where = f"{path.name} line {number}"
        if len(block) < 2 + _ENDINGS:
            raise TaskFileError(f"{where}: {len(block)} lines, where a question has {2 + _ENDINGS}")
        context, *endings = (checked_text(block[at][1], "text", f"{path.name} line {block[at][0]}") for at in (0, 2, 3, 4, 5))
        right = Row({"label": block[1][1].strip()}, f"{path.name} line {number + 1}").number("label", _ENDINGS, "endings")
        yield choose_ending(context, tuple(endings), right=right, where=where)


def _cleaned(text: str) -> str:
    """The text without the marks in brackets that pages of WikiHow left in it."""
    lines = text.strip().replace(" [title]", ". ").split("\n")
    return "\n".join(map(_without_brackets, lines)).replace("  ", " ")


def _without_brackets(line: str) -> str:
    r"""What `re.sub(r"\[.*?\]", "", line)` gives, but in linear time where brackets are not closed."""
    kept, start = [], 0
    while (opened := line.find("[", start)) >= 0 and (closed := line.find("]", opened)) >= 0:
        kept.append(line[start:opened])
        start = closed + 1
    return "".join(kept) + line[start:]
