"""The `llama` vocabulary of a folder with a SentencePiece `tokenizer.model`."""

from __future__ import annotations

from tinyedge.errors import TokenizerError

from .files import MAX_MODEL_BYTES, TokenizerFolder, as_bool, as_text, as_token_id, read_bytes
from .sentencepiece_model import Piece, PieceType, is_tiktoken, parse_pieces
from .vocabulary import ADDED_SCORE, TokenType, Vocabulary, looks_special, refuse_more_than


def read_sentencepiece(folder: TokenizerFolder, vocab_size: int) -> Vocabulary | None:
    """The rows that conversion/base.py's `_create_vocab_sentencepiece` gives, or None when tokenizer.json must serve.

    Pieces first, then added_tokens.json, then added_tokens_decoder of tokenizer_config.json. More pieces than rows are an
    error; added tokens beyond the rows are left out, as the converter does, for no weight belongs to them.
    """
    data = read_bytes(folder.path / "tokenizer.model", MAX_MODEL_BYTES)
    if is_tiktoken(data):
        if folder.tokenizer_json is not None:
            return None
        raise TokenizerError(
            "tokenizer.model is a tiktoken rank list (Meta Llama 3), which lacks the merges, not a SentencePiece model",
            "put the tokenizer.json of the Hugging Face version of this model into the folder",
        )
    pieces = parse_pieces(data)
    refuse_more_than(vocab_size, len(pieces), "tokenizer.model")
    vocabulary = Vocabulary(vocab_size)
    for row, piece in enumerate(pieces):
        vocabulary.put(row, piece.text, piece.score, _token_type(piece))
    _put_added_tokens(vocabulary, folder)
    _put_described_tokens(vocabulary, folder)
    return vocabulary


def _token_type(piece: Piece) -> int:
    # The converter has no branch for user-defined pieces: they become normal ones.
    return TokenType.NORMAL if piece.type == PieceType.USER_DEFINED else piece.type


def _put_added_tokens(vocabulary: Vocabulary, folder: TokenizerFolder) -> None:
    for text, value in (folder.added_tokens_json or {}).items():
        as_text(text, "a token of added_tokens.json")
        row = as_token_id(value, "an id in added_tokens.json")
        if row < len(vocabulary):
            vocabulary.put(row, text, ADDED_SCORE, TokenType.USER_DEFINED)


def _put_described_tokens(vocabulary: Vocabulary, folder: TokenizerFolder) -> None:
    for row, token in folder.added_tokens_decoder().items():
        if row >= len(vocabulary):
            continue
        text: str = token["content"]
        if as_bool(token.get("special") or False, f"special of added token {row}") or looks_special(text):
            vocabulary.put(row, text, ADDED_SCORE, TokenType.CONTROL)
        else:
            # llama.cpp looks for user-defined tokens in the text before spaces become U+2581.
            vocabulary.put(row, text.replace("\u2581", " "), ADDED_SCORE, TokenType.USER_DEFINED)
