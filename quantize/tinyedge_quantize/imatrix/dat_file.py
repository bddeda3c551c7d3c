"""The .dat form of importance matrices, which llama.cpp wrote before the GGUF form (common/imatrix-loader.cpp).

Little-endian and without a magic: the number of entries; for each the length of its name, the name, the number of chunks, the
number of values and those, each the mean square times the number of chunks; then, in later versions, the number of chunks of
all and the name of the text.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from tinyedge_quantize.imatrix.importance import Imatrix, SquareSums, damaged
from tinyedge_quantize.strangers import show

_MAX_NAME_BYTES = 256  # GGML_MAX_NAME is 64
_MAX_TEXT_BYTES = 65536
_MOST_ENTRIES = 1 << 16
_SMALLEST_ENTRY = 4 + 1 + 4 + 4 + 4


class _Cursor:
    """Numbers and bytes of a file of known size, in order."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self.remaining = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self.remaining else b""
        if len(data) != count:
            raise damaged(self._path, "is truncated: it ends inside an entry")
        self.remaining -= count
        return data

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little", signed=True)


def read_dat(path: Path, file: BinaryIO) -> Imatrix:
    """The importance matrix that `file` holds from its beginning. Raises ImatrixError."""
    cursor = _Cursor(path, file)
    not_one = damaged(path, "is not an importance matrix")
    if cursor.remaining < 4 + _SMALLEST_ENTRY:
        raise not_one
    entries = cursor.number()
    if not 1 <= entries <= min(_MOST_ENTRIES, cursor.remaining // _SMALLEST_ENTRY):
        raise not_one
    tensors: dict[str, SquareSums] = {}
    for index in range(entries):
        name = _name(path, cursor, index)
        if name in tensors:
            raise damaged(path, f"has the tensor {show(name)} twice")
        chunks, count = cursor.number(), cursor.number()
        if count < 1 or chunks < 0:
            raise damaged(path, f"claims {count} values and {chunks} chunks for {show(name)}")
        if count * 4 > cursor.remaining:
            raise damaged(path, f"is truncated: it ends inside the values of {show(name)}")
        values = np.frombuffer(cursor.take(count * 4), dtype="<f4").astype(np.float32)
        tensors[name] = SquareSums(values, np.array([chunks], dtype=np.int64))
    chunks, dataset = _ending(cursor)
    return Imatrix(path, MappingProxyType(dict(sorted(tensors.items()))), dataset, chunks, 0)


def _name(path: Path, cursor: _Cursor, index: int) -> str:
    length = cursor.number()
    if not 0 < length <= _MAX_NAME_BYTES:
        if not index:
            raise damaged(path, "is not an importance matrix")
        raise damaged(path, f"has a name of {length} bytes for its entry {index}; 1 to {_MAX_NAME_BYTES} are possible")
    raw = cursor.take(length)
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = "\0"
    if not name.isprintable():
        raise damaged(path, "is not an importance matrix" if not index else f"has the name {show(raw)} for its entry {index}")
    return name


def _ending(cursor: _Cursor) -> tuple[int, tuple[str, ...]]:
    """The number of chunks and the name of the text, where they are there: the first versions ended before."""
    if cursor.remaining < 4:
        return 0, ()
    chunks = max(cursor.number(), 0)
    if cursor.remaining < 4:
        return chunks, ()
    length = cursor.number()
    if not 0 < length <= min(cursor.remaining, _MAX_TEXT_BYTES):
        return chunks, ()
    return chunks, (cursor.take(length).split(b"\0", 1)[0].decode("utf-8", "replace"),)
