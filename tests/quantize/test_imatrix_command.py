"""`tinyedge imatrix` as a person meets it: collecting, stopping and going on, merging, showing, and every refusal."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from tinyedge import errors
from tinyedge.cli import imatrix_collection
from tinyedge.cli.imatrix_lines import statistics_lines
from tinyedge.cli.models import demo_checkpoint
from tinyedge_quantize.convert import convert
from tinyedge_quantize.imatrix.calibrate import ChunkDone
from tinyedge_quantize.imatrix.file import read_imatrix, write_imatrix

TINYEDGE = Path(sys.executable).with_name("tinyedge")
SIZE = ("--ctx", "64", "--threads", "1")


def imatrix(*arguments: object, cwd: Path | None = None, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(TINYEDGE), "imatrix", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, input=text)


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
    for chunks in (3, 5):
        again = imatrix(model, "--text", folder / "text.txt", "-o", path, "--chunks", chunks, *SIZE)
        assert f"{path} has 5 chunks already, {chunks} were asked: nothing to do" in again.stderr
    again = imatrix(model, "--text", folder / "text.txt", "-o", path, "--chunks", 1, "--json", *SIZE)
    report = json.loads(again.stdout)
    assert (report["read_chunks"], report["resumed_chunks"], report["chunks_read_now"], report["tensors"]) == (5, 5, 0, 35)
    assert report["perplexity"] > 1
    assert report["warning"] is None


def total_chunks(said: str) -> int:
    return int(said.splitlines()[-1].split(" of ")[1].split()[0])


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
        word = "interrupted" if number == signal.SIGINT else "terminated"
        verb, total = "is" if reached == 1 else "are", total_chunks(said)
        assert total > reached
        assert said.splitlines()[-1] == (
            f"{word}: {reached} of {total} chunks {verb} in {path}; the same command goes on from there"
        )
        assert {child.name for child in tmp_path.iterdir()} == {path.name, long.name}
    wanted = ("--chunks", reached + 3)
    done = imatrix(folder / "model.gguf", "-o", path, *rest, *wanted)
    assert f"has {reached} chunk" in done.stderr
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
    lines = done.stdout.splitlines()
    assert lines[0] == f"{collected}: 35 tensors, 5 chunks of 64 tokens, from {collected.with_name('text.txt')}"
    assert max(map(len, lines[1:])) <= 100
    head, *tensors = lines[lines.index("") + 1 :]
    words = head.split()
    assert len(tensors) == 35 + 2 + 5
    assert all(line.startswith(("    0 ", "layer")) == ("-" in line.split()) or not line for line in tensors[:-6])
    assert tensors[36].split() == ["layer", "total", "outliers", "similarity"]
    assert tensors[37].split()[-1] == "-"  # there is no layer before the first
    assert not list(tmp_path.iterdir())
    report = json.loads(imatrix("--in-file", collected, "--show", "--json", cwd=tmp_path).stdout)
    assert len(report["tensor_statistics"]) == 35
    assert set(words) < set(report["tensor_statistics"][0])
    assert [each["layer"] for each in report["layer_statistics"]] == [0, 1, 2, 3, 4]
    assert [report[key] for key in ("path", "chunks", "chunk_size")] == [str(collected), 5, 64]
    assert report["datasets"] == [str(collected.with_name("text.txt"))]


def test_the_table_has_100_columns_for_any_names_and_numbers() -> None:
    tensor = dict.fromkeys(("total", "mean", "deviation", "active", "evenness", "outliers", "similarity"), 1.5e29)
    report = {
        "path": None,
        "merged": ["a.gguf", "b.dat"],
        "tensors": 1,
        "chunks": 1,
        "chunk_size": None,
        "datasets": ["1.txt", "2.txt", "2.txt", "3.txt", "4.txt"],
        "tensor_statistics": [tensor | {"layer": 10_000, "kind": "ffn_" + "x" * 50}],
        "layer_statistics": [tensor | {"layer": 10_000, "similarity": None}],
    }
    lines = list(statistics_lines(report))
    assert lines[0] == "a.gguf + b.dat: 1 tensors, 1 chunk, from 1.txt, 2.txt, 3.txt and 1 more"
    assert max(map(len, lines)) == 100
    assert lines[-1].split() == ["10000", "1.50e+29", "1.50e+29", "-"]


def test_an_imatrix_of_another_model_is_not_merged_or_built_upon(collected: Path, folder: Path, tmp_path: Path) -> None:
    there = read_imatrix(collected)
    tensors = {name.replace("blk.4.", "blk.5."): tensor for name, tensor in there.tensors.items()}
    other = tmp_path / "other.gguf"
    write_imatrix(replace(there, tensors=tensors, path=other), other)
    sentence = refused(31, "--in-file", collected, "--in-file", other, "-o", tmp_path / "x.gguf")
    assert f"{collected} is of another model than {other}: it has no values for 'blk.5.attn_k.weight'" in sentence
    arguments = (folder / "model.gguf", "--text", folder / "text.txt", "-o", tmp_path / "x.gguf", *SIZE)
    sentence = refused(31, *arguments, "--in-file", other)
    assert "other.gguf is for another model: it has values for 'blk.5.attn_k.weight', which this model does not" in sentence


def test_a_text_comes_through_a_pipe(collected: Path, folder: Path, tmp_path: Path) -> None:
    arguments = [folder / "model.gguf", "--text", "-", "-o", tmp_path / "x.gguf", "--chunks", 5, *SIZE]
    done = imatrix(*arguments, text=(folder / "text.txt").read_text())
    assert done.returncode == 0, done.stderr
    piped, read = read_imatrix(tmp_path / "x.gguf"), read_imatrix(collected)
    assert piped.datasets == ("standard input",)
    assert all(tensor.sums.tolist() == piped.tensors[name].sums.tolist() for name, tensor in read.tensors.items())
    assert "standard input is empty" in imatrix(*arguments, text="").stderr


def test_the_bar_begins_at_the_chunks_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(sys, "stderr", drawn)
    monkeypatch.setattr(drawn, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    wanted = imatrix_collection.Wanted(
        text=Path("-"),
        output=Path("x"),
        chunks=8,
        context=None,
        threads=None,
        backend="cpu",
        process_output=False,
        parse_special=False,
        save_every=1,
        resume=True,
        quiet=False,
    )
    with imatrix_collection._progress(0, 8, wanted):
        pass
    assert "0/8" in drawn.getvalue()
    with imatrix_collection._progress(3, 8, wanted) as advance:
        advance(ChunkDone(4, 8, 45123.4))
    assert "4/8" in drawn.getvalue()
    assert "perplexity 45123.4000" in drawn.getvalue()


def test_what_is_said_of_options_that_do_not_suit_the_model(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text((folder / "text.txt").read_text() * 10)
    path = tmp_path / "x.gguf"
    arguments = ("demo", "--text", text, "-o", path, "--process-output", "--threads", 1, "--chunks", 1, "--ctx", 1024)
    done = imatrix(*arguments)
    assert done.returncode == 0, done.stderr
    assert "warning: chunks of 1024 tokens are longer than the 512 this model was trained on; take --ctx 512" in done.stderr
    assert "rope" not in done.stderr
    tied = "note: --process-output has no effect: this model has no output.weight"
    assert (tied in done.stderr) == ("output.weight" not in read_imatrix(path).tensors)


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


@pytest.mark.parametrize(
    ("name", "value", "perplexity"), [("token_embd.weight", 1e20, "4096.0000"), ("output_norm.weight", 1e20, "e+")]
)
def test_a_model_that_only_guesses_is_said_to_do_so(
    name: str, value: float, perplexity: str, folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    convert(demo_checkpoint(), model, "F32")
    tensor = next(each for each in gguf.GGUFReader(model, "r+").tensors if each.name == name)
    tensor.data[:] = value

    arguments = (model, "--text", folder / "text.txt", "-o", tmp_path / "x.gguf", "--chunks", 1, *SIZE)
    done = imatrix(*arguments)
    assert done.returncode == 0, done.stderr
    *_, line, note = done.stderr.splitlines()
    assert perplexity in line
    assert len(line) < 200
    assert note.startswith("note: the model predicted the text no better than guessing among its 4096 tokens")
    report = json.loads(imatrix(*arguments, "--overwrite", "--json").stdout)
    assert note == f"note: {report['warning']}"


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
    nothing = f"error: there is no file {tmp_path / 'none'}; check the path given with --text\n"
    assert imatrix("demo", "--text", tmp_path / "none", cwd=here).stderr == nothing  # and nothing of a backend
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert imatrix(model, "--text", empty, cwd=here).stderr.startswith(f"error: {empty} is empty; ")
    for missing in (("--in-file", "nowhere"), ("nowhere", "--show"), (model, "--text", text, "--in-file", "nowhere")):
        assert refused(31, *missing, cwd=here) == "error: there is no file nowhere; check the path"
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
    lines = imatrix("--help").stdout.splitlines()
    assert "  tinyedge imatrix model-f16.gguf --text calibration.txt -o imatrix.gguf" in (line[2:] for line in lines)
    assert any(line.startswith("  Writes llama.cpp's imatrix format.") for line in lines)  # not deeper, as code would be
    assert max(map(len, lines)) <= 80
