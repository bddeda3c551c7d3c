"""Results read back from every form, llama-bench's own among them, and what strangers' files must not do."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from formats_documents import LLAMA_BENCH_CSV, LLAMA_BENCH_JSONL, document, row

from tinyedge.errors import ResultFileError
from tinyedge_bench.result_files import Document
from tinyedge_bench.speed.formats import append_sqlite, render
from tinyedge_bench.speed.read_speed import SpeedRow, read_document, read_documents, speed_rows


def read_speed(path: Path) -> tuple[SpeedRow, ...]:
    return speed_rows(read_document(path), path)


def _write(made: Document, path: Path, form: str) -> Path:
    if form == "sqlite":
        append_sqlite(made, path)
    else:
        path.write_text(render(made, form), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "sqlite"])
def test_every_form_gives_the_document_back_whatever_its_name(tmp_path: Path, form: str) -> None:
    made = document()
    back = read_document(_write(made, tmp_path / "results", form))
    assert (back.kind, back.date, back.machine, back.build) == (made.kind, made.date, made.machine, made.build)
    assert back.missing == made.missing and back.more == made.more
    facts = {"cpu_info": "AMD EPYC", "build_commit": "0c1e570"}
    for old, new in zip(made.results, back.results, strict=True):
        known = {key: value for key, value in new.items() if key not in (*facts, "gpu_info")}
        assert known == {key: value for key, value in old.items() if key in known}
        assert not any(old[key] for key in old.keys() - known.keys()), "only what is empty may be left out"


def test_rows_of_speed_say_what_was_measured(tmp_path: Path) -> None:
    found = read_speed(_write(document(), tmp_path / "results.csv", "csv"))
    assert [each.test for each in found] == ["pp128", "tg64"]
    one = found[1]
    assert (one.prompt, one.generate, one.depth, one.sequences, one.threads) == (0, 64, 0, 1, 2)
    assert one.samples == pytest.approx((100.0, 101.0, 102.0, 103.0, 104.0), rel=1e-8)
    assert (one.median, one.mean, one.deviation) == pytest.approx((102.0, 102.0, 1.5811388), rel=1e-6)
    assert (one.backend, one.engine, one.type_k, one.model_n_params) == ("cpu", "tinyedge", "f16", 3836672)
    assert found[0].matrix_share == 0.57


def test_llama_benchs_csv_has_means_but_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text(LLAMA_BENCH_CSV)
    prompt, generation = read_speed(path)
    assert (prompt.engine, prompt.engine_version, prompt.test) == ("llama-bench", "0c1e570 (1)", "pp16")
    assert (generation.test, generation.backend, generation.gpu_layers) == ("tg4", "cpu", -1)
    assert prompt.samples == () and prompt.mean == prompt.median == 7424.674871 and prompt.deviation == 659.056301
    assert read_document(path).machine["cpu"] == "AMD EPYC"


@pytest.mark.parametrize(
    "text", [LLAMA_BENCH_JSONL, f"[{LLAMA_BENCH_JSONL}]", json.dumps([json.loads(LLAMA_BENCH_JSONL)], indent=2)]
)
def test_llama_benchs_json_has_samples(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old"
    path.write_text(text)
    (found,) = read_speed(path)
    assert found.engine == "llama-bench" and found.test == "pp16"
    assert found.samples == pytest.approx((7431.97, 8427.96), rel=1e-6), "16 tokens by samples_ns is its samples_ts"
    assert found.mean == pytest.approx(7929.966667, rel=1e-9)


def test_llama_benchs_database_is_read(tmp_path: Path) -> None:
    path = tmp_path / "llama-bench.sqlite"
    head, *lines = LLAMA_BENCH_CSV.splitlines()
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            f"CREATE TABLE llama_bench ({head.replace('avg_ts', 'avg_ts REAL').replace('n_gen', 'n_gen INTEGER')})"
        )
        for line in lines:
            database.execute(f"INSERT INTO llama_bench VALUES ({line.replace(chr(34), chr(39))})")
        database.commit()
    assert [each.test for each in read_speed(path)] == ["pp16", "tg4"]


@pytest.mark.parametrize("form", ["jsonl", "csv", "sqlite"])
def test_of_several_measurements_the_newest_is_read(tmp_path: Path, form: str) -> None:
    path = tmp_path / "all"
    days = ("2026-11-20", "2026-11-22", "2026-11-21")
    texts = []
    for day, speed in zip(days, (1.0, 2.0, 3.0), strict=True):
        made = document([row(speed, speed)], date=day)
        if form == "sqlite":
            append_sqlite(made, path)
        else:
            texts.append(render(made, form))
    if texts:
        path.write_text("".join(texts))
    assert [each.date for each in read_documents(path)] == list(days)
    assert read_speed(path)[0].median == pytest.approx(2.0)


def _line(change: Callable[[dict[str, object]], object]) -> str:
    value = json.loads(render(document([row()]), "jsonl"))
    change(value)
    return json.dumps(value) + "\n"


_GOOD = _line(dict)
_HOSTILE = {
    "nothing": (b"", "is empty"),
    "blank": (b" \n\n", "is empty"),
    "prose": (b"dear diary", "is not a file of results"),
    "bytes": (bytes(range(256)), "is neither text nor a database"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "is not a file of results"),
    "deep": (b"[" * 200_000, "is not JSON"),
    "deep object": (b'{"a":' * 200_000, "is not JSON"),
    "long number": (b"[" + b"9" * 100_000 + b"]", "is not"),
    "NaN": (_line(lambda v: v.update(avg_ts=float("nan"))).encode(), "is not JSON"),
    "infinity": (_line(lambda v: v.update(samples_ts=[1e308 * 10])).encode(), "is not JSON"),
    "infinity by digits": (_GOOD.replace("102.0", "1e999").encode(), "has no number where a number must be"),
    "text for a number": (
        _line(lambda v: v.update(samples_ts=["fast"])).encode(),
        r"result 1 of .* has no number .*\(samples_ts\)",
    ),
    "true for a number": (_line(lambda v: v.update(n_threads=True)).encode(), r"has no number where .*\(n_threads\)"),
    "number for a text": (_line(lambda v: v.update(model_type=4)).encode(), r"has no text where .*\(model_type\)"),
    "object for a list": (_line(lambda v: v.update(samples_ns={})).encode(), r"has no list where .*\(samples_ns\)"),
    "half a thread": (_line(lambda v: v.update(n_threads=1.5)).encode(), r"no whole number .*\(n_threads\)"),
    "less than nothing": (_line(lambda v: v.update(n_gen=-1)).encode(), r"below 0 \(n_gen\)"),
    "no time": (_line(lambda v: v.update(samples_ns=[0, 1, 1, 1, 1])).encode(), "a time or a speed that cannot be"),
    "endless prompt": (_line(lambda v: v.update(n_prompt=10**400)).encode(), "has no number"),
    "unequal samples": (_line(lambda v: v.update(samples_ns=[1])).encode(), "has 1 times and 5 speeds"),
    "no speed": (_line(lambda v: [v.pop(k) for k in ("samples_ns", "samples_ts", "avg_ts")]).encode(), "no tokens per second"),
    "older schema": (_line(lambda v: v.update(schema=0)).encode(), "is of an older schema"),
    "newer schema": (_line(lambda v: v.update(schema=2)).encode(), "is of a newer schema"),
    "another kind": (_line(lambda v: v.update(kind="quality")).encode(), "holds quality results, not speeds"),
    "no whole": (_line(lambda v: v.pop("document")).encode(), "result 1 of .* is a row of neither"),
    "cut line": ((_GOOD + _GOOD[:100]).encode(), "line 2 of .* is not JSON"),
    "damaged line": ((_GOOD + "{]\n" + _GOOD).encode(), "line 2 of .* is not JSON"),
    "line of another thing": ((_GOOD + "[1]\n").encode(), "line 2 of .* is not a row"),
    "array of numbers": (b"[1, 2]", "result 1 of .* is not a row"),
    "empty array": (b"[]", "holds no results"),
    "no rows": (render(document(), "json").replace('"results": [', '"x": [', 1).encode(), "older schema|is damaged"),
    "old tinyedge": (b'{"build": {}, "machine": {}, "results": []}', "older schema, from before"),
    "head alone": (LLAMA_BENCH_CSV.splitlines()[0].encode(), "holds no results"),
    "csv of other things": (b"name,age\nann,4\n", "is not a file of results"),
    "csv with a column twice": (b"model_filename,model_filename\na,b\n", "is not a file of results"),
    "short line": (LLAMA_BENCH_CSV.encode() + b"1,2\n", "line 4 of .* has 2 cells where 42 must be"),
    "open quote": (LLAMA_BENCH_CSV.encode() + b'"1,2\n', "is not a file of results"),
    "word in csv": (LLAMA_BENCH_CSV.replace("7424.674871", "quick").encode(), r"line 2 of .*\(avg_ts\) is not a number"),
    "nan in csv": (LLAMA_BENCH_CSV.replace("7424.674871", "nan").encode(), "has no number"),
    "no database": (b"SQLite format 3\x00" + bytes(100), "cannot be read"),
    "half a database": (b"SQLite format 3\x00", "cannot be read"),
}


@pytest.mark.parametrize("name", sorted(_HOSTILE))
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    data, sentence = _HOSTILE[name]
    path = tmp_path / "results"
    path.write_bytes(data)
    with pytest.raises(ResultFileError, match=sentence) as caught:
        read_speed(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("CREATE TABLE diary (line TEXT)", "has no table of results"),
        ("CREATE TABLE tinyedge_bench (mine TEXT)", "another table named tinyedge_bench"),
        (
            "CREATE VIEW tinyedge_bench AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n",
            "another",
        ),
        ("CREATE TABLE tinyedge_bench (schema, kind, document AS (zeroblob(1000000000)))", "another table"),
        (
            "CREATE TABLE tinyedge_bench (schema, kind, document); INSERT INTO tinyedge_bench VALUES (1, 'speed', x'00')",
            "neither",
        ),
        (
            "CREATE TABLE tinyedge_bench (schema, kind, document); INSERT INTO tinyedge_bench VALUES (1, 'speed', '{')",
            "is not JSON",
        ),
        ("CREATE TABLE tinyedge_bench (schema, kind, document)", "holds no results"),
    ],
)
def test_a_strangers_database_runs_nothing(tmp_path: Path, sql: str, sentence: str) -> None:
    path = tmp_path / "theirs.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(sql)
    before = path.read_bytes()
    with pytest.raises(ResultFileError, match=sentence):
        read_speed(path)
    assert path.read_bytes() == before


def test_a_database_cut_anywhere_is_one_sentence_or_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    append_sqlite(document(), path)
    data = path.read_bytes()
    for size in range(16, len(data), 997):
        path.write_bytes(data[:size])
        with pytest.raises(ResultFileError):
            read_speed(path)


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "sqlite"])
def test_a_file_with_changed_bytes_is_read_or_one_sentence(tmp_path: Path, form: str) -> None:
    data = _write(document(), tmp_path / "whole", form).read_bytes()
    path = tmp_path / "changed"
    draw = random.Random(7)
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            render(read_document(path), "md")
            read_speed(path)
        except ResultFileError:
            refused += 1
        if form == "sqlite":
            with contextlib.suppress(ResultFileError):
                append_sqlite(document(), path)
    assert refused > 20


def test_a_pipe_is_not_waited_for_and_a_huge_file_not_read(tmp_path: Path) -> None:
    pipe, huge = tmp_path / "pipe", tmp_path / "huge"
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    for path, sentence in ((pipe, "not a regular file"), (tmp_path, "not a regular file"), (huge, "larger than any")):
        with pytest.raises(ResultFileError, match=sentence):
            read_speed(path)
    with pytest.raises(FileNotFoundError):
        read_speed(tmp_path / "none")


def test_a_row_with_very_many_samples_is_read_from_csv(tmp_path: Path) -> None:
    path = _write(document([row(*[5.0] * 60_000)]), tmp_path / "long.csv", "csv")
    assert path.stat().st_size > 600_000, "longer than what csv takes for a cell by itself"
    assert len(read_speed(path)[0].samples) == 60_000
