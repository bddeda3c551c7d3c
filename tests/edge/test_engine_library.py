"""The engine as a library: reuse and shifting of the KV cache, stop strings, likelihoods, embeddings, adapters, threads."""

from __future__ import annotations

import gc
import json
import math
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import CONTEXT, F32, HIDDEN, Parts, Tensor, tiny_parts, write

import tinyedge
from tinyedge import ChatTemplate, Engine, LoadPlan, Message, Request, Sampling
from tinyedge.backends import choose, this_machine
from tinyedge.errors import AdapterError, EngineBusyError, NativeError, PromptError, TemplateError
from tinyedge.gguf_file import read_gguf
from tinyedge.memory import memory_needed
from tinyedge.model_facts import describe_model

GREEDY = Sampling(temperature=0.0)
LETTERS = [260 + index % 40 for index in range(60)]  # ordinary tokens of the tiny vocabulary


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())


@pytest.fixture(scope="module")
def plan(path: Path) -> LoadPlan:
    return choose(describe_model(read_gguf(path)), Request(backend="cpu", threads=1), this_machine())


@pytest.fixture
def engine(path: Path, plan: LoadPlan) -> Iterator[Engine]:
    with Engine.open(path, plan) as opened:
        yield opened


def reference(path: Path, expression: str, **options: Any) -> Any:
    """What llama-cpp-python's own high-level API gives for `expression` over its model `m`, in a process of its own."""
    program = (
        "import json, sys, llama_cpp\n"
        "options = json.loads(sys.argv[2])\n"
        "m = llama_cpp.Llama(sys.argv[1], n_ctx=128, n_threads=1, verbose=False, **options)\n"
        f"print(json.dumps({expression}, default=float))\n"
    )
    command = [sys.executable, "-c", program, str(path), json.dumps(options)]
    return json.loads(subprocess.run(command, capture_output=True, timeout=120, check=True).stdout)


def one_layer() -> Parts:
    """Keys and values of the first layer depend on their own token alone, so a shifted cache equals a computed one."""
    parts = tiny_parts()
    parts.set("llama.block_count", "u32", 1)
    parts.tensors = [tensor for tensor in parts.tensors if not tensor.name.startswith("blk.1.")]
    return parts


def logits(engine: Engine) -> np.ndarray[Any, Any]:
    return np.frombuffer(engine.context.logits(), dtype=np.float32).copy()


