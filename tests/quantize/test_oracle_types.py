"""The types of every tensor and the bytes they give, against llama.cpp's quantizer: every recipe, every option."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from quantize_reference import Family, llama_quantize

from tinyedge.errors import ImatrixError, UnsupportedArchitectureError
from tinyedge.ggml_types import row_bytes
from tinyedge.gguf_file import read_gguf
from tinyedge.native.quantize import quantize_rows
from tinyedge_quantize.controls.options import TENSOR_TYPES, parse_overrides, parse_tensor_type
from tinyedge_quantize.controls.values import Controls, pruned
from tinyedge_quantize.imatrix.importance import Imatrix, SquareSums
from tinyedge_quantize.recipes import (
    RECIPES,
    ModelShape,
    TensorFacts,
    UnknownTypeError,
    choose_types,
    find_recipe,
    importance_weights,
)

PLAIN = Family()
FUSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down", "attn_norm", "ffn_norm")
FAMILIES = {
    "grouped-query": PLAIN,
    "multi-head": replace(PLAIN, kv_heads=8),
    "tied": replace(PLAIN, tied=True),
    # The rules count in eighths and sixteenths of the layers.
    "deep": replace(PLAIN, layers=33),
    "deep-multi-head": replace(PLAIN, layers=17, kv_heads=8),
    # Rows of 288 are divisible by 32 and not by 256, rows of 80 by neither.
    "odd-rows": replace(PLAIN, columns=288, ffn_columns=512),
    "odder-rows": replace(PLAIN, columns=512, ffn_columns=80),
    "odd-tied": replace(PLAIN, columns=288, tied=True),
    "gpt2": replace(PLAIN, layers=9, kv_heads=8, architecture="gpt2", layer=FUSED, outside=("token_embd", "position_embd")),
    "phi3": replace(PLAIN, layers=9, architecture="phi3", layer=FUSED, keys={"attention.sliding_window": 0}),
}

LLAMA, DEEP, TIED = PLAIN, FAMILIES["deep"], FAMILIES["tied"]
GROUPED = replace(PLAIN, layers=9)


def an_imatrix(entries: dict[str, npt.NDArray[np.float32]]) -> Imatrix:
    """An importance matrix whose weights are these: sums over one row."""
    tensors = {name: SquareSums(weights, np.ones(1, np.int64)) for name, weights in entries.items()}
    return Imatrix(path=Path("imatrix.gguf"), tensors=tensors, datasets=("text",), chunks=1, chunk_size=512)


def quantized(weights: npt.NDArray[np.float32], ggml_type: str, importance: npt.NDArray[np.float32] | None) -> bytes:
    """One matrix as ggml's kernel gives it."""
    if ggml_type == "F32":
        return weights.tobytes()
    rows, columns = weights.shape
    out = np.empty(rows * row_bytes(ggml_type, columns), np.uint8)
    address = None if importance is None else importance.ctypes.data
    quantize_rows(ggml_type, weights.ctypes.data, out.ctypes.data, rows, columns, address)
    return out.tobytes()


def assert_equals_llama_cpp(family: Family, recipe_name: str, controls: Controls, folder: Path) -> None:
    """Names, types and bytes of all tensors are those of the file that llama.cpp makes; and that it makes one."""
    recipe = RECIPES[recipe_name]
    source = folder / "source.gguf"
    if not source.exists():
        family.write(source)
    target = folder / "theirs.gguf"
    target.unlink(missing_ok=True)
    assert llama_quantize(source, target, recipe.file_type, controls, copy=recipe.copies) == 0
    weights = family.tensors()
    kept = pruned(weights, controls)
    facts = [TensorFacts(new, weights[old].shape, "F32") for old, new in kept.items()]
    types = choose_types(recipe, facts, family.shape, controls)
    importance = importance_weights(recipe, facts, types, controls, {new: old for old, new in kept.items()})
    theirs, data = read_gguf(target), target.read_bytes()
    assert [(fact.name, ggml_type) for fact, ggml_type in zip(facts, types, strict=True)] == [
        (tensor.name, tensor.type.name) for tensor in theirs.tensors
    ]
    for old, ggml_type, columns, tensor in zip(kept, types, importance, theirs.tensors, strict=True):
        start = theirs.data_offset + tensor.offset
        assert quantized(weights[old], ggml_type, columns) == data[start : start + tensor.bytes], tensor.name


