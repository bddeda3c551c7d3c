"""Numbers of a JSON schema as GBNF: every text is a number within the bounds, exactly.

Bounds become classes of digits, so numbers have at most 18 digits and, between bounds, a fixed grid of decimals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from tinyedge.errors import GrammarError

_DIGITS = 18
_MOST = 10**_DIGITS - 1
_FLOAT_DIGITS = 15  # what a double holds exactly
_DECIMALS = 2  # at least, between bounds
_MAX_LISTED = 1000
_MAX_DIVISOR = 200
_MULTIPLE_DIGITS = 9

ANY_INTEGER = f'"-"? ("0" | [1-9] [0-9]{{0,{_FLOAT_DIGITS - 1}}})'
ANY_NUMBER = f'{ANY_INTEGER} ("." [0-9]{{1,{_FLOAT_DIGITS}}})? ([eE] [-+]? [0-9]{{1,2}})?'


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers from `low` to `high`, open ends left out, that `divisor` divides."""

    integer: bool = False
    low: Fraction | None = None
    low_open: bool = False
    high: Fraction | None = None
    high_open: bool = False
    divisor: int = 1  # 1 for numbers that need not be whole

    def both(self, other: Numbers) -> Numbers:
        """The numbers that are in both."""
        lows = [(each.low, each.low_open) for each in (self, other) if each.low is not None]
        highs = [(each.high, each.high_open) for each in (self, other) if each.high is not None]
        low = max(lows, key=lambda bound: (bound[0], bound[1]), default=(None, False))
        high = min(highs, key=lambda bound: (bound[0], not bound[1]), default=(None, False))
        divisor = self.divisor * other.divisor // math.gcd(self.divisor, other.divisor)
        return Numbers(self.integer or other.integer, low[0], low[1], high[0], high[1], divisor)

    @property
    def empty(self) -> bool:
        if self.integer:
            low, high = self._whole_bounds()
            if low is None or high is None:
                return False
            return -(-low // self.divisor) * self.divisor > high
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def holds(self, value: Fraction) -> bool:
        """Whether `value` is among them."""
        if self.low is not None and (value < self.low or (self.low_open and value == self.low)):
            return False
        if self.high is not None and (value > self.high or (self.high_open and value == self.high)):
            return False
        return not self.integer or (value.denominator == 1 and value.numerator % self.divisor == 0)

    def _whole_bounds(self) -> tuple[int | None, int | None]:
        low = None if self.low is None else math.floor(self.low) + 1 if self.low_open else math.ceil(self.low)
        high = None if self.high is None else math.ceil(self.high) - 1 if self.high_open else math.floor(self.high)
        return low, high

    def gbnf(self) -> str:
        """A grammar of these numbers, of which there must be one. Raises GrammarError for bounds out of reach."""
        if self.integer:
            return self._whole_gbnf()
        if self.low is None and self.high is None:
            return ANY_NUMBER
        whole = replace(self, integer=True)
        reachable = Numbers(low=Fraction(-_MOST), high=Fraction(_MOST))
        decimal = _decimals(self)
        return decimal if whole.both(reachable).empty else f"({whole._whole_gbnf()} | {decimal})"

    @property
    def has_own_rules(self) -> bool:
        """Whether the grammar refers to the rules that `multiple_rules` writes."""
        return self.integer and self.divisor > 1 and self.low is None and self.high is None

    def _whole_gbnf(self) -> str:
        low, high = self._whole_bounds()
        if low is not None and high is not None and (high - low) // self.divisor < _MAX_LISTED and self.divisor > 1:
            first = -(-low // self.divisor) * self.divisor
            return "(" + " | ".join(f'"{each}"' for each in range(first, high + 1, self.divisor)) + ")"
        if self.divisor > 1:
            if low is not None or high is not None:
                raise GrammarError(f"multiples of {shown(self.divisor)} between bounds so far apart cannot be followed")
            return _multiples(self.divisor)
        if low is None and high is None:
            return ANY_INTEGER
        low, high = max(-_MOST, -_MOST if low is None else low), min(_MOST, _MOST if high is None else high)
        if low > high:
            raise GrammarError(f"the schema asks for a number of more than {_DIGITS} digits, which cannot be followed")
        return _signed(low, high, 0)


def shown(count: int) -> str:
    """A whole number for a message, one of many digits as such."""
    return str(count) if count < 10**_DIGITS else f"a number of more than {_DIGITS} digits"


def _decimals(numbers: Numbers) -> str:
    """Numbers with a fixed count of decimals, on the grid of which both bounds are."""
    bounds = [bound for bound in (numbers.low, numbers.high) if bound is not None]
    decimals = max(_DECIMALS, *map(_decimals_of, bounds))
    for places in range(decimals, decimals + 3):
        scale, most = 10**places, 10 ** max(_FLOAT_DIGITS, places) - 1
        scaled = replace(
            numbers,
            low=None if numbers.low is None else numbers.low * scale,
            high=None if numbers.high is None else numbers.high * scale,
            integer=True,
        )
        low, high = scaled._whole_bounds()
        low, high = -most if low is None else low, most if high is None else high
        if low <= high and max(abs(low), abs(high)) <= 10**30:
            return _signed(low, high, places)
    raise GrammarError("the schema asks for numbers between bounds too close or too large to be followed")


def _decimals_of(bound: Fraction) -> int:
    """The decimals of a number that a JSON text can hold. Raises GrammarError for more than 20."""
    for places in range(21):
        if (bound * 10**places).denominator == 1:
            return places
    raise GrammarError("the schema asks for numbers between bounds with more than 20 decimals, which cannot be followed")


def _signed(low: int, high: int, places: int) -> str:
    """Whole numbers from `low` to `high`, with a point before the last `places` digits; no minus before a zero."""
    parts = []
    if low < 0:
        parts.append(f'"-" {_unsigned(max(1, -high), -low, places)}')
    if high >= 0:
        parts.append(_unsigned(max(0, low), high, places))
    return f"({' | '.join(parts)})"


def _unsigned(low: int, high: int, places: int) -> str:
    parts = []
    whole: list[int] = []  # lengths of which every number is among them
    for length in range(max(len(str(low)), places + 1), max(len(str(high)), places + 1) + 1):
        smallest = 0 if length == places + 1 else 10 ** (length - 1)
        first, last = max(low, smallest), min(high, 10**length - 1)
        if smallest and (first, last) == (smallest, 10**length - 1):
            whole.append(length)
        elif first <= last:
            parts.append(_between(str(first).zfill(length), str(last).zfill(length), places))
    if whole:
        decimals = f' "." [0-9]{{{places}}}' if places else ""
        parts.append(f"[1-9] [0-9]{{{whole[0] - 1 - places},{whole[-1] - 1 - places}}}{decimals}")
    return f"({' | '.join(parts)})"


def _between(low: str, high: str, places: int) -> str:
    """Strings of as many digits as `low` and `high` have, in order between them."""
    if not low:
        return '""'
    point = '"." ' if len(low) == places and places else ""
    rest = len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        if not places or len(low) <= places:
            return f"{point}[0-9]{{{len(low)}}}"
        return f'[0-9]{{{len(low) - places}}} "." [0-9]{{{places}}}'
    if low[0] == high[0]:
        return f"{point}[{low[0]}] {_between(low[1:], high[1:], places)}".removesuffix(' ""')
    parts = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        parts.append(f"[{first}] {_between(low[1:], '9' * rest, places)}")
        first += 1
    tail = None
    if high[1:] != "9" * rest:
        tail = f"[{last}] {_between('0' * rest, high[1:], places)}"
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}] {_between('0' * rest, '9' * rest, places)}".removesuffix(' ""'))
    if tail:
        parts.append(tail)
    return f"{point}({' | '.join(parts)})"


