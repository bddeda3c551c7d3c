"""The options of `tinyedge quantize` through the installed command: what they do, what a dry run says of them, what is kept."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tinyedge.cli.models import demo_checkpoint
from tinyedge_quantize.imatrix.file import write_imatrix
from tinyedge_quantize.imatrix.importance import DEFAULT_CHUNK, Imatrix, SquareSums

TINYEDGE = Path(sys.executable).with_name("tinyedge")


def tinyedge(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(TINYEDGE), *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd=cwd)


def quantize(folder: Path, *options: object) -> gguf.GGUFReader:
    """The file that the demo becomes with these options; a dry run must have said its exact size before."""
    planned = tinyedge("quantize", demo_checkpoint(), *options, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    done = tinyedge("quantize", demo_checkpoint(), "-o", folder / "out.gguf", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(planned.stdout)["bytes"] == (folder / "out.gguf").stat().st_size
    return gguf.GGUFReader(folder / "out.gguf")


def types(reader: gguf.GGUFReader) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def value(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights for every matrix of the demo's layers."""
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    random = np.random.default_rng(1)
    plan = json.loads(tinyedge("quantize", demo_checkpoint(), "--dry-run", "--json").stdout)
    tensors = {
        tensor["name"]: SquareSums(random.chisquare(1, tensor["shape"][1]).astype(np.float32), np.array([1], np.int64))
        for tensor in plan["tensors"]
        if tensor["name"].startswith("blk.") and len(tensor["shape"]) == 2
    }
    write_imatrix(Imatrix(path, tensors, ("text",), 1, DEFAULT_CHUNK), path)
    return path


def test_types_by_name(tmp_path: Path) -> None:
    found = types(
        quantize(tmp_path, "--tensor-type", r"ffn_down=Q8_0", "--output-tensor-type", "F16", "--tensor-type", "attn_v=q5_0")
    )
    assert found["blk.0.ffn_down.weight"] == "Q8_0"
    assert found["blk.1.attn_v.weight"] == "Q5_0"


def test_types_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "types.txt").write_text("blk.0.attn_q=Q8_0\nattn_q=Q6_K\n")
    found = types(quantize(tmp_path, "--tensor-type-file", tmp_path / "types.txt"))
    assert (found["blk.0.attn_q.weight"], found["blk.1.attn_q.weight"]) == ("Q8_0", "Q6_K")


