"""Which files each family reads, what it adds, and the tokenizer.json that holds SentencePiece-like pieces alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from family_tokenizers import tokenizer_json, write_tokenizer
from hard_texts import HARD_TEXTS
from tokenizer_folders import BYTE_LETTERS, PIECES, byte_level, put, sentencepiece_model
from vocabulary_only import llama_vocabulary

from tinyedge.errors import TokenizerError
from tinyedge_quantize.tokenizer import VOCABULARIES, read_tokenizer
from tinyedge_quantize.tokenizer.spaces import begins_with_space, prepend_scheme

ROWS = len(PIECES)


def read(folder: Path, vocabulary: str, rows: int = ROWS, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The entries' plain values under short keys."""
    entries = read_tokenizer(folder, rows, config or {}, vocabulary=vocabulary)
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): entry.value for key, entry in entries.items()}


@pytest.mark.parametrize("vocabulary", sorted(set(VOCABULARIES) - {"stablelm"}))
def test_a_sentencepiece_model_alone_serves_every_family_but_one(tmp_path: Path, vocabulary: str) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    entries = read(tmp_path, vocabulary)
    assert (entries["model"], entries["pre"]) == ("llama", "default")
    assert entries.get("add_space_prefix") is (False if vocabulary.startswith("gemma") else None)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_byte_level_tokenizer_serves_every_family(tmp_path: Path, vocabulary: str) -> None:
    put(tmp_path, "tokenizer.json", byte_level())
    entries = read(tmp_path, vocabulary, 257)
    assert (entries["model"], entries["pre"]) == ("gpt2", "gpt-2")
    assert "add_space_prefix" not in entries


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_an_empty_folder_names_what_was_looked_for_in_every_family(tmp_path: Path, vocabulary: str) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.model, tokenizer\.json, and vocab\.json"):
        read(tmp_path, vocabulary)


@pytest.mark.parametrize(("vocabulary", "name"), [("qwen", "qwen.tiktoken"), ("stablelm", "arcade100k.tiktoken")])
def test_a_tiktoken_vocabulary_names_the_remedy(tmp_path: Path, vocabulary: str, name: str) -> None:
    put(tmp_path, name, "IQ== 0\n")
    with pytest.raises(TokenizerError, match=rf"{name} is a tiktoken rank list .*; put the tokenizer\.json of a newer version"):
        read(tmp_path, vocabulary)
    put(tmp_path, "tokenizer.json", byte_level())
    assert read(tmp_path, vocabulary, 257)["model"] == "gpt2"


