"""Pre-tokenizers: each definition gets its name, and under that name llama.cpp tokenizes as the definition does."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import BYTE_LEVEL, ONLY_BYTES, byte_level, put, sequence, split
from vocabulary_only import llama_vocabulary

from tinyedge.errors import TokenizerError
from tinyedge_quantize.tokenizer import KNOWN_PRE_TOKENIZERS, read_tokenizer

# The expressions as the models' own tokenizer.json files have them.
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED_CODER = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DIGIT, DIGITS = ({"type": "Digits", "individual_digits": flag} for flag in (True, False))
NFC = {"type": "NFC"}

# name, pre-tokenizer, normalizer, ignore_merges
DEFINITIONS: list[tuple[str, Mapping[str, Any], Any, bool]] = [
    ("gpt-2", BYTE_LEVEL, None, False),
    ("gpt-2", sequence(BYTE_LEVEL), None, False),
    ("olmo", BYTE_LEVEL, NFC, False),
    ("smollm", sequence(DIGIT, BYTE_LEVEL), None, False),
    ("command-r", sequence(DIGIT, BYTE_LEVEL), NFC, False),
    ("llama-bpe", sequence(split(LLAMA3), ONLY_BYTES), None, True),
    ("dbrx", sequence(split(LLAMA3), ONLY_BYTES), None, False),
    ("qwen2", sequence(split(QWEN2), ONLY_BYTES), NFC, False),
    ("qwen2", sequence(split(QWEN2), ONLY_BYTES), {"type": "Sequence", "normalizers": []}, False),
    ("qwen35", sequence(split(QWEN35), ONLY_BYTES), NFC, False),
    ("tekken", sequence(split(TEKKEN), ONLY_BYTES), None, True),
    ("gpt-4o", sequence({**split(GPT4O), "behavior": "Removed", "invert": True}, ONLY_BYTES), None, False),
    ("seed-coder", sequence(split(SEED_CODER), ONLY_BYTES), None, False),
    ("bailingmoe", sequence(split(BAILING), ONLY_BYTES), None, False),
    ("minicpm5", sequence(split(r"\p{N}{1,3}"), split(LLAMA3.replace("{1,3}", "+")), ONLY_BYTES), None, True),
    (
        "deepseek-coder",
        sequence(split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(HAN), DIGIT, ONLY_BYTES),
        None,
        False,
    ),
    (
        "deepseek-v3",
        sequence(split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), split(DEEPSEEK3), ONLY_BYTES),
        None,
        False,
    ),
    (
        "falcon",
        sequence({"type": "Punctuation", "behavior": "Contiguous"}, BYTE_LEVEL, DIGITS, split("[0-9][0-9][0-9]")),
        None,
        False,
    ),
]
IDS = [f"{name}-{row}" for row, (name, *_) in enumerate(DEFINITIONS)]

FRAGMENT_TEXT = (
    "'s 'S 'Ll 're 've 'd 123 1234567 3.14 \u0663\u0664 \u00bd \u00e9 \u00dcn\u00ef \u6211 \u60f3\u5728 "
    "\u65e5\u672c\u8a9e\u30ab \ud55c\uad6d\uc5b4 \U0001f680 \U0001f469\u200d\U0001f467 ... !! ?/ // $ += ^~|` _ a The "
    "quick XMLHttp iPhone \u00df \u01c5 \u02b0 \u0456\u0434\u0435\u044f \u05e9\u05dc\u05d5\u05dd "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \u2014 \u201c\u201d \u00ab \u03c0 \u2211 \u20ac \u2167 "
    "\u2460 ' ''t don't WE'RE (x) [1,2] {a:b} #include foo_bar x1y22 the of and ing tion 2024 99 100000"
)
FRAGMENTS = FRAGMENT_TEXT.split()
BLANKS = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\n  ", "\u00a0", "\u3000"]


def has_mark_or_foreign_capital(text: str) -> bool:
    """True for text with a combining mark, or a capital letter beyond ASCII."""
    kinds = [unicodedata.category(character) for character in text if not character.isascii()]
    return any(kind[0] == "M" or kind in ("Lu", "Lt") for kind in kinds)


# Where llama.cpp's own expression for a name is an approximation: the converter's files behave alike on such text.
APPROXIMATE: dict[str, Callable[[str], bool]] = {
    "tekken": has_mark_or_foreign_capital,
    "gpt-4o": has_mark_or_foreign_capital,
    "deepseek-coder": lambda text: "\u3000" in text,
}


def texts(count: int, seed: int) -> list[str]:
    """Seeded mixtures of scripts, digits, contractions, punctuation and blanks; all of it NFC."""
    random_source = random.Random(seed)
    pool = FRAGMENTS + BLANKS * 3
    return ["".join(random_source.choice(pool) for _ in range(random_source.randint(1, 14))) for _ in range(count)]


def trained(pre_tokenizer: Mapping[str, Any], normalizer: Any, ignore_merges: bool, size: int = 900) -> Any:
    """A BPE of the tokenizers library trained behind one definition."""
    tokenizers = pytest.importorskip("tokenizers")
    frame = byte_level(pre_tokenizer=pre_tokenizer, normalizer=normalizer, model={"ignore_merges": ignore_merges})
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(frame))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(6000, seed=1), trainer)
    return tokenizer


@pytest.mark.parametrize(("name", "definition", "normalizer", "ignore_merges"), DEFINITIONS, ids=IDS)
def test_definition_is_recognised(
    tmp_path: Path, name: str, definition: Mapping[str, Any], normalizer: Any, ignore_merges: bool
) -> None:
    model = {"ignore_merges": ignore_merges}
    put(tmp_path, "tokenizer.json", byte_level(pre_tokenizer=definition, normalizer=normalizer, model=model))
    assert read_tokenizer(tmp_path, 300, {})["tokenizer.ggml.pre"].value == name
    assert name in KNOWN_PRE_TOKENIZERS


def test_spelled_out_contractions_are_the_same_expression(tmp_path: Path) -> None:
    spelled = LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
    definition = sequence(split(spelled), ONLY_BYTES)
    put(tmp_path, "tokenizer.json", byte_level(pre_tokenizer=definition, model={"ignore_merges": True}))
    assert read_tokenizer(tmp_path, 300, {})["tokenizer.ggml.pre"].value == "llama-bpe"


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"pre_tokenizer": None}, "nothing"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": sequence(split("[a-z]+"), ONLY_BYTES)}, r"\[a-z\]\+"),
        ({"pre_tokenizer": sequence(split(LLAMA3), BYTE_LEVEL)}, "gpt2"),
        ({"pre_tokenizer": sequence(split(QWEN2), ONLY_BYTES), "model": {"ignore_merges": True}}, "ignoring merges"),
        ({"pre_tokenizer": split(LLAMA3), "model": {"ignore_merges": True}}, "without ByteLevel"),
        ({"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, "ByteLevel"),
        ({"pre_tokenizer": sequence({**split(HAN), "behavior": "Removed"}, ONLY_BYTES)}, "Split Removed"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"normalizer": {"type": "Sequence", "normalizers": [NFC, {"type": "Strip"}]}}, "Strip"),
    ],
)
def test_unknown_definition_is_shown_with_the_remedy(tmp_path: Path, changes: dict[str, Any], shown: str) -> None:
    put(tmp_path, "tokenizer.json", byte_level(**changes))
    with pytest.raises(TokenizerError, match=rf"{shown}.*--pre-tokenizer NAME"):
        read_tokenizer(tmp_path, 300, {})
    assert read_tokenizer(tmp_path, 300, {}, pre_tokenizer="qwen2")["tokenizer.ggml.pre"].value == "qwen2"


def test_deepseek_llm_takes_single_digits_where_no_token_is_a_number(tmp_path: Path) -> None:
    from tinyedge_quantize.tokenizer.pretokenizers import _DEEPSEEK_LLM

    for last, numbers, recognised in ((DIGIT, False, True), (DIGITS, True, True), (DIGIT, True, False)):
        definition = sequence(*map(split, _DEEPSEEK_LLM), last, ONLY_BYTES)
        put(tmp_path, "tokenizer.json", byte_level(["12"] if numbers else [], pre_tokenizer=definition))
        if recognised:
            assert read_tokenizer(tmp_path, 300, {})["tokenizer.ggml.pre"].value == "deepseek-llm"
        else:
            with pytest.raises(TokenizerError, match="--pre-tokenizer"):
                read_tokenizer(tmp_path, 300, {})


def test_a_name_given_by_hand_must_be_known(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", byte_level())
    with pytest.raises(TokenizerError, match=r"no pre-tokenizer 'llama-9'; choose one of: .* qwen2 "):
        read_tokenizer(tmp_path, 300, {}, pre_tokenizer="llama-9")


@pytest.mark.parametrize(("name", "definition", "normalizer", "ignore_merges"), DEFINITIONS, ids=IDS)
def test_llama_cpp_tokenizes_as_the_definition_does(
    tmp_path: Path, name: str, definition: Mapping[str, Any], normalizer: Any, ignore_merges: bool
) -> None:
    pytest.importorskip("llama_cpp")
    reference = trained(definition, normalizer, ignore_merges)
    reference.save(str(tmp_path / "tokenizer.json"))
    skipped = APPROXIMATE.get(name, lambda _: False)
    samples = [text for text in texts(1500, seed=2) if not skipped(text)]
    entries = read_tokenizer(tmp_path, reference.get_vocab_size(), {})
    with llama_vocabulary(tmp_path / "vocab.gguf", entries) as vocabulary:
        different = [text for text in samples if vocabulary.tokens(text) != reference.encode(text).ids]
    assert not different, f"{name}: {len(different)} of {len(samples)} differ, the first {different[0]!a}"
