"""Ratios of speeds and their bootstrap intervals, against scipy's; cases matched; `tinyedge bench compare` as a whole."""

from __future__ import annotations

import inspect
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from formats_documents import LLAMA_BENCH_CSV, LLAMA_BENCH_JSONL, document, row
from typer.testing import CliRunner

from tinyedge.cli.bench_compare import compare
from tinyedge.errors import ResultFileError, SlowerError
from tinyedge_bench.speed.compare import compare_files, compare_peer
from tinyedge_bench.speed.compare_ratio import RESAMPLES, Ratio, ratios
from tinyedge_bench.speed.formats import append_sqlite, render

_app = typer.Typer(add_completion=False, rich_markup_mode=None)
_app.command()(compare)


def _file(path: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    path.write_text(render(document(rows, **changes), "json"), encoding="utf-8")
    return path


def _speeds(seed: int, count: int, middle: float = 100.0, spread: float = 3.0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(middle, spread) for _ in range(count)]


@pytest.mark.parametrize(("old", "new"), [(5, 5), (6, 9), (10, 4), (31, 30), (2, 3)])
def test_the_interval_is_scipys(old: int, new: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = _speeds(1, old), _speeds(2, new, 104.0)
    (found, _) = ratios([(first, second)], 0.9, paired=False)

    def ratio(a: Any, b: Any, axis: int) -> Any:
        return np.median(b, axis=axis) / np.median(a, axis=axis)

    reference = stats.bootstrap(
        (first, second), ratio, confidence_level=0.9, n_resamples=40_000, method="percentile", rng=np.random.default_rng(5)
    )
    assert found.value == pytest.approx(np.median(second) / np.median(first), rel=1e-12)
    assert found.low == pytest.approx(reference.confidence_interval.low, abs=4e-3)
    assert found.high == pytest.approx(reference.confidence_interval.high, abs=4e-3)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_medians_of_resamples_are_distributed_as_those_of_all_resamples(count: int) -> None:
    """Every resample of a few samples can be listed: their medians have exactly these quantiles."""
    samples = sorted(_speeds(3, count))
    all_of_them = np.array(np.meshgrid(*[samples] * count)).reshape(count, -1) if count < 8 else None
    medians = np.median(
        all_of_them if all_of_them is not None else np.random.default_rng(1).choice(samples, (count, 200_000)), axis=0
    )
    from tinyedge_bench.speed import compare_ratio

    drawn = np.concatenate([compare_ratio._medians(samples, np.random.default_rng(seed)) for seed in range(20)])
    for value in np.unique(medians):
        assert np.mean(drawn <= value + 1e-9) == pytest.approx(np.mean(medians <= value + 1e-9), abs=0.01)


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    """400 pairs of 15 runs each at equal speed: 0.9 of the intervals hold 1, within what a percentile interval does."""
    pairs = [(_speeds(2 * seed, 15), _speeds(2 * seed + 1, 15)) for seed in range(400)]
    found = ratios(pairs, 0.9, paired=False)[:-1]
    assert 0.85 < np.mean([each.told == "no difference told" for each in found]) < 0.98


def test_the_same_samples_give_the_same_interval() -> None:
    pairs = [(_speeds(1, 7), _speeds(2, 7))]
    assert ratios(pairs, 0.95, paired=False) == ratios(pairs, 0.95, paired=False)


def test_pairing_takes_out_what_slows_a_round_down_as_a_whole() -> None:
    rounds = _speeds(4, 20, 100.0, 30.0)
    first, second = [each * 1.0 for each in rounds], [each * 1.02 for each in rounds]
    apart, paired = (ratios([(first, second)], 0.95, paired=how)[0] for how in (False, True))
    assert apart.told == "no difference told"
    assert paired.told == "faster" and paired.low == pytest.approx(1.02) and paired.high == pytest.approx(1.02)


def test_the_geometric_mean_of_a_doubling_and_a_halving_is_one() -> None:
    pairs = [([1.0] * 5, [2.0] * 5), ([2.0] * 5, [1.0] * 5)]
    assert [each.value for each in ratios(pairs, 0.95, paired=False)] == pytest.approx([2.0, 0.5, 1.0])


def test_one_run_has_no_interval_and_a_mean_of_it_none() -> None:
    found = ratios([([1.0], [2.0, 2.1]), ([1.0, 1.0], [1.0, 1.0])], 0.95, paired=False)
    assert [each.low is None for each in found] == [True, False, True]
    assert (
        found[0].told == "noise unknown" and Ratio(1.1, 1.05, 1.2).told == "faster" and Ratio(0.9, 0.8, 0.95).told == "slower"
    )


def test_very_many_runs_take_no_longer() -> None:
    (found, _) = ratios([([1.0] * 2_000_000, [1.5] * 2_000_000)], 0.95, paired=False)
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)


def test_cases_are_matched_by_what_tells_them_apart(tmp_path: Path) -> None:
    a = [row(n_threads=t, type_k=kv, type_v=kv) for t in (1, 2) for kv in ("f16", "q8_0")]
    b = [row(n_threads=t, type_k=kv, type_v=kv) for kv in ("q8_0", "f16") for t in (2, 4)]
    compared = compare_files(_file(tmp_path / "a", a), _file(tmp_path / "b", b))
    assert [(case.first.threads, case.first.type_k) for case in compared.cases] == [(2, "f16"), (2, "q8_0")]
    assert all((case.first.threads, case.first.type_k) == (case.second.threads, case.second.type_k) for case in compared.cases)
    assert {each.threads for each in compared.only_first} == {1} and {each.threads for each in compared.only_second} == {4}
    assert compared.resamples == RESAMPLES


def test_what_is_one_thing_in_each_file_is_what_is_compared_and_is_told(tmp_path: Path) -> None:
    a, b = [row(n_threads=2, model_type="llama Q8_0")], [row(n_threads=4, model_type="llama Q4_K_M")]
    compared = compare_files(_file(tmp_path / "a", a), _file(tmp_path / "b", b))
    assert len(compared.cases) == 1
    assert "threads differs: 2 and 4" in compared.differences
    assert "model differs: llama Q8_0, 3836672 and llama Q4_K_M, 3836672" in compared.differences


def test_tests_are_never_taken_for_each_other(tmp_path: Path) -> None:
    a, b = [row(n_gen=64, test="tg64")], [row(n_gen=128, test="tg128")]
    with pytest.raises(ResultFileError, match="no case in common"):
        compare_files(_file(tmp_path / "a", a), _file(tmp_path / "b", b))
    b = [row(n_depth=512, test="tg64 @ d512")]
    with pytest.raises(ResultFileError, match="no case in common"):
        compare_files(_file(tmp_path / "a", a), _file(tmp_path / "b", b))


def test_settings_tell_cases_apart_where_nothing_else_does(tmp_path: Path) -> None:
    a = [row(n_ubatch=size, samples_ns=[], samples_ts=[speed] * 5) for size, speed in ((128, 50.0), (512, 100.0))]
    b = [row(n_ubatch=size, samples_ns=[], samples_ts=[speed] * 5) for size, speed in ((512, 110.0), (128, 60.0))]
    compared = compare_files(_file(tmp_path / "a", a), _file(tmp_path / "b", b))
    assert [case.ratio.value for case in compared.cases] == pytest.approx([1.2, 1.1])


def test_a_case_measured_twice_has_all_its_runs(tmp_path: Path) -> None:
    compared = compare_files(_file(tmp_path / "a", [row(1.0, 2.0), row(3.0)]), _file(tmp_path / "b", [row(2.0)]))
    (case,) = compared.cases
    assert len(case.first.samples) == 3 and case.ratio.value == pytest.approx(1.0)


def test_another_machine_or_build_is_told(tmp_path: Path) -> None:
    old = _file(tmp_path / "a", [row()], machine={"cpu": "Cortex-A72", "physical_cores": 4})
    new = _file(tmp_path / "b", [row()], machine={"cpu": "Cortex-A76", "physical_cores": 4}, build={"ggml": "0.9"})
    differences = compare_files(old, new).differences
    assert differences == ("processor differs: Cortex-A72 and Cortex-A76", "ggml differs: 0.25.3 and 0.9")


def test_of_many_runs_in_a_database_the_newest_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "all.sqlite"
    append_sqlite(document([row(200.0, 200.0)], date="2026-11-21"), path)
    append_sqlite(document([row(50.0, 50.0)], date="2026-11-20"), path)
    compared = compare_files(_file(tmp_path / "a", [row(100.0, 100.0)]), path)
    assert compared.cases[0].ratio.value == pytest.approx(2.0)
    assert any("holds 2 measurements, of which the newest is taken (2026-11-21)" in note for note in compared.notes)


def test_an_old_file_of_llama_benchs_compares_with_ours(tmp_path: Path) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.jsonl"
    old.write_text(LLAMA_BENCH_CSV)
    new.write_text(LLAMA_BENCH_JSONL)
    compared = compare_files(old, new)
    assert len(compared.cases) == 1 and compared.cases[0].ratio.low is None and len(compared.only_first) == 1
    ours = _file(tmp_path / "ours", [row(n_prompt=16, n_gen=0, test="pp16", n_threads=1)])
    compared = compare_files(new, ours)
    assert "engine differs: llama-bench and tinyedge" in compared.differences and len(compared.cases) == 1


def test_a_peer_is_compared_run_by_run(tmp_path: Path) -> None:
    rounds = _speeds(4, 11, 100.0, 30.0)
    rows = [row(*rounds, engine="llama-bench"), row(*[each * 0.99 for each in rounds]), row(*rounds, engine="ollama")]
    path = _file(tmp_path / "r", rows)
    compared = compare_peer(path, "llama-bench")
    (case,) = compared.cases
    assert (case.first.engine, case.second.engine) == ("llama-bench", "tinyedge")
    assert case.ratio.value == pytest.approx(0.99) and case.ratio.told == "slower"
    assert compared.differences == () and "the median of the rounds' ratios" in compared.basis
    with pytest.raises(ResultFileError, match=r"no results of mlx-lm; it holds llama-bench, ollama"):
        compare_peer(path, "mlx-lm")


def test_a_peer_that_stopped_early_is_compared_unpaired(tmp_path: Path) -> None:
    path = _file(tmp_path / "r", [row(100.0, 100.0, engine="ollama"), row(*[110.0] * 5)])
    compared = compare_peer(path, "ollama")
    assert compared.cases[0].ratio.value == pytest.approx(1.1) and compared.basis.startswith("a ratio is that of the medians")


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(_app, [str(each) for each in arguments])


def test_the_command_shows_ratio_interval_and_mean(tmp_path: Path) -> None:
    a = _file(tmp_path / "a", [row(*[100.0] * 5), row(*[10.0] * 5, n_threads=1), row(n_threads=8)])
    b = _file(tmp_path / "b", [row(*[110.0] * 5), row(*[9.0] * 5, n_threads=1)])
    done = _run(a, b)
    assert done.exit_code == 0
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        "| test | threads | A t/s | B t/s | B/A | 95% interval | runs | told |",
        "| ---- | ------: | -----: | -----: | ----: | -------------: | ---: | -----: |",
        "| tg64 | 2 | 100.00 | 110.00 | 1.100 | 1.100 to 1.100 | 5, 5 | faster |",
        "| tg64 | 1 | 10.00 | 9.00 | 0.900 | 0.900 to 0.900 | 5, 5 | slower |",
        "",
        "geometric mean of 2 ratios: 0.995, 95% interval 0.995 to 0.995: slower",
    ]
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "only in A: tg64, 8" in done.stderr