def test_a_pattern_that_matches_nothing_is_said_and_no_error(tmp_path: Path) -> None:
    done = tinyedge("quantize", demo_checkpoint(), "-o", tmp_path / "out.gguf", "--tensor-type", "ffn_dwon=Q8_0")
    assert done.returncode == 0
    assert "ffn_dwon=Q8_0 matches no tensor" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--tensor-type", "ffn_down"), "ffn_down"),
        (("--tensor-type", "ffn_(=Q8_0"), "ffn_("),
        (("--tensor-type", "ffn_down=Q9_K"), "Q9_K"),
        (("--prune-layers", "99"), "no layer 99"),
        (("--prune-layers", "x"), "x"),
        (("--override-kv", "a=b"), "a=b"),
        (("--split-max-size", "2X"), "not a maximum size"),
        (("-t", "Q4_K_X"), "no quantization type Q4_K_X"),
    ],
)
def test_wrong_usage_ends_in_one_sentence(options: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = tinyedge("quantize", demo_checkpoint(), "-o", tmp_path / "out.gguf", *options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_pure_leaves_no_mix(tmp_path: Path) -> None:
    assert set(types(quantize(tmp_path, "--pure")).values()) == {"Q4_K", "F32"}


def test_layers_are_pruned_and_the_rest_runs(tmp_path: Path) -> None:
    reader = quantize(tmp_path, "--prune-layers", "1,3")
    whole = json.loads(tinyedge("quantize", demo_checkpoint(), "--dry-run", "--json").stdout)
    layers = len({tensor["name"].split(".")[1] for tensor in whole["tensors"] if tensor["name"].startswith("blk.")})
    assert value(reader, "llama.block_count") == layers - 2
    assert tinyedge("run", tmp_path / "out.gguf", "-p", "Once", "-n", 4).returncode == 0


def test_metadata_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text(json.dumps({"general.author": "A. Person", "general.name": "Mine"}))
    reader = quantize(
        tmp_path,
        "--metadata",
        tmp_path / "about.json",
        "--override-kv",
        "llama.context_length=int:256",
        "--override-kv",
        "x.y=bool:true",
    )
    assert (value(reader, "general.author"), value(reader, "general.name")) == ("A. Person", "Mine")
    assert (value(reader, "llama.context_length"), value(reader, "x.y")) == (256, True)


def test_types_that_need_an_imatrix_are_refused_without_and_made_with_one(tmp_path: Path, imatrix: Path) -> None:
    done = tinyedge("quantize", demo_checkpoint(), "-t", "IQ2_XS", "-o", tmp_path / "out.gguf")
    assert done.returncode == 31
    assert "IQ2_XS" in done.stderr
    assert "tinyedge imatrix" in done.stderr
    assert not list(tmp_path.iterdir())
    reader = quantize(tmp_path, "-t", "IQ2_XS", "--imatrix", imatrix)
    assert "IQ2_XS" in types(reader).values()
    assert value(reader, "quantize.imatrix.entries_count") == sum(
        name.startswith("blk.") and "norm" not in name for name in types(reader)
    )


def test_an_imatrix_changes_bytes_and_is_recorded(tmp_path: Path, imatrix: Path) -> None:
    plain = {tensor.name: tensor.data.tobytes() for tensor in quantize(tmp_path).tensors}
    reader = quantize(tmp_path, "--imatrix", imatrix)
    changed = {tensor.name for tensor in reader.tensors if tensor.data.tobytes() != plain[tensor.name]}
    assert "blk.0.attn_q.weight" in changed
    assert "output_norm.weight" not in changed
    assert value(reader, "tinyedge.imatrix.sha256") == hashlib.sha256(imatrix.read_bytes()).hexdigest()


def test_what_made_the_source_is_not_said_of_what_is_made_from_it(tmp_path: Path, imatrix: Path) -> None:
    quantize(tmp_path, "-t", "Q8_0", "--imatrix", imatrix)
    done = tinyedge("quantize", tmp_path / "out.gguf", "-t", "Q4_0", "-o", tmp_path / "again.gguf")
    assert done.returncode == 0, done.stderr
    fields = gguf.GGUFReader(tmp_path / "again.gguf").fields
    assert "tinyedge.imatrix.sha256" not in fields
    assert fields["tinyedge.recipe"].contents() == "Q4_0"


def test_an_imatrix_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    sums = SquareSums(np.ones(64, np.float32), np.array([1], np.int64))
    write_imatrix(Imatrix(path, {"blk.0.attn_q.weight": sums}, ("text",), 1, DEFAULT_CHUNK), path)
    done = tinyedge("quantize", demo_checkpoint(), "-o", tmp_path / "out.gguf", "--imatrix", path)
    assert done.returncode == 31
    assert "another model" in done.stderr
    assert not (tmp_path / "out.gguf").exists()


def test_what_made_the_file_is_in_it(tmp_path: Path) -> None:
    reader = quantize(tmp_path, "--tensor-type", "ffn_down=Q8_0", "--leave-output")
    weights = demo_checkpoint() / "pytorch_model.bin"
    assert value(reader, "tinyedge.source.files") == [weights.name]
    assert value(reader, "tinyedge.source.sha256") == [hashlib.sha256(weights.read_bytes()).hexdigest()]
    assert value(reader, "tinyedge.recipe") == "Q4_K_M --tensor-type ffn_down=Q8_0 --leave-output"
    versions = tinyedge("--version").stdout
    assert f"tinyedge {value(reader, 'tinyedge.version')} " in versions
    assert f"ggml {value(reader, 'tinyedge.ggml.version')}\n" in versions


def test_a_file_in_parts_verifies_and_runs(tmp_path: Path) -> None:
    done = tinyedge("quantize", demo_checkpoint(), "-o", tmp_path / "m.gguf", "--split-max-size", "1M", "--json")
    report = json.loads(done.stdout)
    assert len(report["paths"]) > 1
    assert report["bytes"] == sum(Path(path).stat().st_size for path in report["paths"])
    assert tinyedge("run", report["path"], "-p", "Once", "-n", 4).returncode == 0


def test_verify_in_the_same_pass(tmp_path: Path) -> None:
    done = tinyedge("quantize", demo_checkpoint(), "-o", tmp_path / "out.gguf", "--verify", "--json")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)["verification"]
    alone = json.loads(tinyedge("verify", tmp_path / "out.gguf", "--against", demo_checkpoint(), "--json").stdout)
    assert seen["passed"] and alone["passed"]
    assert {t["name"]: t["sha256"] for t in seen["tensors"]} == {t["name"]: t["sha256"] for t in alone["tensors"]}


def test_the_types_are_listed() -> None:
    listed = json.loads(tinyedge("quantize", "--types", "--json").stdout)["types"]
    assert {"Q4_K_M", "IQ4_XS", "TQ2_0", "F16"} <= {row["type"] for row in listed}
    assert "Q4_K_M" in tinyedge("quantize", "--types").stdout


def test_a_gguf_file_lends_its_name_without_its_type_and_part(tmp_path: Path) -> None:
    done = tinyedge("quantize", "demo", "-t", "F16", "-o", tmp_path / "gemma-2b-it-f16.gguf", "--split-max-size", "3M")
    assert done.returncode == 0, done.stderr
    assert "gemma-2b-it-f16-00001-of-00003.gguf and 2 more" in done.stderr
    done = tinyedge("quantize", tmp_path / "gemma-2b-it-f16-00001-of-00003.gguf", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gemma-2b-it-Q4_K_M.gguf").is_file()


def test_a_part_that_cannot_be_divided_is_said(tmp_path: Path) -> None:
    done = tinyedge("quantize", "demo", "-t", "F16", "-o", tmp_path / "m.gguf", "--split-max-size", "1M")
    assert "bytes of tensors: token_embd.weight cannot be divided" in done.stderr


def test_a_dry_run_has_nothing_to_verify() -> None:
    done = tinyedge("quantize", "demo", "--dry-run", "--verify")
    assert done.returncode == 2
    assert "a dry run writes nothing" in done.stderr
