"""Sessions saved and loaded, whole, foreign, stale and damaged, on tiny seeded models."""

from __future__ import annotations

import hashlib
import math
import os
import random
import resource
import struct
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import F32, HIDDEN, LAYERS, Parts, Tensor, tiny_parts, write

from tinyedge.backends import LoadPlan, Request, choose, this_machine
from tinyedge.chat import state_file
from tinyedge.chat.session_file import load_session, save_session
from tinyedge.chat.state_file import open_state_file, write_state_file
from tinyedge.chat.state_key import state_key
from tinyedge.engine import Engine
from tinyedge.errors import OutputError, SessionError
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import describe_model
from tinyedge.model_identity import identity_of
from tinyedge.sampling import Sampling

GREEDY = Sampling(temperature=0.0)
TALK = {"messages": [{"role": "user", "content": "héllo 🐢"}, {"role": "assistant", "content": "ab"}], "forgotten": 0}
TEXT = "abc xyz hello"
PREAMBLE = struct.Struct("<8sIIIIQ")  # written out once more, as the format's own proof


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


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and with it a key, for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tinyedge"


@pytest.fixture
def saved(tmp_path: Path, engine: Engine) -> Path:
    engine.forget()
    engine.read(engine.tokenize(TEXT))
    target = tmp_path / "talk.session"
    assert save_session(target, engine, TALK) is None
    return target


def continued(engine: Engine, tokens: list[int]) -> tuple[str, int]:
    """The greedy text after `tokens`, and how many of them were in the KV cache already."""
    chunks = list(engine.stream(tokens, GREEDY, 30, reuse=True))
    speed = chunks[-1].speed
    assert speed is not None
    return "".join(chunk.text for chunk in chunks), speed.reused_tokens


def test_a_loaded_session_goes_on_as_if_it_had_never_been_away(saved: Path, path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, plan) as other:
        whole = [*other.tokenize(TEXT), *other.tokenize("what now", add_special=False)]
        other.forget()
        expected, reused = continued(other, whole)
        assert reused == 0
    with Engine.open(path, plan) as other:
        session = load_session(saved, other)
        assert (session.restored, session.note) == (True, None)
        assert session.conversation == TALK
        assert list(session.tokens) == other.tokenize(TEXT) == other.cached
        assert continued(other, whole) == (expected, len(session.tokens))


def test_the_restored_state_is_the_saved_one_to_the_byte(saved: Path, engine: Engine) -> None:
    before = bytes(engine.context.state())
    engine.forget()
    assert load_session(saved, engine).restored
    assert bytes(engine.context.state()) == before


def test_the_file_is_laid_out_as_documented_and_private(saved: Path, engine: Engine) -> None:
    content = saved.read_bytes()
    magic, version, header, tokens, text, state = PREAMBLE.unpack_from(content)
    assert (magic, version, tokens) == (b"TEDGE-KV", 1, len(engine.cached))
    body = PREAMBLE.size + 3 * 32
    assert len(content) == body + header + 4 * tokens + text + state
    assert content[-state:] == engine.context.state()
    ids = struct.unpack_from(f"<{tokens}I", content, body + header)
    assert list(ids) == engine.cached
    sections = content[body : len(content) - state]
    assert content[32:64] == hashlib.blake2b(content[:32] + sections, digest_size=32).digest()
    assert saved.stat().st_mode & 0o777 == 0o600


def test_a_larger_context_takes_the_state_and_a_smaller_one_reads_again(saved: Path, path: Path, plan: LoadPlan) -> None:
    count = len(load_tokens(saved))
    with Engine.open(path, replace(plan, context=100)) as other:
        assert load_session(saved, other).restored
    with Engine.open(path, replace(plan, context=count)) as other:
        session = load_session(saved, other)
        assert not session.restored
        assert f"{count} tokens and the context holds {count}" in str(session.note)
        assert session.conversation == TALK


def load_tokens(saved: Path) -> tuple[int, ...]:
    with open_state_file(saved) as file:
        return file.tokens


