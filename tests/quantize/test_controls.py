"""The options' texts, what pruning does to names, and the warnings: expressions are held against llama.cpp's."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from quantize_reference import Family, llama_quantize

from tinyedge.gguf_file import read_gguf
from tinyedge_quantize.controls.metadata import read_description
from tinyedge_quantize.controls.options import (
    TENSOR_TYPES,
    make_controls,
    parse_layers,
    parse_tensor_type,
    parse_type,
    read_tensor_types,
)
from tinyedge_quantize.controls.values import ControlError, Controls, TensorType, pruned
from tinyedge_quantize.imatrix.importance import Imatrix, SquareSums
from tinyedge_quantize.recipes import RECIPES, choice_warnings, choose_types, importance_weights

SMALL = Family(layers=2)


def matched_by_llama_cpp(pattern: str, folder: Path) -> set[str] | None:
    """The matrices in whose names its std::regex finds the pattern; None when it refuses the pattern."""
    source, target = folder / "source.gguf", folder / "theirs.gguf"
    if not source.exists():
        SMALL.write(source)
    if llama_quantize(source, target, RECIPES["Q8_0"].file_type, Controls(tensor_types=(TensorType(pattern, "F16"),))) != 0:
        return None
    return {tensor.name for tensor in read_gguf(target).tensors if tensor.type.name == "F16"}


def matched_by_us(wish: TensorType) -> set[str]:
    return {name for name, weights in SMALL.tensors().items() if weights.ndim > 1 and wish.matches(name)}


AGREED = (
    *("attn_v", "ATTN_V", "^blk", r"^blk\.[01]\.ffn_(up|down)\.weight$", r"blk\.\d+\.attn_[^qk]", "(?:q|k).weight", "f{2}n"),
    *("f{1,}n_gate", "attn_(?!q|k)", r"(.)\1", "a*?t+", "[a-c]ttn", r"[\d.]+attn", r"\battn", r"\w\.\d", ".", r"\.", "|"),
    *("blk.1", "(a|)(f|)n_u", "[.-]w", r"[\]\[x]", "-", "_", r"\-", "a$|t$", "()", "[a^]ttn", "n{0}fn", "(blk)?output"),
)


@pytest.mark.parametrize("pattern", AGREED)
def test_expressions_mean_what_they_mean_to_llama_quantize(pattern: str, tmp_path: Path) -> None:
    wish = parse_tensor_type(f"{pattern}=Q8_0")
    assert matched_by_us(wish) == matched_by_llama_cpp(pattern.lower(), tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "(",
            "a)",
            "[a",
            "a**",
            "*a",
            "(?i)attn",
            "(?P<x>a)",
            "(?<!a)b",
            "(?#c)a",
            r"\Aattn",
            r"attn\Z",
            "a++",
            "a{1}+",
            "a{,3}",
        ),
        *(
            "{",
            "a{x}",
            "[]a]",
            "[^]",
            "[^][a]",
            "[[:alpha:]]",
            "[a--b]",
            r"\D",
            r"[\S]",
            r"\x61",
            r"\q",
            "é",
            "[b-a]",
            "\\",
            "(?>a)",
        ),
    ],
)
def test_expressions_that_mean_something_else_are_refused(pattern: str) -> None:
    with pytest.raises(ControlError) as caught:
        parse_tensor_type(f"{pattern}=Q8_0")
    assert caught.value.exit_code == 2


def test_seeded_expressions_mean_the_same_or_are_refused(tmp_path: Path) -> None:
    """Whatever is taken matches what std::regex matches."""
    parts = [
        "a",
        "attn",
        "_",
        ".",
        r"\.",
        "[",
        "]",
        "(",
        ")",
        "|",
        "*",
        "+",
        "?",
        "{2}",
        "{",
        "}",
        "^",
        "$",
        "[^a-k]",
        r"\d",
        r"\w",
        "?:",
        "?!",
    ]
    chance = random.Random(7)
    taken = 0
    for _ in range(400):
        pattern = "".join(chance.choice(parts) for _ in range(chance.randint(1, 5)))
        try:
            wish = parse_tensor_type(f"{pattern}=Q8_0")
        except ControlError:
            continue
        taken += 1
        assert matched_by_us(wish) == matched_by_llama_cpp(pattern, tmp_path), pattern
    assert taken > 100


def test_tensor_types_from_texts_and_files(tmp_path: Path) -> None:
    assert parse_tensor_type("attn_V=q6_k") == TensorType("attn_v", "Q6_K")
    listed = tmp_path / "types.txt"
    listed.write_text("attn_v=q8_0 ffn_down=Q6_K\n\n\toutput=bf16\n")
    assert read_tensor_types(listed) == (
        TensorType("attn_v", "Q8_0"),
        TensorType("ffn_down", "Q6_K"),
        TensorType("output", "BF16"),
    )
    controls = make_controls(tensor_types=["a=F16", "b=F32"], tensor_type_files=[listed])
    assert [wish.pattern for wish in controls.tensor_types] == ["a", "b", "attn_v", "ffn_down", "output"]


def test_comments_in_a_file_of_tensor_types(tmp_path: Path) -> None:
    listed = tmp_path / "types.txt"
    listed.write_bytes(
        b"# values first: attn_v=F16\r\n\r\nattn_v=Q8_0 # not ffn_up=F16\n\n  #ffn_up=F16\rffn_[#]=Q6_K #\noutput=BF16#no\n#"
    )
    with pytest.raises(ControlError, match="'BF16#no' is not a tensor type; did you mean BF16"):
        read_tensor_types(listed)
    listed.write_bytes(listed.read_bytes().replace(b"#no", b""))
    assert read_tensor_types(listed) == (
        TensorType("attn_v", "Q8_0"),
        TensorType("ffn_[#]", "Q6_K"),
        TensorType("output", "BF16"),
    )


@pytest.mark.parametrize(
    "text", ["attn_v", "=Q8_0", "attn_v=", "attn_v=Q9_9", "attn_v=Q4_K_M", "attn_v=I32", "attn_v=Q8_1", "a=b=Q8_0"]
)
def test_malformed_tensor_types(text: str, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="--tensor-type"):
        parse_tensor_type(text)
    (tmp_path / "types.txt").write_text(text)
    with pytest.raises(ControlError, match="--tensor-type-file"):
        read_tensor_types(tmp_path / "types.txt")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ControlError, match="cannot be read"):
            read_tensor_types(path)
        with pytest.raises(ControlError, match="cannot be read"):
            read_description(path)


def test_types_for_one_tensor() -> None:
    assert parse_type("bf16", "--output-tensor-type") == "BF16"
    assert {"Q1_0", "MXFP4", "F32"} < set(TENSOR_TYPES)
    with pytest.raises(ControlError, match="--output-tensor-type: 'Q8_K' is not one tensors of a file can be quantized to"):
        parse_type("Q8_K", "--output-tensor-type")


def test_layer_lists() -> None:
    assert parse_layers("3,7,9-11") == (3, 7, 9, 10, 11)
    assert parse_layers("5, 1-2 ,1") == (1, 2, 5)
    for text in ("", "a", "-1", "3-", "5-3", "1,,2", "1.5", "0-99999", "٣"):
        with pytest.raises(ControlError, match="--prune-layers"):
            parse_layers(text)


NAMES = ["output.weight", *(f"blk.{layer}.attn_q.weight" for layer in range(12))]


def test_layers_left_are_numbered_anew() -> None:
    kept = pruned(NAMES, Controls(prune_layers=(0, 3, 10)))
    assert kept["output.weight"] == "output.weight"
    numbers = {int(old.split(".")[1]): int(new.split(".")[1]) for old, new in kept.items() if old.startswith("blk")}
    assert numbers == {1: 0, 2: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6, 9: 7, 11: 8}
    assert pruned(NAMES, Controls()) == {name: name for name in NAMES}


@pytest.mark.parametrize(
    ("layers", "problem"),
    [((12,), "no layer 12 to prune: its layers are 0 to 11"), (tuple(range(12)), "would drop every layer")],
)
def test_layers_that_cannot_be_pruned(layers: tuple[int, ...], problem: str) -> None:
    with pytest.raises(ControlError, match=problem):
        pruned(NAMES, Controls(prune_layers=layers))


def warnings_of(recipe_name: str, controls: Controls, family: Family = SMALL) -> list[str]:
    recipe, facts = RECIPES[recipe_name], family.facts()
    types = choose_types(recipe, facts, family.shape, controls)
    return choice_warnings(recipe, facts, types, importance_weights(recipe, facts, types, controls), controls)


def test_wishes_without_effect_are_named() -> None:
    tied = Family(layers=2, tied=True)
    assert warnings_of("Q4_K_M", make_controls(tensor_types=["attn_v=Q8_0"])) == []
    assert warnings_of("Q4_K_M", make_controls(tensor_types=["attn_z=Q8_0"])) == ["--tensor-type attn_z=Q8_0 matches no tensor"]
    assert warnings_of("Q4_K_M", make_controls(tensor_types=["attn=Q8_0", "attn_v=Q6_K", "_norm=F16"])) == [
        "--tensor-type attn_v=Q6_K matches only tensors that are not quantized or that one before it matches",
        "--tensor-type _norm=F16 matches only tensors that are not quantized or that one before it matches",
    ]
    assert warnings_of("BF16", make_controls(tensor_types=["attn=Q8_0"])) == [
        "--tensor-type has no effect on BF16, which quantizes nothing"
    ]
    assert warnings_of("Q4_K_M", make_controls(leave_output=True, output_tensor_type="Q8_0")) == [
        "--output-tensor-type has no effect beside --leave-output"
    ]
    assert warnings_of("Q4_K_M", make_controls(output_tensor_type="Q8_0"), tied) == []
    for controls in (make_controls(output_tensor_type="Q8_0", pure=True), make_controls(leave_output=True)):
        assert ["the token embedding is this model's output too" in each for each in warnings_of("Q4_K_M", controls, tied)] == [
            True
        ]


def test_ternary_types_and_missing_weights_are_named() -> None:
    (warning,) = warnings_of("TQ1_0", Controls())
    assert warning.startswith("TQ1_0 keeps only -1, 0 and 1")
    sums = {name: SquareSums(weights, np.ones(1, np.int64)) for name, weights in SMALL.importance().items()}
    del sums["blk.0.attn_k.weight"], sums["output.weight"]
    assert warnings_of("Q4_K_M", Controls(imatrix=Imatrix(Path("x"), sums, (), 1, 512))) == [
        "the importance matrix has no weights for all of the model: tensor blk.0.attn_k.weight is quantized without"
    ]
