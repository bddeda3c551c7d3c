"""What a SentencePiece-like tokenizer.json does with spaces before its merges; llama.cpp has one way for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tinyedge.errors import TokenizerError
from tinyedge_quantize.strangers import show

from .files import as_dict, as_list

_BLOCK = "\u2581"
_REMEDY = "put the tokenizer.model of this checkpoint beside it, or convert it with a tool that knows this kind of tokenizer"


def begins_with_space(tokenizer_json: dict[str, Any], pieces: Iterable[str]) -> bool:
    """Whether a text gets a space in front; TokenizerError when the definition does anything but that and spaces to U+2581."""
    steps = [
        *_parts(tokenizer_json.get("normalizer"), "normalizers"),
        *_parts(tokenizer_json.get("pre_tokenizer"), "pretokenizers"),
    ]
    kinds = [_kind(step) for step in steps]
    if None in kinds:
        raise _unknown(show(steps[kinds.index(None)].get("type")))
    if "spaces" not in kinds and "metaspace" not in kinds:
        raise _unknown("spaces stay as they are")
    if any(_splits_words(step) for step in steps) and any(_BLOCK in piece[1:] for piece in pieces):
        raise _unknown("words are split though pieces reach beyond them")
    return "prefix" in kinds or any(_prepends(step) for step in steps)


def prepend_scheme(tokenizer_json: dict[str, Any]) -> str | None:
    """`first` or `always` for a Metaspace that puts a space in front of a text without one; None when there is none.

    `first` does so at the very start alone, `always` also after an added token. A normalizer that prepends comes before it.
    """
    if "Prepend" in [step.get("type") for step in _parts(tokenizer_json.get("normalizer"), "normalizers")]:
        return None
    for step in _parts(tokenizer_json.get("pre_tokenizer"), "pretokenizers"):
        if _prepends(step):
            return "first" if step.get("prepend_scheme") == "first" else "always"
    return None


def _parts(step: Any, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list of steps."""
    parts: list[dict[str, Any]] = []
    pending = [] if step is None else [step]
    while pending:
        fields = as_dict(pending.pop(), f"one of the {inner} in tokenizer.json")
        if fields.get("type") == "Sequence":
            pending += reversed(as_list(fields.get(inner), f"{inner} in tokenizer.json"))
        else:
            parts.append(fields)
    return parts


def _kind(step: dict[str, Any]) -> str | None:
    """What a step does, in the one word that `begins_with_space` knows, or None."""
    kind, pattern = step.get("type"), step.get("pattern")
    if kind == "Prepend" and step.get("prepend") == _BLOCK:
        return "prefix"
    if kind == "Replace" and pattern == {"String": " "} and step.get("content") == _BLOCK:
        return "spaces"
    if kind == "Metaspace" and step.get("replacement") == _BLOCK:
        return "metaspace"
    # Gemma's, which finds no space any more after the normalizer.
    if kind == "Split" and pattern == {"String": " "} and step.get("behavior") == "MergedWithPrevious":
        return "nothing"
    return None


def _splits_words(step: dict[str, Any]) -> bool:
    return step.get("type") == "Metaspace" and step.get("split", True) is not False


def _prepends(step: dict[str, Any]) -> bool:
    if step.get("type") != "Metaspace":
        return False
    scheme = step.get("prepend_scheme")
    return scheme != "never" if scheme is not None else step.get("add_prefix_space", True) is not False


def _unknown(shown: str) -> TokenizerError:
    return TokenizerError(f"tokenizer.json treats spaces in a way that llama.cpp does not have ({shown})", _REMEDY)
