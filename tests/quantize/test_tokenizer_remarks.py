"""Sentences about texts that get other ids than in transformers: where they are due, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from family_tokenizers import KINDS, special_token_ids, write_tokenizer
from hard_texts import HARD_TEXTS
from test_tokenizer_families import COMPARABLE, FAMILIES
from tokenizer_folders import added, put
from vocabulary_only import llama_vocabulary

from tinyedge.errors import TokenizerError
from tinyedge_quantize.tokenizer import Tokenizer, open_tokenizer

Json = dict[str, Any]
ROWS = 1000


def written(folder: Path, kind: str, edit: Callable[[Json], Any] | None = None, **settings: Any) -> None:
    """A family's folder, its tokenizer.json edited, its settings changed and without descriptions of added tokens."""
    write_tokenizer(folder, kind)
    described = json.loads((folder / "tokenizer.json").read_text())
    if edit is not None:
        edit(described)
    put(folder, "tokenizer.json", described)
    known = json.loads((folder / "tokenizer_config.json").read_text())
    known.pop("added_tokens_decoder", None)
    put(folder, "tokenizer_config.json", known | settings)


def opened(folder: Path, kind: str, name: str = "", **config: Any) -> Tokenizer:
    vocabulary, names, _ = FAMILIES[kind]
    return open_tokenizer(folder, ROWS, special_token_ids(kind) | config, vocabulary=vocabulary, pre_names=names, name=name)


def differing(folder: Path, kind: str, tokenizer: Tokenizer, texts: list[str], add_special: bool) -> list[str]:
    """The texts whose ids in llama.cpp are not those of the tokenizers library."""
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    chosen = [text for text in texts if COMPARABLE.get(kind, lambda _: True)(text)]
    with llama_vocabulary(folder / "vocab.gguf", tokenizer.entries) as ours:
        return [t for t in chosen if ours.tokens(t, add_special) != reference.encode(t, add_special_tokens=add_special).ids]


@pytest.mark.parametrize("kind", KINDS)
def test_the_families_own_tokenizers_need_no_sentence(tmp_path: Path, kind: str) -> None:
    write_tokenizer(tmp_path, kind)
    assert opened(tmp_path, kind).warnings == ()


def token(**flags: bool) -> Callable[[Json], Any]:
    def edit(described: Json) -> None:
        ids = [*described["model"]["vocab"].values(), *(token["id"] for token in described["added_tokens"])]
        described["added_tokens"].append(added(max(ids) + 1, "<x>") | flags)

    return edit


def template(first: list[str], last: list[str]) -> Callable[[Json], Any]:
    def edit(described: Json) -> None:
        ids = {token["content"]: token["id"] for token in described["added_tokens"]}
        before, after = ([{"SpecialToken": {"id": text, "type_id": 0}} for text in texts] for texts in (first, last))
        described["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in [*first, *last]},
        }

    return edit


def metaspace(scheme: str) -> Callable[[Json], Any]:
    step = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    return lambda described: described.update(normalizer=None, pre_tokenizer=step)


BESIDE = ["hello <x> world", "a<x> b", "foo<x>bar"]
STRIPPED = "white space beside '<x>' stays in a text, where transformers removes it (lstrip, rstrip)"
WHOLE = "'<x>' will be found inside words too, where transformers finds whole words (single_word)"
TO_FALSE = "with no special token; set add_{}_token to false in tokenizer_config.json if the model was trained so"