def refused(family: Family, recipe_name: str, controls: Controls, folder: Path) -> bool:
    """Whether llama.cpp refuses to make the file."""
    source = family.write(folder / "source.gguf")
    return llama_quantize(source, folder / "theirs.gguf", RECIPES[recipe_name].file_type, controls) != 0


@pytest.fixture(scope="module", params=FAMILIES)
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    return FAMILIES[request.param], tmp_path_factory.mktemp("types")


@pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("recipe_name", RECIPES)
def test_every_type_of_every_family(family_folder: tuple[Family, Path], recipe_name: str, calibrated: bool) -> None:
    family, folder = family_folder
    controls = Controls(imatrix=an_imatrix(family.importance())) if calibrated else Controls()
    try:
        facts = family.facts()
        types = choose_types(RECIPES[recipe_name], facts, family.shape, controls)
        importance_weights(RECIPES[recipe_name], facts, types, controls)
    except (ImatrixError, UnknownTypeError) as error:
        assert refused(family, recipe_name, controls, folder), error
        return
    assert_equals_llama_cpp(family, recipe_name, controls, folder)


SEVENTY = {
    "70b": replace(PLAIN, layers=80),
    "65b": replace(PLAIN, layers=80, kv_heads=8),
    "qwen2-72b": replace(PLAIN, layers=80, kv_heads=8, architecture="qwen2"),
    "qwen3 of 80 layers": replace(PLAIN, layers=80, architecture="qwen3"),
}


@pytest.mark.parametrize("size", SEVENTY)
@pytest.mark.parametrize("recipe_name", ["Q4_K_M", "Q3_K_M", "Q2_K", "IQ3_M", "IQ2_M"])
def test_a_70b_model_gets_more_bits(size: str, recipe_name: str, tmp_path: Path) -> None:
    """llama.cpp knows it by its layers and, in Llama's case, by its grouped heads."""
    controls = Controls(imatrix=an_imatrix(SEVENTY[size].importance()))
    assert_equals_llama_cpp(SEVENTY[size], recipe_name, controls, tmp_path)


def wishes(*texts: str) -> Controls:
    return Controls(tensor_types=tuple(map(parse_tensor_type, texts)))


OPTIONS = {
    "one name": wishes("attn_v=Q8_0"),
    "first match wins": wishes(r"blk\.[0-9]\.attn=Q5_K", "attn_v=Q8_0", "ffn_(up|gate)=iq4_xs"),
    "upper case": wishes("ATTN_V=q8_0"),
    "anchored": wishes(r"^blk\.(1|2)\d?\.ffn_down\.weight$=F16"),
    "output by pattern": wishes("^output=Q4_0", "token_embd=BF16"),
    "everything": wishes(".=Q4_1"),
    "not quantized": wishes("norm=Q8_0"),
    "pure": Controls(pure=True),
    "pure but one": replace(wishes("ffn_down=Q6_K"), pure=True),
    "output type": Controls(output_tensor_type="Q4_0"),
    "output type before a pattern": replace(wishes("output=Q8_0"), output_tensor_type="F16"),
    "embedding type": Controls(token_embedding_type="Q5_1"),
    "embedding type before a pattern": replace(wishes("token_embd=Q8_0"), token_embedding_type="Q3_K"),
    "both types and pure": Controls(output_tensor_type="BF16", token_embedding_type="Q2_K", pure=True),
    "leave output": Controls(leave_output=True),
    "leave output of a type": Controls(leave_output=True, output_tensor_type="Q4_0"),
    "prune": Controls(prune_layers=(1,)),
    "prune the first": Controls(prune_layers=(0, 2)),
    "layers said to be 99": Controls(overrides=parse_overrides(["llama.block_count=int:99"])),
    "heads said to be one to one": Controls(overrides=parse_overrides(["llama.attention.head_count_kv=int:8"])),
}


