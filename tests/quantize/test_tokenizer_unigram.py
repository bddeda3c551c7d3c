"""SentencePiece unigram models: written for llama.cpp's own unigram algorithm, with sentencepiece's ids.

llama.cpp differs from the library on a text of nothing but spaces, which gets no further space in front, on U+2581 itself,
which the library takes for a space, and on what no piece covers where the model has byte pieces: llama.cpp gives <unk> there.
Of two paths that score the same, such as two ways to cut a run of spaces, either may be taken.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from family_tokenizers import sentencepiece_file
from hard_texts import HARD_TEXTS
from test_tokenizer_pretokenizers import texts
from tokenizer_folders import PIECES, field, piece_message, put, varint
from vocabulary_only import llama_vocabulary

from tinyedge.errors import TokenizerError
from tinyedge_quantize.metadata import string
from tinyedge_quantize.tokenizer import read_tokenizer
from tinyedge_quantize.tokenizer.charsmap import check_charsmap
from tinyedge_quantize.tokenizer.sentencepiece_model import parse_model

# The library's own defaults, as T5 and XGLM have them, and what Llama-like models change about them.
NFKC = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True, "byte_fallback": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "spaces kept": {"byte_fallback": False},
    "normalized": NFKC,
    "normalized without case": NFKC | {"normalization_rule_name": "nmt_nfkc_cf"},
    "no space in front": {"byte_fallback": False, "add_dummy_prefix": False},
    "user-defined pieces": NFKC | {"user_defined_symbols": ("<sep>", "<x>")},
    "byte pieces": {"character_coverage": 1.0},
}


def model_file(options: dict[str, Any]) -> bytes:
    pytest.importorskip("sentencepiece")
    return sentencepiece_file(**{"model_type": "unigram", "pad_id": -1, "hard_vocab_limit": False, **options})


def read(folder: Path, data: bytes, **changes: Any) -> dict[str, Any]:
    put(folder, "tokenizer.model", data)
    rows = changes.pop("rows", len(parse_model(data).pieces))
    return read_tokenizer(folder, rows, changes.pop("config", {}), **changes)


@pytest.mark.parametrize("name", OPTIONS)
def test_ids_equal_those_of_sentencepiece(tmp_path: Path, name: str) -> None:
    data = model_file(OPTIONS[name])
    reference = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=data)

    def comparable(text: str) -> bool:
        ids = reference.encode(text)
        special = "\u2581" in text or "<s>" in text
        return text.strip(" ") != "" and not special and not any(map(reference.IsByte, ids))

    def equal(found: list[int], expected: list[int]) -> bool:
        scores = [sum(map(reference.GetScore, ids)) for ids in (found, expected)]
        return found == expected or (
            reference.decode(found) == reference.decode(expected) and scores[0] == pytest.approx(scores[1], abs=1e-4)
        )

    chosen = [text for text in [*HARD_TEXTS, *texts(600, seed=5)] if comparable(text)]
    assert len(chosen) > 40
    with llama_vocabulary(tmp_path / "vocab.gguf", read(tmp_path, data)) as ours:
        different = [text for text in chosen if not equal(ours.tokens(text), reference.encode(text))]
        assert sum(ours.tokens(text) == reference.encode(text) for text in chosen) >= 0.99 * len(chosen)
        assert not different, f"{len(different)} of {len(chosen)} differ, the first {different[0]!a}"
        assert ours.tokens("The fox", True) == [reference.bos_id(), *reference.encode("The fox")]


def test_the_converters_kind_of_vocabulary_would_give_other_ids(tmp_path: Path) -> None:
    """Why this differs from llama.cpp's converter."""
    data = model_file(OPTIONS["byte pieces"])
    reference = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=data)
    entries = read(tmp_path, data)
    entries["tokenizer.ggml.model"] = string("llama")
    with llama_vocabulary(tmp_path / "vocab.gguf", entries) as converters:
        assert any(
            converters.tokens(text) != reference.encode(text) for text in ("The quick brown fox", "jumps over", "print(i)")
        )


def unigram(pieces: list[Any] = PIECES, trainer: bytes = b"", normalizer: bytes = b"") -> bytes:
    """A unigram model file: model_type has that for its default."""
    body = b"".join(field(1, 2, piece_message(*piece)) for piece in pieces)
    return body + field(2, 2, trainer) + field(3, 2, normalizer)


