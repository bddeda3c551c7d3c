"""A SentencePiece `tokenizer.model`, read without the sentencepiece library.

The file is a protobuf message of which GGUF needs three fields per piece and a few settings, so two pages of Python read it: no
native code meets a file from a stranger, and there is one dependency less. Field numbers are those of
sentencepiece_model.proto; the tests compare every piece with the library's, on the Llama tokenizer and on mutated files.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from tinyedge.errors import TokenizerError
from tinyedge_quantize.strangers import show

from .protobuf import BYTES, FIXED32, VARINT, WireError, fields, signed32

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _SPACE_AS_SUFFIX, _BOS_ID, _EOS_ID = 3, 24, 41, 42
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES = 2, 3, 4
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


class ModelType(IntEnum):
    """TrainerSpec.ModelType: how the pieces of a text are chosen."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


_MODEL_TYPES = frozenset(map(int, ModelType))


class Piece(NamedTuple):
    """One vocabulary entry: its text as UTF-8, its score, and its `PieceType` number."""

    text: bytes
    score: float
    type: int


@dataclass
class SentencePieceModel:
    """What a tokenizer.model says; defaults are those of sentencepiece_model.proto.

    `charsmap` is the compiled normalization table, empty for none. Ids are negative for tokens that the model does not have.
    """

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = ModelType.UNIGRAM
    space_as_suffix: bool = False
    dummy_prefix: bool = True
    remove_extra_spaces: bool = True
    charsmap: bytes = b""
    bos_id: int = 1
    eos_id: int = 2

    @property
    def unknown_id(self) -> int:
        """The row of the one unknown piece."""
        return next(row for row, piece in enumerate(self.pieces) if piece.type == PieceType.UNKNOWN)


def is_tiktoken(data: bytes) -> bool:
    """True for Meta Llama 3's `tokenizer.model`: lines of a base64 token and its rank."""
    return _TIKTOKEN_LINE.match(data[:4096]) is not None


def parse_pieces(data: bytes) -> list[Piece]:
    """The pieces in id order; errors as for `parse_model`."""
    return parse_model(data).pieces


def parse_model(data: bytes) -> SentencePieceModel:
    """The model. TokenizerError for a damaged file and for what the sentencepiece library refuses to load."""
    model = SentencePieceModel()
    try:
        _read_model(data, model)
    except WireError as error:
        raise _damaged(str(error)) from None
    seen: set[bytes] = set()
    unknown = 0
    for row, piece in enumerate(model.pieces):
        if piece.text in seen:
            raise _damaged(f"piece {row} repeats the text {show(piece.text.decode())}")
        seen.add(piece.text)
        unknown += piece.type == PieceType.UNKNOWN
    if not model.pieces:
        raise _damaged("it holds no pieces")
    if unknown != 1:
        raise _damaged(f"it has {unknown} unknown pieces where SentencePiece has one")
    return model


def _read_model(data: bytes, model: SentencePieceModel) -> None:
    for number, wire, value in fields(data):
        if wire != BYTES:
            continue
        assert isinstance(value, bytes)
        if number == _PIECES:
            model.pieces.append(_parse_piece(value, len(model.pieces)))
        elif number == _TRAINER:
            _read_trainer(value, model)
        elif number == _NORMALIZER:
            _read_normalizer(value, model)


def _read_trainer(message: bytes, model: SentencePieceModel) -> None:
    for number, wire, value in fields(message):
        if wire != VARINT or not isinstance(value, int):
            continue
        if number == _MODEL_TYPE and value in _MODEL_TYPES:
            model.model_type = value
        elif number == _SPACE_AS_SUFFIX:
            model.space_as_suffix = value != 0
        elif number == _BOS_ID:
            model.bos_id = signed32(value)
        elif number == _EOS_ID:
            model.eos_id = signed32(value)


def _read_normalizer(message: bytes, model: SentencePieceModel) -> None:
    for number, wire, value in fields(message):
        if number == _CHARSMAP and wire == BYTES and isinstance(value, bytes):
            model.charsmap = value
        elif number == _DUMMY_PREFIX and wire == VARINT:
            model.dummy_prefix = value != 0
        elif number == _REMOVE_SPACES and wire == VARINT:
            model.remove_extra_spaces = value != 0


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
    for number, wire, value in fields(message):
        if number == _PIECE and isinstance(value, bytes) and wire == BYTES:
            text = value
        elif number == _SCORE and isinstance(value, bytes) and wire == FIXED32:
            score = _FLOAT.unpack(value)[0]
        elif number == _TYPE and isinstance(value, int) and value in _PIECE_TYPES:
            kind = value  # protobuf keeps the earlier value when it does not know the new one
    return text, score, kind


def _damaged(problem: str) -> TokenizerError:
    return TokenizerError(f"tokenizer.model is not a readable SentencePiece model: {problem}", _REMEDY)
