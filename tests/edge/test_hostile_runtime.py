"""What a hostile file, a clumsy caller or a second thread does to the runtime: it is refused in words, and nothing crashes."""

from __future__ import annotations

import json
import math
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import F32, HIDDEN, Parts, Tensor, tiny_parts, write

from tinyedge import Engine, LoadPlan, Request, Sampling
from tinyedge.backends import choose, this_machine
from tinyedge.errors import AdapterError, EngineBusyError, NativeError, OutputError, PromptError
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import describe_model

GREEDY = Sampling(temperature=0.0)
PROMPT = [1, *range(260, 290)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())


@pytest.fixture(scope="module")
def plan(path: Path) -> LoadPlan:
    return choose(describe_model(read_gguf(path)), Request(backend="cpu", threads=1), this_machine())


def with_norm(value: float) -> Parts:
    parts = tiny_parts()
    parts.tensor("output_norm.weight").data = struct.pack(f"<{HIDDEN}f", *[value] * HIDDEN)
    return parts


def adapter(*, alpha: float = 16.0) -> Parts:
    noise = random.Random(1)
    parts = Parts()
    for key, value in (("general.architecture", b"llama"), ("general.type", b"adapter"), ("adapter.type", b"lora")):
        parts.set(key, "str", value)
    parts.set("adapter.lora.alpha", "f32", alpha)
    name = "blk.0.attn_q.weight"
    for suffix, shape in ((".lora_a", (HIDDEN, 4)), (".lora_b", (4, HIDDEN))):
        data = struct.pack(f"<{4 * HIDDEN}f", *[noise.uniform(-0.1, 0.1) for _ in range(4 * HIDDEN)])
        parts.tensors.append(Tensor(name + suffix, shape, F32, data))
    return parts


