"""Which cases a sweep makes, in which order they run, and which of them a model cannot run."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.backends import this_machine
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import describe_model
from tinyedge_bench.speed.cases import Case
from tinyedge_bench.speed.groups import groups
from tinyedge_bench.speed.sweep import Sweep, cases, order


def test_names_are_llama_benchs() -> None:
    sweep = Sweep(prompts=(512,), generates=(128,), pairs=((512, 128),), depths=(0, 1024), threads=(4,))
    assert [case.name for case in cases(sweep, "cpu")] == [
        "pp512", "tg128", "pp512+tg128", "pp512 @ d1024", "tg128 @ d1024", "pp512+tg128 @ d1024",
    ]  # fmt: skip


def test_every_combination_comes_once_and_no_tokens_are_no_test() -> None:
    sweep = Sweep(
        prompts=(0, 128, 128),
        generates=(0,),
        pairs=((128, 0), (64, 32)),
        depths=(0, 8),
        threads=(1, 2),
        kv_types=("F16", "Q8_0"),
        sequences=(1, 4),
    )
    assert sweep.tests == ((128, 0), (64, 32))
    found = cases(sweep, "cpu")
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 * 2
    assert found[0] == Case(prompt=128, generate=0, threads=1)
    assert found[-1] == Case(prompt=64, generate=32, depth=8, sequences=4, threads=2, kv_type="Q8_0")
    assert Sweep(prompts=(0,), generates=(0,), threads=(1,)).tests == ()


def test_every_round_has_every_case_once() -> None:
    assert ["".join(order("ABC", number)) for number in range(6)] == ["ABC", "CBA", "BCA", "ACB", "CAB", "BAC"]
    assert order([], 3) == []
    assert order(["A"], 5) == ["A"]


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_steady_drift_weighs_on_all_cases_alike(count: int) -> None:
    places: Counter[int] = Counter()
    for number in range(2):
        for place, case in enumerate(order(range(count), number), number * count):
            places[case] += place
    assert len(set(places.values())) == 1


def test_neighbours_change_so_that_no_case_always_follows_the_same_one() -> None:
    followed = Counter(
        pair for number in range(6) for pair in zip(order("ABC", number), order("ABC", number)[1:], strict=False)
    )
    assert set(followed) == set(permutations("ABC", 2))
    assert all(followed[first, second] == followed[second, first] for first, second in combinations("ABC", 2))


def test_what_a_model_cannot_run_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", tiny_parts())  # trained on a context of 128
    sweep = Sweep(prompts=(100,), generates=(8,), depths=(0, 100), threads=(1,), kv_types=("F16", "IQ4_NL"))
    found, failed = groups(path, describe_model(read_gguf(path)), sweep, ("auto", "cpu", "cann"), None, this_machine())
    (group,) = found
    assert group.plan.backend == "cpu"
    assert [(case.name, case.kv_type, case.backend) for case in group.plans] == [
        (name, kind, "cpu") for kind in ("F16", "IQ4_NL") for name in ("pp100", "tg8", "tg8 @ d100")
    ]
    assert {(each.backend, each.error.exit_code) for each in failed} == {("auto", 15), ("cpu", 15), ("cann", 12)}
    assert len([each for each in failed if each.backend == "cann"]) == 8
    assert "200 tokens do not fit the context of 128" in failed[0].error.problem


def test_texts_side_by_side_need_memory_for_each_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", tiny_parts())
    facts, machine = describe_model(read_gguf(path)), this_machine()
    sweep = Sweep(prompts=(64,), generates=(0,), threads=(1,), sequences=(1, 4))
    (group,), _ = groups(path, facts, sweep, ("cpu",), None, machine)
    assert [plan.context for plan in group.plans.values()] == [64, 4 * 256]
