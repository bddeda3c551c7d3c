"""Hostile tokenizer folders: whatever the bytes, an answer or one TokenizerError, and soon."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tokenizer_special import template
from tokenizer_folders import PIECES, added, byte_level, put, sentencepiece_model

from tinyedge.errors import TokenizerError
from tinyedge_quantize.tokenizer import files, read_tokenizer

ROWS = len(PIECES) + 3
CONFIG = {"vocab_size": ROWS, "bos_token_id": 1, "eos_token_id": [2]}
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "__type": "AddedToken"},
    "add_bos_token": True,
    "add_prefix_space": False,
    "additional_special_tokens": ["<|x|>"],
    "chat_template": [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}],
}


def write_folder(folder: Path, with_model: bool) -> None:
    """A complete folder that reads without an error."""
    changes: dict[str, Any] = {}
    if with_model:
        put(folder, "tokenizer.model", sentencepiece_model())
        changes["model"] = {"vocab": {text: row for row, (text, _, _) in enumerate(PIECES)}, "merges": []}
    first, last = (1, len(PIECES)) if with_model else (257, 259)
    tokens = [added(first, "<s>", True), added(first + 1, "</s>", True), added(last, "<|x|>")]
    pair = ("<s>", "A", "</s>", "B")
    steps = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<s>", "A", "</s>", pair=pair)]}
    changes |= {"added_tokens": tokens, "normalizer": {"type": "NFC"}, "post_processor": steps}
    put(folder, "tokenizer.json", byte_level(**changes))
    described = {str(first + row): {"content": text, "special": True} for row, text in enumerate(("<s>", "</s>"))}
    put(folder, "tokenizer_config.json", {**SETTINGS, "added_tokens_decoder": described})


def answer(folder: Path, config: dict[str, Any] = CONFIG) -> bool:
    """True for an answer, False for a TokenizerError of one sentence; anything else fails the test."""
    start = time.monotonic()
    try:
        read_tokenizer(folder, ROWS, config)
        return True
    except TokenizerError as error:
        assert "\n" not in str(error) and str(error).isprintable()
        assert len(str(error)) < 500
        return False
    finally:
        assert time.monotonic() - start < 5


def test_the_folders_under_mutation_are_sound(tmp_path: Path) -> None:
    for with_model in (True, False):
        folder = tmp_path / str(with_model)
        folder.mkdir()
        write_folder(folder, with_model)
        assert answer(folder)


def mutated_bytes(data: bytes, random_source: random.Random) -> bytes:
    """Bytes flipped, dropped, inserted or cut off, sometimes by pieces of JSON."""
    changed = bytearray(data)
    for _ in range(random_source.randint(1, 5)):
        at = random_source.randrange(len(changed) + 1)
        how = random_source.randrange(6)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << random_source.randrange(8)
        elif how == 1:
            del changed[at : at + random_source.randint(1, 20)]
        elif how == 2:
            changed[at:at] = bytes(random_source.randrange(256) for _ in range(random_source.randint(1, 6)))
        elif how == 3:
            changed[at:at] = random_source.choice([b'"\\ud800"', b"null", b"{", b"[]", b"-1", b"1e999", b"NaN", b"9" * 30])
        elif how == 4:
            changed[at:at] = changed[max(0, at - 30) : at]
        elif random_source.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def mutated_value(value: Any, random_source: random.Random) -> Any:
    """The same JSON with one value somewhere inside replaced by one of another kind."""
    odd: list[Any] = [
        None,
        True,
        -1,
        2**40,
        10**400,
        1.5,
        "",
        "\ud800",
        "x" * 5000,
        [],
        {},
        [[]],
        [None],
        {"a": 1},
        [{"id": {}}],
    ]
    if not isinstance(value, dict | list) or not value or random_source.random() < 0.12:
        return random_source.choice(odd)
    copy: Any = value.copy()
    key = random_source.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    if isinstance(copy, dict) and random_source.random() < 0.1:
        del copy[key]
    else:
        copy[key] = mutated_value(copy[key], random_source)
    return copy


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
def test_mutated_bytes_never_do_worse_than_an_error(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, with_model=name != "tokenizer.json")
    original = (tmp_path / name).read_bytes()
    random_source = random.Random(name)
    answers = set()
    for _ in range(300):
        put(tmp_path, name, mutated_bytes(original, random_source))
        answers.add(answer(tmp_path))
    assert False in answers


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_values_of_another_kind_never_do_worse_than_an_error(tmp_path: Path, name: str, with_model: bool) -> None:
    write_folder(tmp_path, with_model)
    original = json.loads((tmp_path / name).read_text())
    random_source = random.Random(31)
    for _ in range(400):
        changed = mutated_value(original, random_source)
        put(tmp_path, name, json.dumps(changed).encode())
        answer(tmp_path)


def test_config_values_of_another_kind_never_do_worse_than_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path, with_model=True)
    random_source = random.Random(5)
    for _ in range(200):
        changed = mutated_value(CONFIG, random_source)
        if isinstance(changed, dict):
            answer(tmp_path, changed)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe{}", b'{"a": ' + b"9" * 5000 + b"}", b"{} {}"],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.json"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    put(tmp_path, name, content)
    with pytest.raises(TokenizerError, match=name.replace(".", r"\.")):
        read_tokenizer(tmp_path, ROWS, {})


def test_a_file_beyond_the_size_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, with_model=False)
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 1000)
    with pytest.raises(TokenizerError, match=r"json is larger than"):
        read_tokenizer(tmp_path, ROWS, {})


def test_long_lists_of_steps_take_no_longer_than_their_length(tmp_path: Path) -> None:
    steps = [{"type": "NFC"}] * 300_000
    normalizer = {"type": "Sequence", "normalizers": steps}
    splits = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 300_000}
    put(tmp_path, "tokenizer.json", byte_level(normalizer=normalizer, pre_tokenizer=splits))
    assert not answer(tmp_path)


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n")
    with pytest.raises(TokenizerError, match="Git LFS pointer"):
        read_tokenizer(tmp_path, ROWS, {})


def test_huge_ids_reserve_nothing(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    put(tmp_path, "added_tokens.json", {"<a>": 2**31 - 1})
    put(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {str(2**31 - 2): {"content": "<b>"}}})
    assert len(read_tokenizer(tmp_path, ROWS, {})["tokenizer.ggml.tokens"].value) == ROWS
    for name, value in (("<a>", -1), ("<a>", 2**63), ("<a>", "7"), ("<a>", True)):
        put(tmp_path, "added_tokens.json", {name: value})
        with pytest.raises(TokenizerError, match=r"added_tokens\.json"):
            read_tokenizer(tmp_path, ROWS, {})


@pytest.mark.parametrize("key", ["-1", "\u0663", "1_0", " 3", "1" * 20, "x"])
def test_keys_that_are_no_plain_number_are_refused(tmp_path: Path, key: str) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    put(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {key: {"content": "<b>"}}})
    with pytest.raises(TokenizerError, match="added_tokens_decoder"):
        read_tokenizer(tmp_path, ROWS, {})


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path)], ids=["folder", "link to itself"])
def test_a_name_that_is_no_file_counts_as_missing(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match="no tokenizer"):
        read_tokenizer(tmp_path, ROWS, {})
    shutil.rmtree(tmp_path)
