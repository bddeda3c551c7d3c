"""llama.cpp's own tokenizer on files that hold nothing but a vocabulary."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tinyedge_quantize.metadata import MetadataEntry


def write_vocabulary(path: Path, entries: Mapping[str, MetadataEntry]) -> Path:
    """A GGUF of nothing but the vocabulary."""
    gguf = pytest.importorskip("gguf")
    types = gguf.GGUFValueType
    writer = gguf.GGUFWriter(path, "llama")
    for key, entry in entries.items():
        kind, items = types[entry.type.upper()], types[entry.item_type.upper()] if entry.item_type else None
        value = bytes(entry.value) if entry.item_type == "uint8" else entry.value  # a list takes the writer seconds
        writer.add_key_value(key, value, kind, sub_type=items)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaVocabulary:
    """llama.cpp's tokenizer on a vocabulary-only file."""

    def __init__(self, path: Path) -> None:
        self.library = pytest.importorskip("llama_cpp").llama_cpp
        self.library.llama_backend_init()
        self.quiet = self.library.llama_log_callback(lambda *_: None)
        self.library.llama_log_set(self.quiet, ctypes.c_void_p(0))
        parameters = self.library.llama_model_default_params()
        parameters.vocab_only = True
        self.model = self.library.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model
        self.vocab = self.library.llama_model_get_vocab(self.model)

    def tokens(self, text: str, add_special: bool = False) -> list[int]:
        """The ids of a text in which special tokens are found; `add_special` adds what the tokenizer adds."""
        data = text.encode()
        room = (self.library.llama_token * (len(data) + 8))()
        count = self.library.llama_tokenize(self.vocab, data, len(data), room, len(room), add_special, True)
        assert count >= 0
        return list(room[:count])

    def close(self) -> None:
        self.library.llama_model_free(self.model)


@contextmanager
def llama_vocabulary(path: Path, entries: Mapping[str, MetadataEntry]) -> Iterator[LlamaVocabulary]:
    """llama.cpp's tokenizer for these entries, written to `path`."""
    vocabulary = LlamaVocabulary(write_vocabulary(path, entries))
    try:
        yield vocabulary
    finally:
        vocabulary.close()
