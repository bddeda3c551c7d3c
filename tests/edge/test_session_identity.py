"""What tells one model from another, and what a KV state depends on beside it."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import GGUFError, ModelNotFoundError
from tinyedge.gguf_file import read_gguf
from tinyedge.model_identity import SAMPLE_BYTES, StateIdentity, fingerprint, model_identity

STATE = StateIdentity(
    library="llama-cpp-python 1", kv_type="F16", flash="auto", rope_scaling="", rope_scale=0.0, long_context=0, adapters=""
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", tiny_parts())


def test_a_copy_is_the_same_model(path: Path, tmp_path: Path) -> None:
    copy = shutil.copy(path, tmp_path / "copy.gguf")
    assert model_identity(path).fingerprint == model_identity(copy).fingerprint
    assert len(model_identity(path).fingerprint) == 64


def test_any_byte_of_the_header_makes_another_model(path: Path) -> None:
    gguf = read_gguf(path)
    content = bytearray(path.read_bytes())
    seen = {fingerprint(gguf)}
    places = range(0, gguf.data_offset, 97)
    for place in places:
        content[place] ^= 1
        path.write_bytes(content)
        seen.add(fingerprint(gguf))
        content[place] ^= 1
    assert len(seen) == len(places) + 1


def test_a_change_to_any_tensor_makes_another_model(path: Path) -> None:
    """A training step moves all weights of a tensor; here its first byte, its middle one, or the last of a small one."""
    gguf = read_gguf(path)
    content = bytearray(path.read_bytes())
    seen = {fingerprint(gguf)}
    changes = 0
    for tensor in gguf.tensors:
        inside = {0, tensor.bytes // 2, min(tensor.bytes, SAMPLE_BYTES) - 1}
        for place in inside:
            content[gguf.data_offset + tensor.offset + place] ^= 1
            path.write_bytes(content)
            seen.add(fingerprint(gguf))
            content[gguf.data_offset + tensor.offset + place] ^= 1
            changes += 1
    assert len(seen) == changes + 1


def test_other_weights_in_the_same_file_are_noticed(path: Path) -> None:
    before = model_identity(path)
    write(path, tiny_parts(seed=9))
    os.utime(path, ns=(1, 1))
    after = model_identity(path)
    assert before.fingerprint != after.fingerprint
    assert replace(before, fingerprint="") == replace(after, fingerprint="")


def test_a_missing_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        model_identity(tmp_path / "missing.gguf")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(GGUFError):
        model_identity(tmp_path / "damaged.gguf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"library": "llama-cpp-python 2"}, "with llama-cpp-python 1, now llama-cpp-python 2"),
        ({"kv_type": "Q8_0"}, "with a KV cache of type F16, now Q8_0"),
        ({"flash": "off"}, "with flash attention auto, now off"),
        ({"rope_scaling": "yarn"}, "with the RoPE scaling none, now yarn"),
        ({"rope_scale": 2.0}, "with a RoPE scale of none, now 2.0"),
        ({"long_context": 8192}, "with a context of none, now 8192"),
        ({"adapters": "3f2a9c01d4e5 x 0.5"}, "with the LoRA adapters none, now 3f2a9c01d4e5 x 0.5"),
    ],
)
def test_each_thing_a_state_depends_on_is_told(change: dict[str, object], words: str) -> None:
    now = replace(STATE, **change)  # type: ignore[arg-type]
    assert STATE.difference(now) == words
    assert STATE.key != now.key
    assert STATE.difference(STATE) == ""


def test_nothing_is_left_untold() -> None:
    assert {field.name for field in fields(StateIdentity)} == {
        "library", "kv_type", "flash", "rope_scaling", "rope_scale", "long_context", "adapters",
    }  # fmt: skip
