"""The engine against llama.cpp's own high-level Python API and on a tiny seeded model."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.backends import LoadPlan, Request, choose, this_machine
from tinyedge.engine import Engine
from tinyedge.errors import NativeError, PromptError
from tinyedge.generation import Chunk, Speed, TextBuilder, peak_rss_bytes
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import describe_model
from tinyedge.native import library
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model
from tinyedge.sampling import Sampling

GREEDY = Sampling(temperature=0.0)
WARM = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=11)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())


@pytest.fixture(scope="module")
def plan(path: Path) -> LoadPlan:
    return choose(describe_model(read_gguf(path)), Request(backend="cpu", threads=1), this_machine())


@pytest.fixture(scope="module")
def engine(path: Path, plan: LoadPlan) -> Iterator[Engine]:
    with Engine.open(path, plan) as opened:
        yield opened


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def speed_of(chunks: list[Chunk]) -> Speed:
    assert all(chunk.speed is None for chunk in chunks[:-1])
    speed = chunks[-1].speed
    assert speed is not None
    return speed


def test_greedy_text_equals_that_of_llama_cpp_pythons_own_api(path: Path, engine: Engine) -> None:
    program = (
        "import sys, llama_cpp; m = llama_cpp.Llama(sys.argv[1], n_ctx=128, n_threads=1, flash_attn=True, verbose=False);"
        "t = m.create_completion('abc an', max_tokens=40, temperature=0.0, repeat_penalty=1.0);"
        "sys.stdout.buffer.write(t['choices'][0]['text'].encode())"
    )
    reference = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, timeout=120, check=True)
    ours = text_of(list(engine.stream("abc an", GREEDY, 40)))
    assert ours.replace("\ufffd", "").encode() == reference.stdout  # that API drops broken bytes


def test_the_same_seed_gives_the_same_text_and_another_does_not(engine: Engine) -> None:
    texts = [text_of(list(engine.stream("ab", replace(WARM, seed=seed), 30))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_repeat_penalty_changes_what_is_drawn(engine: Engine) -> None:
    plain = text_of(list(engine.stream("ab", GREEDY, 40)))
    assert text_of(list(engine.stream("ab", replace(GREEDY, repeat_penalty=5.0), 40))) != plain


def test_top_k_one_is_greedy(engine: Engine) -> None:
    only = replace(WARM, top_k=1)
    assert text_of(list(engine.stream("ab", only, 20))) == text_of(list(engine.stream("ab", GREEDY, 20)))


def test_every_token_is_counted_and_the_last_chunk_has_the_speed(engine: Engine) -> None:
    chunks = list(engine.stream("ab", WARM, 25))
    speed = speed_of(chunks)
    assert sum(chunk.tokens for chunk in chunks) == speed.generated_tokens
    if speed.stop_reason == "length":
        assert speed.generated_tokens == 25
    assert speed.prompt_tokens == len(engine.model.tokenize("ab"))
    assert speed.ttft_s is not None
    assert speed.ttft_s > 0
    assert speed.generated_tokens_per_s is not None
    assert speed.peak_rss_bytes > 1 << 20


def test_chunks_are_whole_characters_though_tokens_are_bytes(engine: Engine) -> None:
    """The vocabulary holds every byte, so a hot random model emits broken and split characters all the time."""
    for seed in range(20):
        chunks = list(engine.stream("ab", replace(WARM, seed=seed, temperature=100.0), 60))
        text = text_of(chunks)
        assert text.encode("utf-8").decode("utf-8") == text
        assert all(chunk.text for chunk in chunks[:-1])


def test_a_character_of_four_byte_tokens_comes_as_one_chunk(engine: Engine) -> None:
    emoji = [3 + byte for byte in "🐢".encode()]  # byte tokens begin at 3
    whole = TextBuilder(engine.model.piece, ())
    assert [whole.add(token) for token in emoji] == ["", "", "", "🐢"]
    assert whole.end() == ""
    cut = TextBuilder(engine.model.piece, ())
    assert [cut.add(token) for token in emoji[:2]] == ["", ""]
    assert cut.end() == "\ufffd"


def test_generation_stops_at_max_tokens(engine: Engine) -> None:
    for limit in (0, 1, 7):
        speed = speed_of(list(engine.stream("ab", GREEDY, limit)))
        assert (speed.generated_tokens, speed.stop_reason) == (limit, "length")


def test_generation_stops_when_the_context_is_full(path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, replace(plan, context=20)) as small:
        speed = speed_of(list(small.stream("ab", GREEDY, None)))
        assert speed.stop_reason in ("context", "end")
        assert speed.prompt_tokens + speed.generated_tokens <= 20
        if speed.stop_reason == "context":
            assert speed.prompt_tokens + speed.generated_tokens == 20


def test_generation_stops_when_the_model_ends_the_text(path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, plan) as opened:
        reasons = {
            speed_of(list(opened.stream("ab", replace(WARM, temperature=100.0, seed=s), None))).stop_reason for s in range(40)
        }
    assert "end" in reasons  # at this temperature one draw in 312 is the end of text


def test_a_prompt_longer_than_the_context_is_refused_with_the_excess(engine: Engine) -> None:
    tokens = len(engine.model.tokenize("z" * 200))
    with pytest.raises(PromptError, match=f"{tokens} tokens and the context holds 128.*{tokens + 1 - 128} too many"):
        list(engine.stream("z" * 200, GREEDY, 5))


def test_a_prompt_that_just_fits_yields_one_token(engine: Engine) -> None:
    length = 1
    while len(engine.model.tokenize("z" * (length + 1))) < 128:
        length += 1
    speed = speed_of(list(engine.stream("z" * length, GREEDY, None)))
    assert (speed.prompt_tokens, speed.generated_tokens) == (127, 1)


def test_the_empty_prompt_begins_a_text(engine: Engine) -> None:
    speed = speed_of(list(engine.stream("", GREEDY, 3)))
    assert (speed.prompt_tokens, speed.generated_tokens) == (1, 3)


def test_each_stream_begins_with_an_empty_context(engine: Engine) -> None:
    first = text_of(list(engine.stream("abc", GREEDY, 30)))
    list(engine.stream("xyz" * 10, GREEDY, 30))
    assert text_of(list(engine.stream("abc", GREEDY, 30))) == first


def test_a_stream_that_is_left_early_does_not_disturb_the_next(engine: Engine) -> None:
    first = text_of(list(engine.stream("abc", GREEDY, 30)))
    for _chunk in engine.stream("xyz", GREEDY, 30):
        break
    assert 1 <= engine.speed("interrupted").generated_tokens < 30
    assert text_of(list(engine.stream("abc", GREEDY, 30))) == first


def test_a_prompt_of_several_batches_is_the_same_as_one_batch(path: Path) -> None:
    tokens = [1, *[260 + index % 40 for index in range(100)]]
    texts = []
    with Model(path) as model:
        for room in (512, 16):
            with Context(model, ContextSettings(context=128, threads=1)) as context:
                context._room = room
                context.decode_all(tokens)
                logits = library.llama().llama_get_logits_ith(context.pointer, -1)
                texts.append(max(range(312), key=lambda token, row=logits: row[token]))
    assert texts[0] == texts[1]


def test_closing_twice_is_harmless_and_use_after_close_is_refused(path: Path, plan: LoadPlan) -> None:
    opened = Engine.open(path, plan)
    opened.close()
    opened.close()
    with pytest.raises(NativeError, match="closed already"):
        list(opened.stream("ab", GREEDY, 3))


def test_a_refused_file_cites_llama_cpp(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.tensors = [tensor for tensor in parts.tensors if tensor.name != "output_norm.weight"]
    with pytest.raises(NativeError, match=r"cannot load broken\.gguf.*output_norm"):
        Model(write(tmp_path / "broken.gguf", parts))


def test_an_interrupt_ends_a_long_prompt_within_one_operation(path: Path) -> None:
    """A Python signal handler alone would run only after the whole decode."""
    program = (
        "import sys, time; from tinyedge.native.model import Model\n"
        "from tinyedge.native.context import Context, ContextSettings\n"
        "with Model(sys.argv[1]) as model, Context(model, ContextSettings(context=32768, threads=1)) as context:\n"
        "    context._room = 512\n"
        "    print('ready', flush=True); started = time.monotonic()\n"
        "    try: context.decode_all([5] * 32000)\n"
        "    except KeyboardInterrupt: print('interrupted', time.monotonic() - started, flush=True)\n"
        "    else: print('finished', flush=True)\n"
        "    context.clear(); context.decode_all([1, 2, 3]); print('usable', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().startswith("interrupted")
        assert process.stdout.readline() == "usable\n"
        assert process.wait(60) == 0


def test_the_whole_llama_cpp_package_can_still_be_imported_afterwards() -> None:
    program = (
        "from tinyedge.native import library; bindings = library.llama(); import llama_cpp;"
        "assert llama_cpp.llama_cpp is bindings; assert llama_cpp.Llama; import sys; print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_the_bindings_alone_bring_no_heavy_modules() -> None:
    program = (
        "import sys; from tinyedge.native import library; library.devices();"
        "print(*[name for name in ('numpy', 'jinja2', 'diskcache', 'llama_cpp') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "\n"


def test_peak_memory_grows_with_what_was_held() -> None:
    before = peak_rss_bytes()
    block = bytearray(b"x" * (64 << 20))
    assert len(block) == 64 << 20
    assert peak_rss_bytes() >= before + (32 << 20) or before > 128 << 20
