"""A measurement does what llama-bench does, and its rows say it in llama-bench's words."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_hostile_runtime import mamba_file

from tinyedge.backends import Request, choose, this_machine
from tinyedge.ceiling import bytes_per_token, kv_bytes_per_token
from tinyedge.errors import MemoryFitError
from tinyedge.gguf_file import read_gguf
from tinyedge.load_plan import LoadPlan
from tinyedge.machine.bandwidth import Bandwidth
from tinyedge.machine.energy import Energy
from tinyedge.machine.throttle_watch import RunConditions
from tinyedge.model_facts import ModelFacts, describe_model
from tinyedge.native.context import Context
from tinyedge.native.sequences import SequenceContext
from tinyedge_bench.speed.cases import Case
from tinyedge_bench.speed.ceilings import Ceilings, step_bytes
from tinyedge_bench.speed.conditions import Observed
from tinyedge_bench.speed.loads import measure_load
from tinyedge_bench.speed.page_cache import forget
from tinyedge_bench.speed.quick import quick_speed
from tinyedge_bench.speed.rows import Engine, Subject, Timed, row
from tinyedge_bench.speed.runs import Runs, Sample, open_model
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

# What llama-bench (llama.cpp 0c1e570) printed for -p 16 -n 0 -r 2 -t 1 -o json on the demo checkpoint in F16.
RECORDED = {
    "model_type": "llama ?B F16",
    "model_size": 7678976,
    "model_n_params": 3836672,
    "n_ubatch": 512,
    "n_threads": 1,
    "type_k": "f16",
    "type_v": "f16",
    "flash_attn": -1,
    "n_prompt": 16,
    "n_gen": 0,
    "n_depth": 0,
    "avg_ns": 2904493,
    "avg_ts": 5508.879756,
    "stddev_ts": 43.787260,
    "samples_ns": [2888169, 2920818],
    "samples_ts": [5539.84, 5477.92],
}
SEEN = Observed(conditions=RunConditions(seconds=1.0), energy=Energy(joules=None, seconds=1.0, reason="no sensor"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(demo_tokenizer().parent, tmp_path_factory.mktemp("speed") / "demo.gguf", "F16").path


@pytest.fixture(scope="module")
def facts(model: Path) -> ModelFacts:
    return describe_model(read_gguf(model))


@pytest.fixture(scope="module")
def plan(facts: ModelFacts) -> LoadPlan:
    return choose(facts, Request(backend="cpu", threads=1, context=256), this_machine())


def _timed(case: Case, *seconds: float, first: float | None = None) -> Timed:
    timed = Timed(case=case, engine=Engine(name="tinyedge", version="1", ours=True), batch=512, gpu_layers=0)
    for each in seconds:
        timed.add(Sample(each, first), SEEN)
    return timed


def test_a_row_has_llama_benchs_values_for_the_same_runs(model: Path, facts: ModelFacts, plan: LoadPlan) -> None:
    with open_model(model, plan) as opened:
        subject = Subject(filename=model.name, description=opened.description, facts=facts)
    timed = _timed(Case(prompt=16, generate=0, threads=1), 2888169e-9, 2920818e-9, first=0.003)
    found = row(timed, subject, Ceilings())
    numbers = {key: value for key, value in RECORDED.items() if isinstance(value, (int, float, list))}
    assert {key: found[key] for key in RECORDED.keys() - numbers.keys()} == {
        key: value for key, value in RECORDED.items() if key not in numbers
    }
    for key, value in numbers.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key
    assert (found["test"], found["backends"], found["ttft_ns"]) == ("pp16", "cpu", 3_000_000)
    assert found["energy_note"] == "no sensor"
    assert "fewer than 3 runs" in found["warnings"][0]


CASES = (
    Case(prompt=20, generate=0, threads=1),
    Case(prompt=0, generate=3, threads=1),
    Case(prompt=20, generate=3, threads=1),
    Case(prompt=20, generate=3, depth=30, threads=1),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_a_run_decodes_what_llama_benchs_does(
    model: Path, facts: ModelFacts, plan: LoadPlan, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int]] = []
    decode, decode_all = Context.decode, Context.decode_all

    def one(context: Context, token: int) -> None:
        calls.append([context.length, token])
        decode(context, token)

    def many(context: Context, tokens: list[int]) -> None:
        calls.append([context.length, *tokens])
        decode_all(context, tokens)

    monkeypatch.setattr(Context, "decode", one)
    monkeypatch.setattr(Context, "decode_all", many)
    with open_model(model, plan) as opened, Runs(opened, facts, plan, [case]) as runs:
        runs.prepare(case)
        warm_up, timed = calls[:], []
        for _ in range(2):
            runs.prepare(case)
            calls.clear()
            sample = runs.timed(case)
            timed.append(calls[:])
    assert timed[0] == timed[1]
    prompts = [call for call in timed[0] if len(call) > 2]
    steps = [call for call in timed[0] if len(call) == 2]
    assert [len(call) - 1 for call in prompts] == ([case.prompt] if case.prompt else [])
    assert [call[0] for call in steps] == [case.depth + case.prompt + index for index in range(case.generate)]
    begins = [call[:2] for call in timed[0] if call[0] in (case.depth, case.depth + case.prompt)]
    assert all(call[1] == 1 for call in begins), "BOS begins the prompt and the generation"
    expected = [*prompts, *steps[:1]]
    assert warm_up[: len(expected)] == expected, "the whole prompt and one token"
    assert 0 < sample.seconds < 60
    assert (sample.first_token_s is None) == (case.prompt == 0)
    if case.prompt and not case.generate:
        assert sample.first_token_s is not None
        assert sample.first_token_s > sample.seconds


@pytest.mark.parametrize("depth", [0, 40])
def test_texts_side_by_side_are_read_as_llama_batched_bench_does(
    model: Path, facts: ModelFacts, plan: LoadPlan, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(prompt=200, generate=2, depth=depth, sequences=4, threads=1)
    reads: list[tuple[np.ndarray, ...]] = []
    read = SequenceContext.read

    def note(context: SequenceContext, *parts: np.ndarray) -> np.ndarray:
        reads.append(parts)
        return read(context, *parts)

    monkeypatch.setattr(SequenceContext, "read", note)
    with open_model(model, plan) as opened, Runs(opened, facts, plan, [case]) as runs:
        runs.prepare(case)
        reads.clear()
        sample = runs.timed(case)
    tokens, positions, sequences, wanted = (np.concatenate(column) for column in zip(*reads, strict=True))
    assert len(tokens) == case.tokens == 4 * 202
    for number in range(4):
        mine = sequences == number
        assert positions[mine].tolist() == list(range(depth, depth + 202))
        assert np.flatnonzero(wanted[mine]).tolist() == [199, 200, 201], "the last of the prompt and every generated"
    assert max(len(part[0]) for part in reads) <= 512
    assert [len(part[0]) for part in reads[-2:]] == [4, 4], "a token of each text in a step"
    assert sample.first_token_s is not None
    assert sample.seconds > 0


def test_cases_of_one_depth_share_a_context_and_fill_it_once(model: Path, facts: ModelFacts, plan: LoadPlan) -> None:
    deep = [Case(prompt=8, generate=0, depth=100, threads=1), Case(prompt=0, generate=4, depth=100, threads=1)]
    with open_model(model, plan) as opened, Runs(opened, facts, plan, deep) as runs:
        filled = []
        read = SequenceContext.read
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SequenceContext, "read", lambda *parts: (filled.append(len(parts[1])), read(*parts))[1])
            for case in (*deep, *deep[::-1]):
                runs.sample(case)
    assert filled == [100]


def test_with_room_for_one_context_every_case_still_begins_at_its_depth(
    model: Path, facts: ModelFacts, plan: LoadPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyedge_bench.speed.runs._MOST_CONTEXTS", 1)
    both = [Case(prompt=8, generate=2, depth=depth, threads=1) for depth in (0, 30)]
    with open_model(model, plan) as opened, Runs(opened, facts, plan, both) as runs:
        for case in (*both, *both[::-1], *both):
            runs.prepare(case)
            (ready,) = runs._open.values()
            assert ready.context.length == case.depth
            runs.timed(case)
            assert ready.context.length == case.depth + 10


@pytest.mark.parametrize("sequences", [1, 2])
def test_a_recurrent_state_that_cannot_be_cut_is_computed_anew(tmp_path: Path, sequences: int) -> None:
    path = mamba_file(tmp_path / "mamba.gguf")
    facts = describe_model(read_gguf(path))
    plan = choose(facts, Request(backend="cpu", threads=1, context=64), this_machine())
    tests = [Case(prompt=p, generate=g, depth=10, sequences=sequences, threads=1) for p, g in ((8, 0), (0, 4))]
    with open_model(path, plan) as opened, Runs(opened, facts, plan, tests) as runs:
        for case in (*tests, *tests[::-1]):
            runs.prepare(case)
            (ready,) = runs._open.values()
            assert ready.context.length == 10
            assert runs.timed(case).seconds > 0
            assert ready.context.length == 10 + case.prompt + case.generate


def test_no_memory_for_a_context_is_a_sentence(
    model: Path, facts: ModelFacts, plan: LoadPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(prompt=8, generate=0, threads=1)
    with open_model(model, plan) as opened, Runs(opened, facts, plan, [case]) as runs:
        monkeypatch.setattr("tinyedge_bench.speed.runs.free_memory_bytes", lambda: 1 << 20)
        with pytest.raises(MemoryFitError, match=r"pp8 needs .* MiB beside the weights, and 1 MiB are free"):
            runs.sample(case)


def test_quick_speed_gives_both_figures_and_leaves_out_what_has_no_tokens(model: Path, plan: LoadPlan) -> None:
    found = quick_speed(model, plan, prompt=32, generate=0, runs=2)
    assert found.generated_tokens_per_s is None
    assert found.prompt_tokens_per_s is not None
    assert found.prompt_tokens_per_s > 0


def test_a_step_reads_the_weights_once_and_the_cache_of_every_text_at_its_mean_length(facts: ModelFacts) -> None:
    alone = Case(prompt=0, generate=129, depth=100, threads=1)
    weights, cache = bytes_per_token(facts, 0).weights, kv_bytes_per_token(facts, "F16")
    assert step_bytes(facts, alone) == weights + 164 * cache  # positions 100 to 228
    four = Case(prompt=0, generate=129, depth=100, sequences=4, threads=1)
    assert step_bytes(facts, four) == weights + 4 * 164 * cache


def test_shares_are_of_the_threads_own_ceiling_and_only_where_they_mean_something(facts: ModelFacts) -> None:
    ceilings = Ceilings(bandwidth=Bandwidth({1: 1e9, 2: 2e9}, "2026-01-01"))
    generated = Case(prompt=0, generate=1, threads=2)
    rate = bytes_per_token(facts, 0).total / 0.5
    shares = ceilings.shares(facts, generated, 0.5)
    assert (shares["bytes_per_s"], shares["bandwidth_share"]) == (rate, rate / 2e9)
    assert (shares["flops"], shares["matrix_share"]) == (None, None)
    cached = replace(ceilings, cache_bytes=1 << 20).shares(facts, generated, 0.5)
    assert (cached["bytes_per_s"], cached["bandwidth_share"]) == (rate, None), "caches help to read 7 MiB"
    prompt = ceilings.shares(facts, Case(prompt=8, generate=0, threads=1), 0.5)
    assert prompt["flops"]
    assert (prompt["bytes_per_s"], prompt["bandwidth_share"], prompt["matrix_share"]) == (None, None, None)
    mixed = ceilings.shares(facts, Case(prompt=8, generate=8, threads=1), 0.5)
    assert set(mixed.values()) == {None}


def test_a_file_that_is_mapped_is_not_called_cold(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.gguf"
    path.write_bytes(model.read_bytes())
    if reason := forget([path]):
        pytest.skip(reason)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) >= 0  # touches every page
        assert "stays in memory" in forget([path])
    assert forget([path]) == ""


def test_loads_are_of_a_process_of_their_own(model: Path, facts: ModelFacts, plan: LoadPlan) -> None:
    found = measure_load(model, plan, [Case(prompt=64, generate=0, threads=1)])
    assert 0 < found.warm_s < 60
    assert (found.cold_s is None) == bool(found.cold_note)
    assert facts.weight_bytes < found.peak_memory_bytes < 1 << 30
