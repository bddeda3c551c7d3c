"""A tiny llama model as GGUF parts that a test can bend before they are packed, valid or not.

`gguf.GGUFWriter` would refuse most of what a damaged file holds, so the packing here is by hand, after the specification in
ggml/include/gguf.h; test_gguf_file.py proves it against gguf's own reader.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, CONTEXT = 256, 512, 2, 8, 2, 128
TYPE_IDS = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "bool": 7,
    "str": 8,
    "arr": 9,
    "u64": 10,
}
CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?", "u64": "Q"}
Q8_0, F32 = 8, 0


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]  # columns first
    type_id: int
    data: bytes


@dataclass
class Parts:
    """Metadata as (key, type, value), where an array's type is `arr[f32]`, and tensors."""

    pairs: list[tuple[str, str, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    alignment: int = 32

    def set(self, key: str, kind: str, value: Any) -> None:
        """Replaces the entry `key` or adds it."""
        self.drop(key)
        self.pairs.append((key, kind, value))

    def get(self, key: str) -> Any:
        return next(value for name, _, value in self.pairs if name == key)

    def drop(self, key: str) -> None:
        self.pairs = [pair for pair in self.pairs if pair[0] != key]

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)


def tokens() -> list[bytes]:
    """<unk> <s> </s>, the 256 bytes, the space mark, the letters and some pairs: 312 tokens."""
    letters = [chr(c).encode() for c in range(ord("a"), ord("z") + 1)]
    pairs = [a + b for a in letters[:5] for b in letters[8:13]]
    mark = "▁".encode()
    return [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256)), mark, mark + b"a", *letters, *pairs]


def tiny_parts(seed: int = 0) -> Parts:
    """A runnable model: 2 layers, hidden 256, GQA, SentencePiece vocabulary, Q8_0 matrices and F32 norms."""
    texts = tokens()
    parts = Parts()
    for key, kind, value in (
        ("general.architecture", "str", b"llama"),
        ("general.name", "str", b"tiny"),
        ("general.file_type", "u32", 7),
        ("llama.context_length", "u32", CONTEXT),
        ("llama.embedding_length", "u32", HIDDEN),
        ("llama.block_count", "u32", LAYERS),
        ("llama.feed_forward_length", "u32", FFN),
        ("llama.attention.head_count", "u32", HEADS),
        ("llama.attention.head_count_kv", "u32", KV_HEADS),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        ("llama.rope.dimension_count", "u32", HIDDEN // HEADS),
        ("llama.rope.freq_base", "f32", 10000.0),
        ("llama.vocab_size", "u32", len(texts)),
        ("tokenizer.ggml.model", "str", b"llama"),
        ("tokenizer.ggml.tokens", "arr[str]", texts),
        ("tokenizer.ggml.scores", "arr[f32]", [-float(i) for i in range(len(texts))]),
        ("tokenizer.ggml.token_type", "arr[i32]", [2, 3, 3, *[6] * 256, *[1] * (len(texts) - 259)]),
        ("tokenizer.ggml.bos_token_id", "u32", 1),
        ("tokenizer.ggml.eos_token_id", "u32", 2),
        ("tokenizer.ggml.add_bos_token", "bool", True),
        ("tokenizer.chat_template", "str", b"{{ messages[0].content }}"),
    ):
        parts.pairs.append((key, kind, value))
    noise = random.Random(seed)
    key_rows = HIDDEN // HEADS * KV_HEADS
    matrices = [("attn_q", HIDDEN, HIDDEN), ("attn_k", HIDDEN, key_rows), ("attn_v", HIDDEN, key_rows)]
    matrices += [
        ("attn_output", HIDDEN, HIDDEN),
        ("ffn_gate", HIDDEN, FFN),
        ("ffn_up", HIDDEN, FFN),
        ("ffn_down", FFN, HIDDEN),
    ]
    parts.tensors.append(_matrix(noise, "token_embd.weight", HIDDEN, len(texts)))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            parts.tensors.append(_norm(f"blk.{layer}.{norm}.weight"))
        for name, columns, rows in matrices:
            parts.tensors.append(_matrix(noise, f"blk.{layer}.{name}.weight", columns, rows))
    parts.tensors.append(_norm("output_norm.weight"))
    parts.tensors.append(_matrix(noise, "output.weight", HIDDEN, len(texts)))
    return parts


def _matrix(noise: random.Random, name: str, columns: int, rows: int) -> Tensor:
    """Q8_0 blocks: an F16 scale of 1/2048 and 32 signed bytes."""
    blocks = columns * rows // 32
    body = noise.randbytes(32 * blocks)
    scale = struct.pack("<e", 1 / 2048)
    data = b"".join(scale + body[32 * i : 32 * i + 32] for i in range(blocks))
    return Tensor(name, (columns, rows), Q8_0, data)


def _norm(name: str) -> Tensor:
    return Tensor(name, (HIDDEN,), F32, struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN))


def pack(parts: Parts) -> bytes:
    """The file's bytes."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", parts.version, len(parts.tensors), len(parts.pairs)))
    for key, kind, value in parts.pairs:
        out += _string(key.encode()) + _value(kind, value)
    offset = 0
    for tensor in parts.tensors:
        out += _string(tensor.name.encode()) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack("<IQ", tensor.type_id, offset)
        offset += _padded(len(tensor.data), parts.alignment)
    for tensor in parts.tensors:
        out += bytes(-len(out) % parts.alignment)
        out += tensor.data
    return bytes(out)


def write(path: Path, parts: Parts) -> Path:
    path.write_bytes(pack(parts))
    return path


def _value(kind: str, value: Any) -> bytes:
    if kind.startswith("arr["):
        element = kind[4:-1]
        body = b"".join(map(_string, value)) if element == "str" else struct.pack(f"<{len(value)}{CODES[element]}", *value)
        return struct.pack("<IIQ", TYPE_IDS["arr"], TYPE_IDS[element], len(value)) + body
    body = _string(value) if kind == "str" else struct.pack("<" + CODES[kind], value)
    return struct.pack("<I", TYPE_IDS[kind]) + body


def _string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _padded(size: int, alignment: int) -> int:
    return size + -size % alignment
