"""The values that a JSON schema allows, in cases of one JSON type each, and what two cases have in common."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeVar

from tinyedge.errors import GrammarError
from tinyedge.structured.json_numbers import Numbers

Goal = tuple[int, ...]  # the numbers of schemas, in order; none of them: any value
FALSE = -1  # the number of the schema that nothing satisfies

FORMATS = ("date", "time", "date-time", "uuid", "ipv4")


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly this value."""

    value: Any


@dataclass(frozen=True, slots=True)
class Strings:
    """Strings of `shortest` to `longest` characters, None without end, with a pattern or of a format."""

    shortest: int = 0
    longest: int | None = None
    pattern: str | None = None
    format: str | None = None


@dataclass(frozen=True, slots=True)
class Arrays:
    """`least` to `most` items, the first of which are for the goals of `first`, all others for `rest`."""

    first: tuple[Goal, ...] = ()
    rest: Goal = ()
    least: int = 0
    most: int | None = None

    def item(self, index: int) -> Goal:
        return self.first[index] if index < len(self.first) else self.rest


@dataclass(frozen=True, slots=True)
class Objects:
    """`properties` by name, those that must be there, and the goal for all others.

    Others are written when they were asked for (`others_wanted`) or when no property is named.
    """

    properties: tuple[tuple[str, Goal], ...] = ()
    required: frozenset[str] = frozenset()
    rest: Goal = ()
    others_wanted: bool = False
    least: int = 0
    most: int | None = None

    @property
    def named(self) -> dict[str, Goal]:
        """Every property with a name, those that are only required too."""
        named = dict(self.properties)
        return named | {name: self.rest for name in sorted(self.required) if name not in named}


Case = Literal | Numbers | Strings | Arrays | Objects
_Some = TypeVar("_Some", Strings, Arrays, Objects)


@dataclass(frozen=True, slots=True)
class Asked:
    """A case, and whether the schema speaks of its type at all: `{"minLength": 1}` allows numbers, but does not mean them."""

    case: Case
    asked: bool


ANYTHING: tuple[Case, ...] = (Literal(None), Literal(True), Literal(False), Numbers(), Strings(), Arrays(), Objects())


def is_empty(case: Case) -> bool:
    """Whether it can be seen at once that no value is in the case."""
    if isinstance(case, Numbers):
        return case.empty
    if isinstance(case, Strings):
        return case.longest is not None and case.longest < case.shortest
    if isinstance(case, (Arrays, Objects)):
        return case.most is not None and case.most < case.least
    return False


def both_strings(one: Strings, other: Strings) -> Strings | None:
    for first, second in ((one.pattern, other.pattern), (one.format, other.format)):
        if first is not None and second is not None and first != second:
            raise GrammarError("the schema has two patterns or formats for one text, which a grammar cannot follow")
    return _unless_empty(
        Strings(
            max(one.shortest, other.shortest),
            _lower(one.longest, other.longest),
            one.pattern if other.pattern is None else other.pattern,
            other.format or one.format,
        )
    )


def both_arrays(one: Arrays, other: Arrays) -> Arrays | None:
    return _unless_empty(
        Arrays(
            tuple(_both(one.item(index), other.item(index)) for index in range(max(len(one.first), len(other.first)))),
            _both(one.rest, other.rest),
            max(one.least, other.least),
            _lower(one.most, other.most),
        )
    )


def both_objects(one: Objects, other: Objects) -> Objects | None:
    first, second = dict(one.properties), dict(other.properties)
    return _unless_empty(
        Objects(
            tuple((name, _both(first.get(name, one.rest), second.get(name, other.rest))) for name in first | second),
            one.required | other.required,
            _both(one.rest, other.rest),
            one.others_wanted or other.others_wanted,
            max(one.least, other.least),
            _lower(one.most, other.most),
        )
    )


def _unless_empty(case: _Some) -> _Some | None:
    return None if is_empty(case) else case


def _both(one: Goal, other: Goal) -> Goal:
    return tuple(sorted({*one, *other}))


def _lower(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def exact(value: float) -> Fraction:
    """The number that the shortest decimals for `value` say."""
    return Fraction(value) if isinstance(value, int) else Fraction(Decimal(repr(value)))


def same(one: Any, other: Any) -> bool:
    """Equality as JSON schemas mean it: 1 and 1.0 are the same, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return bool(one == other)
