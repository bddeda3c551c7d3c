"""Equality with llama.cpp's own converter and with transformers' forward pass, for a tiny model of every family.

The converter's source is the folder vendor/llama.cpp of the llama-cpp-python source distribution, named by
TINYEDGE_LLAMA_SOURCE.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from families import BEYOND_THE_CONVERTER, FAMILIES
from test_oracle import llama_cpp_quantize

from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model
from tinyedge_quantize.convert import convert

pytestmark = pytest.mark.torch

SOURCE = os.environ.get("TINYEDGE_LLAMA_SOURCE")
# Provenance, which is ours alone.
OURS = "tinyedge."
ALL = FAMILIES | BEYOND_THE_CONVERTER

converted = pytest.mark.parametrize("family", FAMILIES, indirect=True, scope="module")


@pytest.fixture(scope="module")
def references(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per family with its checkpoint, the converter's F32 GGUF and transformers' log-probabilities."""
    if SOURCE is None:
        pytest.skip("TINYEDGE_LLAMA_SOURCE does not name llama.cpp's source")
    for package in ("torch", "transformers", "sentencepiece"):
        if importlib.util.find_spec(package) is None:  # imported by the program only, which takes seconds
            pytest.skip(f"{package} is not installed")
    wanted = [name for name in ALL if any(f"[{name}]" in item.name for item in request.session.items)]
    folder = tmp_path_factory.mktemp("families")
    program = Path(__file__).with_name("reference_converter.py")
    # torch's vectorised powers are an ulp off and differ between processors; without them the RoPE factors are exact.
    plain = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(
        [sys.executable, program, SOURCE, folder, *wanted], env=plain, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, references: Path) -> Path:
    folder = references / str(request.param)
    error = folder / "error.txt"
    assert not error.exists(), error.read_text()
    return folder


@pytest.fixture(scope="module")
def unquantized(family: Path) -> Path:
    """Our F32 GGUF."""
    convert(family / "checkpoint", family / "f32.gguf", "F32")
    return family / "f32.gguf"


def metadata(reader: Any) -> dict[str, Any]:
    """Types and values of all keys but provenance."""
    return {key: (field.types, field.contents()) for key, field in reader.fields.items() if not key.startswith(("GGUF.", OURS))}


def assert_same(ours: Path, theirs: Path, more: tuple[str, ...]) -> None:
    """Same metadata but for provenance and the keys that ours has `more`, same tensors, in whatever order."""
    a, b = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    mine, reference = metadata(a), metadata(b)
    assert mine.keys() == reference.keys() | set(more)
    for key, value in reference.items():
        assert mine[key] == value, key
    tensors, expected = ({tensor.name: tensor for tensor in reader.tensors} for reader in (a, b))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        other = expected[name]
        assert (tensor.tensor_type.name, tensor.shape.tolist()) == (other.tensor_type.name, other.shape.tolist()), name
        assert np.array_equal(tensor.data.view(np.uint8), other.data.view(np.uint8)), name


@converted
def test_the_unquantized_file_equals_the_converters(family: Path, unquantized: Path) -> None:
    case = FAMILIES[family.name]
    assert_same(unquantized, family / "reference.gguf", case.unsaid + case.added)


@converted
def test_the_quantized_file_equals_llama_cpp(family: Path, tmp_path: Path) -> None:
    convert(family / "checkpoint", tmp_path / "ours.gguf", "Q4_K_M")
    llama_cpp_quantize(family / "reference.gguf", tmp_path / "theirs.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf", FAMILIES[family.name].added)


@pytest.mark.parametrize("family", ALL, indirect=True, scope="module")
def test_the_runtime_computes_what_transformers_does(family: Path, unquantized: Path) -> None:
    reference = np.load(family / "reference.npz")
    ours = log_probabilities(unquantized, reference["tokens"].tolist())
    assert float(np.abs(ours - reference["log_probabilities"]).max()) < ALL[family.name].loosest


def log_probabilities(model_path: Path, tokens: list[int]) -> Any:
    """float64 (tokens, vocabulary), the KV cache in F32."""
    settings = ContextSettings(context=256, threads=2, kv_type="F32", flash="off", outputs=len(tokens))
    with Model(model_path) as model, Context(model, settings) as context:
        context.decode_rows(tokens)
        logits = np.array([np.ctypeslib.as_array(context.logits(row)) for row in range(len(tokens))], np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
