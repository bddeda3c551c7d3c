"""The cache of quantized checkpoints: what is in it is whole and up to date, or made anew."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import tinyedge
from tinyedge.cli import models
from tinyedge.errors import ModelNotFoundError, OutputError


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "story"
    shutil.copytree(Path(tinyedge.__file__).parent / "demo", source)
    return source


def test_a_damaged_file_in_the_cache_is_made_anew(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached = models.quantized(checkpoint, "it")
    whole = cached.read_bytes()
    for damaged in (b"", whole[:1000], whole[:-1000], b"GGML" + whole[4:]):
        cached.write_bytes(damaged)
        assert models.quantized(checkpoint, "it") == cached
        assert cached.read_bytes() == whole
        assert "the cached file is made anew" in capsys.readouterr().err
    models.quantized(checkpoint, "it")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name",
    ["config.json", "merges.txt", "model_config.yaml", "params.json", "README.md", "additional_chat_templates/tool.jinja"],
)
def test_a_file_beside_the_weights_that_changes_makes_another_model(checkpoint: Path, name: str) -> None:
    weights, beside = [checkpoint / "pytorch_model.bin"], checkpoint / name
    before = models._key(weights)
    beside.parent.mkdir(exist_ok=True)
    beside.write_text("{}")
    os.utime(beside, (1, 1))
    added = models._key(weights)
    beside.write_text("{}")
    assert len({before, added, models._key(weights)}) == 3


def test_another_llama_cpp_makes_another_model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [checkpoint / "pytorch_model.bin"]
    before = models._key(weights)
    monkeypatch.setattr("tinyedge.native.library.package_version", lambda: "99.0")
    assert models._key(weights) != before


def test_without_a_home_folder_the_cache_asks_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OutputError, match=r"no home folder.*XDG_CACHE_HOME"):
        models.cache_folder()
    assert models.cache_folder(needed=False) is None


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/model.gguf", "absent", "tests/edge/tiny_gguf.py/model.gguf"])
def test_a_name_that_leads_nowhere_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        models.resolve_model(name)
