"""Grammars of bounded numbers, read as regular expressions, against plain comparison."""

from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest

from tinyedge.errors import GrammarError
from tinyedge.structured.json_numbers import Numbers, multiple_rules


def as_regex(gbnf: str) -> re.Pattern[str]:
    """The regular expression that says the same as GBNF without references to rules."""
    tokens = re.findall(r'"[^"]*"|\[[^]]*]|[()|?*+]|\{[0-9,]+}', gbnf)
    parts = {"(": "(?:", "|": "|"}
    return re.compile("".join(f"(?:{re.escape(t[1:-1])})" if t[0] == '"' else parts.get(t, t) for t in tokens))


@pytest.mark.parametrize("seed", range(4))
def test_whole_numbers_are_those_between_the_bounds(seed: int) -> None:
    noise = random.Random(seed)
    for _ in range(400):
        size = noise.choice([20, 5000, 10**12])
        low, high = sorted(noise.randint(-size, size) for _ in range(2))
        numbers = Numbers(
            integer=True,
            low=Fraction(low) if noise.random() < 0.8 else None,
            high=Fraction(high) if noise.random() < 0.8 else None,
            low_open=noise.random() < 0.3,
            high_open=noise.random() < 0.3,
        )
        if numbers.empty:
            continue
        pattern = as_regex(numbers.gbnf())
        for value in (
            low - 1,
            low,
            low + 1,
            high - 1,
            high,
            high + 1,
            noise.randint(low, high),
            noise.randint(-size, size),
            0,
            -1,
        ):
            assert bool(pattern.fullmatch(str(value))) == numbers.holds(Fraction(value)), (numbers, value)
        assert not pattern.fullmatch("01")


@pytest.mark.parametrize("seed", range(4))
def test_numbers_with_two_decimals_are_those_between_the_bounds(seed: int) -> None:
    noise = random.Random(seed)
    for _ in range(400):
        places = noise.choice([0, 1, 2])
        low, high = sorted(Fraction(noise.randint(-3000, 3000), 10**places) for _ in range(2))
        numbers = Numbers(low=low, high=high if noise.random() < 0.8 else None, low_open=noise.random() < 0.3)
        if numbers.empty or (high - low) * 100 < 2:
            continue
        pattern = as_regex(numbers.gbnf())
        for _ in range(20):
            hundredths = noise.randint(int(low * 100) - 30, int(high * 100) + 30)
            text = f"{'-' if hundredths < 0 else ''}{abs(hundredths) // 100}.{abs(hundredths) % 100:02}"
            assert bool(pattern.fullmatch(text)) == numbers.holds(Fraction(text)), (numbers, text)
        assert not pattern.fullmatch("-0.00")


def test_bounds_closer_than_a_hundredth_get_more_decimals() -> None:
    numbers = Numbers(low=Fraction("0.0001"), high=Fraction("0.0003"), low_open=True, high_open=True)
    assert as_regex(numbers.gbnf()).fullmatch("0.0002")


@pytest.mark.parametrize("divisor", [2, 3, 7, 10, 64, 125, 200])
def test_multiples_have_a_way_to_an_end_from_everywhere(divisor: int) -> None:
    """Walks the rules at random: what comes out is a multiple, and no step leads nowhere."""
    name = f"multiple-of-{divisor}"
    rules = {key: [way.split() for way in rule.split(" | ")] for key, rule in multiple_rules(divisor).items()}
    noise = random.Random(divisor)
    for _ in range(200):
        state: str | None = name
        digits = ""
        while state is not None:
            way = noise.choice(rules[state])
            digits += way[0].strip('"')
            state = way[1] if len(way) > 1 else None
        assert int(digits) % divisor == 0
        assert digits[0] != "0"


@pytest.mark.parametrize(
    "numbers",
    [
        Numbers(integer=True, low=Fraction(10**30)),
        Numbers(low=Fraction(10**40), high=Fraction(10**40 + 1)),
        Numbers(low=Fraction(1, 10**25), high=Fraction(2, 10**25)),
        Numbers(integer=True, divisor=10**4000),
        Numbers(integer=True, divisor=3, low=Fraction(0), high=Fraction(10**9)),
    ],
)
def test_numbers_out_of_reach_are_refused(numbers: Numbers) -> None:
    with pytest.raises(GrammarError, match=r"cannot be followed|to be followed"):
        numbers.gbnf()
