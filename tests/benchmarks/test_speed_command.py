"""`tinyedge bench` as a user meets it: sweeps, files, peers in turn, what is missing, Ctrl-C."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge_bench.result_files import read_json_document

COMMAND = Path(sys.executable).with_name("tinyedge")
QUICK = ("--no-ceilings", "--no-loads", "--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())  # trained on a context of 128


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL)


def results(*arguments: str | Path) -> tuple[list[dict[str, Any]], list[dict[str, str]], str]:
    """The rows and what is missing of a run that ends well, and what it said on stderr."""
    done = bench(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["tinyedge"] == {"schema": 1, "kind": "speed"}
    return document["results"], document["missing"], done.stderr


def test_a_sweep_measures_every_combination(model: Path) -> None:
    lists = ("-p", "8,16", "-n", "4", "-pg", "8,4", "-d", "0,8", "--kv", "f16,q8_0", "--batch", "1,2", "-r", "2")
    rows, missing, _ = results(model, *lists, *QUICK)
    assert missing == []
    assert len(rows) == 4 * 2 * 2 * 2
    assert [row["test"] for row in rows[:9]] == [
        "pp8", "pp16", "tg4", "pp8+tg4", "pp8 @ d8", "pp16 @ d8", "tg4 @ d8", "pp8+tg4 @ d8", "pp8 x2",
    ]  # fmt: skip
    assert all(len(row["samples_ns"]) == 2 for row in rows)
    assert {(row["type_k"], row["n_parallel"], row["n_depth"]) for row in rows} == {
        (kind, texts, depth) for kind in ("f16", "q8_0") for texts in (1, 2) for depth in (0, 8)
    }
    for row in rows:
        assert (row["ttft_ns"] is None) == (row["n_prompt"] == 0), row["test"]
        tokens = (row["n_prompt"] + row["n_gen"]) * row["n_parallel"]
        assert row["samples_ts"] == pytest.approx([tokens * 1e9 / each for each in row["samples_ns"]], rel=1e-4)


def test_ceilings_and_loads_stand_beside_the_speeds(model: Path) -> None:
    done = bench(model, "-p", "16", "-n", "4", "-r", "1", "--threads", "1", "--json")
    document = json.loads(done.stdout)
    assert document["ceilings"]["bandwidth"]["1"] > 1e8
    assert max(document["ceilings"]["matrix"]["cpu"]["1"].values()) > 1e8
    prompt, generated = document["results"]
    assert generated["bytes_per_s"] > 0
    assert generated["bandwidth_share"] is None, "a model of a few kilobytes is read from the caches"
    assert 0 < prompt["matrix_share"] < 2
    (load,) = document["loads"]
    assert (load["model_filename"], load["backends"]) == ("tiny.gguf", "cpu")
    assert load["warm_s"] > 0
    assert load["peak_memory_bytes"] > model.stat().st_size


def test_several_files_are_told_apart_by_the_names_that_were_typed(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    done = bench("demo", model, "-p", "8,999", "-n", "0", "-r", "1", *QUICK, "-o", path)
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in done.stdout.splitlines() if " pp8 |" in line]
    assert [cell[1] for cell in cells[:2]] == ["demo", "tiny.gguf"]
    document = read_json_document(path)
    filename = document.results[0]["model_filename"]
    assert filename.endswith("-Q4_K_M.gguf") and document.more["typed"] == {filename: "demo"}
    assert [each.what for each in document.missing] == ["demo: pp999", "tiny.gguf: pp999"]


def test_what_cannot_run_is_missing_with_its_reason_and_the_rest_is_measured(model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model.read_bytes()[:-5000])
    models = (model, damaged, tmp_path / "absent.gguf")
    rows, missing, stderr = results(
        *models, "-p", "16,999", "-n", "0", "--backend", "cpu,cann", "-r", "1", "--peer", "llama-bench=/absent", *QUICK
    )
    assert [(row["test"], row["engine"]) for row in rows] == [("pp16", "tinyedge")]
    reasons = {each["what"]: each["reason"] for each in missing}
    assert "do not fit the context of 128" in reasons["tiny.gguf: pp999, cpu"]
    assert "CANN" in reasons["tiny.gguf: pp16, cann; pp999, cann"]
    assert "truncated" in reasons["damaged.gguf"]
    assert "does not exist" in reasons[str(tmp_path / "absent.gguf")]
    assert "peer llama-bench for tiny.gguf" in reasons
    assert len(reasons) == 5
    assert stderr.count("missing: ") == 5
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["-p", "999", "-n", "0"], 15), (["--backend", "cann"], 12), (["--backend", "nosuch"], 12)],
    ids=lambda value: str(value),
)
def test_when_nothing_could_be_measured_the_first_reason_is_the_error(model: Path, arguments: list[str], code: int) -> None:
    done = bench(model, *arguments, *QUICK)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")


def test_a_peer_that_there_is_not_is_wrong_usage_before_anything_is_measured(model: Path) -> None:
    done = bench(model, "-r", "100000", "--peer", "vllm=x", *QUICK)
    assert (done.returncode, done.stdout) == (2, "")
    said = "there is no peer 'vllm'; there are llama-bench=PATH, llama-cpp-python, ollama, mlx-lm=FOLDER"
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_waiting_for_a_cool_board_is_said_once_where_nothing_tells_its_heat(model: Path) -> None:
    rows, _, stderr = results(model, "-p", "8", "-n", "0", "-r", "2", "--cool", "99C", *QUICK)
    assert len(rows[0]["samples_ns"]) == 2
    assert stderr.count("tells no temperature") == (rows[0]["temperature_c"] is None)


def _peer(folder: Path, *, runs: int) -> Path:
    """A llama-bench that needs a millisecond per token, notes each run in `turns`, and fails after so many of them."""
    program = folder / "llama-bench"
    turns = folder / "turns"
    program.write_text(
        f"""#!{sys.executable}
