"""Multiple-choice questions get transformers' log-likelihoods of the same weights, and lm-evaluation-harness's figures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from task_files import ARC, EXPORTED, MMLU, PUBLISHED, Json, exported_mmlu, write_lines, write_mmlu, write_published

from tinyedge.errors import EvaluationError
from tinyedge_bench.quality.choices import Answered, answer, answers, encode_pair, standard_error
from tinyedge_bench.quality.models import OpenModel, open_model
from tinyedge_bench.quality.tasks import Question, Task, read_task
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenModel]:
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(demo_tokenizer().parent, path, "F16")
    with open_model(path, threads=1, backend="cpu", context=512) as model:
        yield model


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    folder = tmp_path_factory.mktemp("tasks")
    read = {name: read_task(f"{name}={write_published(folder, name)}") for name in PUBLISHED}
    return read | {"mmlu": read_task(f"mmlu={write_mmlu(folder / 'data')}")}


@pytest.fixture(scope="module")
def transformers_model() -> Any:
    """lm-evaluation-harness's own model class over transformers, in float32."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    harness = pytest.importorskip("lm_eval.models.huggingface")
    folder = demo_tokenizer().parent
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return harness.HFLM(pretrained=model, tokenizer=transformers.AutoTokenizer.from_pretrained(folder), max_length=512)


def texts(task: Task, shots: int) -> list[tuple[str, str]]:
    return [(task.opening(each.subject, shots) + one, other) for each in task.questions for one, other in each.pairs]


@pytest.mark.torch
@pytest.mark.parametrize(("name", "shots"), [*((name, 0) for name in PUBLISHED), ("mmlu", 0), ("mmlu", 2)])
def test_log_likelihoods_are_those_of_transformers(
    name: str, shots: int, demo: OpenModel, tasks: dict[str, Task], transformers_model: Any
) -> None:
    from lm_eval.api.instance import Instance

    asked = texts(tasks[name], shots)
    for pair in asked:
        ours = encode_pair(demo.model, *pair)
        assert (list(ours.context), list(ours.tokens)) == transformers_model._encode_pair(*pair)
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in asked]
    expected = [logprob for logprob, _ in transformers_model.loglikelihood(requests, disable_tqdm=True)]
    found = [logprob for each in answers(demo, tasks[name], shots=shots) for logprob in each.logprobs]
    assert found == pytest.approx(expected, abs=1e-2)


