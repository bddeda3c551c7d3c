"""tokenizer.json beside tokenizer.model: contradictions end the conversion with the first one named, additions do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from family_tokenizers import special_token_ids, write_tokenizer
from tokenizer_folders import PIECES, added, byte_level, put, sentencepiece_model

from tinyedge.errors import TokenizerError
from tinyedge_quantize.tokenizer import read_tokenizer

ROWS = len(PIECES)
VOCAB = {text: row for row, (text, _, _) in enumerate(PIECES)}


def read(folder: Path, vocab: Any, tokens: list[dict[str, Any]], rows: int = ROWS + 4) -> dict[str, Any]:
    """The tokens of a folder with the small tokenizer.model and a tokenizer.json of `vocab` and `tokens`."""
    put(folder, "tokenizer.model", sentencepiece_model())
    put(folder, "tokenizer.json", {"added_tokens": tokens, "model": {"type": "BPE", "vocab": vocab}})
    return {key: entry.value for key, entry in read_tokenizer(folder, rows, {}).items()}


def without(text: str) -> dict[str, int]:
    return {piece: row for piece, row in VOCAB.items() if piece != text}


AGREEING: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "the same": (VOCAB, []),
    "a unigram's pairs": ([[text, score] for text, score, _ in PIECES], []),
    "special tokens described": (VOCAB, [added(0, "<unk>", True), added(1, "<s>", True)]),
    "added tokens in one of them": (VOCAB, [added(ROWS, "<|im_start|>", True), added(ROWS + 1, "\u2581\u2581")]),
    "added tokens in both parts": ({**VOCAB, "<x>": ROWS}, [added(ROWS, "<x>")]),
    "a byte spelled as its character": ({**without("<0x09>"), "\t": VOCAB["<0x09>"]}, []),
    "no vocabulary": ({}, [added(1, "<s>", True)]),
}
DISAGREEING: dict[str, tuple[Any, list[dict[str, Any]], str]] = {
    "another piece": (
        {**without("a"), "c": VOCAB["a"]},
        [],
        r"token 260 is 'c' in tokenizer\.json and 'a' in tokenizer\.model",
    ),
    "two pieces exchanged": (
        {**VOCAB, "a": VOCAB["b"], "b": VOCAB["a"]},
        [],
        r"token 260 is 'b' in tokenizer\.json and 'a' in tokenizer\.model",
    ),
    "one piece more": ({**VOCAB, "zz": ROWS}, [], rf"has 'zz' as token {ROWS}, tokenizer\.model {ROWS} tokens"),
    "one piece less": (without("b"), [], r"tokenizer\.model has token 261, 'b', tokenizer\.json not"),
    "an added token over a piece": (VOCAB, [added(260, "<x>")], r"token 260 is '<x>' in tokenizer\.json and 'a'"),
    "a piece added again": (VOCAB, [added(ROWS, "a")], rf"'a' is token {ROWS} in tokenizer\.json and 260 in tokenizer\.model"),
    "another byte": ({**without("<0x09>"), "\n": VOCAB["<0x09>"]}, [], r"token 12 is '\\n'"),
}


@pytest.mark.parametrize("case", AGREEING)
def test_what_only_one_file_knows_is_no_contradiction(tmp_path: Path, case: str) -> None:
    vocab, tokens = AGREEING[case]
    assert read(tmp_path, vocab, tokens)["tokenizer.ggml.tokens"][260] == b"a"


@pytest.mark.parametrize("case", DISAGREEING)
def test_a_contradiction_is_named_with_what_to_do(tmp_path: Path, case: str) -> None:
    vocab, tokens, problem = DISAGREEING[case]
    with pytest.raises(TokenizerError, match=rf"disagree: .*{problem}.*; keep the file that this checkpoint was trained with"):
        read(tmp_path, vocab, tokens)


def test_a_token_that_the_settings_rename_too_agrees(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {"260": {"content": "<x>"}}})
    assert read(tmp_path, VOCAB, [added(260, "<x>")])["tokenizer.ggml.tokens"][260] == b"<x>"


@pytest.mark.parametrize("vocabulary", ["llama", "gpt2", "stablelm", "mpt", "qwen", "phi3"])
def test_another_kind_of_tokenizer_beside_it_is_a_contradiction_in_every_family(tmp_path: Path, vocabulary: str) -> None:
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    put(tmp_path, "tokenizer.json", byte_level())
    with pytest.raises(TokenizerError, match=r"token 0 is '!' in tokenizer\.json and '<unk>' in tokenizer\.model"):
        read_tokenizer(tmp_path, ROWS, {}, vocabulary=vocabulary)


@pytest.mark.parametrize(
    ("kind", "vocabulary", "spoil"),
    [
        ("llama-spm", "llama", lambda vocab: vocab.update({"\u2581the": vocab["in"], "in": vocab["\u2581the"]})),
        ("gemma3-spm", "gemma3", lambda vocab: vocab.update({"<0x41>": vocab["<0x42>"], "<0x42>": vocab["<0x41>"]})),
        ("phi3-spm", "phi3", lambda vocab: vocab.pop("\u2581the")),
    ],
)
def test_a_familys_own_folder_agrees_until_it_is_spoiled(
    tmp_path: Path, kind: str, vocabulary: str, spoil: Callable[[dict[str, int]], Any]
) -> None:
    rows = write_tokenizer(tmp_path, kind)
    read_tokenizer(tmp_path, rows, special_token_ids(kind), vocabulary=vocabulary)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    spoil(described["model"]["vocab"])
    put(tmp_path, "tokenizer.json", described)
    with pytest.raises(TokenizerError, match="disagree"):
        read_tokenizer(tmp_path, rows, special_token_ids(kind), vocabulary=vocabulary)
