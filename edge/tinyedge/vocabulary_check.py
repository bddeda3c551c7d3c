"""Refuses the vocabularies on which llama.cpp's tokenizers would abort the process.

Two of them are easy to meet: a token that appears twice fails an assert while loading, and a byte without a token
throws std::out_of_range out of `llama_tokenize` (llama-vocab.cpp), which no Python code can catch.
"""

from __future__ import annotations

from tinyedge.errors import GGUFError
from tinyedge.gguf_file import GGUFFile
from tinyedge.gguf_values import GGUFArray, shown

_SPM, _BPE = "llama", "gpt2"
_TOKENIZERS = (_SPM, _BPE, "gemma4")
_BYTE_TYPE = 6  # LLAMA_TOKEN_TYPE_BYTE
_LAST_TYPE = 6
_DEFAULT_SPECIALS = {_SPM: {"bos": 1, "eos": 2}, _BPE: {"bos": 11, "eos": 11}}  # llama-vocab.cpp
# Bytes that never occur in UTF-8; everything else a prompt can hold needs a token.
_NOT_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))


def check_vocabulary(gguf: GGUFFile) -> None:
    """Raises GGUFError unless llama.cpp can load the vocabulary and tokenize any text with it."""
    model = gguf.metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str):
        raise GGUFError(f"{gguf.path} does not name its tokenizer (tokenizer.ggml.model)")
    if model not in _TOKENIZERS:
        raise GGUFError(
            f"{gguf.path} has a {shown(model)} tokenizer; {', '.join(_TOKENIZERS)} are supported",
            "convert the model with one of those tokenizers",
        )
    tokens = _array(gguf, "tokenizer.ggml.tokens", ("str",))
    if tokens is None or not len(tokens):
        raise GGUFError(f"{gguf.path} has no vocabulary (tokenizer.ggml.tokens)")
    types = _array(gguf, "tokenizer.ggml.token_type", ("i32",), len(tokens))
    _array(gguf, "tokenizer.ggml.scores", ("f32", "i32"), len(tokens))
    if model != _SPM and _array(gguf, "tokenizer.ggml.merges", ("str",)) is None:
        raise GGUFError(f"{gguf.path} has no merges (tokenizer.ggml.merges), which its {model} tokenizer needs")
    texts = _token_texts(gguf, tokens)
    _check_types(gguf, texts, types)
    if model == _SPM:
        _check_bytes(gguf, set(texts))
    _check_specials(gguf, model, len(tokens))


def _array(gguf: GGUFFile, key: str, element_types: tuple[str, ...], length: int | None = None) -> GGUFArray | None:
    """The array under `key`, or None. Raises GGUFError when it has another type or length."""
    value = gguf.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, GGUFArray) or value.element_type not in element_types:
        raise GGUFError(f"{gguf.path} has {key} of type {gguf.value_types[key]}; arr[{element_types[0]}] was expected")
    if length is not None and len(value) != length:
        raise GGUFError(f"{gguf.path} has {len(value)} entries in {key} for {length} tokens")
    return value


def _token_texts(gguf: GGUFFile, tokens: GGUFArray) -> list[bytes]:
    """The texts as llama.cpp holds them, cut at a NUL and never empty. Raises GGUFError when one appears twice."""
    texts = [raw.split(b"\0", 1)[0] or b"[EMPTY_%d]" % index for index, raw in enumerate(tokens.raw_strings)]
    if len(set(texts)) != len(texts):
        seen: set[bytes] = set()
        twice = next(text for text in texts if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        raise GGUFError(f"{gguf.path} has the token {shown(twice.decode('utf-8', 'replace'))} twice in its vocabulary")
    return texts


def _check_types(gguf: GGUFFile, texts: list[bytes], types: GGUFArray | None) -> None:
    values = types.values if types is not None else ()
    if values and not 0 <= min(values) <= max(values) <= _LAST_TYPE:
        raise GGUFError(f"{gguf.path} has token types outside 0 to {_LAST_TYPE}")
    for text, kind in zip(texts, values, strict=False):
        if kind == _BYTE_TYPE and _byte_of(text) is None:
            raise GGUFError(
                f"{gguf.path} marks the token {shown(text.decode('utf-8', 'replace'))} as a byte; <0xHH> was expected"
            )


def _byte_of(text: bytes) -> int | None:
    if len(text) != 6 or not text.startswith(b"<0x") or not text.endswith(b">"):
        return None
    try:
        return int(text[3:5], 16)
    except ValueError:
        return None


def _check_bytes(gguf: GGUFFile, texts: set[bytes]) -> None:
    for byte in range(256):
        if byte not in _NOT_IN_UTF8 and b"<0x%02X>" % byte not in texts and (not byte or bytes((byte,)) not in texts):
            raise GGUFError(f"{gguf.path} has no token for the byte 0x{byte:02X}, so it could not tokenize every text")


def _check_specials(gguf: GGUFFile, model: str, vocabulary: int) -> None:
    """Special ids lie inside the vocabulary, and what is added to every prompt exists (llama_vocab::tokenize asserts)."""
    for key, value in gguf.metadata.items():
        is_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if is_id and (gguf.value_types[key] != "u32" or not isinstance(value, int) or value >= vocabulary):
            raise GGUFError(f"{gguf.path} has {shown(key)} {value}; the vocabulary has {vocabulary} tokens")
    for name, default in (("bos", model == _SPM), ("eos", False)):
        added = gguf.metadata.get(f"tokenizer.ggml.add_{name}_token", default or (name == "bos" and model == "gemma4"))
        default_id = _DEFAULT_SPECIALS.get(model, {}).get(name, vocabulary)
        if added and f"tokenizer.ggml.{name}_token_id" not in gguf.metadata and default_id >= vocabulary:
            raise GGUFError(f"{gguf.path} adds a {name.upper()} token to every prompt but has none")