def test_a_slow_qwen_folder_is_read_from_vocab_and_merges(tmp_path: Path) -> None:
    put(tmp_path, "vocab.json", {text: row for row, text in enumerate([*BYTE_LETTERS, "ab"])})
    put(tmp_path, "merges.txt", "#version: 0.2\na b\n")
    put(tmp_path, "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    assert read(tmp_path, "qwen", 257)["pre"] == "qwen2"


def test_only_llama_passes_the_prefix_space_on(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", byte_level())
    put(tmp_path, "tokenizer_config.json", {"add_prefix_space": False})
    assert read(tmp_path, "llama", 257)["add_space_prefix"] is False
    assert "add_space_prefix" not in read(tmp_path, "gpt2", 257)


def test_gemma_ends_a_turn_with_its_own_token(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    put(tmp_path, "tokenizer_config.json", {"chat_template": "T"})
    entries = read(tmp_path, "gemma")
    assert (entries["eot_token_id"], entries["add_space_prefix"], entries["chat_template"]) == (107, False, "T")
    assert list(entries)[-1] == "add_space_prefix"
    assert "eot_token_id" not in read(tmp_path, "gemma2")


def test_an_mpt_with_a_sentencepiece_model_is_sea_lion(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    entries = read(tmp_path, "mpt")
    found = [entries[key] for key in ("add_bos_token", "padding_token_id", "eos_token_id", "unknown_token_id")]
    assert found == [False, 3, 1, 0]


def test_phi3_takes_added_tokens_as_they_are_written(tmp_path: Path) -> None:
    """Unlike the others, Phi-3's reading keeps U+2581 and asks no token how it looks; tokenizer.json has the last word."""
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    tokens = [{"id": ROWS + row, "content": text, "special": row == 1} for row, text in enumerate(("\u2581x", "<s1>", "<|y|>"))]
    put(tmp_path, "tokenizer.json", {"added_tokens": tokens})
    put(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {str(ROWS): {"content": "<old>", "special": True}}})
    entries = read(tmp_path, "phi3", ROWS + 3)
    assert entries["tokens"][-3:] == ["\u2581x".encode(), b"<s1>", b"<|y|>"]
    assert entries["token_type"][-3:] == [4, 3, 4]
    assert read(tmp_path, "llama", ROWS + 1)["tokens"][-1] == b"<old>"


def test_pieces_are_scored_by_the_order_of_the_merges(tmp_path: Path) -> None:
    rows = write_tokenizer(tmp_path, "llama-fast")
    merges = ["".join(pair) for pair in tokenizer_json("llama-fast")["model"]["merges"]]
    entries = read(tmp_path, "llama", rows)
    scores = dict(zip(entries["tokens"], entries["scores"], strict=True))
    assert [scores[text.encode()] for text in dict.fromkeys(merges)] == [-float(place) for place in range(len(set(merges)))]
    assert scores[b"<0x41>"] == -float(len(set(merges)))


@pytest.mark.parametrize(
    ("option", "value"), [("end_of_word_suffix", "</w>"), ("continuing_subword_prefix", "##"), ("dropout", 0.1)]
)
def test_options_that_llama_cpp_does_not_have_are_refused(tmp_path: Path, option: str, value: Any) -> None:
    described = tokenizer_json("llama-fast")
    described["model"][option] = value
    put(tmp_path, "tokenizer.json", described)
    with pytest.raises(TokenizerError, match=rf"sets {option}, which llama\.cpp does not have; convert it with"):
        read(tmp_path, "llama", 600)


def test_of_equal_merges_the_last_one_gives_the_score(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    described = tokenizer_json("llama-fast")
    first = described["model"]["merges"][0]
    described["model"]["merges"] += [first]
    put(tmp_path, "tokenizer.json", described)
    entries = read_tokenizer(tmp_path, 600, {})
    scores = dict(zip(entries["tokenizer.ggml.tokens"].value, entries["tokenizer.ggml.scores"].value, strict=True))
    assert scores["".join(first).encode()] < scores["".join(described["model"]["merges"][-2]).encode()]
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with llama_vocabulary(tmp_path / "vocab.gguf", entries) as ours:
        for text in HARD_TEXTS:
            assert ours.tokens(text) == reference.encode(text, add_special_tokens=False).ids, text


METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}


def with_spaces(folder: Path, normalizer: Any, pre_tokenizer: Any) -> None:
    described = tokenizer_json("llama-fast")
    put(folder, "tokenizer.json", json.dumps({**described, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}))


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"),
    [
        (REPLACE, None, False),
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, REPLACE]}, None, None),
        (None, METASPACE, None),
        (None, {**METASPACE, "prepend_scheme": "never"}, False),
        (None, {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": False, "split": False}, False),
        (REPLACE, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}, False),
    ],
)
def test_a_space_in_front_is_what_the_definition_says(
    tmp_path: Path, normalizer: Any, pre_tokenizer: Any, prefix: bool | None
) -> None:
    with_spaces(tmp_path, normalizer, pre_tokenizer)
    assert read(tmp_path, "llama", 600).get("add_space_prefix") is prefix


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "shown"),
    [
        (None, None, "spaces stay as they are"),
        ({"type": "Sequence", "normalizers": [{"type": "NFKC"}, REPLACE]}, None, "NFKC"),
        (REPLACE, {"type": "Whitespace"}, "Whitespace"),
        (None, {**METASPACE, "split": True}, "pieces reach beyond"),
        (None, {**METASPACE, "replacement": "_"}, "Metaspace"),
    ],
)
def test_another_treatment_of_spaces_is_shown_with_the_remedy(
    tmp_path: Path, normalizer: Any, pre_tokenizer: Any, shown: str
) -> None:
    with_spaces(tmp_path, normalizer, pre_tokenizer)
    with pytest.raises(TokenizerError, match=rf"{shown}.*; put the tokenizer\.model of this checkpoint beside it"):
        read(tmp_path, "llama", 600)


def test_steps_within_steps_are_followed_however_deep() -> None:
    nested: dict[str, Any] = METASPACE
    for _ in range(5000):
        nested = {"type": "Sequence", "pretokenizers": [nested]}
    assert begins_with_space({"pre_tokenizer": nested}, ["\u2581a"]) is True
    assert prepend_scheme({"pre_tokenizer": nested}) == "first"
    assert prepend_scheme({"pre_tokenizer": METASPACE, "normalizer": {"type": "Prepend", "prepend": "\u2581"}}) is None
