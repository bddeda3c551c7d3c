"""A tokenizer.json read in parts: Gemma's has 33 MB, and Python's text of it alone would be four times as large.

The vocabulary and the merges are cut out of the bytes, the rest is parsed as usual, and both are parsed a thousand entries at a
time. Whatever does not have the form that the tokenizers library writes is parsed as a whole, so nothing is read differently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TEXT = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_ENTRY = rb"\s*" + _TEXT + rb"\s*:\s*[0-9]{1,10}\s*"
_MERGE = rb"\s*(?:" + _TEXT + rb"|\[\s*" + _TEXT + rb"\s*,\s*" + _TEXT + rb"\s*\])\s*"
_SMALL = 2**20
_NUL = rb"\u0000"


@dataclass(frozen=True)
class _Part:
    """A container worth cutting out: its key, its brackets, and expressions for a run of entries and for the last one."""

    key: str
    opening: re.Pattern[bytes]
    run: re.Pattern[bytes]
    last: re.Pattern[bytes]
    brackets: tuple[bytes, bytes]


def _part(key: str, brackets: tuple[bytes, bytes], entry: bytes) -> _Part:
    opening, closing = map(re.escape, brackets)
    return _Part(
        key,
        re.compile(b'"' + key.encode() + rb'"\s*:\s*' + opening),
        re.compile(b"(?:" + entry + b",){1,1000}", re.DOTALL),
        re.compile(b"(?P<entry>" + entry + rb")?\s*" + closing, re.DOTALL),
        brackets,
    )


_VOCAB = _part("vocab", (b"{", b"}"), _ENTRY)
_MERGES = _part("merges", (b"[", b"]"), _MERGE)


class Merges:
    """The merges of a tokenizer.json, parsed anew each time they are gone through."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        for chunk in _chunks(_MERGES, self._data):
            yield from chunk


def parse_tokenizer_json(data: bytes) -> Any:
    """What json.loads gives for the text, but that `merges` of the model may be `Merges` instead of a list.

    Raises what json.loads and decoding raise.
    """
    return (_parse_in_parts(data) if len(data) > _SMALL else None) or json.loads(data.decode("utf-8"))


def _parse_in_parts(data: bytes) -> Any:
    """The content, or None when the file is not of the usual form."""
    if _NUL in data:  # the texts that stand for the parts begin with it
        return None
    parts: dict[str, bytes] = {}
    for part in (_VOCAB, _MERGES):
        inside = _inside(part, data)
        if inside is None:
            return None
        parts[part.key] = data[slice(*inside)]
        data = data[: inside[0] - 1] + b'"' + _NUL + part.key.encode() + b'"' + data[inside[1] + 1 :]
    try:
        value = json.loads(data.decode("utf-8"))
        model = value.get("model") if isinstance(value, dict) else None
        # Only there can the parts have been; the same keys elsewhere leave these texts elsewhere.
        if not isinstance(model, dict) or any(model.get(key) != f"\0{key}" for key in parts):
            return None
        vocab: dict[str, int] = {}
        for chunk in _chunks(_VOCAB, parts.pop("vocab")):
            vocab |= chunk
        for _ in Merges(parts["merges"]):
            pass
    except ValueError:
        return None
    model |= {"vocab": vocab, "merges": Merges(parts["merges"])}
    return value


def _inside(part: _Part, data: bytes) -> tuple[int, int] | None:
    """Where the part's entries begin and end, or None when the key is not there once with nothing but usual entries."""
    found = [match.end() for match in part.opening.finditer(data)]
    if len(found) != 1:
        return None
    position = found[0]
    while run := part.run.match(data, position):
        position = run.end()
    last = part.last.match(data, position)
    if last is None or (last["entry"] is None and position > found[0]):
        return None
    return found[0], last.end() - 1


def _chunks(part: _Part, data: bytes) -> Iterator[Any]:
    """The entries, parsed a thousand at a time."""
    position = 0
    while run := part.run.match(data, position):
        yield json.loads(part.brackets[0] + data[position : run.end() - 1] + part.brackets[1])
        position = run.end()
    yield json.loads(part.brackets[0] + data[position:] + part.brackets[1])
