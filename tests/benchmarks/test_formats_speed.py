"""Results as Markdown, json, jsonl, csv and SQLite, read back by Python's own readers of those formats."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from formats_documents import LLAMA_BENCH_COLUMNS, document, row

from tinyedge.errors import ResultFileError
from tinyedge_bench.result_files import Missing, as_document
from tinyedge_bench.speed.formats import FORMATS, append_sqlite, render
from tinyedge_bench.speed.formats_columns import COLUMNS
from tinyedge_bench.speed.formats_table import is_markdown, markdown


def _table(path: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT * FROM tinyedge_bench")
        return [each[0] for each in found.description], found.fetchall()


def _cells(text: str, first: str) -> list[str]:
    """The cells of the line of a table that begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_our_first_columns_are_llama_benchs_in_its_order() -> None:
    shared = [name for name in COLUMNS if name in LLAMA_BENCH_COLUMNS]
    assert shared == [name for name in LLAMA_BENCH_COLUMNS if name in COLUMNS]
    assert list(COLUMNS)[: len(shared)] == shared
    assert {"model_type", "n_prompt", "n_gen", "n_depth", "avg_ts", "stddev_ts"} <= set(shared)


def test_markdown_has_llama_benchs_columns_with_median_and_runs() -> None:
    lines = render(document([row()]), "md").splitlines()
    assert lines[0] == "| model        |     size | params | backend | threads | test |           t/s | median | runs |"
    assert lines[1] == "| ------------ | -------: | -----: | ------: | ------: | ---: | ------------: | -----: | ---: |"
    assert lines[2] == "| llama ?B F16 | 7.32 MiB | 3.84 M |     CPU |       2 | tg64 | 102.00 ± 1.58 | 102.00 |    5 |"


def test_markdown_shows_what_belongs_beside_the_numbers() -> None:
    text = render(document(), "md")
    assert _cells(text, "tg64") == ["tg64", "", "24.3 (81%)", "", "45/61/58"]
    assert _cells(text, "pp128") == ["pp128", "160.0", "", "57 (57%)", "45/61/58"]
    assert "- reading memory, 1 thread: 30.0 GB/s\n- reading memory, 2 threads: 36.0 GB/s\n" in text
    assert "- multiplying matrices, cpu, 1 thread: F16 100, Q8_0 210 GFLOP/s\n" in text
    assert "| demo-f16.gguf |     CPU |      | 0.012 s |      45 MiB |" in text
    assert "Published elsewhere, not measured here:" in text
    assert "1. TinyLlama's README: https://github.com/jzhang38/TinyLlama" in text
    assert "- peer ollama: it is not installed" in text
    assert "- cold load: the cache cannot be emptied here" in text
    assert text.endswith(
        "AMD EPYC, 2 physical cores, 8.0 GiB of memory; tinyedge 0.6.0, llama-cpp-python 0.3.36, ggml 0.25.3; "
        "2026-11-22T01:29:07+00:00\n"
    )


def test_markdown_leaves_out_columns_that_say_nothing() -> None:
    plain = row(bytes_per_s=None, bandwidth_share=None, temperature_c=None)
    head = render(document([plain]), "md").splitlines()[0]
    assert not any(word in head for word in ("type_k", "engine", "GB/s", "°C", "TTFT", "J/token"))
    mixed = [plain, {**plain, "type_k": "q8_0", "type_v": "q8_0"}, {**plain, "engine": "llama-bench"}]
    head = render(document(mixed), "md").splitlines()[0]
    assert all(word in head for word in ("type_k", "type_v", "engine"))


def test_a_table_that_would_be_wider_than_a_terminal_is_split() -> None:
    lines = render(document(), "md").splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert max(map(len, tables)) <= 100
    assert "Beside tokens/s:" in lines


def _notes(text: str) -> list[str]:
    """The lines of the list below `Notes:`."""
    return text.partition("Notes:\n\n")[2].partition("\n\n")[0].splitlines()


def test_rows_of_several_files_are_told_apart() -> None:
    noise = "tg64, 2 threads: the runs got slower by 9%; let it cool"
    rows = [row(model_filename="a.gguf", warnings=[noise]), row(model_filename="b.gguf"), row(model_filename="b.gguf")]
    made = document(rows, more={})
    text = render(made, "md")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert [["b.gguf" in line for line in tables[start : start + 5]] for start in (0, 5)] == [[False] * 3 + [True] * 2] * 2
    assert _notes(text)[0] == "- a.gguf: tg64, 2 threads: the runs got slower by 9%; let it cool"
    assert is_markdown(text)
    assert "| file " not in render(document(rows[1:]), "md")
    path = "x" * 99 + "/b.gguf"
    assert "…" + path[-47:] in render(document([rows[0], row(model_filename=path)]), "md")


