"""The `llama` vocabulary of a `tokenizer.json` that holds SentencePiece-like pieces: Llama 2's fast tokenizer alone."""

from __future__ import annotations

import re
from typing import Any

from .added_tokens import check_pieces, named_special_tokens, read_added_tokens
from .files import TokenizerFolder, as_dict
from .vocabulary import ADDED_SCORE, TokenType, Vocabulary, refuse_more_than

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Tokenizer classes that have no special tokens of their own; the others that read such a file are Llama's.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_LLAMA_SPECIALS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def is_fast_llama(tokenizer_json: dict[str, Any]) -> bool:
    """True for BPE with byte fallback and a decoder in steps (gguf-py/gguf/vocab.py, LlamaHfVocab)."""
    model, decoder = tokenizer_json.get("model"), tokenizer_json.get("decoder")
    return (
        isinstance(model, dict)
        and model.get("type") == "BPE"
        and model.get("byte_fallback") is True
        and isinstance(decoder, dict)
        and decoder.get("type") == "Sequence"
    )


def read_fast_llama(folder: TokenizerFolder, vocab_size: int) -> Vocabulary:
    """The rows that gguf's LlamaHfVocab gives; every score is -1000, for tokenizer.json has none.

    Where gguf stops at the last token, rows without one are filled as for `tokenizer.model`, because llama.cpp refuses a
    file whose embedding has more rows than the vocabulary.
    """
    model = as_dict((folder.tokenizer_json or {}).get("model"), "model in tokenizer.json")
    pieces = check_pieces(model.get("vocab"), vocab_size, "tokenizer.json")
    tokenizer_class = (folder.tokenizer_config or {}).get("tokenizer_class")
    defaults = {} if tokenizer_class in _PLAIN_CLASSES else _LLAMA_SPECIALS
    added = read_added_tokens(folder, pieces, defaults)
    specials = named_special_tokens(folder, defaults)
    last = max([*pieces.values(), *(token.token_id for token in added)])
    refuse_more_than(vocab_size, last + 1, "tokenizer.json")
    vocabulary = Vocabulary(vocab_size)
    for text, row in pieces.items():
        control = TokenType.CONTROL if text in specials else TokenType.NORMAL
        vocabulary.put(row, text, ADDED_SCORE, TokenType.BYTE if _BYTE_PIECE.fullmatch(text) else control)
    for token in added:
        if token.text not in pieces:
            kind = TokenType.CONTROL if token.text in specials else TokenType.USER_DEFINED
            vocabulary.put(token.token_id, token.text, ADDED_SCORE, kind)
    return vocabulary
