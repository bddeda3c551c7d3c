"""The plots for a terminal: figures in their places, within the width, in the characters that can be shown."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from report_documents import document, quality_document, speed_document, speed_row, sweep_document

from tinyedge_bench.report.terminal import progress_plot, size_quality_plot, speed_bars
from tinyedge_bench.result_files import Document, as_document


@pytest.fixture(autouse=True)
def _wide_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))


def read(value: dict[str, Any]) -> Document:
    return as_document(value, Path("x.json"))


def test_bars_are_as_long_as_the_speeds_are() -> None:
    rows = [speed_row(f"m-{name}.gguf", speed, generate=16, median_ts=speed) for name, speed in (("a", 10.0), ("b", 20.0))]
    title, first, second = speed_bars(read(document("speed", rows))).splitlines()
    assert title == "generation, tokens/s (median)"
    assert first.startswith("  a ")
    assert abs(_eighths(second) - 2 * _eighths(first)) <= 1
    assert len(second) <= 60


def _eighths(line: str) -> int:
    return sum("▏▎▍▌▋▊▉█".find(c) + 1 for c in line)


def test_prompt_and_generation_have_a_scale_each() -> None:
    lines = speed_bars(read(speed_document())).splitlines()
    titles = [i for i, line in enumerate(lines) if not line.startswith(" ")]
    assert [lines[i] for i in titles] == ["prompt, tokens/s (median)", "generation, tokens/s (median)"]
    groups = (lines[1 : titles[1]], lines[titles[1] + 1 :])
    longest = [max(line.count("█") for line in group) for group in groups]
    assert min(longest) > 10
    assert max(map(len, lines)) <= 60


def test_progress_rises_with_the_models_in_their_order() -> None:
    lines = progress_plot(read(quality_document())).splitlines()
    assert lines[0] == "accuracy, %   o hellaswag  + arc_easy  x piqa"
    field = [line.split("│", 1)[1] for line in lines if "│" in line]
    marks = [(column, row) for row, line in enumerate(field) for column, c in enumerate(line) if c == "x"]
    assert len(marks) == 7
    heights = [row for _, row in sorted(marks)]
    assert heights == sorted(heights, reverse=True)
    assert lines[-1].split() == ["105B", "503B", "1T", "1.5T", "2T", "2.5T", "3T"]
    assert max(map(len, lines)) <= 60


def test_long_names_are_listed_below_their_numbers() -> None:
    value = quality_document()
    for row in value["results"]:
        row["model_filename"] = f"a-rather-long-name-{row['model_filename']}"
        row["model_filename"] += "x" * len(row["model_filename"])
    lines = progress_plot(read(value)).splitlines()
    assert [line.split()[0] for line in lines[-7:]] == list("1234567")


def test_accuracy_ends_at_100_and_guessing_is_a_line() -> None:
    value = quality_document()
    for row in value["results"]:
        row["tasks"] = [{"task": "piqa", "accuracy": 1.0, "chance": 0.5}]
    lines = progress_plot(read(value)).splitlines()
    assert lines[0] == "accuracy, %   o piqa  ┄ guessing"
    assert lines[1].split("│")[0].strip() == "100"
    assert lines[14].startswith(" 50 │┄┄┄")
    for row in value["results"]:
        row["tasks"] = [{"task": "piqa", "accuracy": 1.0}]
    assert progress_plot(read(value)).splitlines()[1].startswith("100 │")


def test_near_points_are_letters_with_a_list_below() -> None:
    value = sweep_document()
    for i, row in enumerate(value["results"][3:6]):
        row["file_bytes"], row["divergence"]["mean_kl"] = 640_000_000 + i, 0.03 - i / 1e6
    lines = size_quality_plot(read(value)).splitlines()
    assert lines[0] == "mean KL divergence (log) over file size in MiB   ● Pareto f…"
    assert sum("cde" in line for line in lines) == 1
    assert [line.split()[:3] for line in lines[-8:]][2] == ["c", "●", "Q4_K_M"]
    assert {line.split()[0] for line in lines[-8:]} == set("abcdefgh")


def test_perplexity_stands_in_where_there_are_no_tasks() -> None:
    value = quality_document()
    for row in value["results"]:
        del row["tasks"]
    assert progress_plot(read(value)).splitlines()[0] == "perplexity"
    value["results"] = value["results"][:1]
    assert progress_plot(read(value)) == ""


def test_the_front_is_filled() -> None:
    plot = size_quality_plot(read(sweep_document()))
    field = [line.split("│", 1)[1] for line in plot.splitlines() if "│" in line]
    assert sum(line.count("●") for line in field) == 7
    assert sum(line.count("○") for line in field) == 1
    assert "○ Q4_0" in plot or "Q4_0 ○" in plot
    # The smallest is furthest left and worst, the largest furthest right and best.
    assert field[0].index("●") == min(line.index("●") for line in field if "●" in line)
    assert field[-1].rindex("●") == max(line.rindex("●") for line in field if "●" in line)


def test_ascii_where_nothing_else_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    for plot in (
        speed_bars(read(speed_document())),
        progress_plot(read(quality_document())),
        size_quality_plot(read(sweep_document())),
    ):
        assert plot.isascii()
        assert max(map(len, plot.splitlines())) <= 60


def test_nothing_to_plot_is_nothing() -> None:
    for kind in ("speed", "quality", "sweep"):
        empty = read(document(kind, [{}, {"model_filename": 3}]))
        assert (speed_bars(empty), progress_plot(empty), size_quality_plot(empty)) == ("", "", "")


def test_control_characters_do_not_reach_the_terminal() -> None:
    rows = [speed_row(f"\x1b[2J{i}\u202e\n.gguf", 10.0, generate=16, engine="\x07") for i in range(2)]
    assert all(c.isprintable() for line in speed_bars(read(document("speed", rows))).split("\n") for c in line)
