"""`tinyedge verify` as a person meets it: the report on stdout, one sentence on stderr, the exit code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from tinyedge import errors
from tinyedge_bench.suite.random_checkpoint import SHAPES, demo_tokenizer, make_checkpoint
from tinyedge_quantize.convert import convert

TINYEDGE = Path(sys.executable).with_name("tinyedge")


def tinyedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(TINYEDGE), *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    make_checkpoint(folder, SHAPES["tiny"], demo_tokenizer())
    return folder


@pytest.fixture(scope="module")
def pristine(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantized") / "tiny.gguf"
    convert(source, target, "Q4_K_M")
    return target


@pytest.fixture
def damaged(pristine: Path, tmp_path: Path) -> Path:
    """The scale of one block is infinite."""
    path = Path(shutil.copyfile(pristine, tmp_path / "damaged.gguf"))
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.ffn_gate.weight")
    with path.open("r+b") as file:
        file.seek(tensor.data_offset)
        file.write(b"\x00\x7c")
    return path


def test_a_good_file_leaves_with_zero_and_prints_checksums(pristine: Path, source: Path) -> None:
    done = tinyedge("verify", pristine, "--against", source)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"{hashlib.sha256(pristine.read_bytes()).hexdigest()}  {pristine}" in done.stdout.splitlines()
    assert "failed" not in done.stdout
    assert "  passed   errors" in done.stdout


@pytest.mark.parametrize("top", [0, 3, 100])
def test_top_says_how_many_of_the_worst_are_shown(pristine: Path, source: Path, top: int) -> None:
    lines = tinyedge("verify", pristine, "--against", source, "--top", top).stdout.splitlines()
    begin = next((place for place, line in enumerate(lines) if line.startswith("worst tensors")), None)
    assert (begin is None) == (top == 0)
    if begin is not None:
        assert lines[begin + 1 :].index("") == min(top, 21)


def test_the_checksums_are_lines_that_sha256sum_understands(pristine: Path) -> None:
    lines = tinyedge("verify", pristine).stdout.splitlines()
    (line,) = (line for line in lines if line.endswith(f"  {pristine}"))
    done = subprocess.run(["sha256sum", "--check", "--status"], input=line + "\n", text=True, timeout=60)
    assert done.returncode == 0


def test_a_bad_file_gets_the_whole_report_and_one_sentence(damaged: Path) -> None:
    done = tinyedge("verify", damaged)
    assert done.returncode == errors.VerificationError.exit_code
    assert "failed   values" in done.stdout
    assert "passed   structure" in done.stdout
    assert hashlib.sha256(damaged.read_bytes()).hexdigest() in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {damaged} did not pass: values: 'blk.0.ffn_gate.weight' (Q4_K) holds NaN")


def test_json_is_one_object_whatever_was_found(pristine: Path, damaged: Path, source: Path) -> None:
    good = json.loads(tinyedge("verify", pristine, "--against", source, "--json").stdout)
    assert good["passed"] is True
    assert good["against"] == str(source)
    assert good["files"][0]["sha256"] == hashlib.sha256(pristine.read_bytes()).hexdigest()
    assert len(good["tensors"]) == 21
    assert 0.05 < good["tensors"][3]["relative_rms"] < good["tensors"][3]["bound"] or good["tensors"][3]["type"] != "Q4_K"
    done = tinyedge("verify", damaged, "--against", source, "--json")
    assert done.returncode == errors.VerificationError.exit_code
    bad = json.loads(done.stdout)
    assert bad["passed"] is False
    assert {check["name"] for check in bad["checks"] if check["result"] == "failed"} == {"values", "errors"}
    (tensor,) = (tensor for tensor in bad["tensors"] if not tensor["valid"])
    assert (tensor["name"], tensor["relative_rms"]) == ("blk.0.ffn_gate.weight", None)


def test_what_is_no_gguf_file_gets_a_failing_report(tmp_path: Path) -> None:
    path = tmp_path / "notes\x1b[31m.gguf"
    path.write_text("these are notes")
    done = tinyedge("verify", path)
    assert done.returncode == errors.VerificationError.exit_code
    assert "failed   structure  it is not a GGUF file" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_missing_paths_have_their_own_exit_code(pristine: Path, tmp_path: Path) -> None:
    done = tinyedge("verify", tmp_path / "missing.gguf")
    assert (done.returncode, done.stdout) == (errors.ModelNotFoundError.exit_code, "")
    done = tinyedge("verify", pristine, "--against", tmp_path / "missing")
    assert (done.returncode, done.stdout) == (errors.ModelNotFoundError.exit_code, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    done = tinyedge("verify", tmp_path / "pipe.gguf")
    assert done.returncode == errors.ModelNotFoundError.exit_code