def test_entries_are_those_of_t5_with_a_decoders_flags(tmp_path: Path) -> None:
    table = model_file(NFKC)
    charsmap = parse_model(table).charsmap
    entries = {key: entry.value for key, entry in read(tmp_path, unigram(normalizer=field(2, 2, charsmap))).items()}
    assert list(entries) == [
        f"tokenizer.ggml.{key}"
        for key in (
            "model",
            "pre",
            "tokens",
            "scores",
            "token_type",
            "add_space_prefix",
            "remove_extra_whitespaces",
            "precompiled_charsmap",
            "bos_token_id",
            "eos_token_id",
            "unknown_token_id",
            "add_bos_token",
            "add_eos_token",
        )
    ]
    assert (entries["tokenizer.ggml.model"], entries["tokenizer.ggml.pre"]) == ("t5", "default")
    assert bytes(entries["tokenizer.ggml.precompiled_charsmap"]) == charsmap
    assert entries["tokenizer.ggml.scores"][-4:] == [-1.0, -2.0, -3.0, -0.5]
    assert [entries[f"tokenizer.ggml.{kind}_token_id"] for kind in ("bos", "eos", "unknown")] == [1, 2, 0]
    assert (entries["tokenizer.ggml.add_bos_token"], entries["tokenizer.ggml.add_eos_token"]) == (True, False)


def test_settings_come_before_the_models_own(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer_config.json", {"add_bos_token": False, "add_eos_token": True})
    entries = read(tmp_path, unigram(), config={"bos_token_id": 2, "eos_token_id": 1})
    values = {key.removeprefix("tokenizer.ggml."): entry.value for key, entry in entries.items()}
    assert [values[key] for key in ("bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token")] == [2, 1, False, True]
    assert "precompiled_charsmap" not in values


def test_no_token_is_added_that_the_model_lacks(tmp_path: Path) -> None:
    """llama.cpp ends the process when it is to add one."""
    none = varint(2**64 - 1)
    entries = read(tmp_path, unigram(trainer=field(41, 0, none) + field(42, 0, none)))
    assert "tokenizer.ggml.bos_token_id" not in entries and "tokenizer.ggml.eos_token_id" not in entries
    assert entries["tokenizer.ggml.add_bos_token"].value is False


@pytest.mark.parametrize(
    ("trainer", "problem"),
    [
        (field(3, 0, varint(3)), "by word"),
        (field(3, 0, varint(4)), "by char"),
        (field(24, 0, varint(1)), "spaces behind words"),
    ],
)
def test_what_llama_cpp_has_not_is_refused(tmp_path: Path, trainer: bytes, problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        read(tmp_path, unigram(trainer=trainer))


def test_a_bpe_model_without_a_space_in_front_says_so(tmp_path: Path) -> None:
    bpe = unigram(trainer=field(3, 0, varint(2)), normalizer=field(3, 0, varint(0)))
    entries = read(tmp_path, bpe)
    assert entries["tokenizer.ggml.model"].value == "llama"
    assert entries["tokenizer.ggml.add_space_prefix"].value is False


def test_damaged_normalization_tables_never_reach_llama_cpp(tmp_path: Path) -> None:
    """An index out of range would be an exception there, and end the process: this test would not come back."""
    charsmap = parse_model(model_file(NFKC)).charsmap
    check_charsmap(charsmap)
    for short in (b"", b"\0\0\0\0", b"\0\0\0\0\0", charsmap[:1000], charsmap[:-1], b"\xff" * 4 + charsmap[4:]):
        with pytest.raises(TokenizerError, match=r"normalization table in tokenizer\.model is damaged"):
            check_charsmap(short)
    random_source = random.Random(3)
    refused = 0
    size = int.from_bytes(charsmap[:4], "little")
    for turn in range(8):
        damaged = bytearray(charsmap)
        for _ in range(1 + turn % 3):
            damaged[4 + random_source.randrange(size if turn % 2 else 4000)] = random_source.randrange(256)
        try:
            entries = read(tmp_path, unigram(normalizer=field(2, 2, bytes(damaged))))
        except TokenizerError:
            refused += 1
            continue
        with llama_vocabulary(tmp_path / "vocab.gguf", entries) as ours:
            for text in [*HARD_TEXTS, *map(chr, range(0xA0, 0x3000, 3))]:
                ours.tokens(text)
    assert 0 < refused < 8