def test_another_kv_type_reads_again_and_says_so(saved: Path, path: Path, plan: LoadPlan) -> None:
    with Engine.open(path, replace(plan, kv_type="F32", flash="off")) as other:
        session = load_session(saved, other)
        assert not session.restored
        assert session.note == (
            "talk.session was made with a KV cache of type F16, now F32: the conversation is read again from its text"
        )
        assert (session.conversation, list(session.tokens)) == (TALK, other.tokenize(TEXT))


def test_another_library_version_reads_again_and_says_so(saved: Path, engine: Engine) -> None:
    rewrite(saved, engine, lambda header: header["identity"]["state"].update(library="llama-cpp-python 0.2.1 (ggml 0 x)"))
    session = load_session(saved, engine)
    assert not session.restored
    assert "was made with llama-cpp-python 0.2.1 (ggml 0 x), now llama-cpp-python" in str(session.note)


def rewrite(saved: Path, engine: Engine, change: Any) -> None:
    """The same session with another header, sealed with the right key."""
    with open_state_file(saved) as file:
        header = dict(file.header)
    change(header)
    write_state_file(
        saved, header=header, tokens=engine.cached, text=TALK, state=engine.context.state(), key=state_key()
    )  # fmt: skip


def test_another_model_is_refused_and_both_are_named(saved: Path, tmp_path: Path, plan: LoadPlan) -> None:
    parts = tiny_parts(seed=5)
    parts.pairs = [pair for pair in parts.pairs if pair[0] != "general.name"]
    parts.pairs.append(("general.name", "str", b"Stranger"))
    with Engine.open(write(tmp_path / "other.gguf", parts), plan) as other:
        other.read(other.tokenize("ab"))
        held = list(other.cached)
        with pytest.raises(SessionError, match=r"is a conversation with .+\(Q8_0\), and the model is Stranger \(Q8_0\)"):
            load_session(saved, other)
        assert other.cached == held


def test_two_models_of_one_name_are_told_apart_by_their_fingerprints(saved: Path, tmp_path: Path, plan: LoadPlan) -> None:
    with (
        Engine.open(write(tmp_path / "tiny.gguf", tiny_parts(seed=5)), plan) as other,
        pytest.raises(SessionError, match=r"with (.+\)) [0-9a-f]{8}, and the model is \1 [0-9a-f]{8}"),
    ):
        load_session(saved, other)


def adapter(path: Path, seed: int) -> Path:
    """A LoRA adapter for one matrix of the tiny model."""
    noise = random.Random(seed)
    parts = Parts()
    for key, kind, value in (
        ("general.architecture", "str", b"llama"),
        ("general.type", "str", b"adapter"),
        ("adapter.type", "str", b"lora"),
        ("adapter.lora.alpha", "f32", 8.0),
    ):
        parts.pairs.append((key, kind, value))
    for suffix, shape in ((".lora_a", (HIDDEN, 4)), (".lora_b", (4, HIDDEN))):
        values = [noise.gauss(0, 0.05) for _ in range(4 * HIDDEN)]
        parts.tensors.append(Tensor("blk.0.attn_q.weight" + suffix, shape, F32, struct.pack(f"<{len(values)}f", *values)))
    return write(path, parts)


def test_adapters_and_their_scales_must_be_the_same(tmp_path: Path, path: Path, plan: LoadPlan) -> None:
    one, other = (adapter(tmp_path / f"{seed}.gguf", seed) for seed in (1, 2))
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(one.read_bytes())
    target = tmp_path / "adapted.session"
    with Engine.open(path, plan, lora=[(one, 0.5), (other, 0.0)]) as adapted:
        adapted.read(adapted.tokenize(TEXT))
        save_session(target, adapted, TALK)
        adapted.set_adapter_scales([0.25, 0.0])
        assert "was made with the LoRA adapters" in str(load_session(target, adapted).note)
        adapted.set_adapter_scales([0.5, 0.0])
        assert load_session(target, adapted).restored
    for lora, fits in (([(copy, 0.5)], True), ([(other, 0.5)], False), ([], False), ([(one, 0.5), (other, 1.0)], False)):
        with Engine.open(path, plan, lora=lora) as engine:
            assert load_session(target, engine).restored == fits


