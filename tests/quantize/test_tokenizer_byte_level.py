"""Byte-level BPE vocabularies: added tokens, merges, fillers, the older file forms, and equality with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import BYTE_LETTERS, added, byte_level, put
from vocabulary_only import llama_vocabulary

from tinyedge.errors import TokenizerError
from tinyedge_quantize.tokenizer import read_tokenizer

BASE = 257  # the byte letters and one merged piece


def read(folder: Path, rows: int = BASE, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The entries' plain values."""
    return {key: entry.value for key, entry in read_tokenizer(folder, rows, config or {}).items()}


def test_entries_come_in_the_converters_order(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", byte_level(added_tokens=[added(BASE, "<s>", special=True)]))
    put(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "add_bos_token": True, "chat_template": "{{ x }}"})
    entries = read(tmp_path, BASE + 1)
    assert list(entries) == [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.chat_template",
    ]
    assert entries["tokenizer.ggml.model"] == "gpt2"
    assert entries["tokenizer.ggml.merges"] == ["Ġ a"]
    assert entries["tokenizer.ggml.bos_token_id"] == BASE


def test_types_of_added_tokens_and_fillers(tmp_path: Path) -> None:
    tokens = [
        added(BASE, "<special>", special=True),
        added(BASE + 1, "<plain>"),
        added(BASE + 2, "<|looks special|>"),
        added(BASE + 3, "\u2581word", normalized=True),
    ]
    put(tmp_path, "tokenizer.json", byte_level(added_tokens=tokens))
    entries = read(tmp_path, BASE + 6)
    assert entries["tokenizer.ggml.tokens"][BASE - 1 :] == [
        "Ġa".encode(),
        b"<special>",
        b"<plain>",
        b"<|looks special|>",
        b" word",
        b"[PAD261]",
        b"[PAD262]",
    ]
    assert entries["tokenizer.ggml.token_type"][BASE - 1 :] == [1, 3, 4, 3, 4, 5, 5]


RAW = ["<x>", "Ġhi", "é", "Ã©", "caf\u00e9", "<|syst\u00e8me|>", "<|m\u0105drze|>", "a b", "ĠĠ x", "\n", "Ċ", "\u4f60\u597d"]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("token", RAW)
def test_tokens_found_in_raw_text_are_written_as_they_are(tmp_path: Path, token: str, special: bool) -> None:
    """Also where their letters are byte letters: é stands for byte E9, ą for 05, Ġ for a space."""
    tokenizers = pytest.importorskip("tokenizers")
    row = BYTE_LETTERS.index(token) if token in BYTE_LETTERS else BASE
    put(tmp_path, "tokenizer.json", byte_level(added_tokens=[added(row, token, special)]))
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    entries = read_tokenizer(tmp_path, BASE + 1, {})
    assert entries["tokenizer.ggml.tokens"].value[row] == token.encode()
    texts = [token, f"un {token} noir", f"x{token}{token}y", " hi", "\u00e9", "a\nb", "syst\u00e8me"]
    with llama_vocabulary(tmp_path / "vocab.gguf", entries) as ours:
        assert [ours.tokens(text) for text in texts] == [reference.encode(text).ids for text in texts]
    assert reference.encode(token).ids == [row]


def test_pieces_may_leave_holes(tmp_path: Path) -> None:
    vocab = {text: 2 * row for row, text in enumerate([*BYTE_LETTERS, "Ġa"])}
    put(tmp_path, "tokenizer.json", byte_level(model={"vocab": vocab}))
    entries = read(tmp_path, 2 * BASE)
    assert entries["tokenizer.ggml.tokens"][:3] == [b"!", b"[PAD1]", b'"']


