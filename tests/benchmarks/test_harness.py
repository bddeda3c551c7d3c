"""lm-evaluation-harness with a GGUF model in this process, on a task of its own kind from local files."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.backends import this_machine
from tinyedge.errors import EvaluationError, GGUFError, TemplateError
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (pip install tinyedge-llm[eval])")

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
GENERATION = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
QUESTIONS = [
    {"question": "Once upon a time there was a", "choices": ["king", "xylophone"], "answer": 0},
    {"question": "He said to", "choices": ["blue of", "the king"], "answer": 1},
    {"question": "She went into the", "choices": ["forest", "is was"], "answer": 0},
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(demo_tokenizer().parent, path, "F16")
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS), encoding="utf-8")
    for name, text in (("local_choice", CHOICES), ("local_generation", GENERATION), ("local_rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.format(name=name, data=data), encoding="utf-8")
    return folder


def test_the_harness_evaluates_tasks_of_every_kind(
    demo: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    from tinyedge_bench.harness import TinyedgeLM

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    with TinyedgeLM(demo, threads=1, backend="cpu") as model:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=["local_choice", "local_generation", "local_rolling"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
        found = results["results"]
        assert found["local_choice"]["acc,none"] == 1.0
        assert 0 < found["local_rolling"]["bits_per_byte,none"] < 4
        answers = [sample["resps"][0][0] for sample in results["samples"]["local_generation"]]
        assert all("." not in answer and 0 < len(answer.split()) <= 8 for answer in answers)
        assert results["config"]["model_num_parameters"] == 3836672


def test_its_command_line_knows_the_model_and_its_arguments(demo: Path, tasks: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "tinyedge_bench.harness", "--model", "tinyedge"),
        *("--model_args", f"pretrained={demo},threads=1,ctx=128", "--batch_size", "2"),  # without --device it says cuda:0
        *("--tasks", "local_choice,local_generation", "--include_path", str(tasks), "--output_path", str(tmp_path / "out")),
    ]
    home = {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["results"]["local_choice"]["acc,none"] == 1.0
    assert results["config"]["tinyedge"]["context"] == 128
    assert results["config"]["tinyedge"]["backend"] in {device.kind for device in this_machine().devices}


def test_a_damaged_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    from tinyedge_bench.harness import TinyedgeLM

    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(GGUFError):
        TinyedgeLM(path)


@pytest.mark.parametrize(
    ("given", "said"), [({}, "no model is named"), ({"pretrained": "x.gguf", "n_ctx": 5}, "the model takes no n_ctx")]
)
def test_arguments_that_are_missing_or_unknown_are_named(given: dict[str, Any], said: str) -> None:
    from tinyedge_bench.harness import TinyedgeLM

    with pytest.raises(EvaluationError, match=said):
        TinyedgeLM(**given)


def test_without_the_harness_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    harness = importlib.import_module("tinyedge_bench.harness")
    command = importlib.import_module("tinyedge_bench.harness.__main__")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EvaluationError, match=r'pip install "tinyedge-llm\[eval\]"'):
        _ = harness.TinyedgeLM
    assert command.main() == EvaluationError.exit_code
    assert (
        capsys.readouterr().err
        == 'error: lm-evaluation-harness is not installed; install it with pip install "tinyedge-llm[eval]"\n'
    )


def _instances(*arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type="generate_until", doc={}, arguments=each, idx=0) for each in arguments]


def test_wishes_of_a_task_are_heeded_or_refused(demo: Path) -> None:
    from tinyedge_bench.harness import TinyedgeLM

    with TinyedgeLM(demo, threads=1, backend="cpu", max_gen_toks=16) as model:
        (plain,) = model.generate_until(_instances(("Once upon a time", {})))
        assert model.generate_until(_instances(("Once upon a time", {"until": plain[5:8]}))) == [plain[:5]]
        drawn = {"do_sample": True, "temperature": 1.0, "top_k": 1}
        assert model.generate_until(_instances(("Once upon a time", drawn))) == [plain]
        assert model.generate_until(_instances(("Once upon a time", {"do_sample": False, "temperature": 5.0}))) == [plain]
        assert model.generate_until([]) == []
        with pytest.raises(EvaluationError, match="asks for 9999 tokens and the context has 512"):
            model.generate_until(_instances(("x", {"max_gen_toks": 9999})))
        with pytest.raises(TemplateError, match="has no chat template"):
            model.apply_chat_template([{"role": "user", "content": "hi"}])
        with pytest.raises(EvaluationError, match="65 stop strings and at most 64"):
            model.generate_until(_instances(("x", {"until": [str(number) for number in range(65)]})))
        for until in (5, [5], {"a": "b"}):
            with pytest.raises(EvaluationError, match="`until` is a text or a list of texts"):
                model.generate_until(_instances(("x", {"until": until})))
        for wish in ({"max_gen_toks": "x"}, {"temperature": "hot"}, {"top_k": float("nan")}, {"do_sample": True, "seed": -1}):
            with pytest.raises(EvaluationError, match="not a number from 0 on"):
                model.generate_until(_instances(("x", wish)))
    with pytest.raises(EvaluationError, match="batch_size is a number"):
        TinyedgeLM(demo, batch_size="many")
    with pytest.raises(EvaluationError, match="ctx is a number from 1 on, not -3"):
        TinyedgeLM(demo, ctx=-3)
    with pytest.raises(EvaluationError, match="threads is a number from 1 to 512, not 100000"):
        TinyedgeLM(demo, threads=100_000)
    with pytest.raises(EvaluationError, match="batch is a number from 1 to 65536, not 1000000000"):
        TinyedgeLM(demo, batch=10**9)
    with pytest.raises(EvaluationError, match="max_batch_size is a number from 1 on, not -1"):
        TinyedgeLM(demo, max_batch_size=-1)


def test_conversations_go_through_the_template_of_the_file(tmp_path: Path) -> None:
    from tinyedge_bench.harness import TinyedgeLM

    parts = tiny_parts()
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    parts.set("tokenizer.chat_template", "str", template.encode())
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    with TinyedgeLM(write(tmp_path / "tiny.gguf", parts), threads=1, backend="cpu") as model:
        assert model.apply_chat_template(turns) == "<system>be kind;<user>hi;<assistant>"
        answer = {"role": "assistant", "content": "The answer is"}
        assert model.apply_chat_template([*turns, answer], False).endswith("<assistant>The answer is")
        assert model.chat_template(True) == template and model.chat_template(False) is None
        other = TinyedgeLM(write(tmp_path / "other.gguf", tiny_parts(seed=1)), threads=1, backend="cpu")
        assert model.tokenizer_name != other.tokenizer_name
        other.close()
