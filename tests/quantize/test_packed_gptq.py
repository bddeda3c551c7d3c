"""GPTQ, AWQ and compressed-tensors' packed integers: what independent packers pack is read back to the bit."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import packed_checkpoints as pc
import pytest

from tinyedge.errors import CheckpointError
from tinyedge_quantize.containers.safetensors_file import read_safetensors
from tinyedge_quantize.layouts.arranged import StateDict
from tinyedge_quantize.quantized import dequantized
from tinyedge_quantize.tensors import WeightFile, file_tensor

GPTQ = {
    "4-bit": pc.Gptq(),
    "4-bit-v2": pc.Gptq(version=2),
    "8-bit": pc.Gptq(bits=8),
    "8-bit-v2-act-order": pc.Gptq(bits=8, version=2, act_order=True),
    "3-bit": pc.Gptq(bits=3),
    "3-bit-act-order": pc.Gptq(bits=3, act_order=True),
    "2-bit": pc.Gptq(bits=2),
    "act-order": pc.Gptq(act_order=True),
    "symmetric": pc.Gptq(symmetric=True),
    "one-group": pc.Gptq(group=-1),
    "one-group-act-order": pc.Gptq(group=-1, act_order=True),
    "16-bit-words": pc.Gptq(word="I16"),
    "8-bit-words": pc.Gptq(word="I8", bits=8),
    "64-bit-words": pc.Gptq(word="I64"),
}
PACKED = {
    "4-bit": pc.PackedGroups(),
    "4-bit-asymmetric": pc.PackedGroups(symmetric=False),
    "8-bit-asymmetric": pc.PackedGroups(bits=8, symmetric=False),
    "2-bit": pc.PackedGroups(bits=2, group=64),
    "channel": pc.PackedGroups(group=None, symmetric=False),
}
SIZES = [(64, 96), (192, 64), (96, 2048)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("packer", GPTQ.values(), ids=GPTQ)
def test_gptq_is_read_to_the_bit(packer: pc.Gptq, shape: tuple[int, int], tmp_path: Path) -> None:
    parts, expected = packer(shape, np.random.default_rng(1))
    state = pc.read_state(tmp_path, pc.layer(parts) | {"x.bias": ("F16", np.ones(shape[0], np.float16))}, packer.settings())
    assert list(state.tensors) == ["x.bias", "x.weight"]
    pc.assert_reads(state.tensors["x.weight"], expected)


@pytest.mark.parametrize("shape", [*SIZES, (56, 4096)], ids=str)
@pytest.mark.parametrize("group", [32, -1])
def test_awq_is_read_to_the_bit(group: int, shape: tuple[int, int], tmp_path: Path) -> None:
    packer = pc.Awq(group)
    parts, expected = packer(shape, np.random.default_rng(1))
    state = pc.read_state(tmp_path, pc.layer(parts), packer.settings())
    assert list(state.tensors) == ["x.weight"]
    pc.assert_reads(state.tensors["x.weight"], expected)


@pytest.mark.parametrize("shape", [(64, 96), (50, 64), (6, 320)], ids=str)
@pytest.mark.parametrize("packer", PACKED.values(), ids=PACKED)
def test_compressed_tensors_integers_are_read_to_the_bit(
    packer: pc.PackedGroups, shape: tuple[int, int], tmp_path: Path
) -> None:
    parts, expected = packer(shape, np.random.default_rng(1))
    parts |= {"input_scale": ("F32", np.ones(1, np.float32))}
    state = pc.read_state(tmp_path, pc.layer(parts), packer.settings())
    assert list(state.tensors) == ["x.weight"]
    pc.assert_reads(state.tensors["x.weight"], expected)


@pytest.mark.torch
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_integers_equal_the_compressed_tensors_library(bits: int, symmetric: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    packing = pytest.importorskip("compressed_tensors.compressors.pack_quantized")
    torch.manual_seed(0)
    rows, columns, group = 56, 128, 32
    arguments = quantization.QuantizationArgs(num_bits=bits, group_size=group, symmetric=symmetric, strategy="group")
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    zeros = torch.randint(low, high, (rows, columns // group), dtype=torch.int8) * (not symmetric)
    state = {
        "weight": torch.randn(rows, columns) * 0.02,
        "weight_scale": torch.rand(rows, columns // group) * 0.01 + 0.001,
        "weight_zero_point": zeros.to(torch.int8),
    }
    compressor = packing.PackedQuantizationCompressor
    stored = compressor.compress(state, scheme)
    dtypes = {torch.int32: "I32", torch.int64: "I64", torch.float32: "F32"}
    parts: pc.Parts = {f"x.{name}": (dtypes[value.dtype], value.numpy()) for name, value in stored.items()}
    expected = compressor.decompress(stored, scheme)["weight"].numpy()
    packer = pc.PackedGroups(bits=bits, symmetric=symmetric)
    pc.assert_reads(pc.read_state(tmp_path, parts, packer.settings()).tensors["x.weight"], expected)


def test_act_order_of_compressed_tensors_is_followed(tmp_path: Path) -> None:
    packer, random = pc.PackedGroups(symmetric=False), np.random.default_rng(2)
    parts, _ = packer((40, 128), random)
    parts["weight_g_idx"] = ("I32", random.permutation(np.arange(128) // 32).astype(np.int32))
    state = pc.read_state(tmp_path, pc.layer(parts), packer.settings())
    groups = parts["weight_g_idx"][1]
    integers, zeros = (
        np.unpackbits(parts[name][1].view(np.uint8), axis=None) for name in ("weight_packed", "weight_zero_point")
    )
    nibbles = np.packbits(integers.reshape(-1, 2, 4)[:, ::-1], axis=-1).reshape(40, 128) >> 4
    stored = np.packbits(zeros.reshape(-1, 4, 2, 4)[:, :, ::-1], axis=-1).reshape(5, 4, 8) >> 4
    zero_points = stored.transpose(0, 2, 1).reshape(40, 4).astype(np.float32)
    expected = (nibbles.astype(np.float32) - zero_points[:, groups]) * parts["weight_scale"][1].astype(np.float32)[:, groups]
    pc.assert_reads(state.tensors["x.weight"], expected)


def test_gptq_in_order_needs_no_g_idx(tmp_path: Path) -> None:
    packer = pc.Gptq()
    parts, expected = packer((64, 96), np.random.default_rng(1))
    del parts["g_idx"]
    pc.assert_reads(pc.read_state(tmp_path, pc.layer(parts), packer.settings()).tensors["x.weight"], expected)
    with pytest.raises(CheckpointError, match="act-order GPTQ weight 'x' has no g_idx"):
        pc.read_state(tmp_path, pc.layer(parts), packer.settings() | {"desc_act": True})


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_the_tools_own_configuration_files_are_read(name: str, tmp_path: Path) -> None:
    packer: Any = pc.Gptq() if name == "quantize_config.json" else pc.Awq()
    settings = packer.settings()
    del settings["quant_method"]
    if name == "quant_config.json":
        settings = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (tmp_path / name).write_text(json.dumps(settings))
    parts, expected = packer((64, 96), np.random.default_rng(1))
    pc.write_safetensors(tmp_path / "model.safetensors", pc.layer(parts))
    for config in (None, {"model_type": "llama"}):
        state = StateDict(read_safetensors(WeightFile(tmp_path / "model.safetensors")), {"kept": 1})
        found = dequantized(state, config, tmp_path)
        pc.assert_reads(found.tensors["x.weight"], expected)
        assert found.extras == {"kept": 1}


def test_layers_may_have_bits_of_their_own(tmp_path: Path) -> None:
    """GPTQModel's `dynamic` names them by expressions; the shapes say the same without running a stranger's."""
    small, large = pc.Gptq(), pc.Gptq(bits=8, group=16)
    first, expected_first = small((64, 96), np.random.default_rng(1))
    second, expected_second = large((64, 96), np.random.default_rng(2))
    tensors = pc.layer(first, "a") | pc.layer(second, "b")
    state = pc.read_state(tmp_path, tensors, small.settings() | {"dynamic": {"b": {"bits": 8, "group_size": 16}}})
    pc.assert_reads(state.tensors["a.weight"], expected_first)
    pc.assert_reads(state.tensors["b.weight"], expected_second)
    with pytest.raises(CheckpointError, match="configuration says 4 bits"):
        pc.read_state(tmp_path, tensors, small.settings())


@pytest.mark.parametrize("packer", [pc.Gptq(), pc.Awq()], ids=["gptq", "awq"])
def test_autoround_says_which_format_it_wrote(packer: Any, tmp_path: Path) -> None:
    parts, expected = packer((64, 96), np.random.default_rng(1))
    form = "auto_round:auto_gptq" if isinstance(packer, pc.Gptq) else "auto_round:auto_awq"
    settings = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "packing_format": form}
    pc.assert_reads(pc.read_state(tmp_path, pc.layer(parts), settings).tensors["x.weight"], expected)
    with pytest.raises(CheckpointError, match="AutoRound"):
        pc.read_state(tmp_path, pc.layer(parts), settings | {"packing_format": "auto_round:other"})


def test_threads_share_a_reader(tmp_path: Path) -> None:
    packer = pc.Gptq(act_order=True)
    parts, expected = packer((96, 2048), np.random.default_rng(1))
    weight = pc.read_state(tmp_path, pc.layer(parts), packer.settings()).tensors["x.weight"]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda slab: pc.read_weight(weight, slab), range(1, 33)):
            assert np.array_equal(found, expected)


def test_a_checkpoint_that_is_not_packed_stays_itself(tmp_path: Path) -> None:
    pc.write_safetensors(tmp_path / "model.safetensors", {"x.weight": ("F16", np.ones((4, 4), np.float16))})
    state = StateDict(read_safetensors(WeightFile(tmp_path / "model.safetensors")))
    assert dequantized(state, None, tmp_path) is state
    assert dequantized(state, {"model_type": "llama"}, tmp_path) is state
    # Dequantized by another tool that left the configuration as it was.
    for settings in (pc.Gptq().settings(), {"quant_method": "compressed-tensors", "format": "dense"}):
        assert dequantized(state, {"quantization_config": settings}, tmp_path) is state


def test_parts_saved_as_transposed_views_are_read(tmp_path: Path) -> None:
    """torch.save keeps strides, so a part may lie in its file column by column."""
    packer = pc.Gptq()
    parts, expected = packer((64, 96), np.random.default_rng(1))
    tensors = {}
    with (tmp_path / "parts").open("wb") as file:
        for name, (dtype, values) in parts.items():
            tensors[name] = (dtype, values.shape, file.tell())
            file.write(np.ascontiguousarray(values.T).tobytes())
    opened = WeightFile(tmp_path / "parts")
    state = {
        f"x.{name}": file_tensor(opened, f"x.{name}", shape, dtype, offset, (1, shape[0]) if len(shape) == 2 else (1,))
        for name, (dtype, shape, offset) in tensors.items()
    }
    found = dequantized(StateDict(state), {"quantization_config": packer.settings()}, tmp_path)
    pc.assert_reads(found.tensors["x.weight"], expected)


def test_zero_points_beyond_the_bits_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """A stored 15 means 16 in the first format: it is not cut to four bits again."""
    packer = dataclasses.replace(pc.Gptq(), group=-1)
    parts, _ = packer((8, 32), np.random.default_rng(1))
    parts["qzeros"] = ("I32", np.full((1, 1), 0xFFFFFFFF, np.uint32))
    parts["qweight"] = ("I32", np.zeros((4, 8), np.uint32))
    weight = pc.read_weight(pc.read_state(tmp_path, pc.layer(parts), packer.settings()).tensors["x.weight"])
    assert np.array_equal(weight, np.repeat(parts["scales"][1].astype(np.float32).T * -16, 32, axis=1))
