"""Whether a folder's tokenizer.json and tokenizer.model describe one tokenizer.

A folder that has both has them from one training, unless somebody mixed two. The converter reads one and never looks at the
other; which of them belongs to the weights cannot be told from here, so a contradiction ends the conversion.
"""

from __future__ import annotations

from typing import Any

from tinyedge.errors import TokenizerError
from tinyedge_quantize.strangers import show

from .files import TokenizerFolder, as_dict, as_list, as_text, as_token_id
from .sentencepiece_model import PieceType, SentencePieceModel
from .vocabulary import Vocabulary

_REMEDY = "keep the file that this checkpoint was trained with and remove the other"


def check_agreement(folder: TokenizerFolder, model: SentencePieceModel, vocabulary: Vocabulary) -> None:
    """Raises TokenizerError that names the first id on which tokenizer.json contradicts `vocabulary`, read from `model`.

    Added tokens that only one of the files knows are no contradiction, nor is a byte piece that tokenizer.json spells as its
    character (Gemma's tab).
    """
    pieces, added = _json_rows(folder)
    if not pieces and not added:
        return
    count = len(model.pieces)
    wrong = [row for row, text in added.items() if row < count and not _same(model, vocabulary, row, text)]
    wrong += [
        row for row, text in pieces.items() if row < count and row not in added and not _same(model, vocabulary, row, text)
    ]
    if wrong:
        row = min(wrong)
        text, known = added.get(row) or pieces[row], vocabulary.tokens[row].decode()
        raise _disagree(f"token {row} is {show(text)} in tokenizer.json and {show(known)} in tokenizer.model")
    if pieces:
        beyond = [row for row in pieces if row >= count and row not in added]
        if beyond:
            raise _disagree(
                f"tokenizer.json has {show(pieces[min(beyond)])} as token {min(beyond)}, tokenizer.model {count} tokens"
            )
        missing = next((row for row in range(count) if row not in pieces and row not in added), None)
        if missing is not None:
            raise _disagree(
                f"tokenizer.model has token {missing}, {show(vocabulary.tokens[missing].decode())}, tokenizer.json not"
            )
    rows = {text.encode("utf-8"): row for row, text in added.items()}
    for known_row, piece in enumerate(model.pieces):
        row = rows.get(piece.text, known_row)
        if row != known_row and vocabulary.tokens[known_row] == piece.text:
            raise _disagree(f"{show(added[row])} is token {row} in tokenizer.json and {known_row} in tokenizer.model")


def _same(model: SentencePieceModel, vocabulary: Vocabulary, row: int, text: str) -> bool:
    known = vocabulary.tokens[row]
    if text.encode("utf-8", "replace") in (known, known.replace(b" ", b"\xe2\x96\x81")):
        return True
    piece = model.pieces[row]
    return (
        piece.type == PieceType.BYTE and len(text) == 1 and piece.text == b"<0x%02X>" % (ord(text) & 0xFF) and ord(text) < 128
    )


def _json_rows(folder: TokenizerFolder) -> tuple[dict[int, str], dict[int, str]]:
    """The texts of tokenizer.json by id: those of its model, and its added tokens."""
    described = folder.tokenizer_json or {}
    model = as_dict(described.get("model") or {}, "model in tokenizer.json")
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):  # a unigram model lists pairs of text and score
        pieces = {row: _text_of_pair(pair, row) for row, pair in enumerate(vocab)}
    else:
        what = "an id of the vocabulary in tokenizer.json"
        pieces = {as_token_id(row, what): text for text, row in as_dict(vocab, "the vocabulary in tokenizer.json").items()}
    added: dict[int, str] = {}
    for item in as_list(described.get("added_tokens") or [], "added_tokens in tokenizer.json"):
        token = as_dict(item, "an added token in tokenizer.json")
        row = as_token_id(token.get("id"), "the id of an added token in tokenizer.json")
        added[row] = as_text(token.get("content"), "the content of an added token in tokenizer.json")
    return pieces, added


def _text_of_pair(pair: Any, row: int) -> str:
    what = f"entry {row} of the vocabulary in tokenizer.json"
    items = as_list(pair, what)
    return as_text(items[0] if items else None, what)


def _disagree(difference: str) -> TokenizerError:
    return TokenizerError(f"tokenizer.json and tokenizer.model disagree: {difference}", _REMEDY)
