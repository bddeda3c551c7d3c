"""`tinyedge eval` as a user meets it: the table, the document, what it says of bad input, and that the rest goes on."""

from __future__ import annotations

import csv
import json
import math
import os
import pty
import signal
import struct
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest
from tiny_gguf import tiny_parts, tokens, write

COMMAND = Path(sys.executable).with_name("tinyedge")
WORDS = "abide edible imaged chime ml kled jab bid di cable kind "
QUESTIONS = [
    {"goal": f"kled {i}", "sol1": "abide", "sol2": "chime", "label": i % 2} for i in range(6)
]  # PIQA with its labels in the rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one that computes NaN, one with another vocabulary, texts and a task."""
    folder = tmp_path_factory.mktemp("eval")
    write(folder / "one.gguf", tiny_parts(1))
    write(folder / "two.gguf", tiny_parts(2))
    sick = tiny_parts(1)
    norm = sick.tensor("output_norm.weight")
    norm.data = struct.pack("<f", math.nan) * (len(norm.data) // 4)
    write(folder / "sick.gguf", sick)
    other = tiny_parts(1)
    other.set("tokenizer.ggml.tokens", "arr[str]", [*tokens()[:-1], b"zzz"])
    write(folder / "other.gguf", other)
    (folder / "text").write_text(WORDS * 12)
    (folder / "short").write_text(WORDS)
    (folder / "piqa").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    long = QUESTIONS[0] | {"goal": "kled " * 200}  # more than the 128 tokens of context
    (folder / "long").write_text("".join(json.dumps(question) + "\n" for question in (*QUESTIONS, long)))
    speed = {"tinyedge": {"schema": 1, "kind": "speed"}, "date": "", "machine": {}, "build": {}, "results": []}
    for suffix in ("json", "csv", "md"):
        (folder / f"notes.{suffix}").write_text("someone's notes")
    (folder / "bench.json").write_text(json.dumps(speed))
    (folder / "broken").write_text(json.dumps(QUESTIONS[0]) + "\n{\n")
    return folder


def evaluate(folder: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [COMMAND, "eval", *arguments, "--threads", "1", "--backend", "cpu"]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=300, check=False, cwd=folder)


def document(done: subprocess.CompletedProcess[bytes]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, object] = json.loads(done.stdout)
    return found


def cells(done: subprocess.CompletedProcess[bytes]) -> list[list[str]]:
    """The table's head and rows, without the rule between."""
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in (lines[0], *lines[2:])]


def test_one_table_has_a_row_for_each_model_and_a_column_for_each_figure(folder: Path) -> None:
    arguments = ("--text", "text", "--ctx", "32", "--base", "one.gguf", "--task", "piqa=piqa")
    done = evaluate(folder, "one.gguf", "two.gguf", *arguments, "--plot")
    assert done.returncode == 0, done.stderr.decode()
    head, one, two, guessing = cells(done)
    assert head == ["model", "size", "perplexity", "bits/byte", "mean KLD", "99% KLD", "same top", "piqa acc_norm"]
    assert (one[0], two[0]) == ("one.gguf", "two.gguf")
    assert one[4:7] == ["0.000000 ± 0.000000", "0.000000", "100.00 ± 0.00%"]
    assert float(two[4].split()[0]) > 0
    assert one[7].endswith("%")
    assert guessing == ["guessing", "", "", "", "", "", "", "50.00%"]
    plot = done.stdout.decode().splitlines()[6:]
    assert "accuracy" in plot[0] and plot[-1].split() == ["one", "two"]
    assert "windows of 32 tokens of text" in done.stderr.decode()
    assert "context 32 (as asked)" in done.stderr.decode()


def test_questions_that_lost_their_beginning_are_said(folder: Path) -> None:
    done = evaluate(folder, "one.gguf", "--task", "piqa=long")
    said = done.stderr.decode()
    assert "warning: one.gguf: piqa: 1 of 7 questions lost their beginning" in said and "larger --ctx" in said
    assert "; context 128\n" in said
    assert "lost" not in evaluate(folder, "one.gguf", "--task", "piqa=piqa").stderr.decode()