def test_a_state_saved_right_after_the_cache_was_shifted_is_right(tmp_path: Path, path: Path, plan: LoadPlan) -> None:
    target = tmp_path / "slid.session"
    ask = [3 + byte for byte in b" and now?"]
    exact = replace(plan, kv_type="F32", flash="off")  # with F16 sums the order of the cells shows
    with Engine.open(path, exact) as slid, Engine.open(path, exact) as other:
        slid.read([3 + byte for byte in b"You are a turtle and you answer in rhymes. Take your time"])
        slid.discard(5, 20)
        save_session(target, slid, TALK)
        assert load_session(target, other).restored
        kept = list(slid.cached)
        for engine in (slid, other):
            engine.read([*kept, *ask])
        assert list(other.context.logits()) == pytest.approx(list(slid.context.logits()), abs=1e-5)


def windowed(path: Path, window: int) -> Path:
    """The tiny model as a Gemma 2, whose every other layer looks `window` tokens back."""
    parts = tiny_parts()
    architecture = {"general.architecture": b"gemma2"}
    parts.pairs = [
        (key.replace("llama.", "gemma2."), kind, architecture.get(key, value)) for key, kind, value in parts.pairs
    ]  # fmt: skip
    parts.set("gemma2.attention.sliding_window", "u32", window)
    parts.tensors = [tensor for tensor in parts.tensors if tensor.name != "output.weight"]
    for layer in range(LAYERS):
        for norm in ("post_attention_norm", "post_ffw_norm"):
            parts.tensors.append(
                Tensor(f"blk.{layer}.{norm}.weight", (HIDDEN,), F32, struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN))
            )
    return write(path, parts)


def test_a_restored_sliding_window_goes_on_and_is_not_cut_shorter(tmp_path: Path) -> None:
    """llama.cpp leaves out of a state what lies behind the window of its last token."""
    model = windowed(tmp_path / "windowed.gguf", 16)
    plan = choose(describe_model(read_gguf(model)), Request(backend="cpu", threads=1), this_machine())
    tokens = [3 + byte for byte in b"You are a turtle and you answer in rhymes. Take your time"]
    target = tmp_path / "windowed.session"
    with Engine.open(model, plan) as engine:
        engine.read(tokens)
        save_session(target, engine, TALK)
    for following, reused in (([*tokens, 40, 41], len(tokens)), ([*tokens[:-6], 50, 51], 0)):
        with Engine.open(model, plan) as plain, Engine.open(model, plan) as other:
            assert load_session(target, other).restored
            expected, _ = continued(plain, following)
            assert continued(other, following) == (expected, reused)