# kind, what is changed, settings; the sentence; the texts that show it, with or without what the tokenizer adds.
CASES: dict[str, tuple[str, Callable[[Json], Any] | None, Json, str, list[str], bool]] = {
    "lstrip": ("qwen2", token(lstrip=True), {}, STRIPPED, BESIDE, False),
    "rstrip": ("llama3", token(rstrip=True), {}, STRIPPED, BESIDE, False),
    "rstrip of a fast Llama": ("llama-fast", token(rstrip=True), {}, STRIPPED, BESIDE, False),
    "single word": ("gpt2", token(single_word=True), {}, WHOLE, BESIDE, False),
    "Metaspace first": (
        "llama-fast",
        metaspace("first"),
        {},
        "text that begins with a space or follows a special token gets one space more than in transformers",
        ["hi</s>there"],
        False,
    ),
    "Metaspace always": (
        "llama-fast",
        metaspace("always"),
        {},
        "text that begins with a space gets one space more than in transformers",
        [" lead"],
        False,
    ),
    "two tokens behind": (
        "llama3",
        template(["<|begin_of_text|>"], ["<|eot_id|>", "<|end_of_text|>"]),
        {},
        "prompts end with '<|end_of_text|>', in tokenizer.json with '<|eot_id|>' and '<|end_of_text|>'; "
        "llama.cpp adds one token at most, so put the others into the prompt",
        ["a"],
        True,
    ),
    "another token in front": (
        "llama3",
        template(["<|start_header_id|>"], []),
        {},
        "prompts begin with '<|begin_of_text|>', in tokenizer.json with '<|start_header_id|>'; "
        "name the other one as bos_token in tokenizer_config.json if the model was trained with it",
        ["a"],
        True,
    ),
    "an end that only the settings add": (
        "llama-fast",
        None,
        {"add_eos_token": True},
        f"prompts end with '</s>', in tokenizer.json {TO_FALSE.format('eos')}",
        ["a"],
        True,
    ),
    "an end that only a byte-level tokenizer's settings add": (
        "olmo2",
        None,
        {"add_eos_token": True},
        f"prompts end with '<|endoftext|>', in tokenizer.json {TO_FALSE.format('eos')}",
        ["a"],
        True,
    ),
    "a beginning that llama.cpp adds by itself": (
        "llama-fast",
        lambda described: described.update(post_processor=None),
        {"add_bos_token": None},
        f"prompts begin with '<s>', in tokenizer.json {TO_FALSE.format('bos')}",
        ["a"],
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_where_ids_differ_one_sentence_says_so(tmp_path: Path, case: str) -> None:
    kind, edit, settings, sentence, texts, add_special = CASES[case]
    written(tmp_path, kind, edit, **settings)
    tokenizer = opened(tmp_path, kind)
    assert tokenizer.warnings == (sentence,)
    assert differing(tmp_path, kind, tokenizer, texts, add_special)


@pytest.mark.parametrize("case", [case for case in CASES if "set add_" in CASES[case][3] or "bos_token in" in CASES[case][3]])
def test_the_remedy_in_the_sentence_makes_ids_equal(tmp_path: Path, case: str) -> None:
    kind, edit, settings, sentence, texts, _ = CASES[case]
    remedy = {"bos_token": "<|start_header_id|>"} if "bos_token in" in sentence else {}
    remedy |= {f"add_{side}_token": False for side in ("bos", "eos") if f"set add_{side}" in sentence}
    written(tmp_path, kind, edit, **settings | remedy)
    tokenizer = opened(tmp_path, kind)
    assert tokenizer.warnings == ()
    assert not differing(tmp_path, kind, tokenizer, texts + HARD_TEXTS, True)


@pytest.mark.parametrize(
    ("kind", "model_type", "due"),
    [
        ("gpt2", "gpt2", True),
        ("gptneox", "gpt_neox", True),
        ("qwen2", "qwen2", True),
        ("smollm", "llama", True),
        ("llama3", "llama", False),
        ("olmo2", "olmo2", False),
        ("phi4-mini", "phi3", False),
    ],
)
def test_a_space_that_the_settings_ask_for_is_named_where_transformers_adds_it(
    tmp_path: Path, kind: str, model_type: str, due: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    written(tmp_path, kind, None, add_prefix_space=True)
    put(tmp_path, "config.json", {"model_type": model_type})
    tokenizer = opened(tmp_path, kind, model_type=model_type)
    assert tokenizer.warnings == (
        (
            "transformers puts a space in front of every prompt (add_prefix_space in tokenizer_config.json), "
            "llama.cpp does not; begin prompts with one",
        )
        if due
        else ()
    )
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with llama_vocabulary(tmp_path / "vocab.gguf", tokenizer.entries) as ours:
        wanted = reference.encode("a", add_special_tokens=False)
        assert ours.tokens(" a" if due else "a") == wanted
        assert (ours.tokens("a") != wanted) is due


def test_phi3_by_name_strips_what_its_tokens_ask_for(tmp_path: Path) -> None:
    """llama.cpp does it for every special token when general.name has Phi-3 in it."""
    written(tmp_path, "phi3-spm", lambda described: described["added_tokens"][-1].update(rstrip=True))
    (sentence,) = opened(tmp_path, "phi3-spm", "mini").warnings
    assert sentence.startswith("white space beside '<|user|>' stays in a text")
    assert opened(tmp_path, "phi3-spm", "Phi-3.5-mini-instruct").warnings == ()


def test_tokens_that_no_text_has_beside_it_and_many_tokens(tmp_path: Path) -> None:
    written(tmp_path, "gpt2", token(lstrip=True), mask_token={"content": "<x>"})
    assert opened(tmp_path, "gpt2").warnings == ()
    (tmp_path / "many").mkdir()
    written(tmp_path / "many", "qwen2", lambda described: [each.update(rstrip=True) for each in described["added_tokens"]])
    (sentence,) = opened(tmp_path / "many", "qwen2").warnings
    assert "'<|im_start|>' and 5 more added tokens" in sentence


@pytest.mark.parametrize(
    "single",
    [7, "ab", [7], [{}], [{"SpecialToken": {"id": []}}, {"Sequence": 1}], [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]],
)
@pytest.mark.parametrize("ids", [None, 7, ["0"], [1.5], [10**9]])
def test_a_template_of_the_wrong_shape_ends_in_our_words_or_says_nothing(tmp_path: Path, single: Any, ids: Any) -> None:
    tokens = {"<s>": {"id": "<s>", "ids": ids}}
    broken = {"type": "TemplateProcessing", "single": single, "special_tokens": tokens}
    written(tmp_path, "llama-fast", lambda described: described.update(post_processor=broken))
    try:
        warnings = opened(tmp_path, "llama-fast").warnings
    except TokenizerError:
        return
    assert all("\n" not in sentence for sentence in warnings)
