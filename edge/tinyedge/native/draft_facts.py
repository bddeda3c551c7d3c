"""What decides whether one model can guess for another, and whether a guess can be taken back."""

from __future__ import annotations

from tinyedge.native import library
from tinyedge.native.model import Model

_KINDS = ("none", "SentencePiece", "BPE", "WordPiece", "Unigram", "RWKV", "PLaMo-2")  # llama_vocab_type


def keeps_every_token(model: Model) -> bool:
    """Whether the state of each token can be taken out again, which a recurrent model mixes into one."""
    llama = library.ready()
    return not (llama.llama_model_is_recurrent(model.pointer) or llama.llama_model_is_hybrid(model.pointer))


def vocabulary_kind(model: Model) -> str:
    """SentencePiece, BPE, ..."""
    llama = library.ready()
    kind = llama.llama_vocab_type(llama.llama_model_get_vocab(model.pointer))
    return _KINDS[kind] if 0 <= kind < len(_KINDS) else f"number {kind}"


def added_end(model: Model) -> int | None:
    """The token that this model wants at the end of a text, when it wants one."""
    llama = library.ready()
    vocabulary = llama.llama_model_get_vocab(model.pointer)
    return int(llama.llama_vocab_eos(vocabulary)) if llama.llama_vocab_get_add_eos(vocabulary) else None


def first_other_token(one: Model, other: Model, start: int) -> int | None:
    """The first token from `start` on, up to the end of the smaller vocabulary, that the two spell differently."""
    text = library.ready().llama_vocab_get_text
    left, right = (library.ready().llama_model_get_vocab(model.pointer) for model in (one, other))
    count = min(one.vocabulary_size, other.vocabulary_size)
    return next((token for token in range(start, count) if text(left, token) != text(right, token)), None)