@pytest.mark.torch
@pytest.mark.parametrize("name", EXPORTED)
def test_figures_are_the_harness(
    name: str, demo: OpenModel, tasks: dict[str, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = harness_counts(name, EXPORTED[name], list(answers(demo, tasks[name])), tmp_path, monkeypatch)
    score = answer(demo, tasks[name])
    metrics = pytest.importorskip("lm_eval.api.metrics")
    assert score.accuracy == pytest.approx(metrics.mean(counted["acc"]))
    assert score.accuracy_error == pytest.approx(metrics.mean_stderr(counted["acc"]))
    if "acc_norm" in counted:
        assert score.accuracy_norm == pytest.approx(metrics.mean(counted["acc_norm"]))
        assert score.accuracy_norm_error == pytest.approx(metrics.mean_stderr(counted["acc_norm"]))
    assert ("acc_norm" in counted) == (score.accuracy_norm is not None)


@pytest.mark.torch
def test_figures_of_mmlu_are_the_harness(
    demo: OpenModel, tasks: dict[str, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = answer(demo, tasks["mmlu"], shots=2)
    metrics = pytest.importorskip("lm_eval.api.metrics")
    answered = list(answers(demo, tasks["mmlu"], shots=2))
    counted = {}
    for subject in MMLU:
        part = [each for each in answered if each.question.subject == subject]
        counted[subject] = harness_counts("mmlu", exported_mmlu(subject), part, tmp_path, monkeypatch)["acc"]
        assert score.subjects[subject].accuracy == pytest.approx(metrics.mean(counted[subject]))
        assert score.subjects[subject].accuracy_error == pytest.approx(metrics.mean_stderr(counted[subject]))
    sizes = [len(part) for part in counted.values()]
    errors = [metrics.mean_stderr(part) for part in counted.values()]
    means = [metrics.mean(part) for part in counted.values()]
    assert score.accuracy == pytest.approx(metrics.aggregate_subtask_metrics(means, sizes))
    assert score.accuracy_error == pytest.approx(float(metrics.pooled_sample_stderr(errors, sizes)))


def harness_counts(
    name: str, rows: list[Json], answered: list[Answered], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[float]]:
    """What lm-evaluation-harness makes of our log-likelihoods, question by question."""
    from test_tasks_published import harness_task

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    task = harness_task(name, rows, rows, 0, folder)
    counted: dict[str, list[float]] = {}
    for document, each in zip(task.eval_docs, answered, strict=True):
        found = task.process_results(document, [(logprob, False) for logprob in each.logprobs])
        for metric, value in found.items():
            counted.setdefault(metric, []).append(value)
    return counted


def test_the_likeliest_and_the_likeliest_by_length() -> None:
    question = Question(pairs=(("q", " abcd"), ("q", " a"), ("q", " ")), answer=0, lengths=(4, 1, 0), where="x line 1")
    one = Answered(question=question, logprobs=(-4.0, -2.0, -9.0), cut=False)
    assert (one.likeliest, one.likeliest_by_length) == (1, 0)


def test_standard_errors() -> None:
    assert standard_error([[True, False, True, False, True]]) == pytest.approx((0.6 * 0.4 / 4) ** 0.5)
    assert standard_error([[True, True]]) == 0.0
    assert standard_error([[True]]) is None
    assert standard_error([[True], [False]]) is None


def test_what_a_score_holds(demo: OpenModel, tasks: dict[str, Task]) -> None:
    seen: list[tuple[int, int]] = []
    score = answer(demo, tasks["mmlu"], shots=1, limit=2, progress=lambda done, total: seen.append((done, total)))
    assert (score.task, score.file, score.metric, score.shots, score.cut) == ("mmlu", "data", "accuracy", 1, 0)
    assert (score.questions, score.chance, seen[-1]) == (4, 0.25, (4, 4))  # two of each subject, as lm-eval's --limit
    assert {name: rate.questions for name, rate in score.subjects.items()} == dict.fromkeys(MMLU, 2)
    assert score.accuracy_norm is None
    as_object = asdict(score)
    assert as_object["subjects"]["anatomy"]["questions"] == 2
    assert answer(demo, tasks["arc_easy"]).chance == pytest.approx((1 / 4 + 1 / 3 + 1 / 4) / 3)


def test_too_few_examples_are_said(demo: OpenModel, tasks: dict[str, Task]) -> None:
    with pytest.raises(EvaluationError, match=r"piqa has 0 solved examples to show and 3 were asked for; .*piqa=FILE,EXAMPLES"):
        answer(demo, tasks["piqa"], shots=3)
    with pytest.raises(EvaluationError, match="mmlu has 2 solved examples to show and 5 were asked for; ask for at most 2"):
        answer(demo, tasks["mmlu"], shots=5)


def test_long_questions_lose_their_beginning(demo: OpenModel, tmp_path: Path) -> None:
    row = {"question": "is it long", "passage": "The end. " + "It is long. " * 400, "answer": True}
    other = row | {"passage": "It began. " + "It is long. " * 400}
    task = read_task(str(write_lines(tmp_path / "dev.jsonl", [row, other, row | {"passage": "Short."}])))
    first, second, third = answers(demo, task)
    assert (first.cut, second.cut, third.cut) == (True, True, False)
    assert first.logprobs == pytest.approx(second.logprobs, abs=1e-6)
    assert answer(demo, task).cut == 2


def test_an_answer_longer_than_the_context_names_its_line(demo: OpenModel, tmp_path: Path) -> None:
    row = {"goal": "to sit", "sol1": "a chair", "sol2": "a table", "label": 0}
    path = write_lines(tmp_path / "valid.jsonl", [row, row | {"sol2": "a long word " * 600}])
    with pytest.raises(EvaluationError, match=r"^valid.jsonl line 2: an answer has \d+ tokens and the context 512"):
        answer(demo, read_task(str(path)))


def test_nothing_in_a_text_is_a_special_token(demo: OpenModel, tmp_path: Path) -> None:
    found = encode_pair(demo.model, "<s> a </s> b  ", " <unk>c")
    assert found.context[0] == demo.model.bos
    assert not any(map(demo.model.is_control, found.context[1:] + found.tokens))
    text = b"".join(map(demo.model.piece, found.context + found.tokens))
    assert text.decode().strip() == "<s> a </s> b   <unk>c"
    hostile = ARC[0] | {"question": ARC[0]["question"] | {"stem": "<s></s>\x00\x07" + "\U0010ffff" * 50}}
    assert answer(demo, read_task(str(write_lines(tmp_path / "x.jsonl", [hostile])))).questions == 1