def test_the_names_of_the_library_are_there_and_cost_nothing_before_they_are_used() -> None:
    program = "import sys, tinyedge; print(*[m for m in ('numpy', 'llama_cpp', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"\n"
    assert all(getattr(tinyedge, name) for name in tinyedge.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = tinyedge.Nothing


def test_open_alone_checks_the_file_and_makes_a_plan(path: Path, tmp_path: Path) -> None:
    with Engine.open(path) as opened:
        assert opened.plan.context == CONTEXT
        assert opened.complete("abc", GREEDY, 4).speed.generated_tokens == 4
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(tinyedge.TinyEdgeError):
        Engine.open(damaged)


def test_complete_gives_text_and_token_ids_that_make_it(engine: Engine) -> None:
    done = engine.complete("abc", GREEDY, 20)
    assert len(done.tokens) == done.speed.generated_tokens == 20
    assert b"".join(map(engine.model.piece, done.tokens)).decode("utf-8", "replace") == done.text
    assert engine.complete(engine.tokenize("abc"), GREEDY, 20).text == done.text


def test_reuse_computes_only_what_is_new(engine: Engine) -> None:
    first = [1, *LETTERS[:30]]
    engine.complete(first, GREEDY, 3)
    longer = [*first, *LETTERS[30:40]]
    again = engine.complete(longer, GREEDY, 10, reuse=True)
    assert (again.speed.reused_tokens, again.speed.prompt_tokens) == (31, 41)
    assert again.text == engine.complete(longer, GREEDY, 10).text
    assert engine.complete(longer, GREEDY, 10).speed.reused_tokens == 0
    assert engine.complete(longer, GREEDY, 10, reuse=True).speed.reused_tokens == 40  # the last gives the logits


def test_what_is_cached_is_what_was_read_and_generated(engine: Engine) -> None:
    done = engine.complete([1, *LETTERS[:5]], GREEDY, 6)
    assert engine.cached == [1, *LETTERS[:5], *done.tokens[:5]]  # the last one was drawn, not read
    stream = engine.stream([1, *LETTERS[:9]], GREEDY, 30)
    next(stream)
    stream.close()
    assert engine.cached[:10] == [1, *LETTERS[:9]]
    engine.read([1, *LETTERS[:4]])
    assert engine.cached == [1, *LETTERS[:4]]


def test_discarded_tokens_leave_the_rest_as_if_computed_at_its_new_place(tmp_path: Path, plan: LoadPlan) -> None:
    path = write(tmp_path / "one.gguf", one_layer())
    with Engine.open(path, plan) as engine:
        engine.read([1, *LETTERS[:40]])
        engine.discard(5, 25)
        assert engine.cached == [1, *LETTERS[:4], *LETTERS[24:40]]
        engine.context.decode(300)
        shifted = logits(engine)
        engine.forget()
        engine.read([1, *LETTERS[:4], *LETTERS[24:40], 300])
        assert np.abs(shifted - logits(engine)).max() < 0.02 * np.abs(shifted).max()  # keys are rotated in half precision
        assert shifted.argmax() == logits(engine).argmax()


def test_a_full_context_goes_on_where_room_is_made(engine: Engine) -> None:
    asked: list[int] = []

    def make_room() -> tuple[int, int] | None:
        asked.append(len(engine.cached))
        return (4, 44) if len(asked) < 3 else None

    chunks = list(engine.stream([1, *LETTERS], GREEDY, None, make_room=make_room))
    speed = chunks[-1].speed
    assert speed is not None
    assert speed.stop_reason == "context"
    assert asked == [CONTEXT - 1] * 3
    assert speed.generated_tokens == CONTEXT - 61 + 80


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    whole = engine.complete("abc", GREEDY, 40).text
    stop = whole[7:10]
    stopped = engine.complete("abc", GREEDY, 40, stop=[stop, "never said"])
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.speed.stop_reason == "stop"
    assert engine.complete("abc", GREEDY, 40, stop=["never said"]).text == whole


def test_likelihoods_equal_those_of_llama_cpp_pythons_own_api(path: Path, engine: Engine) -> None:
    theirs = reference(
        path,
        "m.create_completion([1, 265, 270], max_tokens=6, temperature=0.0, repeat_penalty=1.0, logprobs=5)['choices'][0]",
        logits_all=True,
        flash_attn=True,
    )["logprobs"]
    ours = engine.complete([1, 265, 270], GREEDY, 6, logprobs=5).likelihoods
    assert len(ours) == 6
    for index, place in enumerate(ours):
        assert place.drawn == place.top[0]
        assert place.drawn.logprob == pytest.approx(theirs["token_logprobs"][index], abs=1e-3)
        for logprob in theirs["top_logprobs"][index].values():  # a dict by text, in which tokens without text are one
            assert any(each.logprob == pytest.approx(logprob, abs=1e-3) for each in place.top)


def test_likelihoods_of_a_whole_vocabulary_add_up_to_one(engine: Engine) -> None:
    place = engine.complete("ab", replace(GREEDY, temperature=1.0), 1, logprobs=312).likelihoods[0]
    assert sum(math.exp(each.logprob) for each in place.top) == pytest.approx(1.0, abs=1e-9)


def test_an_embedding_equals_that_of_llama_cpp_pythons_own_api(path: Path, engine: Engine) -> None:
    theirs = reference(path, "m.embed('abc de fg', normalize=False)", embedding=True, pooling_type=1)
    ours = engine.embed("abc de fg")
    assert len(ours) == HIDDEN
    assert np.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * np.abs(theirs).max())
    assert engine.embed("abc de fg") == ours
    assert not np.allclose(engine.embed("xyz"), theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("kv_type", "ggml_type"), [("F16", 1), ("Q8_0", 8), ("Q4_0", 2)])
