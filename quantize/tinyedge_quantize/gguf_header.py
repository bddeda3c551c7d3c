"""The bytes of a GGUF header: metadata and the table of tensors.

Source: ggml's docs/gguf.md, version 3, little-endian. Built in memory rather than by gguf.GGUFWriter because the plan needs the
exact size of the file before anything is written.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyedge_quantize.metadata import MetadataEntry

GGUF_MAGIC = b"GGUF"
GGUF_VERSION = 3
ALIGNMENT = 32

# Value types by id with struct's code for those of fixed size (ggml/include/gguf.h).
_VALUE_TYPES = {
    name: (number, code)
    for number, (name, code) in enumerate(
        (
            ("uint8", "B"),
            ("int8", "b"),
            ("uint16", "H"),
            ("int16", "h"),
            ("uint32", "I"),
            ("int32", "i"),
            ("float32", "f"),
            ("bool", "b"),
            ("string", ""),
            ("array", ""),
            ("uint64", "Q"),
            ("int64", "q"),
            ("float64", "d"),
        )
    )
}


@dataclass(frozen=True)
class TensorInfo:
    """A row of the tensor table: `shape` as (rows, columns), `type_id` ggml's, `offset` in bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


def padded(count: int) -> int:
    """`count` bytes rounded up to GGUF's default alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def encode_header(metadata: Mapping[str, MetadataEntry], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything before the tensor data, padded so that the data is aligned."""
    parts = [GGUF_MAGIC, struct.pack("<IQQ", GGUF_VERSION, len(tensors), len(metadata))]
    for key, entry in metadata.items():
        parts += (_string(key), struct.pack("<I", _VALUE_TYPES[entry.type][0]), _value(entry))
    for tensor in tensors:
        sizes = tensor.shape[::-1]
        parts += (
            _string(tensor.name),
            struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes),
            struct.pack("<IQ", tensor.type_id, tensor.offset),
        )
    header = b"".join(parts)
    return header.ljust(padded(len(header)), b"\0")


def _string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(entry: MetadataEntry) -> bytes:
    if entry.type == "string":
        return _string(entry.value)
    if entry.type != "array":
        return struct.pack("<" + _VALUE_TYPES[entry.type][1], entry.value)
    assert entry.item_type is not None, "an array entry has an item type"
    number, code = _VALUE_TYPES[entry.item_type]
    head = struct.pack("<IQ", number, len(entry.value))
    if entry.item_type == "string":
        return head + b"".join(map(_string, entry.value))
    items = array(code, entry.value)
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        items.byteswap()
    return head + items.tobytes()
