"""Small tokenizer folders for the tests, written without any tokenizer library."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# A piece is (text, score, type); type 1 is the default and left out of the file, as the sentencepiece library does.
Piece = tuple[str, float, int]
SPECIAL_PIECES: list[Piece] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
BYTE_PIECES: list[Piece] = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
LETTER_PIECES: list[Piece] = [("\u2581", -1.0, 1), ("a", -2.0, 1), ("b", -3.0, 1), ("\u2581ab", -0.5, 1)]
PIECES = SPECIAL_PIECES + BYTE_PIECES + LETTER_PIECES

_PRINTING = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_LETTERS = [chr(byte) for byte in _PRINTING] + [chr(0x100 + n) for n in range(256 - len(_PRINTING))]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ONLY_BYTES = {**BYTE_LEVEL, "use_regex": False}


def field(number: int, wire: int, payload: bytes) -> bytes:
    """One protobuf field; `payload` is the value as it stands on the wire, without a length."""
    length = varint(len(payload)) if wire == 2 else b""
    return varint(number << 3 | wire) + length + payload


def varint(number: int) -> bytes:
    """`number` in base 128, low digits first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def piece_message(text: str, score: float, kind: int) -> bytes:
    """A SentencePiece message as the library writes it."""
    message = field(1, 2, text.encode()) + field(2, 5, struct.pack("<f", score))
    return message + (field(3, 0, varint(kind)) if kind != 1 else b"")


def sentencepiece_model(pieces: Iterable[Piece] = PIECES) -> bytes:
    """A BPE model file that the sentencepiece library loads."""
    body = b"".join(field(1, 2, piece_message(*piece)) for piece in pieces)
    trainer = field(3, 0, varint(2)) + field(35, 0, varint(1))  # model_type BPE, byte_fallback
    return body + field(2, 2, trainer)


def put(folder: Path, name: str, value: Any) -> None:
    """Writes a file: bytes and text as they are, anything else as JSON."""
    if isinstance(value, bytes):
        (folder / name).write_bytes(value)
    elif isinstance(value, str):
        (folder / name).write_text(value, encoding="utf-8")
    else:
        (folder / name).write_text(json.dumps(value), encoding="utf-8")


def added(token_id: int, content: str, special: bool = False, normalized: bool = False) -> dict[str, Any]:
    """An entry of added_tokens in tokenizer.json."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special}
    return {"id": token_id, "content": content, **flags}


def byte_level(words: Iterable[str] = (), **changes: Any) -> dict[str, Any]:
    """A tokenizer.json of the 256 byte letters and `words`, each of two letters that a merge joins; plain GPT-2 otherwise.

    `model` among the changes updates the model, any other key replaces its part.
    """
    pieces = [*BYTE_LETTERS, *words]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {text: row for row, text in enumerate(pieces)},
        "merges": [f"{word[0]} {word[1]}" for word in words] or ["\u0120 a"],
    }
    if not words:
        model["vocab"]["\u0120a"] = len(pieces)  # type: ignore[index]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        **{key: value for key, value in changes.items() if key != "model"},
        "model": model | dict(changes.get("model", {})),
    }


def split(regex: str) -> Mapping[str, Any]:
    """A Split step by a regular expression, the matches kept apart."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def sequence(*steps: Mapping[str, Any]) -> dict[str, Any]:
    """A pre-tokenizer of several steps."""
    return {"type": "Sequence", "pretokenizers": list(steps)}
