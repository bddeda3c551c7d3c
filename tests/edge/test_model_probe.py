"""A model of a family that is not checked completely is tried in a child process first."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import GGUFError
from tinyedge.gguf_file import GGUFFile, read_gguf
from tinyedge.model_facts import check_runnable
from tinyedge.model_probe import probe


def _renamed(folder: Path, family: str, **numbers: int) -> GGUFFile:
    """The tiny model under another family's name, with some u32 keys more."""
    parts = tiny_parts()
    parts.pairs = [(key.replace("llama.", f"{family}.", 1), kind, value) for key, kind, value in parts.pairs]
    parts.set("tokenizer.ggml.model", "str", b"llama")
    parts.set("general.architecture", "str", family.encode())
    for key, value in numbers.items():
        parts.set(f"{family}.{key.replace('__', '.')}", "u32", value)
    found = read_gguf(write(folder / f"{family}.gguf", parts))
    check_runnable(found)
    return found


def test_a_file_that_kills_llama_cpp_kills_only_the_child(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="crash"):
        probe(_renamed(tmp_path, "smallthinker", attention__sliding_window=64))


def test_a_sound_model_passes_and_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _renamed(tmp_path, "smollm3")
    probe(found, tmp_path / "memory")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", lambda *_, **__: pytest.fail("probed again"))
        probe(found, tmp_path / "memory")
    assert len(list((tmp_path / "memory" / "probed").iterdir())) == 1


def test_a_model_that_llama_cpp_refuses_is_left_for_it_to_explain(tmp_path: Path) -> None:
    probe(_renamed(tmp_path, "mamba"), tmp_path / "memory")
    assert not (tmp_path / "memory").exists()


def test_llama_models_are_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("probed"))
    probe(read_gguf(write(tmp_path / "tiny.gguf", tiny_parts())))