def test_a_kv_type_gives_the_text_of_llama_cpp_pythons_own_api(
    path: Path, plan: LoadPlan, kv_type: str, ggml_type: int
) -> None:
    call = "m.create_completion([1, 265, 270, 281], max_tokens=24, temperature=0.0, repeat_penalty=1.0)['choices'][0]['text']"
    theirs = reference(path, call, type_k=ggml_type, type_v=ggml_type, flash_attn=True)
    with Engine.open(path, replace(plan, kv_type=kv_type)) as engine:
        ours = engine.complete([1, 265, 270, 281], GREEDY, 24).text
    assert ours.replace("\ufffd", "") == theirs.replace("\ufffd", "")


def test_rope_scaling_reaches_beyond_the_trained_context_as_llama_cpp_pythons_does(path: Path, plan: LoadPlan) -> None:
    call = "m.create_completion([1, 265, 270, 281], max_tokens=24, temperature=0.0, repeat_penalty=1.0)['choices'][0]['text']"
    texts = {}
    for name, number in (("linear", 1), ("yarn", 2)):
        theirs = reference(path, call, rope_scaling_type=number, rope_freq_scale=0.25, flash_attn=True)
        with Engine.open(path, replace(plan, rope_scaling=name, rope_scale=4.0)) as engine:
            texts[name] = engine.complete([1, 265, 270, 281], GREEDY, 24).text
        assert texts[name].replace("\ufffd", "") == theirs.replace("\ufffd", "")
    with Engine.open(path, replace(plan, context=512, rope_scaling="linear", rope_scale=4.0)) as engine:
        assert engine.complete([1, *LETTERS * 5], GREEDY, 2).speed.prompt_tokens == 301


def lora(base: Path, rank: int = 4, alpha: float = 8.0, name: str = "blk.0.attn_q.weight", seed: int = 1) -> Parts:
    """An adapter for one square matrix."""
    noise = random.Random(seed)
    parts = Parts()
    for key, kind, value in (
        ("general.architecture", "str", b"llama"),
        ("general.type", "str", b"adapter"),
        ("adapter.type", "str", b"lora"),
        ("adapter.lora.alpha", "f32", alpha),
    ):
        parts.pairs.append((key, kind, value))
    columns, rows = read_gguf(base).tensor[name].shape

    def matrix(suffix: str, shape: tuple[int, int]) -> Tensor:
        values = [noise.gauss(0, 0.05) for _ in range(shape[0] * shape[1])]
        return Tensor(name + suffix, shape, F32, struct.pack(f"<{len(values)}f", *values))

    parts.tensors = [matrix(".lora_a", (columns, rank)), matrix(".lora_b", (rank, rows))]
    return parts


def merged(base: Parts, adapter: Parts, scale: float) -> Parts:
    """The base with the adapter added to its matrix, in F32: W + scale * alpha / rank * B A."""
    name = adapter.tensors[0].name.removesuffix(".lora_a")
    target = base.tensor(name)
    columns, rows = target.shape
    blocks = np.frombuffer(target.data, dtype=np.dtype([("d", "<f2"), ("q", "i1", 32)]))
    weight = (blocks["d"].astype(np.float32)[:, None] * blocks["q"]).reshape(rows, columns)
    a, b = (np.frombuffer(tensor.data, dtype=np.float32).reshape(tensor.shape[::-1]) for tensor in adapter.tensors)
    weight = weight + scale * adapter.get("adapter.lora.alpha") / a.shape[0] * (b @ a)
    base.tensors[base.tensors.index(target)] = Tensor(name, target.shape, F32, weight.astype("<f4").tobytes())
    return base


