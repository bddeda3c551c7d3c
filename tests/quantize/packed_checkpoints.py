"""Packs random weights as the quantization tools do, written from their sources and independent of the code that reads them.

Each packer takes a shape (out, in) and gives the parts without the layer's name, and the float32 weight they stand for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tinyedge_bench.suite.random_checkpoint import LlamaShape, demo_tokenizer
from tinyedge_quantize.containers.safetensors_file import read_safetensors
from tinyedge_quantize.layouts.arranged import StateDict
from tinyedge_quantize.quantized import dequantized
from tinyedge_quantize.tensors import SourceTensor, WeightFile

Array: TypeAlias = npt.NDArray[Any]
# safetensors' dtype and the values; BF16 and FP8 as their bits.
Parts: TypeAlias = dict[str, tuple[str, Array]]
Packer: TypeAlias = Callable[[tuple[int, int], np.random.Generator], tuple[Parts, npt.NDArray[np.float32]]]

SHAPE = LlamaShape(layers=1, hidden=128, ffn=256, heads=4, kv_heads=2, vocabulary=4096, context=128)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Array]]) -> None:
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + values.nbytes]}
        data += values.tobytes()
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def layer(parts: Parts, name: str = "x") -> Parts:
    return {f"{name}.{part}": value for part, value in parts.items()}


def read_state(folder: Path, tensors: Parts, settings: Mapping[str, Any] | None) -> StateDict:
    """What becomes of a checkpoint with these tensors and this quantization_config."""
    path = folder / "model.safetensors"
    write_safetensors(path, tensors)
    config = None if settings is None else {"quantization_config": dict(settings)}
    return dequantized(StateDict(read_safetensors(WeightFile(path))), config, folder)


def read_weight(tensor: SourceTensor, slab: int | None = None) -> npt.NDArray[np.float32]:
    """The whole weight, read in slabs of so many rows."""
    assert tensor.dtype == "F32"
    slab = slab or tensor.rows
    values = np.empty(tensor.shape, np.float32)
    for first in range(0, tensor.rows, slab):
        count = min(slab, tensor.rows - first)
        raw = np.empty(count * tensor.row_bytes, np.uint8)
        tensor.read_rows(first, count, raw, np.empty_like(raw))
        values[first : first + count] = raw.view(np.float32).reshape(count, -1)
    return values


def assert_reads(tensor: SourceTensor, expected: npt.NDArray[np.float32]) -> None:
    """The same bits however it is cut into slabs, and with rows in another order."""
    assert tensor.shape == expected.shape
    for slab in (None, 1, 3, 64, 37):
        assert np.array_equal(read_weight(tensor, slab).view(np.uint32), expected.view(np.uint32)), slab
    order = np.random.default_rng(0).permutation(tensor.rows)
    assert np.array_equal(read_weight(tensor.select_rows(order), 10), expected[order])


def random_scales(random: np.random.Generator, *shape: int, largest: float = 0.02) -> npt.NDArray[np.float16]:
    return (random.uniform(0.1, 1, shape) * largest).astype(np.float16)


def pack_down(integers: Array, bits: int, word: Any = np.uint32) -> Array:
    """Rows into words, as AutoGPTQ's QuantLinear.pack does, three bits by its own long way."""
    integers = integers.astype(word)
    width = np.dtype(word).itemsize * 8
    packed = np.zeros((integers.shape[0] * bits // width, integers.shape[1]), word)
    if bits != 3:
        for row in range(len(integers)):
            packed[row * bits // width] |= integers[row] << word(row * bits % width)
        return packed
    i = row = 0
    while row < len(packed):
        for j in range(10):
            packed[row] |= integers[i + j] << word(3 * j)
        i += 10
        packed[row] |= integers[i] << word(30)
        packed[row + 1] |= (integers[i] >> word(2)) & word(1)
        i += 1
        for j in range(10):
            packed[row + 1] |= integers[i + j] << word(3 * j + 1)
        i += 10
        packed[row + 1] |= integers[i] << word(31)
        packed[row + 2] |= (integers[i] >> word(1)) & word(3)
        i += 1
        for j in range(10):
            packed[row + 2] |= integers[i + j] << word(3 * j + 2)
        i += 10
        row += 3
    return packed


@dataclass(frozen=True)
class Gptq:
    """AutoGPTQ's and GPTQModel's packing; `version` 1 stores zero points less one."""

    bits: int = 4
    group: int = 32
    act_order: bool = False
    symmetric: bool = False
    version: int = 1
    word: str = "I32"

    def settings(self) -> dict[str, Any]:
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "desc_act": self.act_order,
            "sym": self.symmetric,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
        }

    def __call__(self, shape: tuple[int, int], random: np.random.Generator) -> tuple[Parts, npt.NDArray[np.float32]]:
        outputs, inputs = shape
        size = inputs if self.group == -1 else self.group
        groups = inputs // size
        integers = random.integers(0, 2**self.bits, (inputs, outputs))
        middle = np.full((groups, outputs), 2 ** (self.bits - 1))
        zeros = middle if self.symmetric else random.integers(1, 2**self.bits, (groups, outputs))
        scales = random_scales(random, groups, outputs)
        g_idx = np.arange(inputs) // size
        if self.act_order:
            g_idx = random.permutation(g_idx)
        expected = (scales[g_idx].astype(np.float32) * (integers - zeros[g_idx]).astype(np.float32)).T
        word = {"I8": np.uint8, "I16": np.uint16, "I32": np.uint32, "I64": np.uint64}[self.word]
        stored = zeros - 1 if self.version == 1 else zeros
        parts: Parts = {
            "qweight": (self.word, pack_down(integers, self.bits, word)),
            "qzeros": (self.word, pack_down(stored.T, self.bits, word).T.copy()),
            "scales": ("F16", scales),
            "g_idx": ("I32", g_idx.astype(np.int32)),
        }
        return parts, np.ascontiguousarray(expected)


@dataclass(frozen=True)
class Awq:
    """AutoAWQ's WQLinear_GEMM.from_linear."""

    group: int = 32

    def settings(self) -> dict[str, Any]:
        return {"quant_method": "awq", "bits": 4, "group_size": self.group, "zero_point": True, "version": "gemm"}

    def __call__(self, shape: tuple[int, int], random: np.random.Generator) -> tuple[Parts, npt.NDArray[np.float32]]:
        outputs, inputs = shape
        size = inputs if self.group == -1 else self.group
        integers = random.integers(0, 16, (inputs, outputs))
        zeros = random.integers(0, 16, (inputs // size, outputs))
        scales = random_scales(random, inputs // size, outputs)
        group = np.arange(inputs) // size
        expected = ((integers - zeros[group]) * scales[group].astype(np.float32)).T.astype(np.float32)
        return {
            "qweight": ("I32", self.packed(integers)),
            "qzeros": ("I32", self.packed(zeros)),
            "scales": ("F16", scales),
        }, np.ascontiguousarray(expected)

    @staticmethod
    def packed(integers: Array) -> Array:
        words = np.zeros((integers.shape[0], integers.shape[1] // 8), np.uint32)
        for column in range(words.shape[1]):
            for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                words[:, column] |= integers[:, column * 8 + output].astype(np.uint32) << np.uint32(4 * place)
        return words


def e4m3_values() -> npt.NDArray[np.float32]:
    """The finite values of E4M3 by their bits, sign by sign and exponent by exponent."""
    values = np.full(256, np.nan, np.float32)
    for code in range(127):
        exponent, mantissa = divmod(code, 8)
        value = (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6
        values[code], values[code + 128] = value, -value
    return values


def e4m3_codes(random: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    codes = random.integers(0, 127, shape) + 128 * random.integers(0, 2, shape)
    return codes.astype(np.uint8)


@dataclass(frozen=True)
class Fp8:
    """E4M3 with a scale for each block, row or the whole: `block` is (rows, columns), "row" or None."""

    block: tuple[int, int] | str | None
    name: str = "weight_scale_inv"
    dtype: str = "F32"
    method: str = "fp8"

    def settings(self) -> dict[str, Any]:
        size = list(self.block) if isinstance(self.block, tuple) else None
        if self.method != "compressed-tensors":
            return {"quant_method": self.method, "activation_scheme": "dynamic", "weight_block_size": size}
        strategy = "block" if size else "channel" if self.block else "tensor"
        weights = {"num_bits": 8, "type": "float", "strategy": strategy, "block_structure": size, "symmetric": True}
        group = {"weights": weights, "input_activations": None, "targets": ["Linear"]}
        return {"quant_method": self.method, "format": "float-quantized", "config_groups": {"group_0": group}}

    def __call__(self, shape: tuple[int, int], random: np.random.Generator) -> tuple[Parts, npt.NDArray[np.float32]]:
        codes = e4m3_codes(random, shape)
        if isinstance(self.block, tuple):
            height, width = self.block
            grid = (-(-shape[0] // height), -(-shape[1] // width))
        else:
            height, width, grid = (1, shape[1], (shape[0], 1)) if self.block else (shape[0], shape[1], (1, 1))
        scales = random.uniform(1e-4, 1e-3, grid).astype(np.float32)
        if self.dtype == "BF16":
            bits = (scales.view(np.uint32) >> 16).astype(np.uint16)
            scales = (bits.astype(np.uint32) << 16).view(np.float32)
        spread = np.repeat(np.repeat(scales, height, 0), width, 1)[: shape[0], : shape[1]]
        stored = bits if self.dtype == "BF16" else scales
        if self.block is None:
            stored = stored.reshape(())
        parts: Parts = {"weight": ("F8_E4M3", codes), self.name: (self.dtype, stored)}
        return parts, e4m3_values()[codes] * spread


@dataclass(frozen=True)
class PackedGroups:
    """compressed-tensors' pack-quantized."""

    bits: int = 4
    group: int | None = 32
    symmetric: bool = True

    def settings(self) -> dict[str, Any]:
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "strategy": "group" if self.group else "channel",
            "group_size": self.group,
            "symmetric": self.symmetric,
        }
        group = {"weights": weights, "input_activations": None, "targets": ["Linear"]}
        return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}

    def __call__(self, shape: tuple[int, int], random: np.random.Generator) -> tuple[Parts, npt.NDArray[np.float32]]:
        size = self.group or shape[1]
        groups = -(-shape[1] // size)
        integers = random.integers(0, 2**self.bits, shape)
        scales = random_scales(random, shape[0], groups)
        zeros = random.integers(0, 2**self.bits, (shape[0], groups))
        if self.symmetric:
            zeros[:] = 2 ** (self.bits - 1)
        group = np.arange(shape[1]) // size
        expected = ((integers - zeros[:, group]) * scales[:, group].astype(np.float32)).astype(np.float32)
        parts: Parts = {
            "weight_packed": ("I32", pack_down(_padded(integers.T, self.bits), self.bits).T.copy()),
            "weight_scale": ("F16", scales),
            "weight_shape": ("I64", np.array(shape, np.int64)),
        }
        if not self.symmetric:
            parts["weight_zero_point"] = ("I32", pack_down(_padded(zeros, self.bits), self.bits))
        return parts, expected


def _padded(rows: Array, bits: int) -> Array:
    fields = 32 // bits
    return np.pad(rows, ((0, -len(rows) % fields), (0, 0)))


@dataclass(frozen=True)
class Bitnet:
    """transformers' pack_weights for BitNet."""

    def settings(self) -> dict[str, Any]:
        return {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}

    def __call__(self, shape: tuple[int, int], random: np.random.Generator) -> tuple[Parts, npt.NDArray[np.float32]]:
        trits = random.integers(-1, 2, shape)
        quarter = shape[0] // 4
        packed = np.zeros((quarter, shape[1]), np.uint8)
        for part in range(4):
            packed |= (trits[part * quarter : (part + 1) * quarter] + 1).astype(np.uint8) << np.uint8(2 * part)
        scale = (random.uniform(20, 60, 1).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        divisor = (scale.astype(np.uint32) << 16).view(np.float32)
        return {"weight": ("U8", packed), "weight_scale": ("BF16", scale)}, trits.astype(np.float32) / divisor


def is_packed(name: str) -> bool:
    """Whether the tools quantize this tensor of a Llama."""
    return name.endswith("_proj.weight")


def write_models(folder: Path, packer: Packer, settings: Mapping[str, Any], seed: int = 0) -> tuple[Path, Path]:
    """Two Llama checkpoints of the same weights: packed with its quantization_config, and as floats."""
    random = np.random.default_rng(seed)
    packed: Parts = {}
    floats: Parts = {}
    for name, shape in SHAPE.tensors():
        if is_packed(name):
            parts, values = packer((shape[0], shape[1]), random)
            packed |= layer(parts, name.removesuffix(".weight"))
            floats[name] = ("F32", values)
        else:
            plain = np.ones(shape, np.float16) if len(shape) == 1 else random.standard_normal(shape).astype(np.float16)
            packed[name] = floats[name] = ("F16", plain)
    written = []
    for kind, tensors, extra in (("packed", packed, {"quantization_config": dict(settings)}), ("floats", floats, {})):
        target = folder / kind
        target.mkdir(parents=True)
        write_safetensors(target / "model.safetensors", tensors)
        shutil.copyfile(demo_tokenizer(), target / "tokenizer.model")
        (target / "config.json").write_text(json.dumps(SHAPE.config() | extra))
        written.append(target)
    return written[0], written[1]
