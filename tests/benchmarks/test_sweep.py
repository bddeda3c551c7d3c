"""A sweep over types of the demo checkpoint: figures against llama.cpp's own, what is missing, and what is left on the disk."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import DiskSpaceError, EvaluationError, OutputError
from tinyedge.gguf_file import read_gguf
from tinyedge_bench.quality import sweep_files
from tinyedge_bench.quality.sweep import SweepWishes, sweep
from tinyedge_bench.quality.sweep_files import exact_type, folder_for
from tinyedge_bench.quality.sweep_steps import speed_doubts
from tinyedge_bench.quality.text import Text
from tinyedge_bench.result_files import read_json_document
from tinyedge_bench.suite.random_checkpoint import LlamaShape, demo_tokenizer, make_checkpoint
from tinyedge_quantize.convert import Wishes, convert, open_source, plan_conversion
from tinyedge_quantize.recipes import UnknownTypeError, find_recipe

DEMO = demo_tokenizer().parent
WORDS = "the old king went down to the river and saw a white bird that sang of winter snow while his two sons slept by the fire"
# What llama-perplexity (of llama-cpp-python 0.3.36) says of the text below and `tinyedge quantize demo -t F16` and `-t Q4_K_M`:
#   llama-perplexity -m demo-F16.gguf -f t.txt -c 256 -b 256 -t 1 --kl-divergence-base base.kld
#   llama-perplexity -m demo-Q4_K_M.gguf -f t.txt -c 256 -b 256 -t 1 --kl-divergence --kl-divergence-base base.kld
PERPLEXITY, BASE_PERPLEXITY, MEAN_KL, SAME_TOP = 1077.039354, 1059.5016, 0.005985, 0.90551


def _text(folder: Path) -> Text:
    words = WORDS.split()
    picked = [words[(place * place * 7 + 3 * place) % len(words)] + "." * (place % 11 == 10) for place in range(700)]
    path = folder / "t.txt"
    path.write_text(" ".join(picked), encoding="utf-8")
    return Text(path=path)


def test_figures_are_llama_perplexitys_and_what_cannot_be_made_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("TMPDIR", str(work))
    told: list[tuple[str, float]] = []
    wishes = SweepWishes(
        checkpoint=DEMO,
        types=("Q8_0", "IQ2_XXS", "q4_k", "nonsense", "F16", "Q4_K_M"),
        text=_text(tmp_path),
        base="f16",
        context=256,
        prompt=8,
        generate=4,
        runs=2,
        threads=1,
        backend="cpu",
    )
    document = sweep(wishes, lambda what, share: told.append((what, share)))
    assert [row["type"] for row in document.results] == ["Q8_0", "Q4_K_M"]
    row, base = document.results[1], document.more["base"]
    assert row["perplexity"]["value"] == pytest.approx(PERPLEXITY, rel=1e-3)
    assert base["perplexity"]["value"] == pytest.approx(BASE_PERPLEXITY, rel=1e-3)
    assert row["divergence"]["mean_kl"] == pytest.approx(MEAN_KL, rel=0.02)
    assert row["divergence"]["same_top"] == pytest.approx(SAME_TOP, abs=0.01)
    assert [each.what for each in document.missing] == ["IQ2_XXS", "NONSENSE"]
    assert "without an importance matrix" in document.missing[0].reason
    assert all(each["pareto"] for each in document.results)
    assert row["file_bytes"] < document.results[0]["file_bytes"] < base["file_bytes"]
    assert row["bits_per_weight"] == pytest.approx(5.24, abs=0.01)
    assert all(
        len(each["prompt_samples_tokens_per_s"]) == 2 and each["generated_tokens_per_s"] > 0 for each in document.results
    )
    rounds = [what for what, _ in told if "speed" in what]
    assert list(dict.fromkeys(rounds)) == [
        f"{kind}: speed, round {n} of 2" for n in (1, 2) for kind in ("F16", "Q8_0", "Q4_K_M")
    ]
    assert document.more["speed_order"].startswith("interleaved")
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert list(work.iterdir()) == []
    saved = tmp_path / "sweep.json"
    saved.write_text(json.dumps(document.as_json(), allow_nan=False), encoding="utf-8")
    assert read_json_document(saved).kind == "sweep"
    assert str(tmp_path) not in saved.read_text(encoding="utf-8")


def test_a_gguf_file_is_its_own_base_and_files_are_kept_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    convert(DEMO, path, "Q8_0")
    document = sweep(
        SweepWishes(
            checkpoint=path, types=("Q4_0",), text=_text(tmp_path), context=256, chunks=1, runs=0, keep=tmp_path / "kept"
        )
    )
    base, row = document.more["base"], document.results[0]
    assert (base["type"], base["model_filename"], base["note"]) == ("Q8_0", "own.gguf", "the base is own.gguf itself")
    assert row["perplexity"]["chunks"] == 1 and row["prompt_tokens_per_s"] is None and document.more["speed_order"] is None
    assert [each.name for each in (tmp_path / "kept").iterdir()] == ["own-Q4_0.gguf"]
    assert row["file_bytes"] == (tmp_path / "kept" / "own-Q4_0.gguf").stat().st_size


def test_a_base_among_the_kept_files_is_not_replaced(tmp_path: Path) -> None:
    base = tmp_path / f"{DEMO.name}-Q8_0.gguf"
    convert(DEMO, base, "Q8_0")
    before = base.stat()
    wishes = SweepWishes(
        checkpoint=DEMO,
        types=("Q8_0", "Q4_0"),
        text=_text(tmp_path),
        base=str(base),
        context=64,
        chunks=1,
        runs=0,
        keep=tmp_path,
    )
    document = sweep(wishes)
    assert [row["type"] for row in document.results] == ["Q4_0"]
    assert "is the base and cannot be replaced" in document.missing[0].reason
    assert (base.stat().st_ino, base.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_without_room_for_all_each_file_goes_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(sweep_files, "_free", lambda _folder: 13_000_000)  # the base has 7.8 MB, Q8_0 4.2, Q4_0 2.5
    files: list[set[str]] = []

    def look(_what: str, _share: float) -> None:
        files.append({path.name for path in tmp_path.glob(".tinyedge-sweep-*/[!.]*")})  # no file that is being written

    wishes = SweepWishes(
        checkpoint=DEMO, types=("Q8_0", "Q4_0"), text=_text(tmp_path), context=256, chunks=1, prompt=4, generate=0, runs=1
    )
    document = sweep(wishes, look)
    assert document.more["speed_order"].startswith("one type after the other")
    assert all(len(names) <= 2 for names in files) and {"demo-BF16.gguf", "demo-Q4_0.gguf"} in files
    assert all(row["prompt_tokens_per_s"] > 0 and row["generated_tokens_per_s"] is None for row in document.results)


def test_a_disk_that_holds_not_even_one_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(DiskSpaceError, match="the sweep needs"), folder_for(None, [1 << 60], 0):
        pass
    with pytest.raises(DiskSpaceError, match="to spare"), folder_for(tmp_path / "kept", [1 << 60], 0):
        pass


def test_the_base_is_the_type_that_holds_the_weights_unchanged(tmp_path: Path) -> None:
    shape = LlamaShape(layers=1, hidden=64, ffn=128, heads=2, kv_heads=1, vocabulary=4096, context=64)
    for dtype in ("BF16", "F32"):
        make_checkpoint(tmp_path / dtype, shape, demo_tokenizer(), dtype=dtype)
        with open_source(tmp_path / dtype, Wishes()) as source:
            assert exact_type(plan_conversion(source, find_recipe("F16"))) == dtype


@pytest.mark.parametrize(
    ("wishes", "error", "words"),
    [
        ({"types": ("IQ1_S",)}, EvaluationError, "not one type could be measured.*importance matrix"),
        ({"context": 512}, EvaluationError, "t.txt has .* tokens, fewer than the 512 of one window"),
        ({"base": "nowhere.gguf"}, OutputError, "the base nowhere.gguf is not a file"),
        ({"base": "OTHER"}, EvaluationError, "cannot be the base of"),
    ],
)
def test_what_concerns_all_types_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wishes: dict[str, object], error: type[Exception], words: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    text = tmp_path / "t.txt"
    text.write_text("a short text about a king and a river. " * 30, encoding="utf-8")
    if wishes.get("base") == "OTHER":
        wishes = {"base": str(write(tmp_path / "other.gguf", tiny_parts()))}
    given = {"types": ("Q8_0",), "context": 64, "runs": 0} | wishes
    with pytest.raises(error, match=words):
        sweep(SweepWishes(checkpoint=DEMO, text=Text(path=text), **given))  # type: ignore[arg-type]
    assert not list(tmp_path.glob(".tinyedge-sweep-*"))


def test_ctrl_c_leaves_no_files_and_shows_what_was_measured(tmp_path: Path) -> None:
    work, text = tmp_path / "work", _text(tmp_path)
    work.mkdir()
    command = [sys.executable, "-m", "tinyedge", "eval", "sweep", str(DEMO), "--types", "Q8_0,Q6_K,Q4_K_M", "--json"]
    child = subprocess.Popen(
        [*command, "--text", str(text.path), "--ctx", "64", "--runs", "1000"],
        env=os.environ | {"TMPDIR": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while not list(work.glob("*/demo-Q6_K.gguf")) and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    shown, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (130, b"interrupted\n")
    document = json.loads(shown)
    assert document["results"][0]["type"] == "Q8_0"
    assert document["missing"][-1] == {"what": "the rest", "reason": "the sweep was interrupted"}
    assert list(work.iterdir()) == []


def test_the_command_shows_a_table_a_plot_and_what_the_figures_are(tmp_path: Path) -> None:
    saved = tmp_path / "sweep.json"
    command = [sys.executable, "-m", "tinyedge", "eval", "sweep", str(DEMO), "--types", "Q8_0,Q4_0,IQ1_S", "--plot"]
    task = tmp_path / "piqa"
    task.write_text(json.dumps({"goal": "king and river " * 300, "sol1": "a bird", "sol2": "fire", "label": 1}) + "\n")
    options = ["--ctx", "256", "--chunks", "1", "-r", "1", "-p", "8", "-n", "0", "-o", str(saved), "--task", f"piqa={task}"]
    given = {"input": _text(tmp_path).path.read_bytes(), "env": os.environ | {"TMPDIR": str(tmp_path)}}
    done = subprocess.run([*command, *options, "--text", "-"], capture_output=True, timeout=120, **given)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    head, _, base, first, second, guessing, *plot = done.stdout.decode().splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        *("type", "size", "bits", "perplexity", "mean KLD", "same top", "prompt t/s", "Pareto", "piqa acc_norm")
    ]
    assert base.startswith("| BF16 (base)") and first.startswith("| Q8_0") and second.startswith("| Q4_0")
    assert "yes |" in first and "yes |" in second and "yes" not in base
    assert guessing.startswith("| guessing ") and guessing.endswith(" 50.00% |")
    assert any("Q4_0" in line for line in plot)
    notes = done.stderr.decode()
    assert "the base is BF16, which holds the checkpoint's weights unchanged; 127 tokens of standard input scored" in notes
    assert "the median of 1 run of 8 prompt tokens (cpu, " in notes and " threads), interleaved" in notes
    assert notes.count("piqa: 1 of 1 questions lost their beginning") == 1
    assert notes.count("note: piqa: fewer than 30 questions tell little") == 1
    assert "missing: IQ1_S (tensor blk.0" in notes
    assert read_json_document(saved).results[0]["type"] == "Q8_0"
    table = [*options[: options.index("-o")], "-o", str(saved.with_suffix(".csv"))]
    subprocess.run([*command, *table, "--text", "-"], capture_output=True, timeout=120, check=True, **given)  # type: ignore[call-overload]
    rows = list(csv.DictReader(saved.with_suffix(".csv").read_text().splitlines()))
    assert [(row["type"], row["pareto"]) for row in rows] == [("BF16", ""), ("Q8_0", "True"), ("Q4_0", "True")]
    assert float(rows[2]["file_bytes"]) == read_json_document(saved).results[1]["file_bytes"]
    before = saved.read_bytes()
    saved.write_bytes(b"someone's notes")
    refused = subprocess.run([*command, *options, "--text", "-"], capture_output=True, timeout=120, **given)  # type: ignore[call-overload]
    assert refused.returncode == OutputError.exit_code and saved.read_bytes() == b"someone's notes" != before


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (("--types", "Q4_K_M,Q9_X"), UnknownTypeError.exit_code, "there is no quantization type Q9_X"),
        (("-o", "x.txt"), 2, "the suffix of 'x.txt' names no format; give FILE.json"),
    ],
)
def test_what_can_be_seen_at_once_is_said_at_once(tmp_path: Path, options: tuple[str, ...], code: int, problem: str) -> None:
    command = [sys.executable, "-m", "tinyedge", "eval", "sweep", "no-such-model", "--text", "no-such-text", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    said = " ".join(done.stderr.replace("│", " ").split())
    assert (done.returncode, done.stdout) == (code, "") and problem in said, said


def test_what_is_quantized_already_is_refused_with_advice_that_a_sweep_can_follow(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    convert(DEMO, path, "Q4_0")
    with pytest.raises(EvaluationError, match="sweep the checkpoint, or its F16 file") as caught:
        sweep(SweepWishes(checkpoint=path, types=("Q8_0", "Q3_K_M"), text=_text(tmp_path), context=64, runs=0))
    assert "--allow" not in str(caught.value)


def test_speeds_that_differ_from_run_to_run_are_doubted() -> None:
    assert list(speed_doubts("Q8_0: prompt tokens", [100.0, 101.0, 102.0])) == []
    assert list(speed_doubts("Q8_0: prompt tokens", [100.0, 120.0])) == []  # too few to tell
    (doubt,) = speed_doubts("Q8_0: prompt tokens", [100.0, 101.0, 120.0])
    assert doubt == "Q8_0: prompt tokens: runs differ by 20% (100.0 to 120.0); let the machine rest and sweep again"


def test_examples_are_shown_and_too_few_are_said_once(tmp_path: Path) -> None:
    rows = [{"goal": f"king {number}", "sol1": "a bird", "sol2": "fire", "label": 1} for number in range(3)]
    task, solved = tmp_path / "piqa", tmp_path / "solved"
    for path in (task, solved):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wishes = SweepWishes(checkpoint=DEMO, types=("Q8_0",), text=_text(tmp_path), context=64, chunks=1, runs=0, shots=2)
    document = sweep(replace(wishes, tasks=(f"piqa={task}", f"piqa={task},{solved}")))
    assert [(score["shots"], score["questions"]) for score in document.results[0]["tasks"]] == [(2, 3)]
    assert [each.what for each in document.missing] == [f"task piqa={task}"]
    assert "0 solved examples to show and 2 were asked for" in document.missing[0].reason


def test_the_header_of_a_kept_file_names_its_type(tmp_path: Path) -> None:
    sweep(SweepWishes(checkpoint=DEMO, types=("Q6_K",), text=_text(tmp_path), context=64, chunks=1, runs=0, keep=tmp_path))
    assert read_gguf(tmp_path / "demo-Q6_K.gguf").metadata["general.file_type"] == 18
