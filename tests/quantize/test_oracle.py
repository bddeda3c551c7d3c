"""Equality with llama.cpp's own quantizer, which the installed library exports: every type, every tensor, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import llama_cpp
import pytest
from gguf_comparison import assert_same_gguf

from tinyedge.cli.models import demo_checkpoint
from tinyedge_bench.suite.random_checkpoint import LlamaShape, demo_tokenizer, make_checkpoint
from tinyedge_quantize.convert import convert
from tinyedge_quantize.recipes import RECIPES

GROUPED = LlamaShape(layers=3, hidden=256, ffn=512, heads=8, kv_heads=2, vocabulary=4096, context=512)
SHAPES = {
    "grouped-query": GROUPED,
    "multi-head": replace(GROUPED, kv_heads=8),
    # Rows of 288 are not divisible by 256, rows of 320 are by 32 only: llama.cpp falls back to other types.
    "odd-rows": replace(GROUPED, hidden=288, ffn=320, heads=6, kv_heads=2),
    # Rows of 48 are not divisible by 32 either: F16 is all that is left.
    "odder-rows": replace(GROUPED, hidden=48, ffn=80, heads=2, kv_heads=1),
    # The rules count in eighths and sixteenths of the layers.
    "deep": replace(GROUPED, layers=33, hidden=256, ffn=256, heads=2, kv_heads=1, vocabulary=4096),
}


def llama_cpp_quantize(source: Path, target: Path, file_type: int) -> None:
    """llama.cpp's llama_model_quantize with its default parameters."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.nthread = 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters) == 0


@pytest.fixture(scope="module", params=SHAPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / str(request.param)
    make_checkpoint(folder, SHAPES[request.param], demo_tokenizer(), seed=3)
    return folder


@pytest.fixture(scope="module")
def unquantized(checkpoint: Path) -> Path:
    """A BF16 GGUF of the same checkpoint, which loses nothing: what llama.cpp's converter would hand to its quantizer."""
    target = checkpoint / "bf16.gguf"
    convert(checkpoint, target, "BF16")
    return target


# The other types, and what an importance matrix does, are in test_oracle_types.py.
TYPES = ["F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_NL", "IQ4_XS"]


@pytest.mark.parametrize("type_name", TYPES)
def test_every_byte_equals_llama_cpp(checkpoint: Path, unquantized: Path, type_name: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    report = convert(checkpoint, ours, type_name)
    llama_cpp_quantize(unquantized, theirs, RECIPES[type_name].file_type)
    assert_same_gguf(ours, theirs)
    assert report.bytes == ours.stat().st_size


def test_a_tied_model_equals_llama_cpp(tmp_path: Path) -> None:
    """Without output.weight the embedding gets the output's type."""
    folder = tmp_path / "tied"
    make_checkpoint(folder, GROUPED, demo_tokenizer(), tied=True)
    convert(folder, tmp_path / "bf16.gguf", "BF16")
    for name in ("Q4_K_M", "Q4_0", "Q8_0", "Q2_K"):
        convert(folder, tmp_path / "ours.gguf", name)
        llama_cpp_quantize(tmp_path / "bf16.gguf", tmp_path / "theirs.gguf", RECIPES[name].file_type)
        assert_same_gguf(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_the_70b_shape_gives_values_more_bits(tmp_path: Path) -> None:
    """llama.cpp recognises the 70B Llama by its 80 grouped-query layers."""
    folder = tmp_path / "deep"
    shape = replace(GROUPED, layers=80, hidden=256, ffn=256, heads=4, kv_heads=1, vocabulary=4096)
    make_checkpoint(folder, shape, demo_tokenizer())
    convert(folder, tmp_path / "bf16.gguf", "BF16")
    for name in ("Q4_K_M", "Q3_K_M", "Q2_K"):
        convert(folder, tmp_path / "ours.gguf", name)
        llama_cpp_quantize(tmp_path / "bf16.gguf", tmp_path / "theirs.gguf", RECIPES[name].file_type)
        assert_same_gguf(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_the_demo_checkpoint_equals_llama_cpp(tmp_path: Path) -> None:
    for name in ("F16", "Q4_K_M", "Q8_0"):
        convert(demo_checkpoint(), tmp_path / "bf16.gguf", "BF16")
        convert(demo_checkpoint(), tmp_path / "ours.gguf", name)
        llama_cpp_quantize(tmp_path / "bf16.gguf", tmp_path / "theirs.gguf", RECIPES[name].file_type)
        assert_same_gguf(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_f32_weights_are_quantized_without_a_step_between(tmp_path: Path) -> None:
    """From F32 the reference is an F32 GGUF: going through F16 or BF16 would change bytes."""
    folder = tmp_path / "f32"
    make_checkpoint(folder, GROUPED, demo_tokenizer(), dtype="F32")
    convert(folder, tmp_path / "f32.gguf", "F32")
    for name in ("Q4_K_M", "F16", "BF16"):
        convert(folder, tmp_path / "ours.gguf", name)
        llama_cpp_quantize(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", RECIPES[name].file_type)
        assert_same_gguf(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