def test_folders_are_shown_where_names_alone_tell_nothing(folder: Path, tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    arguments = ("--text", "text", "--ctx", "32", "--chunks", "1")
    assert [row[0] for row in cells(evaluate(folder, str(tmp_path / "two.gguf"), "one.gguf", *arguments))[1:]] == [
        *("two.gguf", "one.gguf")
    ]
    same = (str(tmp_path / "one.gguf"), "one.gguf")
    shown = [row[0] for row in cells(evaluate(folder, *same, *arguments))[1:]]
    assert shown[0].startswith(str(tmp_path)[:30]) and shown[1] == "one.gguf"
    base = ("--base", str(tmp_path / "two.gguf"), "--json")
    assert str(tmp_path) not in evaluate(folder, str(tmp_path / "one.gguf"), *arguments, *base).stdout.decode()


def test_the_document_says_the_same_on_stdout_and_in_the_file(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    arguments = ("--text", "text", "--ctx", "32", "--chunks", "3", "--base", "two.gguf", "--json", "-o", str(output))
    for _ in range(2):  # older results may be replaced
        found = document(evaluate(folder, "one.gguf", *arguments))
    assert json.loads(output.read_text()) == found
    assert found["tinyedge"] == {"schema": 1, "kind": "quality"}
    (row,) = found["results"]
    assert row["perplexity"] | {"value": 0, "error": 0, "seconds": 0} == {
        "value": 0,
        "error": 0,
        "tokens": 45,
        "chunks": 3,
        "n_ctx": 32,
        "stride": None,
        "text": "text",
        "text_bytes": row["perplexity"]["text_bytes"],
        "seconds": 0,
    }
    assert row["model_filename"] == "one.gguf"
    assert row["file_bytes"] == (folder / "one.gguf").stat().st_size
    assert row["divergence"]["base"] == "two.gguf"
    assert row["divergence"]["ppl_ratio"] == pytest.approx(
        row["perplexity"]["value"] / row["divergence"]["base_perplexity"]["value"]
    )


def test_tables_for_programs_and_for_papers_hold_the_same_figures(folder: Path, tmp_path: Path) -> None:
    arguments = ("--text", "text", "--ctx", "32", "--base", "two.gguf", "--task", "piqa", "--json")
    for _ in range(2):  # older tables may be replaced
        found = document(evaluate(folder, "one.gguf", "two.gguf", *arguments, "-o", str(tmp_path / "q.csv")))
    with (tmp_path / "q.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, result in zip(rows, found["results"], strict=True):
        assert row["model_filename"] == result["model_filename"]
        assert float(row["perplexity.value"]) == result["perplexity"]["value"]
        assert float(row["divergence.kl_percentiles.99.0"]) == result["divergence"]["kl_percentiles"]["99.0"]
        assert float(row["piqa.accuracy_norm"]) == result["tasks"][0]["accuracy_norm"]
    for _ in range(2):
        done = evaluate(folder, "one.gguf", "two.gguf", *arguments[:-1], "-o", str(tmp_path / "q.md"))
    assert (tmp_path / "q.md").read_bytes() == done.stdout


def test_a_guess_at_a_task_few_questions_and_missing_examples_are_said_once_for_all_models(folder: Path) -> None:
    row = {
        "question": {"stem": "kled", "choices": [{"text": "abide", "label": "A"}, {"text": "ml", "label": "B"}]},
        "answerKey": "B",
    }
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")
    done = evaluate(folder, "one.gguf", "two.gguf", "--task", "test.jsonl", "--text", "text", "--ctx", "32", "--chunks", "1")
    said = done.stderr.decode()
    assert cells(done)[0][-1] == "arc_easy acc_norm"
    assert said.count("note: test.jsonl is taken for arc_easy; name it NAME=test.jsonl where it is another's") == 1
    assert said.count("note: arc_easy: fewer than 30 questions tell little") == 1
    assert "1 window of 32 tokens" in said
    named = evaluate(folder, "one.gguf", "--task", "arc_challenge=test.jsonl").stderr.decode()
    assert "is taken for" not in named
    shots = ("--task", "piqa=piqa", "--shots", "2", "--text", "text", "--ctx", "32", "--json")
    found = document(evaluate(folder, "one.gguf", "two.gguf", *shots))
    assert len(found["results"]) == 2 and [each["what"] for each in found["missing"]] == ["task piqa=piqa"]


def test_a_text_comes_through_a_pipe_as_well_as_from_a_file(folder: Path) -> None:
    arguments = ("--ctx", "32", "--json")
    piped = document(evaluate(folder, "one.gguf", "--text", "-", *arguments, stdin=(WORDS * 12).encode()))
    read = document(evaluate(folder, "one.gguf", "--text", "text", *arguments))
    assert piped["results"][0]["perplexity"]["value"] == read["results"][0]["perplexity"]["value"]
    assert piped["results"][0]["perplexity"]["text"] == "standard input"


@pytest.mark.parametrize("command", ["eval", "eval sweep", "bench", "bench compare"])
def test_the_help_pages_fit_a_terminal_of_80_columns(command: str) -> None:
    asked = [COMMAND, *command.split(), "--help"]
    page = subprocess.run(asked, capture_output=True, env=os.environ | {"COLUMNS": "80"}, check=True).stdout.decode()
    assert "Examples:" in page
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("one.gguf",), 2, "give a text with --text, or questions with --task"),
        (("one.gguf", "--task", "piqa=piqa", "--base", "two.gguf"), 2, "a base is compared over a text"),
        (("one.gguf", "--text", "short"), 36, "fewer than the 128 of one window"),
        (("one.gguf", "--text", "gone"), 36, "there is no file gone"),
        (("gone.gguf", "--text", "text"), 16, "gone.gguf"),
        (("sick.gguf", "--text", "text", "--ctx", "32"), 36, "sick.gguf computes NaN or infinity"),
        (("one.gguf", "--text", "text", "--ctx", "32", "--stride", "32"), 36, "take a --stride from 1 to 31"),
        (("one.gguf", "--task", "piqa=broken"), 35, "line 2"),
        (("one.gguf", "--task", "chess=piqa"), 35, "there is no task 'chess'"),
        (("one.gguf", "--text", "text", "-o", "notes.json"), 9, "holds no results"),
        (("one.gguf", "--text", "text", "-o", "q.txt"), 2, "the suffix of 'q.txt' names no format; give FILE.json"),
        (("one.gguf", "--text", "text", "-o", "notes.csv"), 9, "notes.csv is there already and holds no such table"),
        (("one.gguf", "--text", "text", "-o", "notes.md"), 9, "notes.md is there already and holds no such table"),
        (("one.gguf", "--task", "piqa=piqa", "--shots", "2"), 36, "piqa has 0 solved examples to show and 2 were asked for"),
        (("one.gguf", "--text", "text", "-o", "bench.json"), 9, "holds results of another kind (speed, not quality)"),
        (("one.gguf", "--text", "text", "-o", "gone/results.json"), 9, "the folder gone does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_its_exit_code(arguments: tuple[str, ...], code: int, problem: str, folder: Path) -> None:
    done = evaluate(folder, *arguments)
    error = " ".join(done.stderr.decode().replace("│", " ").split())
    assert (done.returncode, done.stdout) == (code, b""), error
    assert problem in error
    assert "Invalid value for '--text'" not in error
    assert "Traceback" not in error


def test_what_can_be_measured_is_and_the_rest_is_said_to_be_missing(folder: Path) -> None:
    models = ("sick.gguf", "gone.gguf", "one.gguf")
    arguments = ("--text", "text", "--ctx", "32", "--base", "other.gguf", "--task", "piqa=piqa", "--task", "broken")
    found = document(evaluate(folder, *models, *arguments, "--json"))
    rows = {row["model_filename"]: row for row in found["results"]}
    assert "perplexity" in rows["one.gguf"] and "divergence" not in rows["one.gguf"]
    assert [task["task"] for task in rows["one.gguf"]["tasks"]] == ["piqa"]
    missing = {each["what"]: each["reason"] for each in found["missing"]}
    assert "list of tokens is another" in missing["one.gguf: divergence from other.gguf"]
    assert "NaN" in missing["sick.gguf: perplexity over text"]
    assert "line 2" in missing["task broken"]
    assert "gone.gguf" in missing
    said = evaluate(folder, *models, *arguments).stderr.decode()
    assert all(f"missing: {what} (" in said for what in missing)


def test_a_terminal_sees_the_perplexity_so_far_and_ctrl_c_leaves_what_was_measured(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "long").write_text(WORDS * 1500)
    ours, theirs = pty.openpty()
    output = tmp_path / "results.json"
    command = [COMMAND, "eval", "one.gguf", "two.gguf", "--text", str(tmp_path / "long"), "--ctx", "32", "-o", str(output)]
    process = subprocess.Popen(
        [*command, "--threads", "1"], stdout=subprocess.PIPE, stderr=theirs, cwd=folder, env=os.environ | {"COLUMNS": "200"}
    )
    os.close(theirs)
    seen = b""
    while b"two.gguf: long, perplexity" not in seen:
        seen += os.read(ours, 4096)
    sleep(0.1)
    process.send_signal(signal.SIGINT)
    table = process.communicate(timeout=60)[0].decode()
    os.close(ours)
    assert process.returncode == 130
    assert b"one.gguf: long, perplexity " in seen
    left = json.loads(output.read_text())
    assert [row["model_filename"] for row in left["results"]] == ["one.gguf"]
    assert left["missing"] == [{"what": "two.gguf", "reason": "interrupted"}]
    assert "one.gguf" in table and "two.gguf" not in table
