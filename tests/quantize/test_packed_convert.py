"""Whole checkpoints: a packed one gives the GGUF file of its float weights, and llama.cpp's own converter agrees.

The converter's source is the folder vendor/llama.cpp of the llama-cpp-python source distribution, named by
TINYEDGE_LLAMA_SOURCE.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import packed_checkpoints as pc
import pytest
import test_packed_bitsandbytes as bnb

from tinyedge.errors import CheckpointError, WeightValueError
from tinyedge_quantize.convert import convert

SOURCE = os.environ.get("TINYEDGE_LLAMA_SOURCE")


class Bitsandbytes:
    """Layers in NF4, FP4 and INT8 by turns."""

    def __init__(self) -> None:
        self.turn = 0

    def settings(self) -> dict[str, Any]:
        return bnb.SETTINGS

    def __call__(self, shape: tuple[int, int], _random: np.random.Generator) -> tuple[pc.Parts, Any]:
        self.turn += 1
        if self.turn % 3 == 0:
            parts, values = bnb.int8(shape)
        else:
            parts, values = bnb.four_bits(shape, "nf4" if self.turn % 3 == 1 else "fp4", nested=self.turn % 2 == 0)
        return {name.removeprefix("x."): value for name, value in parts.items()}, values


# Those llama.cpp's conversion/base.py reads too.
SHARED = {
    "gptq": pc.Gptq(),
    "gptq-act-order": pc.Gptq(act_order=True),
    "gptq-8-bit": pc.Gptq(bits=8, group=-1),
    "gptq-2-bit": pc.Gptq(bits=2),
    "gptq-v2": pc.Gptq(version=2, symmetric=True),
    "fp8-block": pc.Fp8((48, 64), dtype="BF16"),
    "fp8-tensor": pc.Fp8(None),
    "fp8-row": pc.Fp8("row", "weight_scale", method="compressed-tensors"),
    "modelopt": pc.Fp8(None, "weight_scale", method="modelopt"),
    "compressed-tensors": pc.PackedGroups(),
    "compressed-tensors-asymmetric": pc.PackedGroups(bits=8, symmetric=False),
    "bitnet": pc.Bitnet(),
}
OURS = {
    "gptq-3-bit": pc.Gptq(bits=3, act_order=True),
    "awq": pc.Awq(),
    "bitsandbytes": Bitsandbytes(),
    "fbgemm": pc.Fp8("row", "weight_scale", method="fbgemm_fp8"),
}


def tensors_of(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    reader = gguf.GGUFReader(path)
    return {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors}


@pytest.mark.parametrize("name", [*SHARED, *OURS])
def test_a_packed_checkpoint_gives_the_file_of_its_float_weights(name: str, tmp_path: Path) -> None:
    packer = (SHARED | OURS)[name]
    packed, floats = pc.write_models(tmp_path, packer, packer.settings())
    # Both are ways of quantizing again; the other methods need no second proof of it.
    type_name = {"awq": "Q4_K_M", "bitsandbytes": "Q8_0"}.get(name, "F32")
    convert(packed, tmp_path / "packed.gguf", type_name, threads=4)
    convert(floats, tmp_path / "floats.gguf", type_name)
    assert tensors_of(tmp_path / "packed.gguf") == tensors_of(tmp_path / "floats.gguf")


CONVERTER = """
import sys
sys.path[1:1] = [sys.argv[1] + "/gguf-py", sys.argv[1]]
import convert_hf_to_gguf
for folder in sys.argv[2:]:
    sys.argv = ["convert", folder + "/packed", "--outtype", "f32", "--no-lazy", "--outfile", folder + "/theirs.gguf"]
    convert_hf_to_gguf.main()
"""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each method llama.cpp reads, with the packed checkpoint and its F32 GGUF from llama.cpp."""
    if SOURCE is None:
        pytest.skip("TINYEDGE_LLAMA_SOURCE does not name llama.cpp's source")
    for package in ("torch", "transformers", "sentencepiece"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("packed")
    for name, packer in SHARED.items():
        pc.write_models(folder / name, packer, packer.settings())
    command = [sys.executable, "-c", CONVERTER, SOURCE, *(str(folder / name) for name in SHARED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("name", SHARED)
def test_llama_cpp_dequantizes_to_the_same_bytes(name: str, converted: Path, tmp_path: Path) -> None:
    convert(converted / name / "packed", tmp_path / "ours.gguf", "F32")
    ours, theirs = tensors_of(tmp_path / "ours.gguf"), tensors_of(converted / name / "theirs.gguf")
    assert ours.keys() == theirs.keys()
    for tensor, value in ours.items():
        assert value == theirs[tensor], tensor


def test_gptq_without_its_configuration_is_refused_and_nothing_written(tmp_path: Path) -> None:
    packer = pc.Gptq()
    packed, _ = pc.write_models(tmp_path, packer, packer.settings())
    config = json.loads((packed / "config.json").read_text())
    settings = config.pop("quantization_config")
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"no configuration that says how .*quantize_config\.json"):
        convert(packed, tmp_path / "out.gguf", "Q8_0")
    assert not (tmp_path / "out.gguf").exists()
    (packed / "quantize_config.json").write_text(json.dumps(settings))
    convert(packed, tmp_path / "out.gguf", "Q8_0")


def test_an_infinite_scale_is_refused_by_the_weights_name(tmp_path: Path) -> None:
    def broken(shape: tuple[int, int], random: np.random.Generator) -> tuple[pc.Parts, Any]:
        parts, values = pc.Awq()(shape, random)
        parts["scales"] = ("F16", np.full_like(parts["scales"][1], np.inf))
        return parts, values

    packed, _ = pc.write_models(tmp_path, broken, pc.Awq().settings())
    with pytest.raises(WeightValueError, match="_proj"):
        convert(packed, tmp_path / "out.gguf", "Q8_0")
    assert not list(tmp_path.glob("*.gguf*"))
