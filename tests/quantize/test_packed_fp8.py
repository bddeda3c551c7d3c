"""FP8 in every shape of scales and BitNet's ternary bytes, read to the bit; torch's own FP8 agrees on every code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packed_checkpoints as pc
import pytest

from tinyedge.errors import CheckpointError, WeightValueError

FP8 = {
    "block": pc.Fp8((128, 128)),
    "small-blocks": pc.Fp8((16, 32), dtype="BF16"),
    "row": pc.Fp8("row"),
    "tensor": pc.Fp8(None),
    "tensor-of-vllm": pc.Fp8(None, "weight_scale"),
    "mistral": pc.Fp8(None, "qscale_weight", dtype="BF16"),
    "fbgemm": pc.Fp8("row", "weight_scale", method="fbgemm_fp8"),
    "modelopt": pc.Fp8(None, "weight_scale", method="modelopt"),
    "compressed-tensors-row": pc.Fp8("row", "weight_scale", method="compressed-tensors", dtype="BF16"),
    "compressed-tensors-tensor": pc.Fp8(None, "weight_scale", method="compressed-tensors"),
    "compressed-tensors-block": pc.Fp8((128, 128), "weight_scale", method="compressed-tensors"),
}


@pytest.mark.parametrize("shape", [(256, 128), (200, 300), (40, 64)], ids=str)
@pytest.mark.parametrize("packer", FP8.values(), ids=FP8)
def test_fp8_is_read_to_the_bit(packer: pc.Fp8, shape: tuple[int, int], tmp_path: Path) -> None:
    parts, expected = packer(shape, np.random.default_rng(1))
    unused: pc.Parts = {"input_scale": ("F32", np.ones(1, np.float32)), "k_scale": ("F32", np.ones(1, np.float32))}
    state = pc.read_state(tmp_path, pc.layer(parts | unused), packer.settings())
    assert list(state.tensors) == ["x.weight"]
    pc.assert_reads(state.tensors["x.weight"], expected)


def test_row_scales_may_be_a_vector(tmp_path: Path) -> None:
    packer = pc.Fp8("row")
    parts, expected = packer((40, 64), np.random.default_rng(1))
    parts[packer.name] = ("F32", parts[packer.name][1].ravel())
    pc.assert_reads(pc.read_state(tmp_path, pc.layer(parts), packer.settings()).tensors["x.weight"], expected)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_every_code_is_torchs(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    reference = torch.from_numpy(codes.copy()).view(getattr(torch, dtype)).float().numpy()
    numbers = np.isfinite(reference)
    name = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}[dtype]
    parts: pc.Parts = {"x.weight": (name, codes), "x.weight_scale": ("F32", np.ones((), np.float32))}
    weight = pc.read_state(tmp_path, parts, {"quant_method": "fp8"}).tensors["x.weight"]
    with pytest.raises(WeightValueError, match="NaN or infinite"):
        pc.read_weight(weight)
    parts["x.weight"] = (name, np.where(numbers, codes, 0).astype(np.uint8))
    values = pc.read_weight(pc.read_state(tmp_path, parts, {"quant_method": "fp8"}).tensors["x.weight"])
    assert np.array_equal(values.view(np.uint32), np.where(numbers, reference, 0).astype(np.float32).view(np.uint32))


def test_e8m0_scales_are_powers_of_two(tmp_path: Path) -> None:
    codes = pc.e4m3_codes(np.random.default_rng(1), (32, 64))
    exponents = np.array([[120, 127], [130, 110]], np.uint8)
    parts: pc.Parts = {"x.weight": ("F8_E4M3", codes), "x.weight_scale_inv": ("F8_E8M0", exponents)}
    state = pc.read_state(tmp_path, parts, {"quant_method": "fp8", "weight_block_size": [16, 32]})
    scales = np.repeat(np.repeat(2.0 ** (exponents - 127.0), 16, 0), 32, 1).astype(np.float32)
    pc.assert_reads(state.tensors["x.weight"], pc.e4m3_values()[codes] * scales)


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
def test_int8_of_compressed_tensors(asymmetric: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    integers, zeros = random.integers(-128, 128, (40, 64)).astype(np.int8), random.integers(-128, 128, (40, 1)).astype(np.int8)
    scales = pc.random_scales(random, 40, 1)
    parts: pc.Parts = {"x.weight": ("I8", integers), "x.weight_scale": ("F16", scales)}
    if asymmetric:
        parts["x.weight_zero_point"] = ("I8", zeros)
    weights: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": not asymmetric}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    state = pc.read_state(tmp_path, parts, settings)
    expected = (integers.astype(np.float32) - (zeros if asymmetric else 0)) * scales.astype(np.float32)
    assert list(state.tensors) == ["x.weight"]
    pc.assert_reads(state.tensors["x.weight"], expected)


def test_bitnet_is_read_to_the_bit(tmp_path: Path) -> None:
    packer = pc.Bitnet()
    parts, expected = packer((64, 96), np.random.default_rng(1))
    state = pc.read_state(tmp_path, pc.layer(parts), packer.settings())
    assert list(state.tensors) == ["x.weight"]
    pc.assert_reads(state.tensors["x.weight"], expected)


def test_an_fp8_weight_without_its_scale_is_refused(tmp_path: Path) -> None:
    parts, _ = pc.Fp8(None)((40, 64), np.random.default_rng(1))
    del parts["weight_scale_inv"]
    with pytest.raises(CheckpointError, match=r"'x\.weight' has no scale"):
        pc.read_state(tmp_path, pc.layer(parts), {"quant_method": "fp8"})