def test_notes_that_are_alike_are_one_and_those_on_everything_come_last() -> None:
    few, peer = "fewer than 3 runs cannot tell the spread", "ollama ran at another machine"
    rows = [row(test=f"tg{n}", warnings=[f"tg{n}, 2 threads: {few}", peer], throttled=["slow clock"]) for n in range(5)]
    rows[0]["warnings"].append("tg0, 2 threads: 1 of 5 runs is far from the others")
    rows[4]["throttled"] = []
    assert _notes(render(document(rows), "md")) == [
        f"- all 5 tests: {few}",
        "- tg0, 2 threads: 1 of 5 runs is far from the others",
        "- 4 tests (tg0, 2 threads; tg1, 2 threads; tg2, 2 threads, ...): throttled (slow clock)",
        f"- {peer}",
        "- cold load: the cache cannot be emptied here",
        "- energy: no meter",
    ]


def test_a_rate_without_a_share_is_explained_where_the_ceiling_is_known() -> None:
    said = "- the processor's caches hold much of the model: GB/s has no share of what main memory could give"
    small = row(bandwidth_share=None)
    assert _notes(render(document([small, small]), "md")).count(said) == 1
    assert said not in render(document([small], more={}), "md")
    assert said not in render(document([row()]), "md")
    assert said not in render(document([{**small, "backends": "cuda"}]), "md")


def test_on_a_narrow_terminal_what_all_rows_share_stands_above_the_table() -> None:
    made = document([row(), row(test="pp128")], more={})
    lines = markdown(made, 60).splitlines()
    assert lines[0] == "model llama ?B F16; size 7.32 MiB; params 3.84 M; backend CPU; threads 2"
    assert lines[2] == "| test  |           t/s | median | runs |"
    assert lines[4] == "| tg64  | 102.00 ± 1.58 | 102.00 |    5 |"
    assert markdown(made, 200) == markdown(made) == render(made, "md")


def test_a_model_is_shown_by_the_name_that_was_typed() -> None:
    made = document([row(), row(model_filename="b.gguf")])
    made = replace(made, more={**made.more, "typed": {"demo-f16.gguf": "demo"}})
    text = render(made, "md")
    assert "demo-f16.gguf" not in text and "| demo |     CPU |" in text
    assert [line.split()[1] for line in text.splitlines() if " tg64 |" in line] == ["llama", "llama", "demo", "b.gguf"]
    assert '"model_filename": "demo-f16.gguf"' in render(made, "json")


def test_json_is_the_document() -> None:
    made = document()
    value = json.loads(render(made, "json"))
    assert value["tinyedge"] == {"schema": 1, "kind": "speed"}
    assert as_document(value, Path("x")) == made


def test_jsonl_has_a_row_a_line_each_whole_by_itself() -> None:
    lines = render(document(), "jsonl").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [each["test"] for each in rows] == ["pp128", "tg64"]
    for each in rows:
        assert each["schema"] == 1 and each["kind"] == "speed"
        assert each["document"]["machine"]["cpu"] == "AMD EPYC"
        assert each["cpu_info"] == "AMD EPYC" and each["build_commit"] == "0c1e570"
        assert [name for name in each if name in COLUMNS] == [name for name in COLUMNS if name in each]