def test_a_peers_table_names_the_engines_and_says_what_its_ratios_are(tmp_path: Path) -> None:
    path = _file(tmp_path / "r", [row(*[100.0] * 5, engine="llama-bench"), row(*[110.0] * 5)])
    done = _run(path, "--peer", "llama-bench")
    head, *_, blank, basis = done.stdout.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        *("test", "llama-bench t/s", "tinyedge t/s", "tinyedge/llama-bench", "95% interval", "runs", "told")
    ]
    assert (blank, basis) == (
        "",
        "the two took turns: a ratio is the median of the rounds' ratios, which is not the ratio of the medians",
    )
    assert "ratio" not in done.stderr
    assert basis in json.loads(_run(path, "--peer", "llama-bench", "--json").stdout)["notes"]


def test_the_last_two_measurements_of_one_file_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "nightly.sqlite"
    append_sqlite(document([row(200.0, 200.0)], date="2026-11-21"), path)
    alone = _run(path)
    assert isinstance(alone.exception, ResultFileError) and "holds one measurement" in str(alone.exception)
    append_sqlite(document([row(50.0, 50.0)], date="2026-11-19"), path)
    append_sqlite(document([row(100.0, 100.0)], date="2026-11-20"), path)
    done = _run(path)
    assert "| 100.00 | 200.00 | 2.000 |" in " ".join(done.stdout.split())
    assert "A was measured 2026-11-20, B 2026-11-21: the last 2 of 3\n" in done.stdout