@pytest.mark.parametrize("calibrated", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("recipe_name", ["Q4_K_M", "Q2_K", "IQ4_XS", "F16", "COPY"])
def test_every_option(option: str, recipe_name: str, calibrated: bool, tmp_path: Path) -> None:
    for number, family in enumerate((TIED, GROUPED)):
        folder = tmp_path / str(number)
        folder.mkdir()
        controls = OPTIONS[option]
        if calibrated:
            controls = replace(controls, imatrix=an_imatrix(family.importance()))
        assert_equals_llama_cpp(family, recipe_name, controls, folder)


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_every_tensor_type_can_be_named(name: str, tmp_path: Path) -> None:
    """Rows of 256 suit every type, rows of 288 and 80 send it to its fallback or are refused by both."""
    for columns in (256, 288, 80):
        family = replace(PLAIN, columns=columns, ffn_columns=256)
        controls = replace(wishes(f"attn_(q|k)={name}"), imatrix=an_imatrix(family.importance()))
        folder = tmp_path / str(columns)
        folder.mkdir()
        try:
            choose_types(RECIPES["Q8_0"], family.facts(), family.shape, controls)
        except UnknownTypeError:
            assert refused(family, "Q8_0", controls, folder)
        else:
            assert_equals_llama_cpp(family, "Q8_0", controls, folder)


def test_pruning_keeps_each_layers_importance(tmp_path: Path) -> None:
    """The layers that move up are quantized with the weights they had at their old place."""
    controls = Controls(prune_layers=(0, 3, 4, 5, 20), imatrix=an_imatrix(DEEP.importance()))
    for recipe_name in ("Q4_K_M", "IQ2_XXS"):
        assert_equals_llama_cpp(DEEP, recipe_name, controls, tmp_path)


def test_an_importance_matrix_without_some_tensors(tmp_path: Path) -> None:
    """What has no weights is quantized without, and refused where the type needs them."""
    some = {name: weights for name, weights in DEEP.importance().items() if "blk.7" not in name}
    controls = Controls(imatrix=an_imatrix(some))
    assert_equals_llama_cpp(DEEP, "Q4_K_M", controls, tmp_path)
    types = choose_types(RECIPES["IQ3_XXS"], DEEP.facts(), DEEP.shape, controls)
    with pytest.raises(ImatrixError, match=r"tensor blk\.7\.attn_k\.weight cannot be IQ2_S without .*, which has no weights"):
        importance_weights(RECIPES["IQ3_XXS"], DEEP.facts(), types, controls)
    assert refused(DEEP, "IQ3_XXS", controls, tmp_path)


def test_an_importance_matrix_of_other_columns(tmp_path: Path) -> None:
    """One of the embedding is left aside, one of a layer refused, as llama.cpp does."""
    entries = LLAMA.importance()
    entries["token_embd.weight"] = np.ones(100, np.float32)
    assert_equals_llama_cpp(LLAMA, "Q4_K_M", Controls(imatrix=an_imatrix(entries)), tmp_path)
    entries["blk.1.ffn_up.weight"] = np.ones(100, np.float32)
    controls = Controls(imatrix=an_imatrix(entries))
    types = choose_types(RECIPES["Q4_K_M"], LLAMA.facts(), LLAMA.shape, controls)
    with pytest.raises(ImatrixError, match=r"another model: .*blk\.1\.ffn_up\.weight"):
        importance_weights(RECIPES["Q4_K_M"], LLAMA.facts(), types, controls)
    assert refused(LLAMA, "Q4_K_M", controls, tmp_path)


NEEDING = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")


@pytest.mark.parametrize("recipe_name", RECIPES)
def test_the_recipes_that_need_an_importance_matrix(recipe_name: str, tmp_path: Path) -> None:
    recipe, facts = RECIPES[recipe_name], LLAMA.facts()
    types = choose_types(recipe, facts, LLAMA.shape)
    if recipe_name not in NEEDING:
        assert importance_weights(recipe, facts, types, Controls()) == [None] * len(facts)
        return
    with pytest.raises(ImatrixError, match=r"tensor blk\.0\.attn_k\.weight cannot be I?Q\w+ without .*, which is missing"):
        importance_weights(recipe, facts, types, Controls())
    assert refused(LLAMA, recipe_name, Controls(), tmp_path)


@pytest.mark.parametrize("recipe_name", ["Q4_K_M", "IQ3_S", "F16"])
@pytest.mark.parametrize(("leave", "dtype", "expected"), [(True, "BF16", "BF16"), (True, "F64", "F32"), (False, "BF16", None)])
def test_a_checkpoints_output_is_left_in_its_own_dtype(recipe_name: str, leave: bool, dtype: str, expected: str | None) -> None:
    facts = [TensorFacts("output.weight", (4, 256), None, dtype), TensorFacts("token_embd.weight", (4, 256), None, dtype)]
    recipe = RECIPES[recipe_name]
    types = choose_types(recipe, facts, LLAMA.shape, Controls(leave_output=leave))
    assert types == [expected or ("F16" if recipe_name == "F16" else "Q6_K"), recipe.default]


def test_what_is_never_quantized_is_f32_from_a_checkpoint_and_stays_in_a_gguf() -> None:
    shapes = {"position_embd.weight": (4, 256), "blk.0.attn_q.bias": (256,), "blk.0.attn_norm.weight": (256,)}
    for recipe in (RECIPES["Q4_K_M"], RECIPES["F16"]):
        bare = [TensorFacts(name, shape, None, "BF16") for name, shape in shapes.items()]
        assert choose_types(recipe, bare, LLAMA.shape) == ["F32"] * 3
        in_gguf = [TensorFacts(name, shape, "F16") for name, shape in shapes.items()]
        assert choose_types(recipe, in_gguf, LLAMA.shape) == ["F16"] * 3


def test_families_with_rules_of_their_own_are_refused() -> None:
    for shape in (ModelShape(3, 8, 2, "falcon"), ModelShape(3, 8, 2, experts=8)):
        with pytest.raises(UnsupportedArchitectureError):
            choose_types(RECIPES["Q4_K_M"], LLAMA.facts(), shape)
        choose_types(RECIPES["F16"], LLAMA.facts(), shape)


def test_recipes_by_name() -> None:
    assert find_recipe("q4_k") is RECIPES["Q4_K_M"]
    assert find_recipe("iq4_xs") is RECIPES["IQ4_XS"]
    for name, problem, remedy in (
        ("Q4", "there is no quantization type Q4", "did you mean Q4_0"),
        ("mxfp4_moe", "mixture-of-experts", "tinyedge quantize --types"),
    ):
        with pytest.raises(UnknownTypeError, match=problem) as caught:
            find_recipe(name)
        assert caught.value.exit_code == 2
        assert remedy in caught.value.remedy


def test_copy_is_for_gguf_files() -> None:
    with pytest.raises(UnknownTypeError, match="COPY copies the tensors of a GGUF file"):
        choose_types(RECIPES["COPY"], LLAMA.facts(None), LLAMA.shape)


def test_a_type_that_cannot_hold_a_row_is_refused() -> None:
    """llama.cpp aborts the process here."""
    family = replace(PLAIN, columns=288)
    for controls in (Controls(output_tensor_type="Q4_K"), Controls(token_embedding_type="IQ4_XS")):
        with pytest.raises(UnknownTypeError, match="has rows of 288 weights"):
            choose_types(RECIPES["Q4_0"], family.facts(), family.shape, controls)
