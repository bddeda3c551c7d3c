"""Whether two GGUF files are the same model, byte for byte."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

# What a reader adds by itself, and counts that differ with the keys left out.
_READERS_OWN = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")


def own_fields(reader: gguf.GGUFReader) -> dict[str, gguf.ReaderField]:
    """The metadata without what tinyedge records about the conversion, which no other tool writes."""
    return {key: field for key, field in reader.fields.items() if not key.startswith("tinyedge.") and key not in _READERS_OWN}


def assert_same_gguf(ours: Path, theirs: Path) -> None:
    """Same tensors (type, shape, bytes) in the same order, same metadata in the same order, same size of the data."""
    a, b = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    assert [(t.name, t.tensor_type.name, t.shape.tolist()) for t in a.tensors] == [
        (t.name, t.tensor_type.name, t.shape.tolist()) for t in b.tensors
    ]
    for mine, reference in zip(a.tensors, b.tensors, strict=True):
        assert np.array_equal(mine.data.view(np.uint8), reference.data.view(np.uint8)), mine.name
    fields, expected = own_fields(a), own_fields(b)
    assert list(fields) == list(expected)
    for key, field in fields.items():
        assert field.types == expected[key].types, key
        assert field.contents() == expected[key].contents(), key
    assert ours.stat().st_size - a.data_offset == theirs.stat().st_size - b.data_offset
