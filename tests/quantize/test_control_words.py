"""What was asked for, in words: the record of a recipe, what a misspelt name may have meant, the table of types, help."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tinyedge_quantize.controls.nearest import did_you_mean, nearest
from tinyedge_quantize.controls.options import TENSOR_TYPES, make_controls, parse_type
from tinyedge_quantize.controls.values import ControlError, Controls
from tinyedge_quantize.controls.words import recipe_words
from tinyedge_quantize.imatrix.importance import Imatrix
from tinyedge_quantize.metadata import string
from tinyedge_quantize.recipes import RECIPES, ModelShape, UnknownTypeError, find_recipe
from tinyedge_quantize.type_table import type_table

TINYEDGE = Path(sys.executable).with_name("tinyedge")
LIST = "`tinyedge quantize --types` lists them"


def tinyedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(TINYEDGE), *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("Q4", "did you mean Q4_0, Q4_1, Q4_K_S or Q4_K_M?"),
        ("iq2", "did you mean IQ2_XXS, IQ2_XS, IQ2_S or IQ2_M?"),
        ("q8", "did you mean Q8_0?"),
        ("Q4KM", "did you mean Q4_K_M?"),
        ("q4-k-m", "did you mean Q4_K_M?"),
        ("Q6_K_XL", "did you mean Q6_K?"),
        ("fp32", "did you mean F32?"),
        *((name, LIST) for name in ("", "Q", "int4", "\x1b", "Q4" * 1_000_000)),
    ],
)
def test_misspelt_types(name: str, remedy: str) -> None:
    with pytest.raises(UnknownTypeError, match="there is no quantization type") as caught:
        find_recipe(name)
    assert caught.value.remedy == remedy
    assert len(caught.value.problem) < 80


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("Q4", "did you mean Q4_0, Q4_1 or Q4_K?"),
        ("Q4_K_M", "did you mean Q4_K?"),
        ("MX", "did you mean MXFP4?"),
        ("q8-0", "did you mean Q8_0?"),
        ("int4", f"{LIST} under `mostly`"),
    ],
)
def test_misspelt_types_of_tensors(name: str, remedy: str) -> None:
    with pytest.raises(ControlError, match="--output-tensor-type: ") as caught:
        parse_type(name, "--output-tensor-type")
    assert caught.value.remedy == remedy


def test_every_suggestion_can_be_given() -> None:
    for begin in {name[:length] for name in (*RECIPES, *TENSOR_TYPES) for length in range(1, len(name))}:
        for known in (RECIPES, TENSOR_TYPES):
            found = nearest(begin, known)
            assert len(found) <= 4
            assert set(found) <= set(known)
    assert did_you_mean(["A", "B"]) == "did you mean A or B?"


def test_a_recipe_names_what_files_said(tmp_path: Path) -> None:
    types, description = tmp_path / "types.txt", tmp_path / "about.json"
    types.write_text("attn_V=q8_0 # the values\nffn_(up|down)=Q6_K\n")
    description.write_text(
        json.dumps({"general.author": "A. Name", "general.tags": ["ü", "b c"], "general.base_models": [{"name": "Base"}]})
    )
    controls = make_controls(
        tensor_types=["attn_k=f16"],
        tensor_type_files=[types],
        output_tensor_type="q8_0",
        token_embedding_type="Q6_K",
        pure=True,
        leave_output=True,
        prune_layers="9-11,3",
        overrides=[
            "llama.context_length=int:4096",
            "a.b=float:1e-5",
            "a.c=bool:false",
            "general.name=str:it's; a = b",
            "d=str:",
        ],
        metadata_file=description,
        imatrix=Imatrix(tmp_path / "my imatrix.gguf", {}, (), 0, 0),
        allow_requantize=True,
    )
    assert recipe_words(controls) == [
        "--imatrix 'my imatrix.gguf'",
        "--tensor-type attn_k=F16",
        "--tensor-type attn_v=Q8_0",
        "--tensor-type 'ffn_(up|down)=Q6_K'",
        "--output-tensor-type Q8_0",
        "--token-embedding-type Q6_K",
        "--pure",
        "--leave-output",
        "--prune-layers 3,9,10,11",
        "--override-kv llama.context_length=int:4096",
        "--override-kv a.b=float:1e-05",
        "--override-kv a.c=bool:false",
        """--override-kv 'general.name=str:it'"'"'s; a = b'""",
        "--override-kv d=str:",
        "--metadata 'general.author=A. Name'",
        """--metadata 'general.tags=["ü", "b c"]'""",
        "--metadata general.base_model.count=1",
        "--metadata general.base_model.0.name=Base",
        "--allow-requantize",
    ]
    assert recipe_words(Controls()) == []


def test_long_descriptions_are_cut_to_one_short_line() -> None:
    metadata = {"general.description": string("two\nlines"), "general.author": string("ü" * 10_000), "general.name": string("")}
    assert recipe_words(Controls(metadata=metadata)) == [
        """--metadata 'general.description="two\\nlines"'""",
        f"--metadata 'general.author={'ü' * 197}...'",
        "--metadata general.name=",
    ]


def test_a_recipes_words_ask_for_the_same() -> None:
    wanted = {
        "tensor_types": ["attn_v=Q8_0", r"blk\.[0-3]\.ffn=Q6_K"],
        "overrides": ["a=int:-7", "b=float:0.1", "c=bool:true", "d=str:x\ny 'z' \"$HOME\""],
    }
    controls = make_controls(**wanted)  # type: ignore[arg-type]
    words = [shlex.split(word) for word in recipe_words(controls)]
    read = {option: [value for name, value in words if name == option] for option in ("--tensor-type", "--override-kv")}
    assert make_controls(tensor_types=read["--tensor-type"], overrides=read["--override-kv"]) == controls


def test_the_table_of_types_says_what_a_type_takes_and_for_which_models_it_is() -> None:
    shapes = [("token_embd.weight", (512, 256)), ("blk.0.attn_q.weight", (256, 256)), ("blk.0.attn_norm.weight", (256,))]
    rows = {row.name: row for row in type_table(shapes, ModelShape(layers=1, heads=4, kv_heads=4))}
    matrices, vector = 768 * 256, 256
    assert rows["F32"].bits == 32
    assert rows["Q8_0"].bits == (matrices * 8.5 + vector * 32) / (matrices + vector)
    assert rows["Q6_K"].bits == pytest.approx((matrices * 6.5625 + vector * 32) / (matrices + vector), rel=1e-12)
    assert {name: row.note for name, row in rows.items() if row.note} == {
        "TQ1_0": "for ternary models only",
        "TQ2_0": "for ternary models only",
        "Q1_0": "for models trained so",
        "Q2_0": "for models trained so",
    }


def test_help_of_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = tinyedge("lora", "-h").stdout
    assert "\n    tinyedge lora my-adapter --base TinyLlama-1.1B -o my.gguf\n" in shown
    assert "ADAPTER  Folder of" in shown
    assert "--output OUT.gguf " in shown
    assert "<path>" not in shown


def test_a_gguf_file_is_no_base(tmp_path: Path) -> None:
    base = tmp_path / "model.gguf"
    base.write_bytes(b"GGUF")
    done = tinyedge("lora", tmp_path, "--base", base)
    assert done.returncode == 3
    message = "is a GGUF file; give the checkpoint it was made from, of which config.json is enough"
    assert done.stderr == f"error: {base} {message}\n"
    assert list(tmp_path.iterdir()) == [base]
