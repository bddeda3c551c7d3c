"""The `llama` vocabulary of a `tokenizer.json` that holds SentencePiece-like pieces: Llama 2's or Gemma's tokenizer alone.

transformers 5 saves such tokenizers without tokenizer.model. The converter gives every piece the score -1000, and llama.cpp
then joins from the left whatever can be joined; the order of the merges says what joins first, so scores are made of it.
"""

from __future__ import annotations

import re
from typing import Any

from .added_tokens import check_pieces, named_special_tokens, read_added_tokens
from .byte_level_bpe import check_options, ranked_merges
from .files import TokenizerFolder, as_dict
from .vocabulary import ADDED_SCORE, TokenType, Vocabulary, looks_special, refuse_more_than

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
    """The rows that gguf's LlamaHfVocab gives, with scores by which llama.cpp joins pieces in the order of the merges.

    Where gguf stops at the last token, rows without one are filled as for `tokenizer.model`, because llama.cpp refuses a
    file whose embedding has more rows than the vocabulary.
    """
    model = as_dict((folder.tokenizer_json or {}).get("model"), "model in tokenizer.json")
    check_options(model)
    pieces = check_pieces(model.get("vocab"), vocab_size, "tokenizer.json")
    tokenizer_class = (folder.tokenizer_config or {}).get("tokenizer_class")
    defaults = {} if tokenizer_class in _PLAIN_CLASSES else _LLAMA_SPECIALS
    added = read_added_tokens(folder, pieces, defaults)
    specials = named_special_tokens(folder, defaults)
    last = max([*pieces.values(), *(token.token_id for token in added)])
    refuse_more_than(vocab_size, last + 1, "tokenizer.json")
    scores = _scores(model.get("merges"), pieces)
    vocabulary = Vocabulary(vocab_size)
    for text, row in pieces.items():
        kind = TokenType.BYTE if _BYTE_PIECE.fullmatch(text) else TokenType.NORMAL
        vocabulary.put(row, text, scores.get(text, ADDED_SCORE), TokenType.CONTROL if text in specials else kind)
    for token in added:
        named = token.text in specials
        if token.text not in pieces:
            kind = TokenType.CONTROL if named else TokenType.USER_DEFINED
            vocabulary.put(token.token_id, token.text, ADDED_SCORE, kind)
        elif "\u2581" not in token.text:
            # gguf makes these normal pieces, which llama.cpp does not find whole in a text. Runs of spaces are found by
            # joining, and only as normal pieces they read as spaces.
            kind = TokenType.CONTROL if named or token.special or looks_special(token.text) else TokenType.USER_DEFINED
            vocabulary.put(token.token_id, token.text, scores.get(token.text, ADDED_SCORE), kind)
    return vocabulary


def _scores(merges: Any, pieces: dict[str, int]) -> dict[str, float]:
    """0 for the piece that the first merge makes, -1 for the next one, and so on; other pieces come after them all."""
    joined = dict.fromkeys(left + right for left, right in ranked_merges(merges, pieces))
    scores = {text: -float(place) for place, text in enumerate(joined)}
    return dict.fromkeys(pieces, -float(len(joined))) | scores if joined else {}
