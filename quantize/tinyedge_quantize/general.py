"""GGUF's `general.*` metadata: what the model is called, by whom, under which licence.

The texts come from the checkpoint's model card and folder name by the heuristics of gguf's own `Metadata`, so that a file made
here carries the names llama.cpp's converter would give it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tinyedge_quantize.metadata import MetadataEntry, float32, int32, string, strings, uint32
from tinyedge_quantize.plain_yaml import load_plain_yaml
from tinyedge_quantize.strangers import read_limited

_FILES = ("config.json", "generation_config.json")
_MAX_BYTES = 8 * 1024 * 1024
_SCALARS = {"UINT32": uint32, "INT32": int32, "FLOAT32": float32, "STRING": string}


def general_metadata(folder: Path, architecture: str, parameters: int, name: str) -> dict[str, MetadataEntry]:
    """The `general.*` entries; `name` serves where no model card names the model."""
    entries = {"general.architecture": string(architecture), "general.type": string("model")}
    described = _described(folder, parameters)
    described.setdefault("general.name", string(name))
    return entries | described


def _described(folder: Path, parameters: int) -> dict[str, MetadataEntry]:
    import gguf

    if not _is_plain(folder):
        return {}
    writer = _Collector()
    logging.getLogger("metadata").setLevel(logging.CRITICAL)
    try:
        described = gguf.Metadata.load(None, folder, None, parameters)
        if described.size_label is None:
            described.size_label = gguf.size_label(parameters, 0, 0, 0)
        described.set_gguf_meta_model(writer)
    except Exception:
        # A model card is a stranger's free text and the heuristics assume a well-formed one. None of it changes the model.
        return {}
    return writer.entries


def _is_plain(folder: Path) -> bool:
    """Whether gguf may read what describes the model: regular files, none too large, the card's front matter plain YAML."""
    try:
        found = [read_limited(path, _MAX_BYTES) for name in _FILES if (path := folder / name).exists()]
        card = read_limited(folder / "README.md", _MAX_BYTES) if (folder / "README.md").exists() else b""
    except OSError:
        return False
    if card is None or None in found:
        return False
    front = card.removeprefix(b"---").partition(b"\n---")[0] if card.startswith(b"---") else b""
    try:
        load_plain_yaml(front)
    except ValueError:
        return False
    return True


class _Collector:
    """Stands where gguf expects its writer and keeps the values that gguf's Metadata would write."""

    def __init__(self) -> None:
        self.entries: dict[str, MetadataEntry] = {}

    def __getattr__(self, name: str) -> Any:
        """gguf's own `add_*` methods, run on this object so that the key names stay gguf's."""
        import gguf

        method = getattr(gguf.GGUFWriter, name)
        return lambda *arguments, **keywords: method(self, *arguments, **keywords)

    def add_string(self, key: str, value: str) -> None:
        self.entries[key] = string(str(value))

    def add_uint32(self, key: str, value: int) -> None:
        self.entries[key] = uint32(value)

    def add_int32(self, key: str, value: int) -> None:
        self.entries[key] = int32(value)

    def add_float32(self, key: str, value: float) -> None:
        self.entries[key] = float32(value)

    def add_array(self, key: str, value: Any) -> None:
        self.entries[key] = strings([str(item) for item in value])
