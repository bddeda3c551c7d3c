"""The added tokens of a `tokenizer.json`: which ids they get and which of them are special, as transformers decides it.

The tokenizers library gives ids itself, in the order of the file: the id of an equal piece, else the next free one. A file
that claims other ids describes a tokenizer that never ran, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tinyedge.errors import TokenizerError
from tinyedge_quantize.strangers import show

from .files import TokenizerFolder, as_bool, as_dict, as_list, as_text, as_token_id, read_json, wrong

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class AddedToken:
    """One added token: its text, its id, whether it is a control token, and whether text is normalized before it is found."""

    text: str
    token_id: int
    special: bool
    normalized: bool


def check_pieces(vocab: Any, vocab_size: int, name: str) -> dict[str, int]:
    """`vocab` when it maps texts to distinct ids below `vocab_size`; TokenizerError otherwise."""
    pieces: dict[str, int] = as_dict(vocab, f"the vocabulary in {name}")
    if not pieces:
        raise TokenizerError(f"the vocabulary in {name} is empty")
    ids = list(pieces.values())
    if set(map(type, ids)) != {int} or min(ids) < 0:
        bad = next(value for value in ids if type(value) is not int or value < 0)
        raise wrong(bad, "a token id", f"an id of the vocabulary in {name}")
    if max(ids) >= vocab_size:
        raise TokenizerError(
            f"{name} has {len(ids)} tokens with ids up to {show(max(ids))} but the embedding has {vocab_size} rows",
            "use the tokenizer that this checkpoint was trained with",
        )
    if len(set(ids)) != len(ids):
        raise TokenizerError(f"the vocabulary in {name} gives one id to two tokens")
    return pieces


def read_added_tokens(folder: TokenizerFolder, pieces: dict[str, int], defaults: Mapping[str, str]) -> list[AddedToken]:
    """The added tokens in id order: tokenizer.json's, then tokenizer_config.json's, then special tokens named there.

    `defaults` are the special tokens of the tokenizer's class. A later description of a token replaces an earlier one, and
    a token that is named as special is special, as in transformers' PreTrainedTokenizerFast.
    """
    found: dict[str, AddedToken] = {}
    named = named_special_tokens(folder, defaults)
    next_id = len(pieces)
    for claimed, described in token_descriptions(folder):
        text = as_text(described.get("content"), "the content of an added token")
        if not text:
            continue
        known = found[text].token_id if text in found else pieces.get(text)
        token_id = next_id if known is None else known
        if claimed != token_id:
            raise TokenizerError(f"added token {show(text)} claims id {claimed}, but it is number {token_id} of this tokenizer")
        next_id = max(next_id, token_id + 1)
        special = as_bool(described.get("special", False), f"special of added token {show(text)}") or text in named
        normalized = as_bool(described.get("normalized", not special), f"normalized of added token {show(text)}")
        found[text] = AddedToken(text, token_id, special, normalized)
    for text in named:
        if text and text not in found:
            token_id = pieces.get(text, next_id)
            next_id = max(next_id, token_id + 1)
            found[text] = AddedToken(text, token_id, special=True, normalized=False)
    return sorted(found.values(), key=lambda token: token.token_id)


def named_special_tokens(folder: TokenizerFolder, defaults: Mapping[str, str]) -> dict[str, None]:
    """The texts named as bos_token, pad_token and so on, in order: an ordered set.

    tokenizer_config.json names them, and special_tokens_map.json in older folders; a key that neither has keeps its default.
    """
    source = dict(folder.tokenizer_config or {})
    legacy = folder.path / "special_tokens_map.json"
    if "added_tokens_decoder" not in source and legacy.is_file():
        source |= read_json(legacy)
    names: dict[str, None] = {}
    for key in _NAMED:
        names |= dict.fromkeys(_texts(source.get(key, defaults.get(key)), key))
    for key in _EXTRA:
        values = source.get(key)
        values = list(values.values()) if isinstance(values, dict) else values
        for value in as_list([] if values is None else values, key):
            names |= dict.fromkeys(_texts(value, key))
    return names


def _texts(value: Any, what: str) -> list[str]:
    if isinstance(value, dict):
        value = value.get("content")
    return [] if value is None else [as_text(value, what)]


def token_descriptions(folder: TokenizerFolder) -> Iterator[tuple[int, dict[str, Any]]]:
    """(the id claimed, the description) of every added token, in the order in which transformers adds them."""
    listed = (folder.tokenizer_json or {}).get("added_tokens")
    for item in as_list([] if listed is None else listed, "added_tokens in tokenizer.json"):
        token = as_dict(item, "an added token in tokenizer.json")
        yield as_token_id(token.get("id"), "the id of an added token in tokenizer.json"), token
    yield from sorted(folder.added_tokens_decoder().items())
    if folder.tokenizer_json is None:
        for text, token_id in (folder.added_tokens_json or {}).items():
            yield as_token_id(token_id, "an id in added_tokens.json"), {"content": text}
