"""Tiny models whose vocabularies have the special tokens of the chat templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tiny_gguf import HIDDEN, Q8_0, Parts, Tensor, tiny_parts, write

CONTROL = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "[INST]", "[/INST]", "<|im",
)  # fmt: skip
USER_DEFINED = ("<think>", "</think>", "<tool_response>", "</tool_response>", "<table>", "\n\n")
NORMAL, UNKNOWN, CONTROL_TYPE, USER_DEFINED_TYPE = 1, 2, 3, 4


def byte_level(path: Path, **metadata: str) -> Path:
    """A byte-level vocabulary without merges: each byte is a token."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    letters = [chr(byte if byte in plain else next(others)) for byte in range(256)]  # GPT-2's bytes_to_unicode
    parts = tiny_parts()
    for key, value in {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", **metadata}.items():
        parts.set(key, "str", value.encode())
    parts.set("tokenizer.ggml.merges", "arr[str]", [b"a b"])
    special = [("<unk>", NORMAL), ("<s>", CONTROL_TYPE), ("</s>", CONTROL_TYPE), *_special()]
    _set_vocabulary(parts, [*((letter, NORMAL) for letter in letters), *special])
    parts.set("tokenizer.ggml.bos_token_id", "u32", 257)
    parts.set("tokenizer.ggml.eos_token_id", "u32", 258)
    parts.set("tokenizer.ggml.add_bos_token", "bool", False)
    return write(path, parts)


def sentence_piece(path: Path, **metadata: str) -> Path:
    """A SentencePiece vocabulary that puts a space first and BOS before it."""
    parts = tiny_parts()
    for key, value in metadata.items():
        parts.set(key, "str", value.encode())
    texts = [text.decode() for text in parts.get("tokenizer.ggml.tokens")[:288]]
    types = parts.get("tokenizer.ggml.token_type")
    _set_vocabulary(parts, [*zip(texts, types, strict=False), *_special()])
    return write(path, parts)


def llama_2(path: Path, tokenizer_model: Path) -> Path:
    """The vocabulary of Llama 2 in a model of zeros."""
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    tokens = range(library.get_piece_size())
    kinds = ((library.is_unknown, UNKNOWN), (library.is_control, CONTROL_TYPE), (library.is_byte, 6))
    parts = tiny_parts()
    parts.set("tokenizer.ggml.tokens", "arr[str]", [library.id_to_piece(token).encode() for token in tokens])
    parts.set("tokenizer.ggml.scores", "arr[f32]", [library.get_score(token) for token in tokens])
    types = [next((kind for is_kind, kind in kinds if is_kind(token)), NORMAL) for token in tokens]
    parts.set("tokenizer.ggml.token_type", "arr[i32]", types)
    parts.set("llama.vocab_size", "u32", len(tokens))
    for name in ("token_embd.weight", "output.weight"):
        tensor = parts.tensor(name)
        parts.tensors[parts.tensors.index(tensor)] = Tensor(
            name, (HIDDEN, len(tokens)), Q8_0, bytes(HIDDEN // 32 * 34 * len(tokens))
        )
    return write(path, parts)


def _special() -> list[tuple[str, int]]:
    return [(text, CONTROL_TYPE) for text in CONTROL] + [(text, USER_DEFINED_TYPE) for text in USER_DEFINED]


def _set_vocabulary(parts: Parts, tokens: Sequence[tuple[str, int]]) -> None:
    count = len(parts.get("tokenizer.ggml.tokens"))
    padded = [*tokens, *((f"filler{index}", NORMAL) for index in range(count - len(tokens)))]
    assert len(padded) == count
    parts.set("tokenizer.ggml.tokens", "arr[str]", [text.encode() for text, _ in padded])
    parts.set("tokenizer.ggml.token_type", "arr[i32]", [kind for _, kind in padded])


def taken_apart(text: str, special: Sequence[str]) -> list[str]:
    """`text` in pieces, those with odd places from `special`."""
    longest_first = sorted(special, key=len, reverse=True)
    return re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
