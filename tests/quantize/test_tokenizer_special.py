"""Special tokens and chat templates: what gguf's SpecialVocab takes from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import PIECES, added, put, sentencepiece_model

from tinyedge.errors import TokenizerError
from tinyedge_quantize.tokenizer import read_tokenizer

ROWS = len(PIECES)
ADDED = [added(0, "<unk>", True), added(1, "<s>", True), added(2, "</s>", True), added(ROWS, "<|eot|>", True)]
ARRAYS = ("tokens", "scores", "token_type", "model", "pre")


def special(folder: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The entries apart from the vocabulary, without their common beginning."""
    put(folder, "tokenizer.model", sentencepiece_model())
    entries = read_tokenizer(folder, ROWS + 1, config or {})
    plain = {key.removeprefix("tokenizer.").removeprefix("ggml."): entry.value for key, entry in entries.items()}
    return {key: value for key, value in plain.items() if key not in ARRAYS}


def template(*single: str, pair: tuple[str, ...] = ()) -> dict[str, Any]:
    """A TemplateProcessing; A and B stand for the texts, anything else for a special token."""
    items = [[{"Sequence": {"id": n}} if n in "AB" else {"SpecialToken": {"id": n}} for n in part] for part in (single, pair)]
    return {"type": "TemplateProcessing", "single": items[0], "pair": items[1]}


def test_ids_come_by_name_before_config_json(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer.json", {"added_tokens": ADDED})
    put(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<none>"})
    config = {"bos_token_id": 9, "eos_token_id": [5, 6], "pad_token_id": 0, "unk_token_id": 4}
    assert special(tmp_path, config) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 4,
        "padding_token_id": 0,
    }


def test_ids_without_a_tokenizer_json_come_from_config_json(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "add_bos_token": True, "add_eos_token": None})
    config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1, "text_config": {"unk_token_id": 0}}
    assert special(tmp_path, config) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": True,
    }


def test_ids_beyond_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    assert special(tmp_path, {"bos_token_id": 1, "eos_token_id": ROWS + 1}) == {"bos_token_id": 1}


@pytest.mark.parametrize("value", ["2", 2.0, True, 2**40, -2, {"id": 2}])
def test_an_id_of_the_wrong_kind_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TokenizerError, match=r"eos_token_id in config\.json"):
        special(tmp_path, {"eos_token_id": value})


@pytest.mark.parametrize(
    ("processor", "settings", "expected"),
    [
        (template("<s>", "A"), {"bos_token": "<s>"}, {"bos_token_id": 1, "add_bos_token": True}),
        (template("<s>", "A"), {"bos_token": "</s>", "cls_token": "<unk>"}, {"bos_token_id": 2, "add_bos_token": False}),
        (template("<s>", "A"), {"add_bos_token": False, "bos_token": "<s>"}, {"bos_token_id": 1, "add_bos_token": True}),
        (
            template("A", "<|eot|>"),
            {"eos_token": "</s>"},
            {"eos_token_id": ROWS, "eot_token_id": 2, "add_eos_token": True},
        ),
        (
            template("<s>", "A", "</s>", pair=("<s>", "A", "</s>", "</s>", "B", "</s>")),
            {"bos_token": "<s>", "eos_token": "</s>"},
            {
                "bos_token_id": 1,
                "eos_token_id": 2,
                "seperator_token_id": 2,
                "add_bos_token": True,
                "add_eos_token": True,
                "add_sep_token": True,
            },
        ),
        ({"type": "ByteLevel"}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": False}),
        (
            {"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]},
            {"bos_token": "<s>"},
            {
                "bos_token_id": 1,
                "seperator_token_id": 2,
                "add_bos_token": True,
                "add_eos_token": True,
                "add_sep_token": True,
            },
        ),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<s>", "A")]}, {}, {"add_bos_token": True}),
    ],
)
def test_post_processors_say_which_tokens_are_added(
    tmp_path: Path, processor: dict[str, Any], settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    put(tmp_path, "tokenizer.json", {"added_tokens": ADDED, "post_processor": processor})
    put(tmp_path, "tokenizer_config.json", {"model_max_length": 1, **settings})
    found = special(tmp_path)
    assert {key: found.get(key) for key in expected} == expected


def test_space_prefix_comes_first(tmp_path: Path) -> None:
    put(tmp_path, "tokenizer_config.json", {"add_prefix_space": False})
    put(tmp_path, "tokenizer.model", sentencepiece_model())
    entries = read_tokenizer(tmp_path, ROWS, {})
    assert next(iter(entries)) == "tokenizer.ggml.add_space_prefix"
    assert entries["tokenizer.ggml.add_space_prefix"].value is False


def test_template_precedence(tmp_path: Path) -> None:
    put(tmp_path, "chat_template.json", {"chat_template": "json"})
    assert special(tmp_path) == {"chat_template": "json"}
    put(tmp_path, "chat_template.jinja", "jinja")
    assert special(tmp_path) == {"chat_template": "jinja"}
    put(tmp_path, "tokenizer_config.json", {"chat_template": "config"})
    assert special(tmp_path) == {"chat_template": "config"}
    put(tmp_path, "tokenizer_config.json", {"chat_template": None})
    assert special(tmp_path) == {}


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool use", "template": "T"}, {"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]
    put(tmp_path, "tokenizer_config.json", {"chat_template": named})
    expected = {
        "chat_template.tool_use": "T",
        "chat_template.rag": "R",
        "chat_templates": ["tool_use", "rag"],
        "chat_template": "D",
    }
    assert list(special(tmp_path).items()) == list(expected.items())


def test_additional_templates_stand_beside_the_default_one(tmp_path: Path) -> None:
    put(tmp_path, "chat_template.jinja", "D\r\n")
    (tmp_path / "additional_chat_templates").mkdir()
    put(tmp_path / "additional_chat_templates", "tool.jinja", "T")
    assert special(tmp_path) == {"chat_template.tool": "T", "chat_templates": ["tool"], "chat_template": "D\n"}


@pytest.mark.parametrize("value", [7, {"default": "x"}, [7], [{"name": 7}], [{"name": "a", "template": 7}], "\ud800"])
def test_a_template_of_the_wrong_kind_is_refused(tmp_path: Path, value: Any) -> None:
    put(tmp_path, "tokenizer_config.json", {"chat_template": value})
    with pytest.raises(TokenizerError, match=r"chat[_ ]template"):
        special(tmp_path)


def test_lower_casing_is_recorded(tmp_path: Path) -> None:
    steps = [{"type": "Lowercase"}, {"type": "BertNormalizer", "strip_accents": False}]
    put(tmp_path, "tokenizer.json", {"normalizer": {"type": "Sequence", "normalizers": steps}})
    assert special(tmp_path) == {"normalizer.lowercase": True, "normalizer.strip_accents": False}