def test_the_command_gives_json(tmp_path: Path) -> None:
    a, b = _file(tmp_path / "a", [row()]), _file(tmp_path / "b", [row()])
    value = json.loads(_run(a, b, "--json", "--fail-below", "0.9").stdout)
    (case,) = value["cases"]
    assert (case["ratio"], case["told"]) == (1.0, "no difference told") and case["low"] < 1 < case["high"]
    assert case["first"]["runs"] == 5 and value["below"] == 0 and value["resamples"] == RESAMPLES


@pytest.mark.parametrize(
    ("speeds", "words"),
    [
        ([95.0] * 5, "1 of them by more than noise explains"),
        ([90.0, 93.0, 96.0, 106.0, 109.0], "none of them by more than noise explains"),
    ],
)
def test_a_slower_case_fails_below_a_limit_and_says_whether_noise_explains_it(
    tmp_path: Path, speeds: list[float], words: str
) -> None:
    a, b = _file(tmp_path / "a", [row(*[100.0] * 5)]), _file(tmp_path / "b", [row(*speeds)])
    done = _run(a, b, "--fail-below", "0.97")
    assert isinstance(done.exception, SlowerError) and done.exception.exit_code == 38
    assert words in str(done.exception) and "1 of 1 cases fell below 0.97" in str(done.exception)
    assert "| tg64 |" in done.stdout, "the table is shown all the same"
    assert _run(a, b, "--fail-below", "0.9").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [[], ["a", "b", "--peer", "ollama"], ["a", "b", "--fail-below", "nan"], ["a", "b", "--confidence", "1"]]
)
def test_wrong_usage_is_told(arguments: list[str]) -> None:
    assert _run(*arguments).exit_code == 2


def test_names_from_strangers_cannot_drive_a_terminal(tmp_path: Path) -> None:
    hostile = "\x1b[2J|\n\u202e"
    a = _file(tmp_path / "a", [row(test=hostile), row(test=hostile, model_type=hostile), row(n_depth=5, test=hostile)])
    b = _file(tmp_path / "b", [row(test=hostile), row(test=hostile, model_type=hostile)], machine={"cpu": hostile})
    done = _run(a, b)
    assert done.exit_code == 0
    assert all(each.isprintable() or each == "\n" for each in done.stdout + done.stderr)


def test_the_help_has_examples() -> None:
    assert "tinyedge bench compare" in inspect.cleandoc(compare.__doc__ or "")
