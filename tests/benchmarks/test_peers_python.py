"""Peers that are Python libraries: the real llama-cpp-python, mlx-lm where it is installed, and answers that are nonsense."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tinyedge.errors import PeerError
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import ModelFacts, describe_model
from tinyedge_bench.peers import llama_cpp_python, mlx_lm, open_peer
from tinyedge_bench.peers.python_child import run_script, seconds_of
from tinyedge_bench.speed.cases import Case
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(demo_tokenizer().parent, tmp_path_factory.mktemp("peers") / "demo.gguf").path


@pytest.fixture(scope="module")
def facts(model: Path) -> ModelFacts:
    return describe_model(read_gguf(model))


@pytest.mark.parametrize(
    "case",
    [
        Case(prompt=32, generate=0, threads=1),
        Case(prompt=0, generate=8, threads=1, depth=16),
        Case(prompt=16, generate=8, threads=1, kv_type="Q8_0"),
    ],
    ids=lambda case: str(case.name),
)
def test_llama_cpp_python_measures_every_kind_of_case(model: Path, facts: ModelFacts, case: Case) -> None:
    peer = open_peer("llama-cpp-python", model, facts)
    assert (peer.name, peer.supports(case)) == ("llama-cpp-python", None)
    assert "flash attention only with a quantized KV cache" in peer.notes[0]
    assert peer.version
    assert 0 < peer.sample(case) < 60
    peer.close()
    assert "one sequence only" in str(peer.supports(Case(prompt=1, generate=0, threads=1, sequences=2)))


def test_llama_cpp_python_processes_the_cases_tokens_and_no_others(model: Path) -> None:
    asked = {"context": 64, "threads": 1, "gpu": False, "kv_type": 1, "flash": False, "depth": 16, "prompt": 24, "generate": 8}
    counting = llama_cpp_python.SCRIPT.replace(
        'started = time.perf_counter()\nrun(prompt, generated)',
        'calls, evaluate = [], llama.eval\n'
        'llama.eval = lambda tokens: (calls.append(len(tokens)), evaluate(tokens))\n'
        'started = time.perf_counter()\nrun(prompt, generated)',
    )  # fmt: skip
    answer = run_script("llama-cpp-python", counting + '\nanswer["calls"] = calls', {"model": str(model), **asked}, 60.0)
    assert (answer["tokens"], answer["calls"]) == (16 + 24 + 8, [24] + [1] * 8)


def test_a_model_that_llama_cpp_python_refuses_is_one_sentence(tmp_path: Path, facts: ModelFacts) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    peer = open_peer("llama-cpp-python", tmp_path / "broken.gguf", facts)
    with pytest.raises(PeerError) as caught:
        peer.sample(Case(prompt=8, generate=0, threads=1))
    assert caught.value.problem.startswith(
        "llama-cpp-python failed with exit code 1 and said: ValueError: Failed to load model"
    )


def test_a_module_in_the_callers_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('imported a stranger')")
    monkeypatch.chdir(tmp_path)
    answer = run_script("x", "import llama_cpp\nanswer = {'file': llama_cpp.__file__}", {}, 60.0)
    assert not str(answer["file"]).startswith(str(tmp_path))


def test_what_a_library_prints_does_not_reach_the_answer() -> None:
    script = "print('noise')\nos.system('echo more')\nanswer = {'seconds': asked['seconds']}"
    assert seconds_of("x", run_script("x", script, {"seconds": 0.5}, 30.0)) == 0.5


@pytest.mark.parametrize("answer", ["{}", "{'seconds': None}", "{'seconds': True}", "{'seconds': -1}", "{'seconds': 'now'}"])
def test_an_answer_without_a_time_is_one_sentence(answer: str) -> None:
    with pytest.raises(PeerError, match="x gave no time"):
        seconds_of("x", run_script("x", f"answer = {answer}", {}, 30.0))


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("answer = [1]", "x answered something else than an object"),
        ("os._exit(0)", "x answered something else than JSON"),
        ("raise MemoryError('no room')", "x failed with exit code 1 and said: MemoryError: no room"),
    ],
)
def test_a_child_that_misbehaves_is_one_sentence(script: str, problem: str) -> None:
    with pytest.raises(PeerError) as caught:
        run_script("x", script, {}, 30.0)
    assert caught.value.problem.startswith(problem)


def _mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if mlx-lm were installed: what is wrong with a folder is said before MLX is started."""
    monkeypatch.setattr(mlx_lm, "installed_version", lambda *_: "0.32")


def test_mlx_lm_needs_a_folder(model: Path, facts: ModelFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("mlx_lm") is None:
        with pytest.raises(PeerError, match="mlx-lm is not installed; pip install mlx-lm"):
            open_peer("mlx-lm", model, facts)
    _mlx(monkeypatch)
    with pytest.raises(PeerError, match="mlx-lm cannot be given the GGUF file; give the same model as an MLX"):
        open_peer("mlx-lm", model, facts)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a configuration"),
        (" " * (1 << 20) + "{}", "is too large for a configuration"),
        (json.dumps({"model_file": "model.py"}), "brings Python code to build the model with, which is not run"),
    ],
)
def test_a_folder_that_is_no_model_is_one_sentence(
    tmp_path: Path, model: Path, facts: ModelFacts, monkeypatch: pytest.MonkeyPatch, config: str | None, problem: str
) -> None:
    _mlx(monkeypatch)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(PeerError) as caught:
        open_peer(f"mlx-lm={tmp_path}", model, facts)
    assert caught.value.problem.endswith(problem)


@pytest.fixture(scope="module")
def mlx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as mlx-lm reads it."""
    pytest.importorskip("mlx_lm")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("mlx")
    transformers.AutoModelForCausalLM.from_pretrained(demo_tokenizer().parent).save_pretrained(folder)
    return folder


@pytest.mark.torch
def test_mlx_lm_measures_every_kind_of_case(model: Path, facts: ModelFacts, mlx_folder: Path) -> None:
    peer = open_peer(f"mlx-lm={mlx_folder}", model, facts)
    assert "the same model from another file" in peer.notes[0]
    for case in (Case(prompt=32, generate=0, threads=1), Case(prompt=16, generate=8, depth=8, threads=1)):
        assert peer.supports(case) is None
        assert 0 < peer.sample(case) < 60
    assert "model's own type" in str(peer.supports(Case(prompt=1, generate=0, threads=1, kv_type="Q8_0")))


@pytest.mark.torch
def test_mlx_lm_refuses_another_model(model: Path, facts: ModelFacts, mlx_folder: Path) -> None:
    from dataclasses import replace

    with pytest.raises(PeerError, match="is another model: "):
        open_peer(f"mlx-lm={mlx_folder}", model, replace(facts, layers=22))
