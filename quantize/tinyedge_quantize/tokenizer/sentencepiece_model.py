"""The vocabulary in a SentencePiece `tokenizer.model`, read without the sentencepiece library.

The file is a protobuf message of which GGUF needs three fields per piece, so a page of Python reads it: no native code meets
a file from a stranger, and there is one dependency less. Field numbers are those of sentencepiece_model.proto; the tests
compare every piece with the library's, on the Llama tokenizer and on mutated files.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from tinyedge.errors import TokenizerError
from tinyedge_quantize.strangers import show

_VARINT, _FIXED64, _BYTES, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_PIECES, _PIECE, _SCORE, _TYPE = 1, 1, 2, 3
_MAX_GROUP_DEPTH = 32
_FLOAT = struct.Struct("<f")
# A piece as the library writes it: text of up to 127 bytes, score, and a type when it is not NORMAL.
_USUAL_PIECE = re.compile(rb"\x0a([\x01-\x7f])(.+)\x15(.{4})(?:\x18([\x01-\x06]))?", re.DOTALL)
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
_REMEDY = "copy or download tokenizer.model again and check its size"


class PieceType(IntEnum):
    """ModelProto.SentencePiece.Type; GGUF's token types are the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_PIECE_TYPES = frozenset(map(int, PieceType))


class Piece(NamedTuple):
    """One vocabulary entry: its text as UTF-8, its score, and its `PieceType` number."""

    text: bytes
    score: float
    type: int


def is_tiktoken(data: bytes) -> bool:
    """True for Meta Llama 3's `tokenizer.model`: lines of a base64 token and its rank."""
    return _TIKTOKEN_LINE.match(data[:4096]) is not None


def parse_pieces(data: bytes) -> list[Piece]:
    """The pieces in id order. TokenizerError for a damaged file and for what the sentencepiece library refuses to load."""
    pieces: list[Piece] = []
    seen: set[bytes] = set()
    unknown = 0
    for field, wire, value in _fields(data):
        if field != _PIECES or wire != _BYTES:
            continue
        assert isinstance(value, bytes)
        piece = _parse_piece(value, len(pieces))
        if piece.text in seen:
            raise _damaged(f"piece {len(pieces)} repeats the text {show(piece.text.decode())}")
        seen.add(piece.text)
        unknown += piece.type == PieceType.UNKNOWN
        pieces.append(piece)
    if not pieces:
        raise _damaged("it holds no pieces")
    if unknown != 1:
        raise _damaged(f"it has {unknown} unknown pieces where SentencePiece has one")
    return pieces


def _parse_piece(message: bytes, index: int) -> Piece:
    usual = _USUAL_PIECE.fullmatch(message)
    if usual and usual.end(2) - usual.start(2) == message[1]:
        text, score = usual.group(2), _FLOAT.unpack(usual.group(3))[0]
        kind = usual.group(4)[0] if usual.group(4) else int(PieceType.NORMAL)
    else:
        text, score, kind = _parse_unusual_piece(message)
    if not text:
        raise _damaged(f"piece {index} has no text")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(f"piece {index} is {show(text)}, which is not UTF-8") from None
    if not math.isfinite(score):
        raise _damaged(f"piece {index} has the score {score}")
    return Piece(text, score, kind)


def _parse_unusual_piece(message: bytes) -> tuple[bytes, float, int]:
    """The same three fields in any order and form that protobuf allows."""
    text, score, kind = b"", 0.0, int(PieceType.NORMAL)
    for field, wire, value in _fields(message):
        if field == _PIECE and isinstance(value, bytes) and wire == _BYTES:
            text = value
        elif field == _SCORE and isinstance(value, bytes) and wire == _FIXED32:
            score = _FLOAT.unpack(value)[0]
        elif field == _TYPE and isinstance(value, int) and value in _PIECE_TYPES:
            kind = value  # protobuf keeps the earlier value when it does not know the new one
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field number, wire type, value) of a protobuf message; the value is an int for a varint and bytes otherwise."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if not 0 < field < 2**29:
            raise _damaged(f"a field number of {field} at byte {position}")
        if wire == _VARINT:
            number, position = _varint(data, position)
            yield field, wire, number
            continue
        if wire == _START_GROUP:
            position = _skip_group(data, position, field, 1)
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise _damaged(f"a field of wire type {wire} at byte {position}")
        if size > end - position:
            raise _damaged(f"a field of {size} bytes at byte {position} runs past the end")
        yield field, wire, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The base-128 number at `position`, and the position after it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _damaged("it ends inside a number")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & (2**64 - 1), position
    raise _damaged(f"a number of more than ten bytes before byte {position}")


def _skip_group(data: bytes, position: int, field: int, depth: int) -> int:
    """The position after a group, protobuf's oldest nesting, which SentencePiece never writes."""
    if depth > _MAX_GROUP_DEPTH:
        raise _damaged("groups nested too deeply")
    while True:
        tag, position = _varint(data, position)
        inner, wire = tag >> 3, tag & 7
        if wire == _END_GROUP:
            if inner != field:
                raise _damaged(f"group {field} is closed as group {inner}")
            return position
        if wire == _START_GROUP:
            position = _skip_group(data, position, inner, depth + 1)
        elif wire == _VARINT:
            _, position = _varint(data, position)
        elif wire in (_BYTES, _FIXED32, _FIXED64):
            size = {_FIXED32: 4, _FIXED64: 8}.get(wire, 0)
            if wire == _BYTES:
                size, position = _varint(data, position)
            position += size
            if position > len(data):
                raise _damaged("a group runs past the end")
        else:
            raise _damaged(f"a field of wire type {wire} at byte {position}")


def _damaged(problem: str) -> TokenizerError:
    return TokenizerError(f"tokenizer.model is not a readable SentencePiece model: {problem}", _REMEDY)
