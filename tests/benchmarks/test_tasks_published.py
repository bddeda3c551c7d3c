"""Questions in each published format become the texts that lm-evaluation-harness asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from task_files import (
    BOOLQ_EXPORTED,
    EXPORTED,
    HELLASWAG,
    MMLU,
    MMLU_EXAMPLES,
    PIQA_LABELS,
    PUBLISHED,
    Json,
    exported_mmlu,
    write_lines,
    write_mmlu,
    write_published,
)

from tinyedge_bench.quality.tasks import Task, read_task

# The files of lm_eval/tasks that define what we ask.
DEFINITIONS = {
    "hellaswag": "hellaswag/hellaswag",
    "winogrande": "winogrande/default",
    "arc_easy": "arc/arc_easy",
    "arc_challenge": "arc/arc_challenge",
    "openbookqa": "openbookqa/openbookqa",
    "piqa": "piqa/piqa",
    "boolq": "super_glue/boolq/default",
    "mmlu": "mmlu/default/mmlu_anatomy",
}


def asked(task: Task, shots: int = 0) -> list[tuple[str, str]]:
    return [
        (task.opening(question.subject, shots) + context, continuation)
        for question in task.questions
        for context, continuation in question.pairs
    ]


def harness_task(name: str, rows: list[Json], examples: list[Json], shots: int, folder: Path) -> Any:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    definition = load_yaml(Path(lm_eval.__file__).parent / "tasks" / f"{DEFINITIONS[name]}.yaml")
    file = str(write_lines(folder / f"{name}-asked.jsonl", rows))
    shown = str(write_lines(folder / f"{name}-shown.jsonl", examples))
    files = {"train": shown, "dev": shown, "validation": file, "test": file}
    return ConfigurableTask(
        config=definition
        | {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
            "num_fewshot": shots,
            "fewshot_config": {"sampler": "first_n", "split": "dev" if name == "mmlu" else "train"},
        }
    )


def harness_requests(name: str, rows: list[Json], examples: list[Json], shots: int, folder: Path) -> list[tuple[str, str]]:
    task = harness_task(name, rows, examples, shots, folder)
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return [instance.args for instance in task.instances]


@pytest.mark.torch
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", EXPORTED)
def test_texts_are_the_harness(name: str, shots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rows = EXPORTED[name]
    expected = harness_requests(name, rows[:2], rows[1:], shots, tmp_path)
    published = write_published(tmp_path / "asked", name)
    labels = published.with_name(f"{name}-labels.lst")
    shown = write_lines(tmp_path / "shown" / f"{name}.jsonl", PUBLISHED[name][1:])
    if labels.exists():
        shown.with_name(labels.name).write_text("".join(f"{label}\n" for label in PIQA_LABELS[1:]))
    count = len(expected)
    assert asked(read_task(f"{name}={published},{shown}"), shots)[:count] == expected
    exported = write_lines(tmp_path / "exported.jsonl", rows[:2])
    shown = write_lines(tmp_path / "exported-shown.jsonl", rows[1:])
    assert asked(read_task(f"{name}={exported},{shown}"), shots) == expected


@pytest.mark.torch
@pytest.mark.parametrize("shots", [0, 2])
def test_texts_of_mmlu_are_the_harness(shots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rows, examples = exported_mmlu("anatomy"), exported_mmlu("anatomy", examples=True)
    expected = harness_requests("mmlu", rows, examples, shots, tmp_path)
    folder = write_mmlu(tmp_path / "data")
    assert asked(read_task(f"mmlu={folder}"), shots)[: len(expected)] == expected
    single = folder / "test" / "anatomy_test.csv", folder / "dev" / "anatomy_dev.csv"
    assert asked(read_task(f"mmlu={single[0]},{single[1]}"), shots) == expected
    exported = write_lines(tmp_path / "asked.jsonl", rows), write_lines(tmp_path / "shown.jsonl", examples)
    assert asked(read_task(f"mmlu={exported[0]},{exported[1]}"), shots) == expected


@pytest.mark.torch
def test_headings_of_mmlu_are_the_harness() -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks._yaml_loader import load_yaml

    from tinyedge_bench.quality.tasks.mmlu import heading

    files = sorted((Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default").glob("mmlu_*.yaml"))
    definitions = [load_yaml(file) for file in files]
    assert len(definitions) == 57
    for definition in definitions:
        assert heading(definition["dataset_name"]) == definition["description"]


def test_what_hellaswag_is_asked(tmp_path: Path) -> None:
    task = read_task(f"hellaswag={write_published(tmp_path, 'hellaswag')}")
    first, second, third = task.questions
    assert first.pairs[2] == (
        "Baking bread: A woman stands in a kitchen and mixes flour with water. Then she",
        " kneads the dough on a table.",
    )
    assert first.lengths == (18, 17, 28, 9)
    assert (first.answer, second.answer, third.answer) == (2, 0, 3)
    assert second.pairs[1][1] == " Café."
    assert second.lengths[1] == 5  # characters, not bytes
    assert (task.metric, task.normed, task.file) == ("accuracy_norm", True, "hellaswag.jsonl")


def test_winogrande_scores_what_follows_the_gap(tmp_path: Path) -> None:
    task = read_task(str(write_published(tmp_path, "winogrande")))
    assert task.questions[0].pairs == (
        ("The box did not fit the bag because the box", " was too small."),
        ("The box did not fit the bag because the bag", " was too small."),
    )
    assert [question.answer for question in task.questions] == [1, 0, 0]
    assert (task.metric, task.normed) == ("accuracy", False)


def test_googles_boolq_is_asked_as_superglues(tmp_path: Path) -> None:
    google = read_task(str(write_published(tmp_path, "boolq")))
    rows = [row | {"label": bool(row["label"])} for row in BOOLQ_EXPORTED]  # SuperGLUE's own file
    superglue = read_task(str(write_lines(tmp_path / "val.jsonl", rows)))
    assert asked(google) == asked(superglue)
    assert [question.answer for question in google.questions] == [question.answer for question in superglue.questions]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "arc_challenge"])
def test_a_task_is_told_by_its_fields(name: str, tmp_path: Path) -> None:
    assert read_task(str(write_published(tmp_path, name))).name == name
    assert read_task(str(write_lines(tmp_path / "exported.jsonl", EXPORTED[name]))).name == name


def test_the_challenge_of_arc_is_told_by_the_name_of_its_file(tmp_path: Path) -> None:
    assert read_task(str(write_lines(tmp_path / "ARC-Challenge-Test.jsonl", PUBLISHED["arc_easy"]))).name == "arc_challenge"


def test_mmlu_has_subjects_with_examples_of_their_own(tmp_path: Path) -> None:
    task = read_task(str(write_mmlu(tmp_path / "data")))
    assert [question.subject for question in task.questions] == [name for name, rows in MMLU.items() for _ in rows]
    assert {name: len(shown) for name, shown in task.examples.items()} == dict.fromkeys(MMLU_EXAMPLES, 2)
    assert task.opening("world_religions", 1) == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "Who prays?\nA. a stone\nB. a priest\nC. a tree\nD. a road\nAnswer: B\n\n"
    )


def test_llama_cpps_text_of_hellaswag(tmp_path: Path) -> None:
    jsonl = read_task(f"hellaswag={write_published(tmp_path, 'hellaswag')}")
    text = "".join(
        f"{question.pairs[0][0]}\n{row['label']}\n" + "".join(ending[1:] + "\n" for _, ending in question.pairs)
        for question, row in zip(jsonl.questions, HELLASWAG, strict=True)
    )
    path = tmp_path / "hellaswag.txt"
    path.write_text(text, encoding="utf-8")
    same = read_task(f"hellaswag={path}")
    assert asked(same) == asked(jsonl)
    assert [question.answer for question in same.questions] == [2, 0, 3]
