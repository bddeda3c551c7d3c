"""Token ids of hard texts: llama.cpp on our vocabulary gives those of tokenizers and sentencepiece, for every family.

Kept out, because llama.cpp differs on them whatever the file says: text that is not NFC where the tokenizer normalizes
(llama.cpp does not), combining marks and foreign capitals under tekken and gpt-4o (its expressions only come close), and
U+2581 itself for Gemma (llama.cpp takes it for a space before it looks for added tokens).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from family_tokenizers import KINDS, special_token_ids, tokenizer_json, write_tokenizer
from hard_texts import HARD_TEXTS
from test_tokenizer_pretokenizers import has_mark_or_foreign_capital, texts
from vocabulary_only import llama_vocabulary

from tinyedge_quantize.tokenizer import VOCABULARIES, read_tokenizer
from tinyedge_quantize.tokenizer.pretokenizers import family_name

# kind: the family's vocabulary, its own names for pre-tokenizers, and what llama.cpp's converter calls the result.
FAMILIES = {
    "llama-spm": ("llama", {}, "default"),
    "llama-fast": ("llama", {}, "default"),
    "gemma-spm": ("gemma", {}, "default"),
    "gemma-fast": ("gemma2", {}, "default"),
    "gemma3-spm": ("gemma3", {}, "default"),
    "phi3-spm": ("phi3", {}, "default"),
    "gpt2": ("gpt2", {}, "gpt-2"),
    "phi2": ("gpt2", {"gpt-2": "phi-2"}, "phi-2"),
    "gptneox": ("gpt2", {}, "olmo"),
    "mpt": ("mpt", {}, "olmo"),
    "llama3": ("llama", {}, "llama-bpe"),
    "smollm3": ("llama", {}, "llama-bpe"),
    "qwen2": ("qwen", {}, "qwen2"),
    "stablelm2": ("stablelm", {"qwen2": "stablelm2"}, "stablelm2"),
    "smollm": ("llama", {}, "smollm"),
    "granite": ("llama", {"smollm": "refact"}, "refact"),
    "olmo2": ("gpt2", {}, "dbrx"),
    "phi4-mini": ("phi3", {}, "gpt-4o"),
    "tekken": ("llama", {}, "tekken"),
}


def is_nfc(text: str) -> bool:
    return unicodedata.is_normalized("NFC", text)


COMPARABLE: dict[str, Callable[[str], bool]] = {
    "gptneox": is_nfc,
    "mpt": is_nfc,
    "qwen2": is_nfc,
    "stablelm2": is_nfc,
    "tekken": lambda text: not has_mark_or_foreign_capital(text),
    "phi4-mini": lambda text: not has_mark_or_foreign_capital(text),
    "gemma-spm": lambda text: "\u2581" not in text,
    "gemma-fast": lambda text: "\u2581" not in text,
    "gemma3-spm": lambda text: "\u2581" not in text,
}


def samples(kind: str) -> list[str]:
    """The hard texts and seeded mixtures that can be compared for a kind."""
    comparable = COMPARABLE.get(kind, lambda _: True)
    return [text for text in [*HARD_TEXTS, *texts(300, seed=5)] if comparable(text)]


def test_every_kind_is_compared() -> None:
    assert set(FAMILIES) == set(KINDS)
    assert {vocabulary for vocabulary, _, _ in FAMILIES.values()} == set(VOCABULARIES)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_tokenizers(tmp_path: Path, kind: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary, names, expected = FAMILIES[kind]
    rows = write_tokenizer(tmp_path, kind)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    entries = read_tokenizer(tmp_path, rows, special_token_ids(kind), vocabulary=vocabulary, pre_names=names)
    assert entries["tokenizer.ggml.pre"].value == expected
    chosen = samples(kind)
    assert len(chosen) > 200
    with llama_vocabulary(tmp_path / "vocab.gguf", entries) as ours:
        for special in (False, True):
            different = [
                text for text in chosen if ours.tokens(text, special) != reference.encode(text, add_special_tokens=special).ids
            ]
            assert not different, f"{len(different)} of {len(chosen)} differ, the first {different[0]!a}"


@pytest.mark.parametrize("kind", [kind for kind, described in KINDS.items() if described.model])
def test_ids_equal_those_of_sentencepiece(tmp_path: Path, kind: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    vocabulary, names, _ = FAMILIES[kind]
    rows = write_tokenizer(tmp_path, kind)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    added = [token["content"] for token in tokenizer_json(kind)["added_tokens"] if token["content"].strip("\u2581\n")]
    chosen = [text for text in samples(kind) if not any(token in text for token in added)]
    assert len(chosen) > 200
    entries = read_tokenizer(tmp_path, rows, special_token_ids(kind), vocabulary=vocabulary, pre_names=names)
    with llama_vocabulary(tmp_path / "vocab.gguf", entries) as ours:
        different = [text for text in chosen if ours.tokens(text) != reference.encode(text)]
    assert not different, f"{len(different)} of {len(chosen)} differ, the first {different[0]!a}"


def test_a_family_cannot_name_what_splits_otherwise() -> None:
    assert family_name("gpt-2", {"gpt-2": "phi-2"}) == "phi-2"
    assert family_name("qwen2", {"gpt-2": "phi-2"}) == "qwen2"
    with pytest.raises(AssertionError, match="smaug-bpe does not split as llama-bpe"):
        family_name("llama-bpe", {"llama-bpe": "smaug-bpe"})
