"""`tinyedge imatrix` as a person meets it: collecting, stopping and going on, merging, showing, and every refusal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest

from tinyedge import errors
from tinyedge.cli.models import demo_checkpoint
from tinyedge_quantize.convert import convert
from tinyedge_quantize.imatrix.file import read_imatrix

TINYEDGE = Path(sys.executable).with_name("tinyedge")
SIZE = ("--ctx", "64", "--threads", "1")


def imatrix(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(TINYEDGE), "imatrix", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def refused(code: int, *arguments: object, cwd: Path | None = None) -> str:
    """The one sentence of a run that must fail with this exit code, after what it says of the backend."""
    done = imatrix(*arguments, cwd=cwd)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert not done.stdout
    *_, sentence = done.stderr.strip().splitlines()
    assert sentence.startswith("error: ")
    return sentence


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix")
    convert(demo_checkpoint(), path / "model.gguf", "F16")
    story = "Once upon a time there was an old wolf, who ran into the dark wood and said nothing of it to her brother. "
    (path / "text.txt").write_text(story * 60)
    return path


@pytest.fixture(scope="module")
def collected(folder: Path) -> Path:
    done = imatrix(folder / "model.gguf", "--text", folder / "text.txt", "-o", folder / "five.gguf", "--chunks", 5, *SIZE)
    assert done.returncode == 0, done.stderr
    assert "five.gguf: 35 tensors, 5 chunks of 64 tokens, perplexity " in done.stderr
    return folder / "five.gguf"


def test_it_writes_what_llama_cpp_reads(collected: Path, folder: Path) -> None:
    fields = gguf.GGUFReader(collected).fields
    assert fields["general.type"].contents() == "imatrix"
    assert fields["imatrix.datasets"].contents() == [str(folder / "text.txt")]
    assert (fields["imatrix.chunk_count"].contents(), fields["imatrix.chunk_size"].contents()) == (5, 64)
    assert {int(tensor.counts[0]) for tensor in read_imatrix(collected).tensors.values()} == {5 * 64}


def test_more_chunks_are_added_to_what_is_there(collected: Path, folder: Path, tmp_path: Path) -> None:
    model, path = folder / "model.gguf", tmp_path / "x.gguf"
    imatrix(model, "--text", folder / "text.txt", "-o", path, "--chunks", 2, *SIZE)
    done = imatrix(model, "--text", folder / "text.txt", "-o", path, "--chunks", 5, *SIZE)
    assert "has 2 chunks already" in done.stderr
    assert path.read_bytes() == collected.read_bytes()
    again = imatrix(model, "--text", folder / "text.txt", "-o", path, "--chunks", 1, "--json", *SIZE)
    report = json.loads(again.stdout)
    assert (report["read_chunks"], report["resumed_chunks"], report["tensors"]) == (5, 5, 35)
    assert report["perplexity"] > 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_it_goes_on_without_loss(number: signal.Signals, code: int, folder: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "stopped.gguf", tmp_path / "whole.gguf"
    long = tmp_path / "long.txt"
    long.write_text((folder / "text.txt").read_text() * 40)
    rest = ("--text", long, "--save-every", 1, *SIZE)
    command = [str(TINYEDGE), "imatrix", str(folder / "model.gguf"), "-o", str(path), *map(str, rest)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    reached = read_imatrix(path).chunks
    assert reached >= 1
    if number != signal.SIGKILL:
        assert {child.name for child in tmp_path.iterdir()} == {path.name, long.name}
    wanted = ("--chunks", reached + 3)
    done = imatrix(folder / "model.gguf", "-o", path, *rest, *wanted)
    assert f"has {reached} chunks already" in done.stderr
    imatrix(folder / "model.gguf", "-o", whole, *rest, *wanted)
    assert path.read_bytes() == whole.read_bytes()


def test_files_are_merged(collected: Path, tmp_path: Path) -> None:
    done = imatrix("--in-file", collected, "--in-file", collected, "-o", tmp_path / "both.gguf")
    assert done.returncode == 0, done.stderr
    assert "both.gguf: 35 tensors, 10 chunks of 64 tokens, merged from 2 files" in done.stderr
    once, twice = read_imatrix(collected), read_imatrix(tmp_path / "both.gguf")
    for name, tensor in once.tensors.items():
        assert twice.tensors[name].sums.tolist() == (2 * tensor.sums).tolist()
    assert "would be lost" in refused(31, "--in-file", collected, "-o", tmp_path / "both.gguf")
    assert imatrix("--in-file", collected, "-o", tmp_path / "both.gguf", "--overwrite").returncode == 0
    both = tmp_path / "both.gguf"
    assert imatrix("--in-file", both, "--in-file", collected, "-o", both).returncode == 0  # it loses nothing
    assert read_imatrix(both).chunks == 10


def test_collecting_goes_on_top_of_files(collected: Path, folder: Path, tmp_path: Path) -> None:
    arguments = (folder / "model.gguf", "--text", folder / "text.txt", "-o", tmp_path / "x.gguf", *SIZE)
    for chunks in (2, 4):
        done = imatrix(*arguments, "--in-file", collected, "--chunks", chunks)
        assert done.returncode == 0, done.stderr
    assert read_imatrix(tmp_path / "x.gguf").chunks == 9
    assert "upon other files to begin with" in refused(31, *arguments, "--chunks", 6)


def test_statistics_are_shown(collected: Path, tmp_path: Path) -> None:
    done = imatrix(collected, "--show", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split()[:2] == ["layer", "tensor"]
    assert len(lines) == 35 + 2 + 5
    assert lines[0].split()[:2][1] == "attn_k"
    assert not list(tmp_path.iterdir())
    report = json.loads(imatrix("--in-file", collected, "--show", "--json", cwd=tmp_path).stdout)
    assert len(report["tensor_statistics"]) == 35
    assert [each["layer"] for each in report["layer_statistics"]] == [0, 1, 2, 3, 4]


def test_another_collection_is_not_overwritten_unless_asked(collected: Path, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(collected.read_bytes())
    other = tmp_path / "other.txt"
    other.write_text("The sea was grey and the ship was old. " * 40)
    arguments = (folder / "model.gguf", "--text", other, "-o", path, *SIZE)
    assert "was collected from another text, which would be lost" in refused(errors.ImatrixError.exit_code, *arguments)
    assert path.read_bytes() == collected.read_bytes()
    assert imatrix(*arguments, "--overwrite").returncode == 0
    assert read_imatrix(path).datasets == (str(other),)


def test_a_model_is_not_taken_for_an_output(collected: Path, folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes((folder / "model.gguf").read_bytes())
    sentence = refused(31, model, "--text", folder / "text.txt", "-o", model, *SIZE)
    assert "without an importance matrix in it" in sentence
    assert "is a model and would be lost" in refused(31, "--in-file", collected, "-o", model, "--overwrite")
    assert model.read_bytes() == (folder / "model.gguf").read_bytes()


def test_what_cannot_be_done_is_said_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    model, text = folder / "model.gguf", folder / "text.txt"
    short, bad = tmp_path / "short.txt", tmp_path / "bad.gguf"
    short.write_text("Once upon a time.")
    bad.write_bytes(b"GGUF and nothing more")
    here = tmp_path / "out"
    here.mkdir()
    assert "fewer than one chunk of 64" in refused(31, model, "--text", short, *SIZE, cwd=here)
    assert "there is no file" in refused(31, model, "--text", tmp_path / "none", *SIZE, cwd=here)
    assert "bad.gguf" in refused(31, "--in-file", bad, cwd=here)
    assert "bad.gguf" in refused(31, bad, "--show", cwd=here)
    assert "bad.gguf" in refused(31, model, "--text", text, "--in-file", bad, *SIZE, cwd=here)
    assert "nobody" in refused(16, "nobody", "--text", text, cwd=here)
    assert "does not exist" in refused(9, model, "--text", text, "-o", here / "none" / "x.gguf", cwd=here)
    assert "bad.gguf" in refused(11, bad, "--text", text, cwd=here)
    assert not list(here.iterdir())


@pytest.mark.parametrize("arguments", [(), ("demo",), ("--text", "x.txt"), ("demo", "--text", "x", "--ctx", "8")])
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = imatrix(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage:" in done.stderr


def test_help_has_an_example() -> None:
    done = imatrix("--help")
    assert "tinyedge imatrix model-f16.gguf --text calibration.txt -o imatrix.gguf" in done.stdout
