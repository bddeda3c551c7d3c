"""bitsandbytes: against the library itself where it is installed, and its published formula in numpy everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packed_checkpoints as pc
import pytest

from tinyedge.errors import CheckpointError

# bitsandbytes, functional.py, get_4bit_type.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022833,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip
FP4 = [0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0]
CODES = {"nf4": np.array(NF4, np.float32), "fp4": np.array(FP4, np.float32) / np.float32(12)}
SETTINGS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def four_bits(shape: tuple[int, int], kind: str = "nf4", *, block: int = 64, nested: bool = False) -> tuple[pc.Parts, Any]:
    """Random codes as QuantState.as_dict(packed=True) lays them out, and what they stand for."""
    random = np.random.default_rng(3)
    count = shape[0] * shape[1]
    codes = random.integers(0, 16, count + count % 2).astype(np.uint8)
    blocks = -(-count // block)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": list(shape)}
    absmax: Any = random.uniform(0.01, 0.1, blocks).astype(np.float32)
    parts: pc.Parts = {"quant_map": ("F32", CODES[kind])}
    if nested:
        stored, table = random.integers(0, 256, blocks).astype(np.uint8), np.linspace(-1, 1, 256, dtype=np.float32)
        outer = random.uniform(0.01, 0.1, -(-blocks // 256)).astype(np.float32)
        parts |= {"absmax": ("U8", stored), "nested_absmax": ("F32", outer), "nested_quant_map": ("F32", table)}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0625}
        absmax = table[stored] * np.repeat(outer, 256)[:blocks] + np.float32(0.0625)
    else:
        parts["absmax"] = ("F32", absmax)
    parts[f"quant_state.bitsandbytes__{kind}"] = ("U8", np.frombuffer(json.dumps(state).encode(), np.uint8))
    expected = CODES[kind][codes[:count]] * np.repeat(absmax, block)[:count]
    tensors = {f"x.weight.{name}": value for name, value in parts.items()}
    tensors["x.weight"] = ("U8", (codes[::2] << 4 | codes[1::2]).reshape(-1, 1))
    return tensors, expected.reshape(shape)


@pytest.mark.parametrize("shape", [(64, 96), (7, 64), (33, 35)], ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["single", "nested"])
@pytest.mark.parametrize("kind", CODES)
def test_four_bits_are_read_to_the_bit(kind: str, nested: bool, shape: tuple[int, int], tmp_path: Path) -> None:
    tensors, expected = four_bits(shape, kind, nested=nested)
    for settings in (SETTINGS, None):
        state = pc.read_state(tmp_path, tensors, settings)
        assert list(state.tensors) == ["x.weight"]
        pc.assert_reads(state.tensors["x.weight"], expected)


def test_blocks_may_be_longer_than_rows_and_many(tmp_path: Path) -> None:
    tensors, expected = four_bits((130, 1024), block=4096, nested=False)
    pc.assert_reads(pc.read_state(tmp_path, tensors, SETTINGS).tensors["x.weight"], expected)
    tensors, expected = four_bits((130, 1024), block=32, nested=True)
    pc.assert_reads(pc.read_state(tmp_path, tensors, SETTINGS).tensors["x.weight"], expected)


def test_the_bytes_may_be_stored_as_another_dtype(tmp_path: Path) -> None:
    """bnb_4bit_quant_storage, which FSDP wants to be that of the other weights."""
    tensors, expected = four_bits((64, 96))
    packed = tensors["x.weight"][1]
    tensors["x.weight"] = ("BF16", packed.reshape(-1, 2).view(np.uint16))
    pc.assert_reads(pc.read_state(tmp_path, tensors, SETTINGS).tensors["x.weight"], expected)


def int8(shape: tuple[int, int]) -> tuple[pc.Parts, Any]:
    random = np.random.default_rng(4)
    integers = random.integers(-127, 128, shape).astype(np.int8)
    largest = random.uniform(0.01, 0.1, shape[0]).astype(np.float32)
    expected = integers.astype(np.float32) * largest[:, None] * np.float32(7.874015718698502e-3)
    parts: pc.Parts = {"weight": ("I8", integers), "SCB": ("F32", largest), "weight_format": ("U8", np.array(0, np.uint8))}
    return pc.layer(parts), expected


def test_int8_is_read_to_the_bit(tmp_path: Path) -> None:
    tensors, expected = int8((64, 96))
    for settings in ({"quant_method": "bitsandbytes", "load_in_8bit": True}, {"load_in_8bit": True}, None):
        state = pc.read_state(tmp_path, tensors, settings)
        assert list(state.tensors) == ["x.weight"]
        pc.assert_reads(state.tensors["x.weight"], expected)


def test_int8_in_a_kernels_order_is_refused(tmp_path: Path) -> None:
    tensors, _ = int8((64, 96))
    tensors["x.weight_format"] = ("U8", np.array(2, np.uint8))
    with pytest.raises(CheckpointError, match="order of a GPU's kernels"):
        pc.read_state(tmp_path, tensors, SETTINGS)


def library(tmp_path: Path, tensors: dict[str, Any]) -> Any:
    """What our reader makes of torch tensors under the names the library saves them by."""
    torch = pytest.importorskip("torch")
    dtypes = {torch.uint8: "U8", torch.int8: "I8", torch.float32: "F32"}
    values = {name: (dtypes[tensor.dtype], tensor.cpu().contiguous().numpy()) for name, tensor in tensors.items()}
    return pc.read_state(tmp_path, values, SETTINGS).tensors["x.weight"]


@pytest.mark.torch
@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("kind", CODES)
def test_four_bits_equal_bitsandbytes(kind: str, double: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    weight = torch.randn(96, 256) * 0.02
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=double)
    reference = functional.dequantize_4bit(packed, state).numpy()
    parts = {f"x.weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    pc.assert_reads(library(tmp_path, parts | {"x.weight": packed}), reference)


@pytest.mark.torch
def test_int8_equals_bitsandbytes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    integers, largest, _ = functional.int8_vectorwise_quant((torch.randn(96, 256) * 0.02).half())
    reference = functional.int8_vectorwise_dequant(integers, largest).float().numpy()
    pc.assert_reads(library(tmp_path, {"x.weight": integers, "x.SCB": largest}), reference)
