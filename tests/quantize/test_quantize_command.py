"""`tinyedge quantize` as a person meets it: exit codes, one sentence, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tinyedge import errors
from tinyedge_bench.suite.random_checkpoint import SHAPES, LlamaShape, demo_tokenizer, make_checkpoint

TINYEDGE = Path(sys.executable).with_name("tinyedge")
TINY = SHAPES["tiny"]


def tinyedge(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TINYEDGE), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=os.environ | (env or {}),
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "tiny"
    make_checkpoint(folder, TINY, demo_tokenizer())
    return folder


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def set_weight(folder: Path, name: str, value: int) -> None:
    """Puts a bit pattern into the middle of a BF16 tensor."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    place = 8 + length + (begin + end) // 4 * 2
    data[place : place + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)


def rename_tensor(folder: Path, old: str, new: str) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(f'"{old}"'.encode(), f'"{new}"'.encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def test_the_default_output_is_named_after_checkpoint_and_type(checkpoint: Path, tmp_path: Path) -> None:
    done = tinyedge("quantize", checkpoint, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "tiny-Q4_K_M.gguf" in done.stderr
    assert len(gguf.GGUFReader(tmp_path / "tiny-Q4_K_M.gguf").tensors) == 21


def test_json_reports_what_was_written(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    done = tinyedge("quantize", checkpoint, "-t", "q8_0", "-o", target, "--json")
    report = json.loads(done.stdout)
    assert report["bytes"] == target.stat().st_size
    assert report["type"] == "Q8_0"
    assert report["tensor_types"] == {"Q8_0": 16, "F32": 5}
    assert report["layout"] == "huggingface"


def test_a_dry_run_gives_the_exact_size_and_reads_no_weights(checkpoint: Path, tmp_path: Path) -> None:
    set_weight(checkpoint, "lm_head.weight", 0x7FC0)
    done = tinyedge("quantize", checkpoint, "-t", "Q5_K_M", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert {tensor["name"]: tensor["type"] for tensor in plan["tensors"]}["output.weight"] == "Q6_K"
    set_weight(checkpoint, "lm_head.weight", 0)
    target = tmp_path / "out.gguf"
    tinyedge("quantize", checkpoint, "-t", "Q5_K_M", "-o", target)
    assert plan["bytes"] == target.stat().st_size
    table = tinyedge("quantize", checkpoint, "-t", "Q5_K_M", "--dry-run").stdout
    assert f"{plan['bytes']:,} bytes" in table
    assert "blk.1.ffn_down.weight" in table


def test_the_self_check_passes_on_the_installed_library() -> None:
    done = tinyedge("quantize", "--self-check")
    assert done.returncode == 0, done.stderr
    assert "within their bounds" in done.stdout


Break = Callable[[Path], object]
BAD_INPUTS: dict[str, tuple[Break, type[errors.TinyEdgeError], str]] = {
    "no such path": (shutil.rmtree, errors.ModelNotFoundError, "does not exist"),
    "empty folder": (
        lambda d: [p.unlink() for p in d.iterdir()],
        errors.CheckpointError,
        "holds no checkpoint",
    ),
    "truncated weights": (
        lambda d: os.truncate(d / "model.safetensors", 5_000_000),
        errors.CheckpointError,
        "is truncated",
    ),
    "weights that are text": (
        lambda d: (d / "model.safetensors").write_text("<html>not found</html>"),
        errors.CheckpointError,
        "neither safetensors nor a torch.save file",
    ),
    "no config": (lambda d: (d / "config.json").unlink(), errors.CheckpointError, "config.json is missing"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), errors.CheckpointError, "is not JSON"),
    "missing tensor": (
        lambda d: rename_tensor(d, "model.layers.1.mlp.up_proj.weight", "model.rotary_emb.inv_freq"),
        errors.TensorMismatchError,
        "model.layers.1.mlp.up_proj.weight is missing",
    ),
    "unknown tensor": (
        lambda d: edit_config(d, num_hidden_layers=1),
        errors.TensorMismatchError,
        "where the configuration has 1 layers",
    ),
    "wrong shape": (
        lambda d: edit_config(d, intermediate_size=768),
        errors.TensorMismatchError,
        "has shape (512, 256) where the configuration needs (768, 256)",
    ),
    "unknown architecture": (
        lambda d: edit_config(d, architectures=["T5ForConditionalGeneration"]),
        errors.UnsupportedArchitectureError,
        "supported are",
    ),
    "architecture that llama.cpp lacks": (
        lambda d: edit_config(d, architectures=["OPTForCausalLM"]),
        errors.UnsupportedArchitectureError,
        "the model is an OPT, which llama.cpp does not have",
    ),
    "unknown quantization": (
        lambda d: edit_config(d, quantization_config={"quant_method": "quip"}),
        errors.CheckpointError,
        "'quip'",
    ),
    "absurd size": (
        lambda d: edit_config(d, hidden_size=2**70),
        errors.CheckpointError,
        "hidden_size in the model configuration is",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.model").unlink(), errors.TokenizerError, "no tokenizer"),
    "vocabulary larger than the embedding": (
        lambda d: shutil.copyfile(d / "config.json", d / "keep.json") and _shrink_vocabulary(d),
        errors.TokenizerError,
        "4096",
    ),
    "NaN": (
        lambda d: set_weight(d, "model.layers.1.self_attn.k_proj.weight", 0x7FC0),
        errors.WeightValueError,
        "model.layers.1.self_attn.k_proj.weight holds NaN",
    ),
    "infinity": (
        lambda d: set_weight(d, "model.norm.weight", 0xFF80),
        errors.WeightValueError,
        "model.norm.weight holds NaN or infinite",
    ),
}


def _shrink_vocabulary(folder: Path) -> None:
    make_checkpoint(folder, LlamaShape(2, 256, 512, 8, 2, 4000, 512), demo_tokenizer())


def test_a_sliding_window_that_is_lost_is_said(checkpoint: Path, tmp_path: Path) -> None:
    edit_config(checkpoint, architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=128)
    done = tinyedge("quantize", checkpoint, "-o", tmp_path / "out.gguf")
    assert done.returncode == 0
    assert "attends through a sliding window of 128 tokens" in done.stderr


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(case: str, checkpoint: Path, tmp_path: Path) -> None:
    broken, error, sentence = BAD_INPUTS[case]
    broken(checkpoint)
    target = tmp_path / "out" / "out.gguf"
    target.parent.mkdir()
    done = tinyedge("quantize", checkpoint, "-o", target)
    assert done.returncode == error.exit_code, done.stderr
    assert sentence in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(target.parent.iterdir()) == []


def test_an_index_that_names_a_missing_shard(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone-00001.safetensors"}}))
    done = tinyedge("quantize", checkpoint)
    assert done.returncode == errors.CheckpointError.exit_code
    assert "names gone-00001.safetensors, which is not there" in done.stderr


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../b", "..", "", "sub/x.bin", "a\0b", "..\\x"])
def test_an_index_may_not_leave_its_folder(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    done = tinyedge("quantize", checkpoint)
    assert done.returncode == errors.CheckpointError.exit_code
    assert "points outside its folder" in done.stderr


def test_two_weight_files_without_an_index_are_not_guessed_between(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "a.safetensors")
    shutil.copyfile(checkpoint / "a.safetensors", checkpoint / "b.safetensors")
    done = tinyedge("quantize", checkpoint)
    assert done.returncode == errors.CheckpointError.exit_code
    assert "2 weight files and no index" in done.stderr


def test_a_configuration_is_named_for_lit_gpt_checkpoints_alone(checkpoint: Path) -> None:
    done = tinyedge("quantize", checkpoint, "--config", "tiny_LLaMA_1b")
    assert done.returncode == errors.CheckpointError.exit_code
    assert "--config is for Lit-GPT checkpoints" in done.stderr


def test_an_adapter_says_how_to_merge_it(checkpoint: Path) -> None:
    rename_tensor(checkpoint, "model.embed_tokens.weight", "base_model.model.layers.0.lora_A.weight")
    done = tinyedge("quantize", checkpoint)
    assert done.returncode == errors.CheckpointError.exit_code
    assert "LoRA adapter" in done.stderr


def test_an_unknown_type_lists_those_there_are(checkpoint: Path) -> None:
    done = tinyedge("quantize", checkpoint, "-t", "Q4_K_XL")
    assert done.returncode == 2
    assert "Q4_K_M" in done.stderr


def test_values_beyond_f16_are_refused_rather_than_made_infinite(checkpoint: Path, tmp_path: Path) -> None:
    set_weight(checkpoint, "lm_head.weight", 0x4780)  # 65536
    done = tinyedge("quantize", checkpoint, "-t", "F16", "-o", tmp_path / "out.gguf")
    assert done.returncode == errors.WeightValueError.exit_code
    assert "beyond the 65504 of F16" in done.stderr
    assert tinyedge("quantize", checkpoint, "-t", "BF16", "-o", tmp_path / "out.gguf").returncode == 0


def test_the_output_may_not_be_the_checkpoint(checkpoint: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()
    done = tinyedge("quantize", checkpoint, "-o", checkpoint / "model.safetensors")
    assert done.returncode == errors.OutputError.exit_code
    assert (checkpoint / "model.safetensors").read_bytes() == before


def test_a_failed_run_leaves_the_old_file(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"GGUF, the old file")
    set_weight(checkpoint, "lm_head.weight", 0x7FC0)
    assert tinyedge("quantize", checkpoint, "-o", target).returncode == errors.WeightValueError.exit_code
    assert target.read_bytes() == b"GGUF, the old file"


def test_a_missing_output_folder_is_named(checkpoint: Path, tmp_path: Path) -> None:
    done = tinyedge("quantize", checkpoint, "-o", tmp_path / "missing" / "out.gguf")
    assert done.returncode == errors.OutputError.exit_code
    assert "does not exist" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_is_not_writable(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    done = tinyedge("quantize", checkpoint, "-o", folder / "out.gguf")
    assert done.returncode == errors.OutputError.exit_code


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 1 MiB; needs root."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_disk_too_small_is_noticed_before_starting(checkpoint: Path, small_disk: Path) -> None:
    done = tinyedge("quantize", checkpoint, "-o", small_disk / "out.gguf")
    assert done.returncode == errors.DiskSpaceError.exit_code
    assert "free" in done.stderr
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(checkpoint: Path, small_disk: Path) -> None:
    """The room is checked, then another process takes it: here the check is told of room that is not there."""
    script = (
        "import shutil, sys; shutil.disk_usage = lambda _: type('U', (), {'free': 2**60})\n"
        "from tinyedge.cli.app import main; main()"
    )
    command = [sys.executable, "-c", script, "quantize", str(checkpoint), "-o", str(small_disk / "out.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == errors.DiskSpaceError.exit_code, done.stderr
    assert "disk became full" in done.stderr
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupt_leaves_nothing_behind(number: signal.Signals, code: int, tmp_path: Path) -> None:
    folder = tmp_path / "slow"
    make_checkpoint(folder, LlamaShape(30, 256, 4096, 8, 2, 4096, 512), demo_tokenizer())
    target = tmp_path / "out" / "out.gguf"
    target.parent.mkdir()
    process = subprocess.Popen(
        [str(TINYEDGE), "quantize", str(folder), "-t", "Q2_K", "--threads", "1", "-o", str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    descriptors = Path(f"/proc/{process.pid}/fd")
    deadline = time.monotonic() + 30
    while not any(str(target.parent) in name for name in _open_files(descriptors)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert list(target.parent.iterdir()) == []


def _open_files(folder: Path) -> list[str]:
    """What a process has open; a descriptor may close while we look."""
    names = []
    for link in folder.iterdir():
        with contextlib.suppress(OSError):
            names.append(str(link.readlink()))
    return names


def test_random_bytes_change_nothing_they_should_not(checkpoint: Path) -> None:
    """Bit flips and truncations in every file of a checkpoint: an error of ours or a file, never a crash."""
    script = Path(__file__).with_name("checkpoint_mutations.py")
    done = subprocess.run([sys.executable, str(script), str(checkpoint), "250"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert counts["accepted"] + counts["refused"] == 250
    assert counts["refused"] > 50
    assert np.isfinite(counts["seconds"])