def test_merges_in_pairs_and_in_lines_are_the_same(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", byte_level(["ab", "bc"], model={"merges": [["a", "b"], ["b", "c"]]}))
    assert read(tmp_path, 258)["tokenizer.ggml.merges"] == ["a b", "b c"]
    put(tmp_path, "tokenizer.json", byte_level(["ab", "bc"]))
    assert read(tmp_path, 258)["tokenizer.ggml.merges"] == ["a b", "b c"]


def test_of_equal_merges_the_last_one_counts(tmp_path: Path) -> None:
    """In the tokenizers library, and so in the file, where llama.cpp would go by the first."""
    tokenizers = pytest.importorskip("tokenizers")
    merges = ["a b", "b c", "c d", "a b", "b c", "b c"]
    described = byte_level(["ab", "bc", "cd"], model={"merges": merges})
    put(tmp_path, "tokenizer.json", described)
    entries = read_tokenizer(tmp_path, 259, {})
    assert entries["tokenizer.ggml.merges"].value == ["c d", "a b", "b c"]
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = ["abcd", "abc", "bcd", "abab bcbc", "xbcdy"]
    with llama_vocabulary(tmp_path / "vocab.gguf", entries) as ours:
        assert [ours.tokens(text) for text in texts] == [reference.encode(text).ids for text in texts]


def test_vocab_json_and_merges_txt_serve_without_tokenizer_json(tmp_path: Path) -> None:
    put(tmp_path, "vocab.json", {text: row for row, text in enumerate([*BYTE_LETTERS, "ab", "<|endoftext|>"])})
    put(tmp_path, "merges.txt", "#version: 0.2\na b\n")
    entries = read(tmp_path, 258, {"eos_token_id": 257})
    assert entries["tokenizer.ggml.pre"] == "gpt-2"
    assert entries["tokenizer.ggml.merges"] == ["a b"]
    assert entries["tokenizer.ggml.token_type"][-2:] == [1, 3]
    assert entries["tokenizer.ggml.eos_token_id"] == 257
    put(tmp_path, "tokenizer_config.json", {"tokenizer_class": "Qwen2TokenizerFast"})
    assert read(tmp_path, 258)["tokenizer.ggml.pre"] == "qwen2"
    put(tmp_path, "tokenizer_config.json", {"tokenizer_class": "OtherTokenizer"})
    with pytest.raises(TokenizerError, match=r"'OtherTokenizer'.*--pre-tokenizer"):
        read(tmp_path, 258)


def test_no_token_is_added_that_the_tokenizer_does_not_add(tmp_path: Path) -> None:
    """Under this name llama.cpp would begin every text with bos, or with token 11 for want of one."""
    put(tmp_path, "tokenizer.json", byte_level())
    for config in ({}, {"bos_token_id": 3}):
        entries = read_tokenizer(tmp_path, BASE, config, pre_tokenizer="llama-bpe")
        assert entries["tokenizer.ggml.add_bos_token"].value is False
    assert "tokenizer.ggml.add_bos_token" not in read_tokenizer(tmp_path, BASE, {"bos_token_id": 3}, "qwen2")
    put(tmp_path, "tokenizer_config.json", {"add_bos_token": True, "bos_token": "!"})
    entries = read_tokenizer(tmp_path, BASE, {"bos_token_id": 0}, pre_tokenizer="llama-bpe")
    assert entries["tokenizer.ggml.add_bos_token"].value is True


@pytest.mark.parametrize(
    ("tokenizer", "rows", "problem"),
    [
        (byte_level(), 200, r"ids up to 256 but the embedding has 200 rows"),
        (byte_level(added_tokens=[added(BASE, "<x>")]), BASE, r"258 tokens but the embedding has 257 rows"),
        (byte_level(added_tokens=[added(BASE + 4, "<x>")]), 300, r"claims id 261, but it is number 257"),
        (byte_level(added_tokens=[added(2**40, "<x>")]), 300, r"where a token id is needed"),
        (byte_level(model={"vocab": {"a": 0, "b": 0}}), 300, r"gives one id to two tokens"),
        (byte_level(model={"vocab": {"a": -1}}), 300, r"is -1 where a token id"),
        (byte_level(model={"vocab": {"a": True}}), 300, r"is True where a token id"),
        (byte_level(model={"vocab": {}}), 300, r"is empty"),
        (byte_level(model={"vocab": ["a"]}), 300, r"a list of 1 where an object"),
        (byte_level(model={"merges": []}), 300, r"no merges"),
        (byte_level(model={"merges": ["a b c"]}), 300, r"merge 0 .* where a pair"),
        (byte_level(model={"merges": [["a", "zz"]]}), 300, r"joins 'a' and 'zz'"),
        (byte_level(model={"type": "Unigram"}), 300, r"'Unigram', where BPE is needed; put the tokenizer\.model"),
        (byte_level(model={"end_of_word_suffix": "</w>"}), 300, r"end_of_word_suffix"),
        (byte_level(decoder={"type": "WordPiece"}), 300, r"decoder 'WordPiece'"),
        (byte_level(added_tokens=[{"id": BASE}]), 300, r"content of an added token is None"),
        (byte_level(added_tokens=[added(BASE, "\ud800")]), 300, r"no UTF-8 form"),
        (byte_level(added_tokens=[added(BASE, "<a>\0x"), added(BASE + 1, "<a>\0y")]), 300, r"cannot tell apart"),
    ],
)
def test_contradictory_files_are_one_sentence(tmp_path: Path, tokenizer: dict[str, Any], rows: int, problem: str) -> None:
    put(tmp_path, "tokenizer.json", tokenizer)
    with pytest.raises(TokenizerError, match=problem):
        read(tmp_path, rows)


NAMED_CASES: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([added(BASE, "<s>"), added(BASE + 1, "<pad>")], {"bos_token": "<s>"}),
    ([added(BASE, "<s>")], {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "unk_token": "!"}),
    ([added(BASE, "<x>"), added(0, "!")], {"added_tokens_decoder": {str(BASE): {"content": "<x>", "special": True}}}),
    ([added(BASE + 1, "<b>"), added(BASE, "<a>", True)][::-1], {"pad_token": "<b>"}),
    ([added(BASE, "\u2581z"), added(BASE + 1, "<|t|>")], {}),
]


@pytest.mark.parametrize(("tokens", "settings"), NAMED_CASES)
def test_vocabulary_equals_what_the_converter_takes_from_transformers(
    tmp_path: Path, tokens: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """conversion/base.py, get_vocab_base, on the same folder."""
    transformers = pytest.importorskip("transformers")
    put(tmp_path, "tokenizer.json", byte_level(added_tokens=tokens))
    put(tmp_path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    put(tmp_path, "config.json", {"model_type": "llama"})
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    by_row = {row: text for text, row in reference.get_vocab().items()}
    texts, special = [], []
    for row in sorted(by_row):
        token = reference.added_tokens_decoder.get(row)
        text = by_row[row]
        if token is not None and not token.normalized:
            text = reference.decode(reference.encode(text, add_special_tokens=False))
        texts.append(text.replace("\u2581", " ").encode() if token is not None and not token.special else text.encode())
        special.append(token is not None and token.special)
    entries = read(tmp_path, len(by_row))
    assert entries["tokenizer.ggml.tokens"] == texts
    ours = [kind == 3 for kind in entries["tokenizer.ggml.token_type"]]
    looks = [text.startswith(b"<|") or text == b"<pad>" for text in texts]
    assert ours == [flag or look for flag, look in zip(special, looks, strict=True)]
