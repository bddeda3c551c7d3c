"""Packed checkpoints that lie about themselves: one sentence and a remedy, before or while they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packed_checkpoints as pc
import pytest
import test_packed_bitsandbytes as bnb

from tinyedge.errors import CheckpointError, WeightValueError
from tinyedge_quantize.quantized import METHODS

Change = Callable[[pc.Parts, dict[str, Any]], object]


def put(name: str, dtype: str, values: Any) -> Change:
    return lambda parts, _settings: parts.update({name: (dtype, values)})


def drop(name: str) -> Change:
    return lambda parts, _settings: parts.pop(name)


def setting(key: str, value: Any) -> Change:
    return lambda _parts, settings: settings.update({key: value})


ZEROS = np.zeros((4, 4), np.int32)
GPTQ: list[tuple[str, Change]] = [
    ("bits in .* is missing where 2, 3, 4, 8 is read", lambda _p, settings: settings.pop("bits")),
    ("bits in .* is 5 ", setting("bits", 5)),
    ("bits in .* is True ", setting("bits", True)),
    ("bits in .* is '4' ", setting("bits", "4")),
    ("bits in .* is a list", setting("bits", [4])),
    ("configuration says 8 bits", setting("bits", 8)),
    ("group_size .* is 0 ", setting("group_size", 0)),
    ("group_size .* is 1e", setting("group_size", 1e300)),
    ("group_size .* is -2", setting("group_size", -2)),
    ("groups of 64 are not the 3 groups", setting("group_size", 64)),
    ("packed for 'marlin', where gptq and gptq_v2 are read", setting("checkpoint_format", "marlin")),
    ("packed for 'marlin'", setting("is_marlin_format", True)),
    ("packed for 'bitblas'", setting("checkpoint_format", "bitblas")),
    ("packed for a list of 1", setting("checkpoint_format", ["gptq"])),
    ("lacks tensor 'x.scales'", drop("x.scales")),
    ("lacks tensor 'x.qzeros'", drop("x.qzeros")),
    ("dtype F32 where I32", put("x.qweight", "F32", np.zeros((12, 64), np.float32))),
    ("dtype I16 where I32", put("x.qzeros", "I16", np.zeros((3, 16), np.int16))),
    ("dtype I32 where F32 or F16", put("x.scales", "I32", np.zeros((3, 64), np.int32))),
    ("'x' does not fit together", put("x.qweight", "I32", np.zeros((12, 32), np.int32))),
    ("'x' does not fit together", put("x.qzeros", "I32", np.zeros((3, 7), np.int32))),
    ("'x' does not fit together", put("x.qzeros", "I32", np.zeros((2, 8), np.int32))),
    ("'x' does not fit together", put("x.scales", "F16", np.zeros((3, 1), np.float16))),
    ("'x.scales' is empty", put("x.scales", "F16", np.zeros((0, 64), np.float16))),
    ("'x.qweight' is empty", put("x.qweight", "I32", np.zeros((0, 64), np.int32))),
    ("3 dimensions", put("x.qweight", "I32", np.zeros((2, 6, 64), np.int32))),
    ("g_idx has 5 entries for 96", put("x.g_idx", "I32", np.zeros(5, np.int32))),
    ("names a group beyond its 3", put("x.g_idx", "I32", np.full(96, 3, np.int32))),
    ("names a group beyond its 3", put("x.g_idx", "I64", np.full(96, -1, np.int64))),
    ("names a group beyond its 3", put("x.g_idx", "I64", np.full(96, 2**62, np.int64))),
    ("has both .qweight and .weight for 'x'", put("x.weight", "F16", np.zeros((64, 96), np.float16))),
    ("quant_method in .* is None where a name is expected", setting("quant_method", None)),
    ("desc_act in .* is 'yes' where true or false", setting("desc_act", "yes")),
    ("desc_act in .* is 1 where true or false", setting("desc_act", 1)),
    ("sym in .* is a list of 0 where true or false", setting("sym", [])),
    ("is_marlin_format in .* is 'true' where true or false", setting("is_marlin_format", "true")),
    ("dynamic in .* is 'yes' where a table", setting("dynamic", "yes")),
    ("extra_config in .* is True where a table", setting("extra_config", True)),
]  # fmt: skip
AWQ: list[tuple[str, Change]] = [
    ("packed for 'gemv', where gemm is read", setting("version", "gemv")),
    ("packed for 'marlin'", setting("version", "marlin")),
    ("bits in .* is 8 where 4", setting("bits", 8)),
    ("groups of 128 and its parts 32", setting("group_size", 128)),
    ("groups of None", setting("group_size", None)),
    ("'x' does not fit together", put("x.qzeros", "I32", ZEROS)),
    ("'x' does not fit together", put("x.scales", "F16", np.zeros((5, 64), np.float16))),
    ("lacks tensor 'x.qzeros'", drop("x.qzeros")),
    ("has both .qweight and .weight for 'x'", put("x.weight", "F16", np.zeros((64, 96), np.float16))),
    ("zero_point in .* is 'no' where true or false", setting("zero_point", "no")),
]
PACKED: list[tuple[str, Change]] = [
    ("format 'marlin-24', where float-quantized", setting("format", "marlin-24")),
    ("format 'nvfp4-pack-quantized'", setting("format", "nvfp4-pack-quantized")),
    ("has both .weight_packed and .weight for 'x'", put("x.weight", "F16", np.zeros((64, 96), np.float16))),
    ("sparsity_config in .* is 'dense' where a table", setting("sparsity_config", "dense")),
    ("sparse in the format 'sparse-24-bitmask'", setting("sparsity_config", {"format": "sparse-24-bitmask"})),
    ("rotated before they were quantized", setting("transform_config", {"config_groups": {"R1": {}}})),
    ("config_groups", setting("config_groups", {})),
    ("config_groups", setting("config_groups", [1])),
    ("config_groups", setting("config_groups", {"group_0": {"weights": None}})),
    ("in 2 ways", lambda _p, s: s["config_groups"].update(other={"weights": {"num_bits": 8}})),
    ("num_bits .* is 3 ", lambda _p, s: s["config_groups"]["group_0"]["weights"].update(num_bits=3)),
    ("group_size .* is 'x'", lambda _p, s: s["config_groups"]["group_0"]["weights"].update(group_size="x")),
    ("in groups of 5", lambda _p, s: s["config_groups"]["group_0"]["weights"].update(group_size=5)),
    ("stated shape \\(64, 1000\\)", put("x.weight_shape", "I64", np.array([64, 1000]))),
    ("stated shape \\(-1, 96\\)", put("x.weight_shape", "I64", np.array([-1, 96]))),
    ("stated shape \\(\\)", put("x.weight_shape", "I64", np.zeros(1000, np.int64))),
    ("zero points", put("x.weight_zero_point", "I32", ZEROS)),
    ("lacks tensor 'x.weight_scale'", drop("x.weight_scale")),
    ("g_idx has 3 entries", put("x.weight_g_idx", "I32", np.zeros(3, np.int32))),
    ("names a group beyond its 3", put("x.weight_g_idx", "I32", np.full(96, 99, np.int32))),
]
FP8: list[tuple[str, Change]] = [
    ("with scales", put("x.weight_scale_inv", "F32", np.zeros((9, 9), np.float32))),
    ("block size .* is a list of 1", setting("weight_block_size", [128])),
    ("block size .* is a list of 2", setting("weight_block_size", [0, 128])),
    ("block size .* is '128'", setting("weight_block_size", "128")),
    ("dtype I8 where F8_E4M3", put("x.weight", "I8", np.zeros((64, 96), np.int8))),
    ("lacks tensor 'x.weight'", drop("x.weight")),
    ("dimensions", put("x.weight", "F8_E4M3", np.zeros((2, 32, 96), np.uint8))),
    ("has both .weight_scale_inv and .weight_scale for 'x'", put("x.weight_scale", "F32", np.ones(64, np.float32))),
    ("has no scale", put("y.weight", "F8_E4M3", np.zeros((2, 2), np.uint8))),
    ("quantized to 'NVFP4'", lambda _p, s: s.update(quant_method="modelopt", quant_algo="NVFP4")),
]
BITNET: list[tuple[str, Change]] = [
    ("scales \\(4,\\) where there is one", put("x.weight_scale", "F32", np.ones(4, np.float32))),
    ("dtype F32 where U8", put("x.weight", "F32", np.zeros((16, 96), np.float32))),
    ("lacks tensor 'x.weight'", drop("x.weight")),
    ("layer class 'other'", setting("linear_class", "other")),
]
CASES = [
    pytest.param(packer, message, change, id=f"{name}-{number}")
    for name, packer, changes in (
        ("gptq", pc.Gptq(), GPTQ),
        ("awq", pc.Awq(), AWQ),
        ("compressed-tensors", pc.PackedGroups(), PACKED),
        ("fp8", pc.Fp8((32, 32)), FP8),
        ("bitnet", pc.Bitnet(), BITNET),
    )
    for number, (message, change) in enumerate(changes)
]


@pytest.mark.parametrize(("packer", "message", "change"), CASES)
def test_a_lie_is_one_sentence(packer: Any, message: str, change: Change, tmp_path: Path) -> None:
    parts, _ = packer((64, 96), np.random.default_rng(1))
    tensors, settings = pc.layer(parts), packer.settings()
    change(tensors, settings)
    with pytest.raises(CheckpointError, match=message) as caught:
        pc.read_weight(pc.read_state(tmp_path, tensors, settings).tensors["x.weight"])
    assert "\n" not in str(caught.value)


def with_state(**changes: Any) -> Change:
    """Changes the JSON of a quantization state; ... takes a key out."""

    def change(parts: pc.Parts, _settings: dict[str, Any]) -> None:
        name = "x.weight.quant_state.bitsandbytes__nf4"
        state = json.loads(parts[name][1].tobytes()) | changes
        text = json.dumps({key: value for key, value in state.items() if value is not ...}).encode()
        parts[name] = ("U8", np.frombuffer(text, np.uint8))

    return change


def state_text(text: bytes) -> Change:
    return put("x.weight.quant_state.bitsandbytes__nf4", "U8", np.frombuffer(text, np.uint8))


INT4_STATE = "x.weight.quant_state.bitsandbytes__int4"


def int8_of_three_scales() -> pc.Parts:
    return {"y.weight": ("I8", np.zeros((8, 8), np.int8)), "y.SCB": ("F32", np.zeros(3, np.float32))}


BITSANDBYTES: list[tuple[str, Change]] = [
    ("gives no shape", with_state(shape=...)),
    ("gives no shape", with_state(shape=[64])),
    ("gives no shape", with_state(shape=[64, -96])),
    ("gives no shape", with_state(shape=[2**70, 96])),
    ("gives no shape", with_state(shape=[True, 96])),
    ("shape \\(6400, 96\\)", with_state(shape=[6400, 96])),
    ("blocksize .* is 7 ", with_state(blocksize=7)),
    ("blocksize .* is missing", with_state(blocksize=...)),
    ("scales for 24 blocks", with_state(blocksize=256)),
    ("nested_blocksize .* is 0 where 1 to", with_state(nested_blocksize=0)),
    ("nested_blocksize .* is missing", with_state(nested_blocksize=...)),
    ("nested scales", with_state(nested_blocksize=1)),
    ("nested_offset .* is None", with_state(nested_offset=None)),
    ("nested_offset .* is nan", with_state(nested_offset=float("nan"))),
    ("nested_offset .* is 1", with_state(nested_offset=10**400)),
    ("bitsandbytes type 'nf4'", with_state(quant_type="fp4")),
    ("holds no JSON", state_text(b"{")),
    ("holds no JSON", state_text(b"[" * 60000)),
    ("holds no JSON", state_text(bytes(range(128, 256)))),
    ("holds no JSON object", state_text(b"[1]")),
    ("too many for a quantization state", state_text(b"{" + b" " * 2**20 + b"}")),
    ("dtype F32 where U8", put("x.weight.quant_state.bitsandbytes__nf4", "F32", np.zeros(4, np.float32))),
    ("type 'int4' where nf4, fp4 are read", put(INT4_STATE, "U8", np.array([123, 125], np.uint8))),
    ("lacks tensor 'x.weight'", drop("x.weight")),
    ("lacks tensor 'x.weight.absmax'", drop("x.weight.absmax")),
    ("lacks tensor 'x.weight.nested_absmax'", drop("x.weight.nested_absmax")),
    ("lacks tensor 'x.weight.nested_quant_map'", drop("x.weight.nested_quant_map")),
    ("5 codes", put("x.weight.nested_quant_map", "F32", np.zeros(5, np.float32))),
    ("dtype I64 where", put("x.weight.absmax", "I64", np.zeros(96, np.int64))),
    ("SCB \\(3,\\) for 8 rows", lambda parts, _s: parts.update(int8_of_three_scales())),
    ("lacks tensor 'y.weight'", put("y.SCB", "F32", np.zeros(3, np.float32))),
]  # fmt: skip


@pytest.mark.parametrize(("message", "change"), BITSANDBYTES)
def test_a_lie_in_bitsandbytes_is_one_sentence(message: str, change: Change, tmp_path: Path) -> None:
    tensors, _ = bnb.four_bits((64, 96), nested=True)
    change(tensors, {})
    with pytest.raises(CheckpointError, match=message) as caught:
        pc.read_state(tmp_path, tensors, bnb.SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packer", [pc.Gptq(), pc.Awq(), pc.PackedGroups(), pc.Fp8((32, 32)), pc.Bitnet()], ids=str)
def test_without_a_configuration_the_remedy_names_the_files(packer: Any, tmp_path: Path) -> None:
    parts, _ = packer((64, 96), np.random.default_rng(1))
    with pytest.raises(CheckpointError, match=r"no configuration that says how .*quantize_config\.json \(GPTQ\)"):
        pc.read_state(tmp_path, pc.layer(parts), None)


@pytest.mark.parametrize("name", ["hqq", "aqlm", "exl2", "mxfp4", "quanto", "x" * 10000])
def test_other_methods_are_named_with_those_that_are_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"quantized by '{name[:20]}") as caught:
        pc.read_state(tmp_path, {"x.W_q": ("U8", np.zeros((4, 4), np.uint8))}, {"quant_method": name})
    assert all(method.name in str(caught.value) for method in METHODS)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [[1], "gptq", 7])
def test_a_configuration_that_is_no_table_is_refused(value: Any, tmp_path: Path) -> None:
    from tinyedge_quantize.layouts.arranged import StateDict
    from tinyedge_quantize.quantized import dequantized

    with pytest.raises(CheckpointError, match=r"quantization_config in config\.json is not a table"):
        dequantized(StateDict({}), {"quantization_config": value}, tmp_path)


DAMAGED: list[tuple[Any, str, str, Any]] = [
    (pc.Gptq(), "scales", "F16", np.full((3, 64), np.inf, np.float16)),
    (pc.Awq(), "scales", "F16", np.full((3, 64), np.nan, np.float16)),
    (pc.PackedGroups(), "weight_scale", "F16", np.full((64, 3), np.nan, np.float16)),
    (pc.Fp8((32, 32)), "weight_scale_inv", "F32", np.full((2, 3), np.nan, np.float32)),
    (pc.Fp8((32, 32)), "weight", "F8_E4M3", np.full((64, 96), 0x7F, np.uint8)),
    (pc.Bitnet(), "weight_scale", "F32", np.zeros(1, np.float32)),
]


@pytest.mark.parametrize(("packer", "part", "dtype", "values"), DAMAGED)
def test_parts_that_give_no_numbers_are_said_to_be_at_fault(
    packer: Any, part: str, dtype: str, values: Any, tmp_path: Path
) -> None:
    """No warning of numpy's, and no word of training that diverged."""
    parts, _ = packer((64, 96), np.random.default_rng(1))
    assert parts[part][0] == dtype or part == "weight_scale"
    parts[part] = (dtype, values)
    weight = pc.read_state(tmp_path, pc.layer(parts), packer.settings()).tensors["x.weight"]
    with pytest.raises(WeightValueError, match=r"packed weight .x\.weight. has scales or codes .* packed checkpoint again"):
        pc.read_weight(weight)


def test_settings_that_are_null_are_as_good_as_missing(tmp_path: Path) -> None:
    """As GPTQModel writes them."""
    packer = pc.Gptq()
    parts, expected = packer((64, 96), np.random.default_rng(1))
    settings = packer.settings() | {"desc_act": None, "dynamic": None, "extra_config": None, "is_marlin_format": None}
    weight = pc.read_weight(pc.read_state(tmp_path, pc.layer(parts), settings).tensors["x.weight"])
    assert np.array_equal(weight, expected)
