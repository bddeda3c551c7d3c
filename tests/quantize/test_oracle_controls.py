"""Whole files with every option, against llama.cpp's quantizer: metadata, tensors and bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_comparison import assert_same_gguf
from quantize_reference import llama_quantize

from tinyedge.gguf_file import read_gguf
from tinyedge_bench.suite.random_checkpoint import LlamaShape, demo_tokenizer, make_checkpoint
from tinyedge_quantize.controls.options import make_controls
from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.convert import Wishes, convert
from tinyedge_quantize.imatrix.file import read_imatrix, write_imatrix
from tinyedge_quantize.imatrix.importance import Imatrix, SquareSums
from tinyedge_quantize.metadata import string, uint32
from tinyedge_quantize.recipes import RECIPES

SHAPE = LlamaShape(layers=4, hidden=256, ffn=256, heads=4, kv_heads=1, vocabulary=4096, context=512)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls") / "model"
    make_checkpoint(folder, SHAPE, demo_tokenizer(), seed=4)
    return folder


@pytest.fixture(scope="module")
def unquantized(checkpoint: Path) -> Path:
    """A BF16 GGUF of the same checkpoint, which loses nothing."""
    target = checkpoint.parent / "bf16.gguf"
    convert(checkpoint, target, "BF16")
    return target


@pytest.fixture(scope="module")
def imatrix(unquantized: Path) -> Imatrix:
    """A seeded importance matrix, read from its file."""
    random = np.random.Generator(np.random.PCG64(8))
    tensors = {}
    for tensor in read_gguf(unquantized).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            sums = np.exp(random.standard_normal(tensor.shape[0]) * 2).astype(np.float32)
            tensors[tensor.name] = SquareSums(sums, np.full(1, 512, np.int64))
    path = unquantized.parent / "imatrix.gguf"
    write_imatrix(Imatrix(path, tensors, ("seeded.txt",), 1, 512), path)
    return read_imatrix(path)


def as_llama_quantize(controls: Controls) -> Controls:
    """With the keys that llama-quantize, and not the library beneath it, writes about an importance matrix."""
    if controls.imatrix is None:
        return controls
    keys = {
        "quantize.imatrix.file": string(str(controls.imatrix.path)[:127]),
        "quantize.imatrix.dataset": string(controls.imatrix.datasets[0]),
        "quantize.imatrix.entries_count": uint32(len(controls.imatrix.entries)),
        "quantize.imatrix.chunks_count": uint32(controls.imatrix.chunks),
    }
    return replace(controls, overrides={**controls.overrides, **keys})


def assert_same_conversion(source: Path, unquantized: Path, type_name: str, controls: Controls, folder: Path) -> None:
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    recipe = RECIPES[type_name]
    assert llama_quantize(unquantized, theirs, recipe.file_type, as_llama_quantize(controls), copy=recipe.copies) == 0
    convert(source, ours, type_name, Wishes(controls=controls))
    assert_same_gguf(ours, theirs)


OPTIONS = {
    "none": make_controls(),
    "tensor types": make_controls(tensor_types=[r"blk\.[0-3]\.ffn_down=Q6_K", "attn_v=f16", "attn=Q5_K"]),
    "pure": make_controls(pure=True, output_tensor_type="q8_0"),
    "outer types": make_controls(output_tensor_type="Q5_0", token_embedding_type="iq4_nl"),
    "leave output": make_controls(leave_output=True),
    "prune": make_controls(prune_layers="0,2-3", tensor_types=[r"blk\.0\.=Q8_0"]),
    "overrides": make_controls(
        prune_layers="3",
        overrides=[
            "general.name=str:Other",
            "llama.rope.freq_base=float:1e6",
            "llama.attention.head_count_kv=int:4",
            "x.y=bool:true",
        ],
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "imatrix"])
def test_every_option(
    checkpoint: Path, unquantized: Path, imatrix: Imatrix, option: str, calibrated: bool, tmp_path: Path
) -> None:
    controls = replace(OPTIONS[option], imatrix=imatrix) if calibrated else OPTIONS[option]
    assert_same_conversion(checkpoint, unquantized, "IQ4_XS" if calibrated else "Q4_K_M", controls, tmp_path)
    assert_same_conversion(unquantized, unquantized, "Q3_K_M", controls, tmp_path)


@pytest.mark.parametrize("type_name", ["IQ2_XXS", "IQ3_XXS", "Q2_K_S", "Q4_0", "Q8_0", "F16"])
def test_types_with_an_importance_matrix(
    checkpoint: Path, unquantized: Path, imatrix: Imatrix, type_name: str, tmp_path: Path
) -> None:
    assert_same_conversion(checkpoint, unquantized, type_name, Controls(imatrix=imatrix), tmp_path)


@pytest.mark.parametrize("option", ["none", "prune", "overrides"])
def test_copies(unquantized: Path, option: str, tmp_path: Path) -> None:
    convert(unquantized, tmp_path / "q8.gguf", "Q8_0")
    assert_same_conversion(tmp_path / "q8.gguf", tmp_path / "q8.gguf", "COPY", OPTIONS[option], tmp_path)