def _multiples(divisor: int) -> str:
    """All multiples of up to 9 digits; the rules are those of `multiple_rules`."""
    if divisor > _MAX_DIVISOR:
        raise GrammarError(f"multiples of {shown(divisor)} cannot be followed, only those up to {_MAX_DIVISOR}")
    return f'("0" | "-"? multiple-of-{divisor})'


def multiple_rules(divisor: int) -> dict[str, str]:
    """The rules behind `multiple-of-N`: one for each remainder of the digits that have come and each count of those to come."""
    name = f"multiple-of-{divisor}"
    endings = [{0}]  # for each count of digits to come the remainders that can still become zero
    for _ in range(_MULTIPLE_DIGITS):
        endings.append({each for each in range(divisor) if not each or _steps(each, divisor, range(10), endings[-1])})

    def rule(remainder: int, left: int, digits: range) -> str:
        steps = _steps(remainder, divisor, digits, endings[left - 1]) if left else []
        ways = [f'"{digit}" {name}-{after}-{left - 1}' for digit, after in steps]
        return " | ".join([*ways, '""'] if remainder == 0 and left < _MULTIPLE_DIGITS else ways)

    rules = {name: rule(0, _MULTIPLE_DIGITS, range(1, 10))}
    for left in range(_MULTIPLE_DIGITS):
        rules |= {f"{name}-{remainder}-{left}": rule(remainder, left, range(10)) for remainder in sorted(endings[left])}
    return rules


def _steps(remainder: int, divisor: int, digits: range, allowed: set[int]) -> list[tuple[int, int]]:
    """The digits that lead from this remainder to an allowed one, with that one."""
    return [(digit, after) for digit in digits if (after := (remainder * 10 + digit) % divisor) in allowed]
