"""Cells and sentences for figures of quality, the same in the tables of `tinyedge eval` and `tinyedge eval sweep`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

Row = Mapping[str, Any]
_FEW_QUESTIONS = 30  # a share of 50% of fewer has a standard error of more than 9%


def quality_table(columns: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table: these columns, the first of which names the rows, then a column for each task.

    Columns without any figure are left out. Below the tasks' scores stands what guessing would give.
    """
    from tinyedge_bench.speed.formats_cells import markdown_table

    tasks = _task_columns(rows)
    first, *others = columns.items()
    named = (first[0], [*first[1], "guessing"] if tasks else first[1])
    shown = dict(column for column in (named, *others, *tasks.items()) if any(column[1]))
    return markdown_table([*shown], [*zip_longest(*shown.values(), fillvalue="")])


def quality_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Perplexity and divergence of each row, empty where there is none."""
    return {
        "perplexity": [_estimate(row.get("perplexity"), "value", "error", 4) for row in rows],
        "bits/byte": [_estimate(row.get("bits_per_byte"), "value", "error", 4) for row in rows],
        "mean KLD": [_estimate(row.get("divergence"), "mean_kl", "mean_kl_error", 6) for row in rows],
        "99% KLD": [f"{row['divergence']['kl_percentiles']['99.0']:.6f}" if row.get("divergence") else "" for row in rows],
        "same top": [_estimate(row.get("divergence"), "same_top", "same_top_error", 2, share=True) for row in rows],
    }


def _task_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The figure that is usual for each task of each row, their mean where a row has them all, and at the end the chance."""
    tasks = tasks_once(rows)
    names, chances = [task["task"] for task in tasks], [task["chance"] for task in tasks]
    heads = [f"{task['task']} {task['metric'].replace('accuracy', 'acc')}" for task in tasks]  # lm-evaluation-harness's words
    asked = [{task["task"]: task for task in row.get("tasks", ())} for row in rows]
    columns = {
        head: [*(_accuracy(each.get(name)) for each in asked), f"{100 * chance:.2f}%"]
        for head, name, chance in zip(heads, names, chances, strict=True)
    }
    if len(names) > 1:
        means = [_mean([task[task["metric"]] for task in each.values()], len(names)) for each in asked]
        columns["average"] = [*means, _mean(chances, len(names))]
    return columns


def tasks_once(rows: Sequence[Row]) -> list[Row]:
    """Each task that any row has a score of, as the first such row has it."""
    found: dict[str, Row] = {}
    for row in rows:
        for task in row.get("tasks", ()):
            found.setdefault(task["task"], task)
    return [*found.values()]


def told(task: Row) -> str:
    """`hellaswag: 400 questions of hellaswag_val.jsonl, accuracy_norm, 0-shot`."""
    return f"{task['task']}: {task['questions']} questions of {task['file']}, {task['metric']}, {task['shots']}-shot"


def task_notes(rows: Sequence[Row]) -> Iterator[str]:
    """What to know of tasks that ask little, and of those whose name is a guess, a sentence each."""
    for task in tasks_once(rows):
        if task["questions"] < _FEW_QUESTIONS:
            yield f"{task['task']}: fewer than {_FEW_QUESTIONS} questions tell little"
        if task["guessed"]:
            yield f"{task['file']} is taken for {task['task']}; name it NAME={task['file']} where it is another's"


def cut_warnings(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each task of which questions did not fit the context."""
    for task in tasks_once(rows):
        if task["cut"]:
            fewer = " or fewer --shots" if task["shots"] else ""
            yield (
                f"{task['task']}: {task['cut']} of {task['questions']} questions lost their beginning, as they are longer than "
                f"the context; give a larger --ctx where the model has it{fewer}"
            )


def _accuracy(task: Row | None) -> str:
    return "" if task is None else _estimate(task, task["metric"], f"{task['metric']}_error", 2, share=True)


def _estimate(found: Row | None, value: str, error: str, digits: int, *, share: bool = False) -> str:
    """`84.6701 ± 2.3608`, shares in percent; empty where there is no value."""
    if not found or found.get(value) is None:
        return ""
    scale, unit = (100, "%") if share else (1, "")
    spread = "" if found.get(error) is None else f" ± {scale * found[error]:.{digits}f}"
    return f"{scale * found[value]:.{digits}f}{spread}{unit}"


def _mean(shares: Sequence[float], count: int) -> str:
    """Empty for fewer than `count`: it would compare with nothing."""
    return f"{100 * sum(shares) / count:.2f}%" if len(shares) == count else ""