def mamba_file(path: Path) -> Path:
    """A tiny recurrent model, whose state mixes its tokens: none of them can be taken out again."""
    import gguf
    import numpy as np
    from tiny_gguf import tokens

    noise = np.random.default_rng(0)
    width, inner, state, kernel, rank = 64, 128, 16, 4, 8
    texts = [token.decode() for token in tokens()]
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(index) for index in range(len(texts))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(texts) - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (noise.standard_normal(shape) * 0.2).astype(np.float32))

    add("token_embd.weight", len(texts), width)
    add("output.weight", len(texts), width)
    for name, shape in (
        ("output_norm.weight", (width,)),
        ("blk.0.attn_norm.weight", (width,)),
        ("blk.0.ssm_in.weight", (2 * inner, width)),
        ("blk.0.ssm_conv1d.weight", (inner, kernel)),
        ("blk.0.ssm_conv1d.bias", (inner,)),
        ("blk.0.ssm_x.weight", (rank + 2 * state, inner)),
        ("blk.0.ssm_dt.weight", (inner, rank)),
        ("blk.0.ssm_dt.bias", (inner,)),
        ("blk.0.ssm_d", (inner,)),
        ("blk.0.ssm_out.weight", (width, inner)),
    ):
        add(name, *shape)
    writer.add_tensor("blk.0.ssm_a", -np.exp(noise.standard_normal((inner, state))).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tinyedge(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "tinyedge", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_a_model_that_computes_no_numbers_is_said_to(tmp_path: Path, plan: LoadPlan, value: float) -> None:
    file = write(tmp_path / "broken.gguf", with_norm(value))
    with Engine.open(file, plan) as engine, pytest.raises(NativeError, match="its logits are not finite"):
        engine.complete(PROMPT, GREEDY, 4)
    done = tinyedge("run", str(file), "-p", "abc", "-n", "4", "--threads", "1", "--json", "--logprobs", "2")
    assert (done.returncode, done.stdout) == (NativeError.exit_code, b"")
    assert b"its logits are not finite" in done.stderr and b"unexpectedly" not in done.stderr


def test_likelihoods_stay_numbers_that_json_can_hold() -> None:
    import ctypes

    from tinyedge.generation import LEAST_LOGPROB, likelihoods

    one = likelihoods((ctypes.c_float * 3)(0.0, -math.inf, 1.0), 1, 3, str)
    assert one.drawn.logprob == LEAST_LOGPROB
    assert [each.token for each in one.top] == [2, 0, 1]
    with pytest.raises(NativeError, match="not finite"):
        likelihoods((ctypes.c_float * 3)(0.0, math.nan, 1.0), 0, 1, str)


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_an_adapter_without_a_finite_scale_is_refused(tmp_path: Path, path: Path, plan: LoadPlan, alpha: float) -> None:
    file = write(tmp_path / "adapter.gguf", adapter(alpha=alpha))
    with pytest.raises(AdapterError, match="lacks its scale"):
        Engine.open(path, plan, lora=[(file, 1.0)])


def test_an_activated_adapter_is_not_applied_to_every_token(tmp_path: Path, path: Path, plan: LoadPlan) -> None:
    parts = adapter()
    parts.set("adapter.alora.invocation_tokens", "arr[u32]", [5, 6])
    file = write(tmp_path / "adapter.gguf", parts)
    with pytest.raises(AdapterError, match="activated LoRA"):
        Engine.open(path, plan, lora=[(file, 1.0)])


def test_the_scales_of_adapters_are_finite_and_reach_embeddings(tmp_path: Path, path: Path, plan: LoadPlan) -> None:
    file = write(tmp_path / "adapter.gguf", adapter())
    with Engine.open(path, plan) as engine:
        plain = engine.embed("abc def")
    with Engine.open(path, plan, lora=[(file, 1.0)]) as engine:
        assert engine.embed("abc def") != plain
        engine.set_adapter_scales([0.0])
        assert engine.embed("abc def") == plain
        with pytest.raises(ValueError, match="finite number, not nan"):
            engine.set_adapter_scales([math.nan])
    with pytest.raises(ValueError, match="finite number, not inf"):
        Engine.open(path, plan, lora=[(file, math.inf)])


@pytest.mark.parametrize(("start", "end"), [(5, 3), (-3, 5), (2, -1), (-5, -2)])
def test_a_range_that_is_none_is_not_discarded(path: Path, plan: LoadPlan, start: int, end: int) -> None:
    with Engine.open(path, plan) as engine:
        plain = engine.complete(PROMPT, GREEDY, 8).tokens
        engine.read(PROMPT)
        with pytest.raises(ValueError, match="no positions from"):
            engine.discard(start, end)
        assert engine.context.length == len(engine.cached) == len(PROMPT)
        assert engine.complete(PROMPT, GREEDY, 8, reuse=True).tokens == plain


def test_a_range_beyond_the_cache_ends_with_it(path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, plan) as engine:
        engine.read(PROMPT)
        engine.discard(1000, 2000)
        assert engine.context.length == len(engine.cached) == len(PROMPT)
        engine.discard(10, 1000)
        assert engine.context.length == len(engine.cached) == 10


def test_a_recurrent_state_forgets_what_it_cannot_give_up(tmp_path: Path) -> None:
    file = mamba_file(tmp_path / "mamba.gguf")
    plan = choose(describe_model(read_gguf(file)), Request(backend="cpu", threads=1), this_machine())
    with Engine.open(file, plan) as engine:
        assert not engine.context.can_shift
        engine.read(PROMPT)
        engine.discard(5, 10)
        assert engine.cached == []
        left = [*PROMPT[:5], *PROMPT[10:]]
        assert engine.complete(left, GREEDY, 8, reuse=True).tokens == engine.complete(left, GREEDY, 8).tokens


def test_a_state_is_restored_only_as_that_of_as_many_tokens(path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, plan) as engine:
        engine.read(PROMPT)
        state = bytes(engine.state())
        for tokens in (PROMPT[:3], [*PROMPT, 265], []):
            assert not engine.restore(tokens, state)
            assert (engine.cached, engine.context.length) == ([], 0)
        assert engine.restore(PROMPT, memoryview(state))  # one that cannot be written is copied
        assert engine.cached == PROMPT


@pytest.mark.parametrize("wrong", [{"max_tokens": -1}, {"max_tokens": 1.5}, {"max_tokens": "3"}, {"logprobs": -1}])
def test_a_count_that_is_none_is_refused(path: Path, plan: LoadPlan, wrong: dict[str, Any]) -> None:
    with Engine.open(path, plan) as engine, pytest.raises(ValueError, match="a number from 0 up"):
        engine.complete(PROMPT, GREEDY, **wrong)


def test_one_stop_string_is_not_taken_letter_by_letter(path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, plan) as engine:
        whole = engine.complete(PROMPT, GREEDY, 30)
        absent = "".join(sorted(set(whole.text)))[::-1] + "\n\n"
        assert engine.complete(PROMPT, GREEDY, 30, stop=absent).text == whole.text
        assert engine.complete(PROMPT, GREEDY, 30, stop=whole.text[3:5]).text == whole.text[: whole.text.index(whole.text[3:5])]


def test_a_text_that_is_not_unicode_is_no_prompt(path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, plan) as engine, pytest.raises(PromptError, match="not Unicode at character 1"):
        engine.complete("a\ud800", GREEDY, 3)


def test_closing_in_another_thread_ends_what_is_computed_first(path: Path) -> None:
    """In a process of its own, since a failure would take the whole test run with it."""
    program = """
import dataclasses, sys, threading, time
from pathlib import Path
from tinyedge import Engine, Sampling
from tinyedge.errors import NativeError
from tinyedge.engine import _plan_for
plan = dataclasses.replace(_plan_for(Path(sys.argv[1])), threads=1, context=4096)
prompt = [1] + [260 + index % 40 for index in range(3000)]
for turn in range(24):
    engine, outcomes = Engine.open(sys.argv[1], plan), []
    def work():
        try:
            if turn % 3 == 2:
                while True:
                    engine.embed("abc def" * 100)
            for _ in engine.stream(prompt if turn % 3 else prompt[:9], Sampling(temperature=0, seed=turn), 4000):
                pass
        except NativeError as error:
            outcomes.append(error)
    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.003 * (turn % 8))
    engine.close()
    worker.join(60)
    assert not worker.is_alive()
print("survived")
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, b"survived\n"), done.stderr[-2000:]


def test_an_engine_is_not_closed_by_a_function_that_it_calls(path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, plan) as engine:
        plain = engine.complete(PROMPT, GREEDY, 5).text
        refused: list[EngineBusyError] = []

        def progress(_done: int, _total: int) -> None:
            for call in (engine.close, engine.forget, lambda: engine.discard(0, 1)):
                try:
                    call()
                except EngineBusyError as error:
                    refused.append(error)

        chunks = list(engine.stream(PROMPT, GREEDY, 5, progress=progress))
        assert "".join(chunk.text for chunk in chunks) == plain
        assert len(refused) >= 3 and len(refused) % 3 == 0


def test_a_closed_engine_says_so(path: Path, plan: LoadPlan) -> None:
    engine = Engine.open(path, plan)
    stream = engine.stream(PROMPT, GREEDY, 20)
    next(stream)
    engine.close()
    with pytest.raises(NativeError, match="closed already; open"):
        next(stream)
    for call in (lambda: engine.complete(PROMPT), lambda: engine.tokenize("a"), engine.state, engine.forget):
        with pytest.raises(NativeError, match="closed already; open"):
            call()
    engine.close()


def test_tune_says_before_it_measures_that_nothing_can_be_kept(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = tinyedge("tune", str(path), "--seconds", "600", XDG_CONFIG_HOME=str(file))
    assert (done.returncode, done.stdout) == (OutputError.exit_code, b"")
    assert b"cannot be kept in" in done.stderr and b"set XDG_CONFIG_HOME" in done.stderr
    assert tinyedge("tune", str(path), "--seconds", "nan").returncode == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_in_place_of_the_kept_settings_does_not_hang(path: Path, tmp_path: Path) -> None:
    (tmp_path / "tinyedge").mkdir()
    os.mkfifo(tmp_path / "tinyedge" / "tuned.json")
    done = tinyedge("run", str(path), "-p", "abc", "-n", "2", "--threads", "1", "--json", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0 and json.loads(done.stdout)["generated_tokens"] <= 2


def test_a_cache_folder_that_is_a_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = tinyedge("run", "demo", "-p", "a", "-n", "1", XDG_CACHE_HOME=str(file))
    assert done.returncode == OutputError.exit_code
    assert b"set XDG_CACHE_HOME" in done.stderr and b"made anew" not in done.stderr