def test_a_strangers_file_gives_its_text_and_never_its_state(
    saved: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    engine.forget()
    session = load_session(saved, engine)
    assert not session.restored
    assert engine.cached == []
    assert session.note == (
        "talk.session was made on another machine or by somebody else: the conversation is read again from its text"
    )
    assert (session.conversation, list(session.tokens)) == (TALK, engine.tokenize(TEXT))


def outcome(file: Path, engine: Engine) -> str:
    """What loading a spoilt file comes to. The state in it is never restored, and what is there of the talk is right."""
    try:
        session = load_session(file, engine)
    except SessionError as error:
        assert "\n" not in error.problem
        return "refused"
    assert not session.restored
    assert session.note
    assert session.conversation == TALK
    assert list(session.tokens) == engine.tokenize(TEXT)
    return "text"


def test_no_flipped_bit_gets_a_state_restored(saved: Path, engine: Engine, tmp_path: Path) -> None:
    content = saved.read_bytes()
    noise = random.Random(3)
    state_bytes = PREAMBLE.unpack_from(content)[5]
    head = len(content) - state_bytes
    places = [*range(head), *noise.sample(range(head, len(content)), 300)]
    spoilt = tmp_path / "spoilt.session"
    seen = set()
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << noise.randrange(8)
        spoilt.write_bytes(changed)
        seen.add(outcome(spoilt, engine))
        if 64 <= place < 128 or place >= head:
            assert outcome(spoilt, engine) == "text"
    assert seen == {"refused", "text"}


def test_no_truncated_or_lengthened_file_gets_a_state_restored(saved: Path, engine: Engine, tmp_path: Path) -> None:
    content = saved.read_bytes()
    head = len(content) - PREAMBLE.unpack_from(content)[5]
    spoilt = tmp_path / "spoilt.session"
    for size in [*range(0, head, 7), head - 1]:
        spoilt.write_bytes(content[:size])
        assert outcome(spoilt, engine) == "refused"
    for changed in (content[:head], content[: head + 1], content[:-1], content + b"\0"):
        spoilt.write_bytes(changed)
        assert outcome(spoilt, engine) == "text"


@pytest.mark.parametrize("field", range(2, 6))
@pytest.mark.parametrize("value", [1, 1 << 16, 1 << 20, 1 << 24, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1])
def test_huge_sizes_with_a_right_checksum_allocate_nothing(saved: Path, engine: Engine, field: int, value: int) -> None:
    content = bytearray(saved.read_bytes())
    numbers = list(PREAMBLE.unpack_from(content))
    head = len(content) - numbers[5]
    numbers[field] = value & (1 << 32) - 1 if field < 5 else value
    content[:32] = PREAMBLE.pack(*numbers)
    content[32:64] = hashlib.blake2b(content[:32] + content[128:head], digest_size=32).digest()
    saved.write_bytes(content)
    tracemalloc.start()
    try:
        outcome(saved, engine)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def forged(path: Path, header: bytes, tokens: bytes = b"", text: bytes = b"{}") -> Path:
    """A file with these sections and a right checksum, as a stranger can make it."""
    preamble = PREAMBLE.pack(b"TEDGE-KV", 1, len(header), len(tokens) // 4, len(text), 0)
    sections = header + tokens + text
    path.write_bytes(preamble + hashlib.blake2b(preamble + sections, digest_size=32).digest() + bytes(64) + sections)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b'{"identity":[]}',
        b'{"identity":{"model":{},"state":{}}}',
        b"[" * 60000,
        b"1" * 60000,
        b'{"identity":' + b'{"model":' * 5000 + b"1" + b"}" * 5001,
        b"\xff\xfe",
    ],
)
def test_a_forged_header_is_refused_in_one_sentence(tmp_path: Path, engine: Engine, header: bytes) -> None:
    with pytest.raises(SessionError) as caught:
        load_session(forged(tmp_path / "forged.session", header), engine)
    assert len(caught.value.problem) < 300 + len(str(tmp_path))


def test_forged_tokens_and_texts_are_refused(saved: Path, tmp_path: Path, engine: Engine) -> None:
    import json

    with open_state_file(saved) as file:
        header = json.dumps(file.header).encode()
    target = tmp_path / "forged.session"
    with pytest.raises(SessionError, match="a token outside the vocabulary of"):
        load_session(forged(target, header, struct.pack("<I", 2**31)), engine)
    with pytest.raises(SessionError, match="holds no conversation"):
        load_session(forged(target, header, text=b"[1]"), engine)
    for text in (b"[" * 100000, b'{"a":' + b"7" * 100000 + b"}", b'"\xff"'):
        with pytest.raises(SessionError, match="is a damaged session file"):
            load_session(forged(target, header, text=text), engine)


def test_what_is_no_session_file_is_refused(tmp_path: Path, engine: Engine) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "notes.txt").write_text("buy milk\n" * 100)
    (tmp_path / "empty").touch()
    for name, problem in (
        ("pipe", "is not a file"),
        ("notes.txt", "is not a session file"),
        ("empty", "is not a session file"),
        (".", "is not a file"),
        ("missing", "is not there"),
        ("nul\0", "cannot be read"),
    ):
        with pytest.raises(SessionError, match=problem) as caught:
            load_session(tmp_path / name, engine)
        assert caught.value.exit_code == 27


