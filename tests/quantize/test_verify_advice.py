"""What `verify` advises when a file does not pass, and what it shows first: the report as a person reads it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from lora_adapters import pair, write_adapter_folder

from tinyedge.cli.verify import describe, report_lines
from tinyedge.errors import VerificationError
from tinyedge_bench.suite.random_checkpoint import SHAPES, demo_tokenizer, make_checkpoint
from tinyedge_quantize.controls.options import make_controls
from tinyedge_quantize.convert import Wishes, convert
from tinyedge_quantize.lora import open_adapter
from tinyedge_quantize.lora.adapter_gguf import base_config, write_adapter
from tinyedge_quantize.verification.report import FAILED, PASSED, Check, TensorReport, Verification
from tinyedge_quantize.verification.tensors import SlabObserver, TensorErrors, error_bound
from tinyedge_quantize.verification.verify import verify, verify_written

TINYEDGE = Path(sys.executable).with_name("tinyedge")
MADE_AGAIN = VerificationError.default_remedy


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    make_checkpoint(folder, SHAPES["tiny"], demo_tokenizer())
    return folder


@pytest.fixture(scope="module")
def unquantized(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("f16") / "tiny-f16.gguf"
    convert(source, target, "F16")
    return target


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "ad"
    folder.mkdir()
    write_adapter_folder(folder, pair("model.layers.0.self_attn.q_proj", 256, 256, 4))
    return folder


def advice(report: Verification) -> str:
    with pytest.raises(VerificationError) as raised:
        report.require()
    return raised.value.remedy


def check(report: Verification, name: str) -> Check:
    return next(each for each in report.checks if each.name == name)


def test_parts_of_a_split_model_are_asked_for(source: Path, tmp_path: Path) -> None:
    first, second, *_ = convert(source, tmp_path / "out.gguf", "Q4_0", Wishes(split_max_bytes=600_000)).paths
    assert advice(verify(second)) == f"give {first}"
    second.unlink()
    report = verify(first)
    assert "is missing" in check(report, "structure").detail
    assert advice(report) == "put all parts into one folder"


def test_an_adapter_is_named_for_what_it_is(source: Path, adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "ad.gguf"
    with open_adapter(adapter) as opened:
        write_adapter(opened, base_config(source), path, "F16")
    with pytest.raises(VerificationError, match=r"it is a LoRA adapter and not a model; verify the model it belongs to$"):
        verify(path).require()


def test_an_importance_matrix_is_named_for_what_it_is(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "")
    writer.add_type("imatrix")
    for name in ("in_sum2", "counts"):
        writer.add_tensor(f"blk.0.ffn_up.weight.{name}", np.ones((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert check(verify(tmp_path / "imatrix.gguf"), "structure").detail == "it is an importance matrix and not a model"


def test_options_that_the_file_records_are_asked_for(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    words = ("--prune-layers 0", "--override-kv llama.rope.freq_base=float:5000")
    wishes = Wishes(
        controls=make_controls(prune_layers="0", overrides=["llama.rope.freq_base=float:5000"]), options=("--pure", *words)
    )
    convert(source, path, "Q4_0", wishes)
    verify(path, source, wishes).require()
    report = verify(path, source)
    asked = f"the file records that it was made with {' '.join(words)}: give the same options to verify"
    assert advice(report) == asked
    assert {each.remedy for each in report.checks if each.result == FAILED} == {asked}
    half = Wishes(controls=make_controls(prune_layers="0"))
    assert advice(verify(path, source, half)) == (
        f"the file records that it was made with {words[1]}: give the same option to verify"
    )


def test_an_adapter_that_was_merged_is_asked_for(source: Path, adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "merged.gguf"
    made = subprocess.run([TINYEDGE, "quantize", source, "-t", "F16", "--lora", adapter, "-o", path], capture_output=True)
    assert made.returncode == 0, made.stderr
    report = verify(path, source)
    assert check(report, "errors").result == FAILED
    assert advice(report) == "the file records that it was made with --lora ad: give the same option to verify"
    verify(path, source, Wishes(adapters=[(adapter, 1.0)])).require()


@pytest.mark.parametrize(
    "recorded",
    [
        "--prune-layers '0",
        "--prune-layers \x1b[31m0",
        "--prune-layers",
        "--prune-layers " + "0," * 10_000,
        "--delete-everything now",
    ],
)
def test_a_recipe_that_cannot_be_read_advises_nothing(source: Path, tmp_path: Path, recorded: str) -> None:
    path = tmp_path / "out.gguf"
    convert(source, path, "Q4_0", Wishes(controls=make_controls(prune_layers="0"), options=(recorded,)))
    assert advice(verify(path, source)) == MADE_AGAIN


def test_many_recorded_options_are_named_in_short(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    words = [f"--override-kv general.k{number}=int:1" for number in range(300)]
    convert(source, path, "Q4_0", Wishes(controls=make_controls(prune_layers="0"), options=("--prune-layers 0", *words)))
    assert advice(verify(path, source)) == (
        "the file records that it was made with --prune-layers --override-kv: give the same options to verify"
    )


def test_another_source_is_asked_for(unquantized: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "other", SHAPES["tiny"], demo_tokenizer(), seed=9)
    report = verify(unquantized, tmp_path / "other")
    assert check(report, "source").result == FAILED
    assert advice(report).startswith("give the source that it was made from with --against")
    other = tmp_path / "other.gguf"
    convert(tmp_path / "other", other, "Q8_0")
    assert advice(verify(other, unquantized)).startswith("give the source that it was made from with --against")


def test_tensors_of_the_same_type_must_have_the_same_bytes(unquantized: Path, tmp_path: Path) -> None:
    quantized, copy = tmp_path / "q4.gguf", tmp_path / "copy.gguf"
    convert(unquantized, quantized, "Q4_0")
    report = verify(quantized, unquantized)
    assert report.passed
    assert check(report, "bytes").detail == "all 5 tensors of the same type as in the source have its bytes"
    report = verify(quantized, quantized)
    assert check(report, "bytes") == Check("bytes", PASSED, "all 21 tensors of the same type as in the source have its bytes")

    data = bytearray(quantized.read_bytes())
    places = {tensor.name: int(tensor.data_offset) for tensor in gguf.GGUFReader(quantized).tensors}
    data[places["blk.1.ffn_up.weight"] + 18 * 100 + 5] ^= 1
    copy.write_bytes(data)
    report = verify(copy, quantized)
    assert {each.name for each in report.checks if each.result == FAILED} == {"bytes"}
    assert check(report, "bytes").detail == "1 tensor differs in its bytes: 'blk.1.ffn_up.weight'"
    (changed,) = (tensor for tensor in report.tensors if tensor.errors and tensor.errors.relative_rms > 0)
    assert changed.name == "blk.1.ffn_up.weight"

    data[places["blk.0.attn_q.weight"] + 4] ^= 1
    data[places["output_norm.weight"]] ^= 1
    copy.write_bytes(data)
    detail = check(verify(copy, quantized, threads=3), "bytes").detail
    assert detail.startswith("3 tensors differ in their bytes: ")
    assert set(re.findall(r"'(.*?)'", detail)) == {"blk.1.ffn_up.weight", "blk.0.attn_q.weight", "output_norm.weight"}


def test_a_checkpoint_is_not_compared_byte_by_byte(source: Path, unquantized: Path) -> None:
    assert "bytes" not in {each.name for each in verify(unquantized, source).checks}


def tensor(name: str, kind: str, relative_rms: float) -> TensorReport:
    return TensorReport(name, kind, (64, 32), 1, "0" * 64, True, error_bound(kind), TensorErrors(relative_rms, 0.99, 0.5))


def test_the_worst_are_ordered_by_the_error_that_is_shown() -> None:
    tensors = [
        tensor("a", "Q4_K", 0.07),
        tensor("b", "Q6_K", 0.04),
        tensor("no number", "Q4_K", float("nan")),
        tensor("too much", "Q8_0", 0.03),
        tensor("c", "Q2_K", 0.3),
        replace(tensor("not compared", "Q4_K", 0.0), errors=None),
    ]
    report = Verification(Path("m.gguf"), (), Path("source"), (Check("errors", FAILED, "no"),), tuple(tensors), 1.0)
    assert [each.name for each in report.worst_first] == ["no number", "too much", "c", "a", "b"]
    lines = report_lines(report, 10, checksums=False)
    header = next(line for line in lines if line.startswith("worst tensors"))
    assert re.split(r" {2,}", header) == [
        "worst tensors",
        "type",
        "relative RMS",
        "bound",
        "of bound",
        "cosine",
        "largest error",
    ]
    row = next(line for line in lines if line.startswith("a "))
    assert row.split() == ["a", "Q4_K", "0.070000", "0.233", "30%", "0.990000", "0.5"]
    assert [line.endswith("too much") for line in lines[lines.index(header) + 1 :][:3]] == [True, True, False]


def test_what_was_written_names_its_source(source: Path, tmp_path: Path) -> None:
    observer = SlabObserver()
    made = convert(source, tmp_path / "out.gguf", "Q4_0", observer=observer)
    report = verify_written(made.path, observer, source, against=source)
    assert describe(report)["against"] == str(source)
    assert report_lines(report, 0, checksums=False)[0].endswith(f", against {source}")


def test_shapes_are_those_of_the_plan(source: Path, unquantized: Path) -> None:
    plan = json.loads(subprocess.check_output([TINYEDGE, "quantize", source, "-t", "F16", "--dry-run", "--json"]))
    found = json.loads(subprocess.check_output([TINYEDGE, "verify", unquantized, "--json"]))
    shapes = {each["name"]: each["shape"] for each in found["tensors"]}
    assert shapes == {each["name"]: each["shape"] for each in plan["tensors"]}
    assert shapes["blk.0.ffn_up.weight"] == [512, 256]


def on_terminal(*arguments: object) -> str:
    """What a command writes when its stdout is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([TINYEDGE, *map(str, arguments)], stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the terminal is gone with the process
                break
            if not part:
                break
            parts.append(part)
        assert process.wait(60) == 0
    os.close(ours)
    return b"".join(parts).decode().replace("\r\n", "\n")


def test_a_terminal_gets_the_checks_first_and_checksums_when_asked(source: Path, unquantized: Path) -> None:
    short = on_terminal("verify", unquantized, "--against", source)
    assert short.startswith(f"{unquantized}: ")
    assert 0 < short.index("  passed   structure") < short.index("worst tensors") < short.index(f"  {unquantized}\n")
    assert len(re.findall(r"^[0-9a-f]{64}  ", short, re.MULTILINE)) == 1
    long = on_terminal("verify", unquantized, "--checksums")
    assert len(re.findall(r"^[0-9a-f]{64}  ", long, re.MULTILINE)) == 22
    redirected = subprocess.check_output([TINYEDGE, "verify", unquantized], text=True)
    assert len(re.findall(r"^[0-9a-f]{64}  ", redirected, re.MULTILINE)) == 22


def test_the_help_has_an_example_in_one_line() -> None:
    text = subprocess.check_output([TINYEDGE, "verify", "--help"], text=True, env=os.environ | {"COLUMNS": "70"})
    assert "  Example:\n    tinyedge verify tiny.gguf --against TinyLlama-1.1B\n" in text
    assert "MODEL.gguf" not in text
    assert "where stdout is no terminal" in " ".join(text.split())
