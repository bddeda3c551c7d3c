"""The rows of a folder with a SentencePiece `tokenizer.model`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinyedge.errors import TokenizerError

from .files import MAX_MODEL_BYTES, TokenizerFolder, as_bool, as_dict, as_list, as_text, as_token_id, read_bytes
from .sentencepiece_model import ModelType, Piece, PieceType, SentencePieceModel, is_tiktoken, parse_model
from .vocabulary import ADDED_SCORE, TokenType, Vocabulary, looks_special, refuse_more_than

_NOT_READ = "convert it with a tool that knows this kind of tokenizer"


def read_model(folder: TokenizerFolder) -> SentencePieceModel | None:
    """The folder's tokenizer.model, or None when there is none or tokenizer.json must serve instead of it."""
    path = folder.path / "tokenizer.model"
    if not path.is_file():
        return None
    data = read_bytes(path, MAX_MODEL_BYTES)
    if is_tiktoken(data):
        if folder.tokenizer_json is not None:
            return None
        raise TokenizerError(
            "tokenizer.model is a tiktoken rank list (Meta Llama 3), which lacks the merges, not a SentencePiece model",
            "put the tokenizer.json of the Hugging Face version of this model into the folder",
        )
    model = parse_model(data)
    if model.model_type not in (ModelType.UNIGRAM, ModelType.BPE):
        kind = ModelType(model.model_type).name.lower()
        raise TokenizerError(f"tokenizer.model splits text by {kind}, which llama.cpp does not have", _NOT_READ)
    if model.space_as_suffix:
        raise TokenizerError("tokenizer.model puts spaces behind words, which llama.cpp does not do", _NOT_READ)
    return model


def read_rows(folder: TokenizerFolder, model: SentencePieceModel, vocab_size: int) -> Vocabulary:
    """The rows that conversion/base.py's `_create_vocab_sentencepiece` gives.

    Pieces first, then added_tokens.json, then added_tokens_decoder of tokenizer_config.json. More pieces than rows are an
    error; added tokens beyond the rows are left out, as the converter does, for no weight belongs to them.
    """
    vocabulary = _pieces_and_added_tokens(folder, model, vocab_size)
    for row, token in folder.added_tokens_decoder().items():
        if row >= vocab_size:
            continue
        text: str = token["content"]
        if _special(row, token) or looks_special(text):
            vocabulary.put(row, text, ADDED_SCORE, TokenType.CONTROL)
        else:
            # llama.cpp looks for user-defined tokens in the text before spaces become U+2581.
            vocabulary.put(row, text.replace("\u2581", " "), ADDED_SCORE, TokenType.USER_DEFINED)
    return vocabulary


def read_phi3_rows(folder: TokenizerFolder, model: SentencePieceModel, vocab_size: int) -> Vocabulary:
    """The rows that conversion/phi.py's own reading gives.

    Pieces first, then added tokens from added_tokens.json, tokenizer_config.json and tokenizer.json, each as written there.
    """
    vocabulary = _pieces_and_added_tokens(folder, model, vocab_size)
    for row, token in _described_tokens(folder):
        if row < vocab_size:
            kind = TokenType.CONTROL if _special(row, token) else TokenType.USER_DEFINED
            vocabulary.put(row, as_text(token.get("content"), f"the content of added token {row}"), ADDED_SCORE, kind)
    return vocabulary


def _pieces_and_added_tokens(folder: TokenizerFolder, model: SentencePieceModel, vocab_size: int) -> Vocabulary:
    refuse_more_than(vocab_size, len(model.pieces), "tokenizer.model")
    vocabulary = Vocabulary(vocab_size)
    for row, piece in enumerate(model.pieces):
        vocabulary.put(row, piece.text, piece.score, _token_type(piece))
    for text, value in (folder.added_tokens_json or {}).items():
        as_text(text, "a token of added_tokens.json")
        row = as_token_id(value, "an id in added_tokens.json")
        if row < vocab_size:
            vocabulary.put(row, text, ADDED_SCORE, TokenType.USER_DEFINED)
    return vocabulary


def _token_type(piece: Piece) -> int:
    # The converter has no branch for user-defined pieces: they become normal ones.
    return TokenType.NORMAL if piece.type == PieceType.USER_DEFINED else piece.type


def _described_tokens(folder: TokenizerFolder) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from folder.added_tokens_decoder().items()
    listed = (folder.tokenizer_json or {}).get("added_tokens")
    for item in as_list([] if listed is None else listed, "added_tokens in tokenizer.json"):
        token = as_dict(item, "an added token in tokenizer.json")
        yield as_token_id(token.get("id"), "the id of an added token in tokenizer.json"), token


def _special(row: int, token: dict[str, Any]) -> bool:
    return as_bool(token.get("special") or False, f"special of added token {row}")