def test_an_adapter_changes_the_model_as_merging_it_does(path: Path, plan: LoadPlan, tmp_path: Path) -> None:
    adapter = lora(path)
    file = write(tmp_path / "adapter.gguf", adapter)
    whole = write(tmp_path / "merged.gguf", merged(tiny_parts(), adapter, 1.5))
    prompt = [1, *LETTERS[:20]]
    with Engine.open(whole, plan) as engine:
        engine.read(prompt)
        expected = logits(engine)
    with Engine.open(path, plan, lora=[(file, 1.5)]) as engine:
        engine.read(prompt)
        adapted = logits(engine)
        engine.set_adapter_scales([0.0])
        assert engine.cached == []  # computed with other weights
        engine.read(prompt)
        plain = logits(engine)
        assert engine.adapter_scales == (0.0,)
    spread = np.abs(expected - plain).max()
    assert spread > 0.05
    assert np.abs(adapted - expected).max() < 0.1 * spread
    with Engine.open(path, plan) as engine:
        engine.read(prompt)
        assert np.array_equal(plain, logits(engine))


@pytest.mark.parametrize(
    ("bend", "sentence"),
    [
        (lambda parts: parts.set("general.architecture", "str", b"qwen2"), "adapts a qwen2 model, and tiny.gguf is a llama"),
        (lambda parts: parts.set("general.type", "str", b"model"), "is not a LoRA adapter"),
        (lambda parts: parts.drop("adapter.lora.alpha"), "lacks its scale"),
        (lambda parts: parts.tensors.pop(), "only one of the two matrices of 'blk.0.attn_q.weight'"),
        (lambda parts: parts.tensors.clear(), "holds no matrices"),
        (lambda parts: setattr(parts.tensors[0], "shape", (128, 8)), r"has \(128, 8\) and \(4, 256\)"),
        (
            lambda parts: [setattr(each, "name", each.name.replace("blk.0", "blk.7")) for each in parts.tensors],
            "adapts 'blk.7.attn_q.weight', which tiny.gguf does not have",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused(path: Path, plan: LoadPlan, tmp_path: Path, bend: Any, sentence: str) -> None:
    parts = lora(path)
    bend(parts)
    file = write(tmp_path / "adapter.gguf", parts)
    with pytest.raises(AdapterError, match=sentence):
        Engine.open(path, plan, lora=[(file, 1.0)])


def test_a_second_stream_while_one_is_open_is_refused_from_any_thread(engine: Engine) -> None:
    stream = engine.stream("abc", GREEDY, 30)
    next(stream)
    caught: list[BaseException] = []

    def intrude() -> None:
        try:
            engine.complete("x", GREEDY, 2)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert [type(error) for error in caught] == [EngineBusyError]
    with pytest.raises(EngineBusyError):
        engine.embed("x")
    stream.close()
    assert engine.complete("x", GREEDY, 2).speed.generated_tokens == 2


def test_streams_in_turn_from_several_threads_work(engine: Engine) -> None:
    expected = engine.complete("abc", GREEDY, 10).text
    texts: list[str] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: texts.append(engine.complete("abc", GREEDY, 10).text))
        thread.start()
        thread.join()
    assert texts == [expected] * 3


def test_an_open_stream_that_outlives_its_engine_ends_quietly(path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, plan) as engine:
        stream = engine.stream("abc", GREEDY, 30)
        next(stream)
    stream.close()
    with pytest.raises(NativeError, match="closed already"):
        engine.complete("abc")


def test_chat_uses_the_models_template(engine: Engine) -> None:
    said = [{"role": "user", "content": "abc"}]
    assert engine.chat_tokens(said) == engine.tokenize("abc") == engine.chat_tokens([Message("user", "abc")])
    texts = ["".join(chunk.text for chunk in engine.chat(said, GREEDY, 8)) for _ in range(2)]
    assert texts == [engine.complete("abc", GREEDY, 8).text] * 2


def test_chat_without_a_template_says_so(tmp_path: Path, plan: LoadPlan) -> None:
    parts = tiny_parts()
    parts.drop("tokenizer.chat_template")
    with (
        Engine.open(write(tmp_path / "bare.gguf", parts), plan) as engine,
        pytest.raises(TemplateError, match="no chat template"),
    ):
        engine.chat([{"role": "user", "content": "abc"}])


def test_chat_takes_a_template_in_place_of_the_models(tmp_path: Path, plan: LoadPlan) -> None:
    parts = tiny_parts()
    parts.drop("tokenizer.chat_template")
    path, source = write(tmp_path / "bare.gguf", parts), tmp_path / "given.jinja"
    source.write_text("{% for each in messages %}{{ each.content }}b{% endfor %}")
    said = [{"role": "user", "content": "ac"}]
    with Engine.open(path, plan) as engine, ChatTemplate.from_file(source, read_gguf(path)) as template:
        assert engine.chat_tokens(said, template) == engine.tokenize("acb")
        text = "".join(chunk.text for chunk in engine.chat(said, GREEDY, 8, template=template))
        assert text == engine.complete("acb", GREEDY, 8).text


def test_special_texts_of_strangers_stay_text(engine: Engine) -> None:
    assert engine.tokenize("</s>", add_special=False) == [2]
    plain = engine.tokenize("</s>", add_special=False, parse_special=False)
    assert b"".join(map(engine.model.piece, plain)).strip() == b"</s>"
    assert 2 not in plain


@pytest.mark.parametrize("tokens", [[], [1, 312], [1, -1], [1] * CONTEXT])
def test_a_prompt_of_impossible_tokens_is_refused(engine: Engine, tokens: list[int]) -> None:
    with pytest.raises(PromptError):
        engine.complete(tokens)


def test_a_thousand_engines_leave_no_memory_behind(path: Path) -> None:
    program = (
        "import gc, sys, psutil; from tinyedge import Engine, Sampling, Request\n"
        "from tinyedge.backends import choose, this_machine; from tinyedge.gguf_file import read_gguf\n"
        "from tinyedge.model_facts import describe_model\n"
        "plan = choose(describe_model(read_gguf(sys.argv[1])), Request(backend='cpu', threads=1), this_machine())\n"
        "def cycle():\n"
        "    with Engine.open(sys.argv[1], plan) as engine:\n"
        "        next(engine.stream('ab', Sampling(), 5))\n"
        "process = psutil.Process()\n"
        "for _ in range(100): cycle()\n"
        "gc.collect(); before = process.memory_info().rss\n"
        "for _ in range(1000): cycle()\n"
        "gc.collect(); print(process.memory_info().rss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, timeout=600, check=True)
    assert int(done.stdout) < 5 << 20


def test_a_cancelled_stream_frees_its_sampler(engine: Engine) -> None:
    from tinyedge.native.sampler import Sampler

    for _ in range(5):
        stream = engine.stream("abc", GREEDY, 30)
        next(stream)
        del stream
    gc.collect()
    assert not any(isinstance(each, Sampler) and each._pointer for each in gc.get_objects())


def test_a_plan_that_was_made_to_fit_says_the_same_as_the_plain_one(path: Path, plan: LoadPlan) -> None:
    facts, machine = describe_model(read_gguf(path)), this_machine()
    wish = Request(backend="cpu", threads=1, context=1024, batch=512)
    need = memory_needed(facts, 1024, batch=512).total_bytes
    fitted = choose(facts, wish, replace(machine, free_bytes=int(0.8 * need)))
    assert fitted.steps
    assert fitted.batch < 512
    with Engine.open(path, plan) as engine:
        plain = engine.complete("abc an", GREEDY, 40)
    with Engine.open(path, fitted) as engine:
        assert engine.complete("abc an", GREEDY, 40).text == plain.text