def test_csv_is_read_by_pythons_csv() -> None:
    text = render(document(), "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == [*COLUMNS, "schema", "kind", "document"]
    assert float(rows[1]["avg_ts"]) == 102.0
    assert json.loads(rows[1]["samples_ts"]) == [100.0, 101.0, 102.0, 103.0, 104.0]
    assert rows[1]["ttft_ns"] == "" and rows[1]["n_threads"] == "2"
    assert json.loads(rows[0]["document"])["date"] == "2026-11-22T01:29:07+00:00"


def test_columns_that_only_some_rows_have_are_kept() -> None:
    rows = [row(extra=3), row()]
    found = list(csv.DictReader(io.StringIO(render(document(rows), "csv"))))
    assert [each["extra"] for each in found] == ["3", ""]


def test_another_kind_has_rows_but_no_table_of_speeds() -> None:
    made = document([{"model_filename": "a.gguf", "perplexity": {"value": 5.5}}], kind="quality")
    assert json.loads(render(made, "jsonl"))["perplexity"] == {"value": 5.5}
    with pytest.raises(ValueError, match="quality"):
        render(made, "md")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_names_from_strangers_cannot_drive_a_terminal(name: str) -> None:
    hostile = "\x1b]0;owned\x07|\n\u202eevil\x9b2J"
    rows = [row(model_type=hostile, model_filename=hostile, engine=hostile, warnings=[hostile])]
    changes = {"more": {"references": [{"board": hostile, "url": hostile}], "loads": [{"model_filename": hostile}]}}
    text = render(document(rows, machine={"cpu": hostile}, **changes), name)
    assert all(character.isprintable() or character == "\n" for character in text)
    if name == "md":
        widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| -")}
        assert {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")} == widths


def test_a_table_of_a_strangers_values_is_still_a_table() -> None:
    rows = [row(model_size="big", avg_ts=None, samples_ts="none", temperature_c=[1] * 9, ttft_ns=10**400, n_threads=[])]
    text = render(document(rows, more={"ceilings": [], "loads": 3, "references": [None]}), "md")
    assert text.startswith("| model")


def test_markdown_has_no_html_of_a_stranger() -> None:
    evil = "\\<img src=x onerror=alert(1)>"
    found = document([row(model_filename=evil, model_type=evil, test=evil, engine=evil, warnings=[evil], energy_note=evil)])
    found = replace(found, missing=(Missing(what=evil, reason=evil),), build={"tinyedge": evil}, machine={"cpu": evil})
    text = render(found, "md")
    assert "<" not in text
    assert text.count("&lt;img") > 6


def test_sqlite_rows_are_added_run_after_run_and_keep_every_sample(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    append_sqlite(document(), path)
    append_sqlite(document([row(1.0, 2.0)], date="2026-11-23"), path)
    names, rows = _table(path)
    assert names == [*COLUMNS, "schema", "kind", "document"]
    found = [dict(zip(names, each, strict=True)) for each in rows]
    assert [each["test"] for each in found] == ["pp128", "tg64", "tg64"]
    assert [json.loads(each["samples_ts"]) for each in found][2] == [1.0, 2.0]
    assert [each["schema"] for each in found] == [1, 1, 1]
    assert found[1]["avg_ts"] == 102.0 and found[1]["n_threads"] == 2 and found[1]["ttft_ns"] is None


def test_sqlite_gets_the_columns_that_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    append_sqlite(document([row()]), path)
    append_sqlite(document([row(novelty=[1, 2])]), path)
    names, rows = _table(path)
    assert [each[names.index("novelty")] for each in rows] == [None, "[1, 2]"]


def test_sqlite_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    append_sqlite(document([row()]), path)
    before = path.read_bytes()
    with pytest.raises(ResultFileError, match="cannot be added to"):
        append_sqlite(document([row(), row(model_size=2**70)]), path)
    assert _table(path)[1] == _table(path)[1][:1]
    assert path.read_bytes() == before


def _other_table(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE tinyedge_bench (mine TEXT); INSERT INTO tinyedge_bench VALUES ('precious')",
        "CREATE VIEW tinyedge_bench AS SELECT 1 AS schema, 2 AS kind, 3 AS document",
        "CREATE TABLE tinyedge_bench (schema, kind, document AS (zeroblob(1000000000)))",
        "CREATE TABLE tinyedge_bench (schema, kind, document); CREATE TABLE other (x);"
        "CREATE TRIGGER t AFTER INSERT ON tinyedge_bench BEGIN DELETE FROM other; END",
    ],
)
def test_a_table_that_is_not_ours_stays_as_it_is(tmp_path: Path, sql: str) -> None:
    path = tmp_path / "theirs.sqlite"
    _other_table(path, sql)
    before = path.read_bytes()
    with pytest.raises(ResultFileError, match="another table named tinyedge_bench"):
        append_sqlite(document(), path)
    assert path.read_bytes() == before


def test_other_tables_of_a_database_stay(tmp_path: Path) -> None:
    path = tmp_path / "theirs.sqlite"
    _other_table(path, "CREATE TABLE diary (line TEXT); INSERT INTO diary VALUES ('precious')")
    append_sqlite(document(), path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT line FROM diary").fetchall() == [("precious",)]


def test_a_file_that_is_no_database_is_never_destroyed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(ResultFileError, match="not a SQLite database"):
        append_sqlite(document(), path)
    assert path.read_text() == "precious"
    with pytest.raises(ResultFileError, match="not a regular file"):
        append_sqlite(document(), tmp_path)
    with pytest.raises(ResultFileError, match="does not exist"):
        append_sqlite(document(), tmp_path / "nowhere" / "runs.sqlite")


def test_a_truncated_database_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    append_sqlite(document(), path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ResultFileError, match="cannot be added to"):
        append_sqlite(document(), path)


def test_an_unknown_format_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="xml"):
        render(document(), "xml")
