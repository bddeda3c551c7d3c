"""The arithmetic of the speed report, and that a measurement does what llama-bench does."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.backends import Request, choose, this_machine
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import describe_model
from tinyedge.native.context import Context
from tinyedge_bench.speed.measure import Run, Summary, Workload, measure, summarise, workloads

PP, TG = Workload("pp", 512), Workload("tg", 128)


def test_names_are_llama_benchs() -> None:
    assert (PP.name, TG.name) == ("pp512", "tg128")


def test_a_test_of_no_tokens_is_left_out() -> None:
    assert workloads(512, 128) == (PP, TG)
    assert workloads(0, 128) == (TG,)
    assert workloads(512, 0) == (PP,)
    assert workloads(0, 0) == ()


def test_runs_are_grouped_by_test_and_threads_in_order() -> None:
    runs = [Run(PP, 1, 2.0), Run(TG, 1, 4.0), Run(PP, 2, 1.0), Run(PP, 1, 4.0)]
    assert summarise(runs) == (
        Summary(PP, 1, (256.0, 128.0)),
        Summary(TG, 1, (32.0,)),
        Summary(PP, 2, (512.0,)),
    )


def test_spread_is_that_of_a_sample() -> None:
    summary = Summary(TG, 2, (10.0, 12.0, 17.0))
    assert (summary.median, summary.mean) == (12.0, 13.0)
    assert summary.stddev == pytest.approx(((9 + 1 + 16) / 2) ** 0.5)
    assert Summary(TG, 2, (10.0,)).stddev == 0.0


def test_noise_and_few_runs_are_said() -> None:
    assert Summary(TG, 2, (100.0, 101.0, 102.0)).warning is None
    assert "runs differ by 20% (90.0 to 110.0)" in str(Summary(TG, 2, (90.0, 100.0, 110.0)).warning)
    assert "fewer than 3 runs" in str(Summary(TG, 2, (100.0, 100.0)).warning)


def test_every_run_begins_empty_and_processes_all_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tiny.gguf", tiny_parts())
    facts, machine = describe_model(read_gguf(path)), this_machine()
    plans = [choose(facts, Request(backend="cpu", context=16, threads=threads), machine) for threads in (1, 2)]
    calls: list[object] = []
    decode, decode_all, clear = Context.decode, Context.decode_all, Context.clear

    def note_one(context: Context, token: int) -> None:
        calls.append(token)
        decode(context, token)

    def note_all(context: Context, tokens: list[int]) -> None:
        calls.append(list(tokens))
        decode_all(context, tokens)

    def note_clear(context: Context) -> None:
        calls.append("clear")
        clear(context)

    monkeypatch.setattr(Context, "decode", note_one)
    monkeypatch.setattr(Context, "decode_all", note_all)
    monkeypatch.setattr(Context, "clear", note_clear)
    runs = list(measure(path, plans, workloads(16, 4), 2))
    assert [(run.test.name, run.threads) for run in runs] == [
        (name, threads) for threads in (1, 2) for name in ("pp16", "pp16", "tg4", "tg4")
    ]
    assert all(run.seconds > 0 for run in runs)
    prompt = calls[0]
    assert isinstance(prompt, list)
    assert (len(prompt), prompt[0]) == (16, 1)  # BOS first
    once = [prompt, "clear", prompt, "clear", prompt]
    generated = calls[5:15]
    assert calls[:5] == once
    assert generated[0] == 1  # the warm-up of one token
    assert generated[1] == generated[6] == "clear"
    assert generated[2:6] == generated[7:11] or len(generated) == 10


def test_the_median_is_not_moved_by_one_slow_run() -> None:
    samples = (60.0, 61.0, 62.0, 61.5, 5.0)
    assert Summary(TG, 2, samples).median == statistics.median(samples) == 61.0