def test_a_session_without_its_state_is_small_and_read_again(saved: Path, engine: Engine) -> None:
    assert save_session(saved, engine, TALK, with_state=False) is None
    assert saved.stat().st_size < 2000
    session = load_session(saved, engine)
    assert (session.restored, session.conversation) == (False, TALK)
    assert session.note == "talk.session was saved as text only: the conversation is read again from its text"


def test_saving_overwrites_sessions_and_nothing_else(saved: Path, tmp_path: Path, engine: Engine) -> None:
    other = {"messages": []}
    save_session(saved, engine, other)
    assert load_session(saved, engine).conversation == other
    notes = tmp_path / "notes.txt"
    notes.write_text("buy milk")
    with pytest.raises(SessionError, match="is there already and is not a session file"):
        save_session(notes, engine, TALK)
    assert notes.read_text() == "buy milk"
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path, tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(SessionError, match="is there already and is not a session file"):
            save_session(target, engine, TALK)
    assert (tmp_path / "pipe").is_fifo()
    empty = tmp_path / "empty"
    empty.touch()
    save_session(empty, engine, TALK)
    assert load_session(empty, engine).conversation == TALK


def test_a_session_is_saved_through_a_link_to_it(saved: Path, tmp_path: Path, engine: Engine) -> None:
    link = tmp_path / "link"
    link.symlink_to(saved)
    save_session(link, engine, {"messages": [1]})
    assert link.is_symlink()
    assert load_session(saved, engine).conversation == {"messages": [1]}


def test_a_save_that_fails_halfway_leaves_the_old_session(saved: Path, engine: Engine) -> None:
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            save_session(saved, engine, {"messages": []})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert [each.name for each in saved.parent.glob(".talk*")] == []


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((OutputError, SessionError)):
        save_session(tmp_path / "file" / "talk", engine, TALK)


def test_without_a_place_for_the_key_the_text_is_saved(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    engine.read(engine.tokenize(TEXT))
    target = tmp_path / "talk.session"
    assert "saved as text only" in str(save_session(target, engine, TALK))
    session = load_session(target, engine)
    assert (session.restored, session.conversation) == (False, TALK)
    assert "was saved as text only" in str(session.note)
    assert target.stat().st_size < 4096


def test_an_unused_engine_saves_and_loads(tmp_path: Path, engine: Engine) -> None:
    engine.forget()
    target = tmp_path / "new.session"
    assert save_session(target, engine, TALK) is None
    session = load_session(target, engine)
    assert (session.tokens, session.restored, session.note) == ((), False, None)


def test_sampling_comes_back_without_its_grammar(saved: Path, engine: Engine) -> None:
    sampling = Sampling(
        temperature=0.3, top_k=7, logit_bias={3: 1.5, 9: -math.inf}, dry_sequence_breakers=("\n", "é"), grammar='root ::= "a"'
    )
    save_session(saved, engine, TALK, sampling=sampling)
    assert load_session(saved, engine).sampling == replace(sampling, grammar=None)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_k": True},
        {"top_k": -1},
        {"logit_bias": [[1]]},
        {"logit_bias": [["a", 1.0]]},
        {"logit_bias": 7},
        {"samplers": "top_k"},
        {"samplers": ["no such sampler"]},
        {"seed": 10**30},
    ],
)
def test_a_sampling_that_makes_no_sense_is_left_out(saved: Path, engine: Engine, spoilt: dict[str, Any]) -> None:
    rewrite(saved, engine, lambda header: header.update(sampling=spoilt))
    assert load_session(saved, engine).sampling is None


def test_texts_too_long_to_be_read_again_are_not_written(saved: Path, engine: Engine) -> None:
    before = saved.read_bytes()
    with pytest.raises(SessionError, match="too long"):
        save_session(saved, engine, {"messages": ["x" * state_file.MAX_TEXT_BYTES]})
    assert saved.read_bytes() == before


def test_the_identity_of_an_engine_survives_json(engine: Engine) -> None:
    import json

    identity = identity_of(engine)
    assert type(identity).from_json(json.loads(json.dumps(identity.to_json()))) == identity
