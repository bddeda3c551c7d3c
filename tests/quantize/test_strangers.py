"""What a stranger can put into a checkpoint folder beside wrong numbers: pipes, endless files, bombs, names."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch_saves as ts

from tinyedge import errors
from tinyedge_bench.suite.random_checkpoint import SHAPES, demo_tokenizer, make_checkpoint
from tinyedge_quantize.tokenizer import read_tokenizer

# Half a gigabyte of address space beyond what Python, numpy and the library map: enough for any honest small checkpoint.
LIMITED = (
    "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))\nfrom tinyedge.cli.app import main; main()"
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    make_checkpoint(folder, SHAPES["tiny"], demo_tokenizer())
    return folder


def quantize(checkpoint: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`tinyedge quantize` with little memory and little time."""
    command = [sys.executable, "-c", LIMITED, "quantize", str(checkpoint), "-o", str(output), "--threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, errors="replace")


def replace_config(folder: Path, make: Callable[[Path], object]) -> None:
    (folder / "config.json").unlink()
    make(folder / "config.json")


def bomb(levels: int = 40) -> str:
    """YAML whose aliases unfold to 2**levels items."""
    return "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, levels))


def lit_gpt(folder: Path, yaml: str) -> None:
    for path in folder.iterdir():
        path.unlink()
    weights = {
        "transformer.wte.weight": ts.tensor("0", 4, (2, 2), (2, 1)),
        "transformer.h.0.x": ts.tensor("0", 4, (2, 2), (2, 1)),
    }
    ts.save(folder / "lit_model.pth", ts.program(ts.dictionary(weights)), {"0": bytes(8)})
    (folder / "model_config.yaml").write_text(yaml)


def pickle_bomb(folder: Path, body: bytes) -> None:
    (folder / "model.safetensors").unlink()
    ts.save(folder / "pytorch_model.bin", ts.program(body))


def doubling() -> bytes:
    """model_args whose dim is a list of lists of lists, each twice the one before."""
    body = pickle.EMPTY_LIST + pickle.BINPUT + b"\0"
    for _ in range(60):
        body += (
            pickle.EMPTY_LIST
            + pickle.MARK
            + pickle.BINGET
            + b"\0"
            + pickle.BINGET
            + b"\0"
            + pickle.APPENDS
            + pickle.BINPUT
            + b"\0"
        )
    return body


LONG_LIST = pickle.EMPTY_LIST + pickle.MARK + ts.integer(1) * 100_000 + pickle.APPENDS + pickle.BINPUT + b"\1" + pickle.POP
HOSTILE: dict[str, tuple[Callable[[Path], object], type[errors.TinyEdgeError] | None]] = {
    "an endless configuration": (
        lambda d: replace_config(d, lambda p: p.symlink_to("/dev/zero")),
        errors.CheckpointError,
    ),
    "a pipe for a configuration": (lambda d: replace_config(d, os.mkfifo), errors.CheckpointError),
    "a pipe for weights": (
        lambda d: (d / "model.safetensors").unlink() or os.mkfifo(d / "model.safetensors"),
        errors.CheckpointError,
    ),
    "a folder for weights": (
        lambda d: (d / "model.safetensors").unlink() or (d / "model.safetensors").mkdir(),
        errors.CheckpointError,
    ),
    "a pipe for a tokenizer": (
        lambda d: (d / "tokenizer_config.json").unlink() or os.mkfifo(d / "tokenizer_config.json"),
        None,
    ),
    "a pipe for a template": (
        lambda d: (d / "additional_chat_templates").mkdir() or os.mkfifo(d / "additional_chat_templates" / "a.jinja"),
        None,
    ),
    "aliases in a Lit-GPT configuration": (lambda d: lit_gpt(d, bomb() + "n_embd: *a39\n"), errors.CheckpointError),
    "merge keys in a Lit-GPT configuration": (
        lambda d: lit_gpt(d, "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\n"),
        errors.CheckpointError,
    ),
    "a long Lit-GPT configuration": (lambda d: lit_gpt(d, "a: [[],[]]\n" * 100_000), errors.CheckpointError),
    "aliases in a model card": (lambda d: (d / "README.md").write_text(f"---\n{bomb()}tags: *a39\n---\n# x\n"), None),
    "a long model card": (lambda d: (d / "README.md").write_text("---\na: [" + "[]," * 2_000_000 + "]\n---\n"), None),
    "a doubling list in a pickle": (
        lambda d: pickle_bomb(d, ts.dictionary({"model_args": ts.dictionary({"dim": doubling()})})),
        errors.CheckpointError,
    ),
    "a thousand sizes of a long list": (
        lambda d: pickle_bomb(
            d, LONG_LIST + (ts.named("torch", "Size") + pickle.BINGET + b"\1" + pickle.TUPLE1 + pickle.REDUCE) * 5000
        ),
        errors.CheckpointError,
    ),
    "a thousand dictionaries of a long list": (
        lambda d: pickle_bomb(
            d,
            LONG_LIST + (ts.named("collections", "OrderedDict") + pickle.BINGET + b"\1" + pickle.TUPLE1 + pickle.REDUCE) * 5000,
        ),
        errors.CheckpointError,
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_hangs_or_swells(case: str, checkpoint: Path, tmp_path: Path) -> None:
    """Refused in one sentence, or, where it is only a description or a template, converted or refused."""
    make, error = HOSTILE[case]
    make(checkpoint)
    done = quantize(checkpoint, tmp_path / "out.gguf")
    assert "unexpectedly" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    if error is not None:
        assert done.returncode == error.exit_code, done.stderr
    else:
        assert done.returncode in (0, errors.TokenizerError.exit_code), done.stderr


def test_an_embedding_larger_than_any_vocabulary_is_refused(checkpoint: Path) -> None:
    """Its rows would be filled with [PADn] pieces by the million, from a file of a few megabytes."""
    with pytest.raises(errors.TokenizerError, match="3000000 rows, twice as many as any vocabulary"):
        read_tokenizer(checkpoint, 3_000_000, {})


@pytest.mark.parametrize(
    ("second", "place"),
    [("a", "8, 16"), ("b", "4, 12")],
    ids=["twice", "overlapping"],
)
def test_safetensors_may_not_repeat_or_overlap(second: str, place: str, checkpoint: Path, tmp_path: Path) -> None:
    entry = '"{}": {{"dtype": "F32", "shape": [2], "data_offsets": [{}]}}'
    header = "{" + entry.format("a", "0, 8") + ", " + entry.format(second, place) + "}"
    (checkpoint / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(16))
    done = quantize(checkpoint, tmp_path / "out.gguf")
    assert done.returncode == errors.CheckpointError.exit_code


def test_a_name_that_is_not_utf8(checkpoint: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/d\xff"
    shutil.copytree(os.fsencode(checkpoint), folder)
    done = quantize(Path(os.fsdecode(folder)), tmp_path / "out.gguf")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors"])
def test_no_file_but_a_gguf_file_is_replaced(name: str, checkpoint: Path) -> None:
    before = (checkpoint / name).read_bytes()
    done = quantize(checkpoint, checkpoint / name)
    assert done.returncode == errors.OutputError.exit_code
    assert (checkpoint / name).read_bytes() == before


def test_a_pipe_or_a_device_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = quantize(checkpoint, tmp_path / "pipe")
    assert done.returncode == errors.OutputError.exit_code
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_stays_a_link(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(tmp_path / "target.gguf")
    assert quantize(checkpoint, tmp_path / "link.gguf").returncode == 0
    assert (tmp_path / "link.gguf").is_symlink()
    assert (tmp_path / "target.gguf").read_bytes()[:4] == b"GGUF"
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    assert quantize(checkpoint, tmp_path / "loop.gguf").returncode == errors.OutputError.exit_code


def test_the_longest_names_there_are(checkpoint: Path, tmp_path: Path) -> None:
    longest = tmp_path / ("n" * 250 + ".gguf")
    assert quantize(checkpoint, longest).returncode == 0
    assert quantize(checkpoint, tmp_path / ("n" * 300)).returncode == errors.OutputError.exit_code
    assert quantize(tmp_path / ("n" * 300), longest).returncode == errors.ModelNotFoundError.exit_code