import json, sys
if "--help" in sys.argv:
    sys.exit(print("-d, --n-depth <n>"))
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
prompt, generated = int(asked["-p"]), int(asked["-n"])
if prompt != 1:
    with open({str(turns)!r}, "a+") as file:
        file.seek(0)
        if len(file.readlines()) >= {runs}:
            sys.exit("out of memory")
        file.write(f"{{prompt}},{{generated}}\\n")
print(json.dumps([{{
    "build_commit": "abc", "build_number": 7, "backends": "CPU", "n_prompt": prompt, "n_gen": generated,
    "n_depth": int(asked.get("-d", 0)), "n_threads": int(asked.get("-t", 1)),
    "samples_ns": [1000000 * (prompt + generated)],
}}]))
""",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return program


def test_a_peer_is_measured_in_turn(model: Path, tmp_path: Path) -> None:
    peer = _peer(tmp_path, runs=99)
    rows, missing, _ = results(model, "-p", "16", "-n", "8", "-r", "3", "--peer", f"llama-bench={peer}", *QUICK)
    assert missing == []
    assert [(row["engine"], row["test"], len(row["samples_ns"])) for row in rows] == [
        (engine, test, 3) for test in ("pp16", "tg8") for engine in ("tinyedge", "llama-bench")
    ]
    assert rows[1]["samples_ts"] == pytest.approx([1000.0] * 3)
    assert rows[1]["engine_version"] == "abc (7)"
    assert rows[1]["model_type"] == rows[0]["model_type"]
    assert (tmp_path / "turns").read_text().split() == ["16,0", "0,8", "0,8", "16,0", "0,8", "16,0"]


def test_a_peer_is_not_asked_for_what_it_cannot(model: Path, tmp_path: Path) -> None:
    peer = f"llama-bench={_peer(tmp_path, runs=99)}"
    rows, missing, _ = results(model, "-p", "16", "-n", "8", "--batch", "1,2", "-r", "1", "--peer", peer, *QUICK)
    assert [row["test"] for row in rows if row["engine"] == "llama-bench"] == ["pp16", "tg8"]
    (told,) = missing
    assert told["what"] == "peer llama-bench: pp16 x2; tg8 x2"
    assert told["reason"].startswith("llama-bench measures one sequence only")


def test_what_ends_one_models_cases_does_not_end_anothers(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(model.read_bytes())
    peer = f"llama-bench={_peer(tmp_path, runs=1)}"
    rows, missing, _ = results(model, other, "-p", "16", "-n", "0", "-r", "2", "--peer", peer, *QUICK)
    assert [(row["model_filename"], row["engine"], len(row["samples_ns"])) for row in rows] == [
        ("tiny.gguf", "tinyedge", 2), ("tiny.gguf", "llama-bench", 1), ("other.gguf", "tinyedge", 2),
    ]  # fmt: skip
    assert [each["what"] for each in missing] == ["peer llama-bench for tiny.gguf", "peer llama-bench for other.gguf"]


def test_a_peer_that_fails_is_missing_and_the_others_go_on(model: Path, tmp_path: Path) -> None:
    peer = _peer(tmp_path, runs=3)
    rows, missing, _ = results(model, "-p", "16", "-n", "8", "-r", "3", "--peer", f"llama-bench={peer}", *QUICK)
    assert [(row["engine"], row["test"], len(row["samples_ns"])) for row in rows] == [
        ("tinyedge", "pp16", 3), ("llama-bench", "pp16", 1), ("tinyedge", "tg8", 3), ("llama-bench", "tg8", 2),
    ]  # fmt: skip
    (told,) = missing
    assert told["what"] == "peer llama-bench"
    assert "out of memory" in told["reason"]


def test_results_go_to_the_file_in_the_format_of_its_suffix(model: Path, tmp_path: Path) -> None:
    arguments = (model, "-p", "8", "-n", "4", "-r", "2", *QUICK)
    done = bench(*arguments, "-o", tmp_path / "found.json")
    assert done.stdout.startswith("| model"), "the table is shown all the same"
    assert "wrote 2 rows to" in done.stderr
    assert [row["test"] for row in read_json_document(tmp_path / "found.json").results] == ["pp8", "tg4"]
    bench(*arguments, "-o", tmp_path / "found.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "found.csv").read_text())))
    assert [(row["test"], len(json.loads(row["samples_ns"]))) for row in rows] == [("pp8", 2), ("tg4", 2)]
    bench(*arguments, "-o", tmp_path / "found.jsonl")
    lines = (tmp_path / "found.jsonl").read_text().splitlines()
    assert [json.loads(line)["n_gen"] for line in lines] == [0, 4]
    printed = bench(*arguments, "--format", "csv").stdout
    assert printed.splitlines()[0] == (tmp_path / "found.csv").read_text().splitlines()[0]


def test_a_database_is_added_to(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "nightly.sqlite"
    for _ in range(2):
        assert bench(model, "-p", "8", "-n", "0", "-r", "2", *QUICK, "-o", path).returncode == 0
    rows, _, _ = results(model, "-p", "8", "-n", "0", "-r", "2", *QUICK)
    with sqlite3.connect(path) as database:
        found = database.execute("SELECT test, n_threads, model_size, avg_ts, samples_ns FROM tinyedge_bench").fetchall()
    database.close()
    assert [row[:3] for row in found] == [("pp8", 1, rows[0]["model_size"])] * 2
    for _, _, _, speed, samples in found:
        taken = json.loads(samples)
        assert speed == pytest.approx(sum(8e9 / each for each in taken) / 2, rel=1e-4)


def test_a_file_that_is_no_result_is_not_lost(model: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    done = bench(model, "-o", notes, "--format", "json", *QUICK)
    assert (done.returncode, notes.read_text()) == (9, "mine")
    other = tmp_path / "other.sqlite"
    other.write_text("mine")
    done = bench(model, "-o", other, *QUICK)
    assert (done.returncode, other.read_text()) == (9, "mine")
    assert bench(model, "-o", tmp_path / "absent" / "a.json").returncode == 9


@pytest.mark.parametrize("name", ["README.md", "config.json", "lines.jsonl", "table.csv", "foreign.sqlite"])
def test_only_former_results_are_replaced_and_that_is_seen_before_measuring(model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".sqlite":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE tinyedge_bench (mine TEXT)")
        database.close()
    else:
        path.write_text('{"model": 1}\n' if path.suffix.startswith(".json") else "model,t/s,median,runs\n1,2,3,4\n")
    before = path.read_bytes()
    done = bench(model, "-r", "100000", *QUICK, "-o", path)
    assert (done.returncode, done.stdout, path.read_bytes()) == (9, "", before)
    assert str(path) in done.stderr
    assert "remove it first" in done.stderr


@pytest.mark.parametrize("format_name", ["md", "json", "jsonl", "csv"])
def test_former_results_are_replaced(model: Path, tmp_path: Path, format_name: str) -> None:
    path = tmp_path / f"found.{format_name}"
    arguments = (model, "-p", "8", "-n", "0", "-r", "1", *QUICK, "-o", path)
    assert bench(*arguments).returncode == 0
    former = path.read_bytes()
    assert bench(*arguments).returncode == 0
    assert path.read_bytes() != former
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name]


def test_results_that_cannot_be_written_are_printed(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    command = [COMMAND, "bench", model, "-p", "8", "-n", "0", "-r", "1", *QUICK, "-o", path]
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (x)")
        database.execute("BEGIN IMMEDIATE")
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        database.execute("ROLLBACK")
    database.close()
    assert done.returncode == 34, done.stderr
    assert "locked" in done.stderr
    assert [row["test"] for row in json.loads(done.stdout)["results"]] == ["pp8"]


def test_a_depth_beyond_memory_and_context_names_the_context_and_offers_no_option_of_other_commands(model: Path) -> None:
    done = bench(model, "-p", "8", "-n", "0", "-d", "999999999", *QUICK)
    assert done.returncode == 15
    assert "context of 128" in done.stderr
    assert "--ctx" not in done.stderr


def test_ctrl_c_after_a_full_round_keeps_what_was_measured(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    command = [COMMAND, "bench", model, "-p", "16", "-n", "16", "-r", "100000", *QUICK, "-o", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"CPU")
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == b""
    assert stderr.decode().splitlines()[-1] == "interrupted"
    rows = read_json_document(path).results
    assert [row["test"] for row in rows] == ["pp16", "tg16"]
    assert all(row["samples_ns"] for row in rows)
