"""The cache of system prompts on a tiny seeded model: what it restores, what it keeps, what it does when things go wrong."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.backends import LoadPlan, Request, choose, this_machine
from tinyedge.chat.prompt_cache import PromptCache
from tinyedge.chat.state_file import open_state_file, write_state_file
from tinyedge.chat.state_key import state_key
from tinyedge.engine import Engine
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import describe_model
from tinyedge.sampling import Sampling

GREEDY = Sampling(temperature=0.0)
SYSTEM = [3 + byte for byte in b"You are a turtle and you answer in rhymes. Take your time, think twice."]  # byte tokens
ASKED = [3 + byte for byte in b" Who are you?"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())


@pytest.fixture(scope="module")
def plan(path: Path) -> LoadPlan:
    return choose(describe_model(read_gguf(path)), Request(backend="cpu", threads=1), this_machine())


@pytest.fixture(scope="module")
def shared(path: Path, plan: LoadPlan) -> Iterator[Engine]:
    with Engine.open(path, plan) as opened:
        yield opened


@pytest.fixture
def engine(shared: Engine) -> Engine:
    shared.forget()
    return shared


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> PromptCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return PromptCache(on_note=notes.append)


def entries(cache: PromptCache) -> list[Path]:
    assert cache.folder is not None
    return sorted(cache.folder.iterdir()) if cache.folder.exists() else []


def answer(engine: Engine, tokens: list[int]) -> tuple[str, int]:
    chunks = list(engine.stream(tokens, GREEDY, 30, reuse=True))
    speed = chunks[-1].speed
    assert speed is not None
    return "".join(chunk.text for chunk in chunks), speed.reused_tokens


def test_a_second_start_restores_and_answers_as_the_plain_one(
    path: Path, plan: LoadPlan, cache: PromptCache, notes: list[str]
) -> None:
    with Engine.open(path, plan) as plain:
        expected, reused = answer(plain, SYSTEM + ASKED)
        assert reused == 0
    with Engine.open(path, plan) as first:
        assert cache.load(first, SYSTEM) == 0
        assert first.cached == SYSTEM
        state = bytes(first.context.state())
        assert answer(first, SYSTEM + ASKED) == (expected, len(SYSTEM))
    with Engine.open(path, plan) as second:
        assert PromptCache().load(second, SYSTEM) == len(SYSTEM)
        assert second.cached == SYSTEM
        assert bytes(second.context.state()) == state
        assert answer(second, SYSTEM + ASKED) == (expected, len(SYSTEM))
    assert notes == []
    assert [each.stat().st_mode & 0o777 for each in entries(cache)] == [0o600]


def test_the_longest_stored_beginning_is_taken(engine: Engine, cache: PromptCache) -> None:
    for count in (64, 70, 68):
        engine.forget()
        engine.read(SYSTEM[:count])
        assert cache.keep(engine, SYSTEM[:count])
    engine.forget()
    assert cache.restore(engine, SYSTEM[:69] + ASKED) == 68
    assert engine.cached == SYSTEM[:68]
    engine.forget()
    assert cache.restore(engine, SYSTEM[:63]) == 0
    assert cache.restore(engine, ASKED + SYSTEM) == 0
    assert engine.cached == []


def test_what_the_engine_holds_already_is_not_replaced(engine: Engine, cache: PromptCache) -> None:
    engine.read(SYSTEM[:64])
    cache.keep(engine, SYSTEM[:64])
    engine.read(SYSTEM)
    assert cache.restore(engine, SYSTEM) == 0
    assert engine.cached == SYSTEM


def test_the_rest_behind_a_stored_beginning_is_read(engine: Engine, cache: PromptCache) -> None:
    engine.read(SYSTEM[:66])
    cache.keep(engine, SYSTEM[:66])
    engine.forget()
    assert cache.load(engine, SYSTEM) == 66
    assert cache.computed.tokens == len(SYSTEM) - 66
    assert cache.computed.seconds > 0
    assert cache.load(engine, SYSTEM) == 0
    assert cache.computed.tokens == 0
    assert engine.cached == SYSTEM
    assert len(entries(cache)) == 1  # a few tokens more do not pay


def test_what_was_read_before_an_interruption_counts_as_read(engine: Engine, cache: PromptCache) -> None:
    def interrupt(done: int, _whole: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.load(engine, SYSTEM, interrupt)
    assert cache.computed.tokens == len(engine.cached)


def test_short_prompts_are_kept_only_where_they_are_slow(engine: Engine, cache: PromptCache) -> None:
    engine.read(SYSTEM[:20])
    assert not cache.keep(engine, SYSTEM[:20])
    assert not cache.keep(engine, SYSTEM[:20], seconds=0.2)
    assert entries(cache) == []
    assert cache.keep(engine, SYSTEM[:20], seconds=0.4)
    assert len(entries(cache)) == 1


def test_only_what_the_engine_holds_can_be_kept(engine: Engine, cache: PromptCache) -> None:
    engine.read(SYSTEM + ASKED)
    with pytest.raises(ValueError, match="other tokens"):
        cache.keep(engine, SYSTEM)


def test_a_smaller_context_and_other_settings_do_not_take_an_entry(
    engine: Engine, path: Path, plan: LoadPlan, cache: PromptCache, notes: list[str]
) -> None:
    cache.load(engine, SYSTEM)
    with Engine.open(path, replace(plan, context=len(SYSTEM))) as small:
        assert cache.restore(small, SYSTEM) == 0
    assert notes == []
    with Engine.open(path, replace(plan, kv_type="F32", flash="off")) as other:
        assert cache.load(other, SYSTEM) == 0
        assert notes == [
            "the prompt cache has this system prompt with a KV cache of type F16, now F32: it is read again"
        ]  # fmt: skip
        other.forget()
        assert cache.load(other, SYSTEM) == len(SYSTEM)
    assert len(entries(cache)) == 2
    assert len(notes) == 1


def test_another_model_does_not_take_an_entry(engine: Engine, tmp_path: Path, plan: LoadPlan, cache: PromptCache) -> None:
    cache.load(engine, SYSTEM)
    with Engine.open(write(tmp_path / "other.gguf", tiny_parts(seed=4)), plan) as other:
        assert cache.restore(other, SYSTEM) == 0


@pytest.mark.parametrize("place", [0, 20, 40, 70, 100, 200, 900, -1, None])
def test_a_damaged_entry_is_ignored_with_a_note_and_made_anew(
    engine: Engine, cache: PromptCache, notes: list[str], place: int | None
) -> None:
    cache.load(engine, SYSTEM)
    (entry,) = entries(cache)
    content = bytearray(entry.read_bytes())
    if place is None:
        del content[len(content) // 2 :]
    else:
        content[place] ^= 4
    entry.write_bytes(content)
    engine.forget()
    assert cache.load(engine, SYSTEM) == 0
    assert notes == ["a damaged entry of the prompt cache is ignored: the system prompt is read again"]
    engine.forget()
    assert cache.load(engine, SYSTEM) == len(SYSTEM)


def test_a_planted_entry_is_never_restored(engine: Engine, cache: PromptCache, tmp_path: Path) -> None:
    """One that says it is right, sealed with the key of somebody else, or by nobody."""
    cache.load(engine, SYSTEM)
    (entry,) = entries(cache)
    state = engine.context.state()
    for key in (state_key(tmp_path / "stranger"), None):
        with open_state_file(entry) as file:
            header = dict(file.header)
        write_state_file(entry, header=header, tokens=SYSTEM, state=state, key=key)
        engine.forget()
        assert cache.restore(engine, SYSTEM) == 0
        assert engine.cached == []
        cache.load(engine, SYSTEM)


def test_an_entry_under_the_name_of_another_is_not_taken(engine: Engine, cache: PromptCache) -> None:
    cache.load(engine, SYSTEM)
    (entry,) = entries(cache)
    other = [*SYSTEM[:-1], 5]
    engine.read(other)
    cache.keep(engine, other)
    (second,) = set(entries(cache)) - {entry}
    second.replace(entry)
    engine.forget()
    assert cache.restore(engine, SYSTEM) == 0


def test_the_least_recently_used_entries_go_when_the_limit_is_reached(engine: Engine, cache: PromptCache) -> None:
    prompts = [[3 + digit, *SYSTEM] for digit in range(5)]
    engine.read(prompts[0])
    size = len(engine.context.state()) + 2500
    small = PromptCache(cache.folder, 3 * size)
    engine.forget()
    for age, prompt in enumerate(prompts[:2]):
        small.load(engine, prompt)
        newest = max(entries(small), key=lambda each: each.stat().st_mtime)
        os.utime(newest, (age, age))
    engine.forget()
    assert small.restore(engine, prompts[0]) == len(prompts[0])  # and is the newest by that
    for prompt in prompts[2:]:
        small.load(engine, prompt)
        assert sum(each.stat().st_size for each in entries(small)) <= 3 * size
    engine.forget()
    assert small.restore(engine, prompts[1]) == 0


def test_a_prompt_larger_than_the_limit_is_not_kept_with_a_note(engine: Engine, cache: PromptCache, notes: list[str]) -> None:
    small = PromptCache(cache.folder, 1000, notes.append)
    assert small.load(engine, SYSTEM) == 0
    assert entries(small) == []
    assert "too large for the cache" in notes[0]


def test_a_limit_of_nothing_turns_the_cache_off(engine: Engine, cache: PromptCache) -> None:
    cache.load(engine, SYSTEM)
    engine.forget()
    off = PromptCache(cache.folder, 0)
    assert off.load(engine, SYSTEM) == 0
    assert engine.cached == SYSTEM
    assert len(entries(off)) == 1


def test_the_default_limit_is_a_share_of_the_free_disk(
    engine: Engine, cache: PromptCache, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 1 << 40, 100_000))  # type: ignore[attr-defined]
    cache.load(engine, SYSTEM)
    assert entries(cache) == []
    assert len(notes) == 1


def test_a_full_disk_is_a_note_and_leaves_nothing_behind(engine: Engine, cache: PromptCache, notes: list[str]) -> None:
    assert state_key() is not None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        assert cache.load(engine, SYSTEM) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert engine.cached == SYSTEM
    assert len(notes) == 1
    assert notes[0].startswith("the system prompt is not kept: ")
    assert entries(cache) == []


@pytest.mark.usefixtures("cache")
def test_a_folder_that_cannot_be_is_a_note(engine: Engine, tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "file").touch()
    blocked = PromptCache(tmp_path / "file" / "prompts", on_note=notes.append)
    assert blocked.load(engine, SYSTEM) == 0
    assert engine.cached == SYSTEM
    assert len(notes) == 1


def test_what_killed_processes_left_is_cleared_away(engine: Engine, cache: PromptCache) -> None:
    assert cache.folder is not None
    cache.folder.mkdir(parents=True)
    old, new, other = (cache.folder / name for name in (".0123456789abcdef-old", ".0123456789abcdef-new", "notes.txt"))
    for file in (old, new, other):
        file.write_bytes(b"x" * 1000)
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    os.utime(other, (hours_ago, hours_ago))
    cache.load(engine, SYSTEM)
    assert [file.exists() for file in (old, new, other)] == [False, True, True]


PROCESS = """
import json, sys
from pathlib import Path
from tinyedge.backends import Request, choose, this_machine
from tinyedge.engine import Engine
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import describe_model
from tinyedge.chat.prompt_cache import PromptCache
model, folder, limit, seed, tokens = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])
notes = []
plan = choose(describe_model(read_gguf(model)), Request(backend="cpu", threads=1), this_machine())
with Engine.open(model, plan) as engine:
    cache = PromptCache(folder, limit, notes.append)
    restored = 0
    for turn in range(40):
        prompt = [3 + (turn * seed) % 5, *tokens]
        engine.forget()
        restored += cache.load(engine, prompt) > 0
        assert engine.cached == prompt
print(json.dumps([restored, notes]))
"""


@pytest.mark.usefixtures("cache")
def test_processes_that_use_one_cache_at_once_do_no_harm(path: Path, engine: Engine, tmp_path: Path) -> None:
    engine.read(SYSTEM)
    size = len(engine.context.state()) + 2000
    folder = tmp_path / "prompts"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(path), str(folder), str(3 * size), str(seed), json.dumps(SYSTEM)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2, 3)
    ]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [notes for _, notes in told] == [[], [], []]
    assert sum(restored for restored, _ in told) > 0
    assert all(not each.name.startswith(".") for each in folder.iterdir())
    engine.forget()
    for each in folder.iterdir():
        with open_state_file(each) as file, file.state(state_key()) as state:
            assert state is not None
