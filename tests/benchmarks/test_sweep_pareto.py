"""Which points of size and distance no other point beats."""

from __future__ import annotations

import random

from tinyedge_bench.quality.sweep import pareto


def test_a_point_that_is_larger_and_farther_than_another_is_off_the_front() -> None:
    assert pareto([(10, 0.1), (5, 0.2), (7, 0.3), (3, 0.9)]) == (True, True, False, True)


def test_equal_points_are_both_on_the_front_and_ties_in_one_count_against_the_worse() -> None:
    assert pareto([(5, 0.2), (5, 0.2)]) == (True, True)
    assert pareto([(5, 0.2), (5, 0.3)]) == (True, False)
    assert pareto([(5, 0.2), (6, 0.2)]) == (True, False)


def test_the_only_point_is_on_the_front_and_none_has_none() -> None:
    assert pareto([(1, 1)]) == (True,)
    assert pareto([]) == ()


def test_the_front_by_a_sweep_over_sorted_points_is_the_same() -> None:
    draw = random.Random(7)
    for _ in range(200):
        points = [(draw.randrange(12), draw.randrange(12)) for _ in range(draw.randrange(1, 15))]
        front, least = set(), float("inf")
        for size, far in sorted(set(points)):
            if far < least:
                front.add((size, far))
                least = far
        assert pareto(points) == tuple(point in front for point in points)
