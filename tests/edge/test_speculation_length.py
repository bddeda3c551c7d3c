"""The draft length against simulated machines and texts, with times that are made up."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from tinyedge.draft_length import Costs, DraftLength, Shares

# A pass of so many rows in single steps: two cores that compute for long, a board bound by memory, one bound by arithmetic.
TWO_CORES = {1: 1.0, 2: 1.8, 3: 2.3, 4: 3.1, 6: 4.2, 8: 5.0, 12: 6.0, 16: 6.5}
MEMORY_BOUND = {1: 1.0, 2: 1.05, 3: 1.1, 4: 1.15, 6: 1.3, 8: 1.4, 12: 1.7, 16: 2.0}
COMPUTE_BOUND = {rows: float(rows) for rows in TWO_CORES}
SURE = 6
SINGLE_S = 0.02


def speedup(
    costs: dict[int, float],
    came_true: Callable[[int], int],
    steps: int = 400,
    *,
    sureness: int = SURE,
    draft_s: float = 1e-5,
    length: DraftLength | None = None,
) -> float:
    """Tokens per second beside single steps, where `came_true` tells how many of a draft's first tokens are accepted."""
    length = length or DraftLength()
    tokens, seconds = 0, 0.0
    for _ in range(steps):
        spent, drafted = 0.0, 0
        wanted = length.wanted(16)
        if wanted:
            spent = wanted * draft_s
            length.learn_draft(wanted, spent)
            drafted = length.worth(wanted, sureness)
        true = came_true(max(drafted, 1)) if wanted else 0
        own = costs[drafted + 1] * SINGLE_S
        length.learn_step(drafted + 1, own)
        spent += own
        brought = true + 1 if drafted else 1
        if drafted:
            length.shares.learn(sureness, true, failed=true < drafted)
            length.learn_gain(brought, spent)
        elif wanted:
            length.shares.learn(sureness, min(true, 1), failed=not true)
        tokens += brought
        seconds += spent
    return tokens * SINGLE_S / seconds


def always(share: float, seed: int = 1) -> Callable[[int], int]:
    """Each drafted token comes true with the same chance."""
    draw = random.Random(seed)

    def came_true(drafted: int) -> int:
        return next((place for place in range(drafted) if draw.random() >= share), drafted)

    return came_true


@pytest.mark.parametrize(
    ("costs", "share", "least"),
    [
        (TWO_CORES, 1.0, 2.2),
        (TWO_CORES, 0.97, 1.7),
        (MEMORY_BOUND, 1.0, 7.0),
        (MEMORY_BOUND, 0.7, 1.9),
        (MEMORY_BOUND, 0.4, 1.3),
    ],
)
def test_drafts_that_come_true_pay(costs: dict[int, float], share: float, least: float) -> None:
    assert speedup(costs, always(share)) >= least


@pytest.mark.parametrize("costs", [TWO_CORES, MEMORY_BOUND, COMPUTE_BOUND])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_drafts_that_do_not_come_true_cost_little(costs: dict[int, float], share: float) -> None:
    assert speedup(costs, always(share)) >= 0.97


def test_where_rows_cost_as_much_as_single_steps_nothing_is_gained_and_little_lost() -> None:
    assert speedup(COMPUTE_BOUND, always(1.0)) >= 0.97


def test_drafts_are_longer_where_more_comes_true() -> None:
    lengths = {}
    for share in (0.8, 0.99):
        length = DraftLength()
        speedup(MEMORY_BOUND, always(share), length=length)
        length.paused = 0
        lengths[share] = length.worth(length.wanted(16), SURE)
    assert 0 < lengths[0.8] < lengths[0.99] == 15


def test_a_drafter_that_costs_more_than_it_gives_is_asked_ever_less() -> None:
    asked = []
    length = DraftLength()
    for step in range(2000):
        wanted = length.wanted(16)
        if wanted:
            asked.append(step)
            length.learn_draft(wanted, wanted * SINGLE_S / 2)
        length.learn_step(wanted + 1 if wanted else 1, SINGLE_S * COMPUTE_BOUND.get(wanted + 1, 8.0))
        if wanted:
            length.shares.learn(0, 0, failed=True)
            length.learn_gain(1, SINGLE_S * (wanted + 1) * 1.5)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert max(gaps) >= 400
    assert gaps[-1] > 4 * gaps[2]
    assert len(asked) < 40


def test_a_drafter_that_was_turned_off_is_taken_up_again_when_the_text_suits_it() -> None:
    length = DraftLength()
    assert speedup(TWO_CORES, always(0.0), 200, length=length) > 0.9
    assert speedup(TWO_CORES, always(1.0), 600, length=length) > 1.5


def test_a_slow_drafter_pays_when_it_is_mostly_right() -> None:
    assert speedup(MEMORY_BOUND, always(0.9), sureness=0, draft_s=SINGLE_S * 0.12) > 1.5


def test_nothing_is_drafted_before_a_single_step_was_timed() -> None:
    length = DraftLength()
    assert length.wanted(16) == 0
    length.learn_step(1, SINGLE_S)
    assert length.wanted(16) > 0


@pytest.mark.parametrize("limit", [-3, 0])
def test_nothing_is_drafted_where_nothing_may_be(limit: int) -> None:
    length = DraftLength()
    length.learn_step(1, SINGLE_S)
    assert length.wanted(limit) == 0


def test_costs_between_timed_passes_follow_from_them() -> None:
    costs = Costs()
    costs.learn(1, 1.0)
    for _ in range(40):
        costs.learn(4, 4.0)
        costs.learn(16, 16.0)
    assert costs.of(4) == pytest.approx(4.0, rel=0.01)
    assert costs.of(16) == pytest.approx(16.0, rel=0.01)
    assert 6.0 < costs.of(8) < 11.0


def test_one_slow_pass_changes_little() -> None:
    costs = Costs()
    for _ in range(20):
        costs.learn(1, 1.0)
    costs.learn(1, 100.0)
    assert costs.of(1) < 1.3


def test_shares_follow_what_is_seen_and_forget() -> None:
    shares = Shares()
    for _ in range(50):
        shares.learn(2, 4, failed=False)
    assert shares.of(2) > 0.95
    for _ in range(50):
        shares.learn(2, 0, failed=True)
    assert shares.of(2) < 0.15
