"""What a JSON schema as a whole allows: references followed, conjunctions multiplied out.

A `Goal` is a set of schemas that one value has to satisfy at once. The parts of arrays and objects are goals again, looked at
when they are needed, so that a schema may refer to itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tinyedge.errors import GrammarError
from tinyedge.structured.json_cases import (
    ANYTHING,
    FALSE,
    Arrays,
    Asked,
    Case,
    Goal,
    Literal,
    Objects,
    Strings,
    both_arrays,
    both_objects,
    both_strings,
    exact,
    same,
)
from tinyedge.structured.json_keywords import MAX_ALTERNATIVES, Keywords
from tinyedge.structured.json_numbers import Numbers

_MAX_MEETINGS = 200_000  # of two cases; every combination of alternatives counts
_MAX_NESTED = 60


class _UnfinishedError(Exception):
    """The cases of a schema were asked for while they are being worked out."""


@dataclass(slots=True)
class Goals:
    """The cases of every goal in one schema document. All methods raise GrammarError for what cannot be followed."""

    document: Any
    _schemas: list[Keywords] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)
    _known: dict[int, tuple[Asked, ...]] = field(default_factory=dict)
    _known_goals: dict[Goal, tuple[Case, ...]] = field(default_factory=dict)
    _open: list[int] = field(default_factory=list)
    _meetings: int = 0

    def root(self) -> Goal:
        return self._goal(self.document, "#")

    def cases(self, goal: Goal) -> tuple[Case, ...]:
        """The cases of a goal; none when nothing satisfies it."""
        try:
            return self._of_goal(goal)
        except _UnfinishedError:
            raise self._schemas[goal[0]].error("refers to itself without end") from None

    def _of_goal(self, goal: Goal) -> tuple[Case, ...]:
        if goal not in self._known_goals:
            self._known_goals[goal] = tuple(each.case for each in _meant(self._every(goal)))
        return self._known_goals[goal]

    def _goal(self, schema: Any, path: str) -> Goal:
        """The goal of one schema."""
        if schema is True:
            return ()
        if schema is False:
            return (FALSE,)
        if not isinstance(schema, dict):
            raise GrammarError(f"the schema at {path[:80]!r} is neither an object nor true or false")
        if id(schema) not in self._numbers:
            self._numbers[id(schema)] = len(self._schemas)
            self._schemas.append(Keywords(schema, path, self._goal))
        return (self._numbers[id(schema)],)

    def _of_schema(self, number: int) -> tuple[Asked, ...]:
        if number == FALSE:
            return ()
        if number not in self._known:
            if number in self._open:
                raise _UnfinishedError
            if len(self._open) > _MAX_NESTED:
                raise self._schemas[number].error(f"is nested more than {_MAX_NESTED} deep in references and combinations")
            self._open.append(number)
            try:
                self._known[number] = self._read(self._schemas[number])
            finally:
                self._open.pop()
        return self._known[number]

    def _read(self, keywords: Keywords) -> tuple[Asked, ...]:
        schema = keywords.schema
        keywords.refuse_what_cannot_be_followed()
        by_type = keywords.by_type()
        parts = [by_type] if any(each.asked for each in by_type) or len(by_type) < len(ANYTHING) else []
        if "const" in schema:
            parts.append((Asked(Literal(schema["const"]), True),))
        if "enum" in schema:
            parts.append(tuple(Asked(Literal(value), True) for value in keywords.list_of("enum")))
        if "$ref" in schema:
            parts += [self._of_schema(each) for each in self._target(keywords)]
        for goal in keywords.goals_of("allOf"):
            parts += [self._of_schema(each) for each in goal]
        if "anyOf" in schema:
            parts.append(tuple(case for goal in keywords.goals_of("anyOf") for case in self._every(goal)))
        found = self._all(parts)
        if "oneOf" in schema:
            found = self._exactly_one(keywords, found)
        return tuple(map(keywords.sealed, found))

    def _every(self, goal: Goal) -> tuple[Asked, ...]:
        """The cases of a goal, those too that it does not speak of."""
        return self._all(self._of_schema(each) for each in goal)

    def _exactly_one(self, keywords: Keywords, others: tuple[Asked, ...]) -> tuple[Asked, ...]:
        """oneOf, where no value can satisfy two of its alternatives; a grammar cannot tell otherwise."""
        alternatives = [self._all([others, self._every(goal)]) for goal in keywords.goals_of("oneOf")]
        kept = [_meant(each) for each in alternatives]
        for index, cases in enumerate(kept):
            for rival in (*alternatives[:index], *alternatives[index + 1 :]):
                if any(self._overlap(mine.case, its.case) for mine in cases for its in rival):
                    raise keywords.error(
                        "has oneOf with alternatives that overlap, which a grammar cannot follow; anyOf it can"
                    )
        return tuple(case for cases in kept for case in cases)

    def _overlap(self, first: Case, second: Case) -> bool:
        both = self._meet(first, second)
        if isinstance(both, Objects):
            return not any(self._impossible(goal) for name, goal in both.named.items() if name in both.required)
        if isinstance(both, Arrays):
            return not any(self._impossible(both.item(index)) for index in range(min(both.least, len(both.first) + 1)))
        return both is not None

    def _impossible(self, goal: Goal) -> bool:
        """Whether it is certain that nothing satisfies the goal, as far as it can be told now."""
        try:
            return not self._of_goal(goal)
        except _UnfinishedError:
            return False

    def _all(self, parts: Iterable[tuple[Asked, ...]]) -> tuple[Asked, ...]:
        """The cases of values that are in every part."""
        found: tuple[Asked, ...] | None = None
        for part in parts:
            found = part if found is None else tuple(self._meetings_of(found, part))
            if len(found) > MAX_ALTERNATIVES:
                raise GrammarError(f"the schema comes to more than {MAX_ALTERNATIVES} combinations of its alternatives")
        return tuple(Asked(case, False) for case in ANYTHING) if found is None else found

    def _meetings_of(self, first: tuple[Asked, ...], second: tuple[Asked, ...]) -> Iterator[Asked]:
        for one in first:
            for other in second:
                if (case := self._meet(one.case, other.case)) is not None:
                    yield Asked(case, one.asked or other.asked)

    def _meet(self, one: Case, other: Case) -> Case | None:
        """The values that are in both cases, None if there is none."""
        self._meetings += 1
        if self._meetings > _MAX_MEETINGS:
            raise GrammarError("the schema combines too many alternatives to be followed")
        if isinstance(other, Literal):
            one, other = other, one
        if isinstance(one, Literal):
            return one if self._holds(other, one.value) else None
        if isinstance(one, Numbers) and isinstance(other, Numbers):
            numbers = one.both(other)
            return None if numbers.empty else numbers
        if isinstance(one, Strings) and isinstance(other, Strings):
            return both_strings(one, other)
        if isinstance(one, Arrays) and isinstance(other, Arrays):
            return both_arrays(one, other)
        if isinstance(one, Objects) and isinstance(other, Objects):
            return both_objects(one, other)
        return None

    def _holds(self, case: Case, value: Any) -> bool:
        """Whether `value` is in the case."""
        if isinstance(case, Literal):
            return same(case.value, value)
        if isinstance(case, Numbers):
            return isinstance(value, (int, float)) and not isinstance(value, bool) and case.holds(exact(value))
        if isinstance(case, Strings):
            if isinstance(value, str) and case.pattern is not None:
                raise GrammarError("the schema has a pattern beside fixed values, which cannot be followed")
            return isinstance(value, str) and case.shortest <= len(value) <= (
                math.inf if case.longest is None else case.longest
            )
        if isinstance(case, Arrays):
            return (
                isinstance(value, list)
                and case.least <= len(value) <= (math.inf if case.most is None else case.most)
                and all(self._satisfies(item, case.item(index)) for index, item in enumerate(value))
            )
        named = case.named
        return (
            isinstance(value, dict)
            and case.required <= value.keys()
            and case.least <= len(value) <= (math.inf if case.most is None else case.most)
            and all(self._satisfies(item, named.get(name, case.rest)) for name, item in value.items())
        )

    def _satisfies(self, value: Any, goal: Goal) -> bool:
        return not goal or any(self._holds(each.case, value) for each in self._every(goal))

    def _target(self, keywords: Keywords) -> Goal:
        """The goal that a $ref means. Nothing is ever fetched."""
        reference = keywords.schema["$ref"]
        if not isinstance(reference, str):
            raise keywords.error("has a $ref that is no text")
        own = self.document.get("$id") if isinstance(self.document, dict) else None
        pointer = reference.removeprefix(own.rstrip("#")) if isinstance(own, str) and own.rstrip("#") else reference
        if pointer.startswith("#") and pointer != "#" and not pointer.startswith("#/"):
            raise keywords.error(f"refers to the name {pointer[:80]!r}, only pointers such as #/$defs/x are supported")
        if pointer not in ("", "#") and not pointer.startswith("#/"):
            raise keywords.error(f"refers to {reference[:80]!r}, which is not inside of it, and nothing is fetched")
        found, path = self.document, "#"
        for part in pointer.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            path = f"{path}/{name}"
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isascii() and name.isdigit() and len(name) < 9 and int(name) < len(found):
                found = found[int(name)]
            else:
                raise keywords.error(f"refers to {reference[:80]!r}, which is not there")
        return self._goal(found, path)


def _meant(cases: tuple[Asked, ...]) -> tuple[Asked, ...]:
    """The cases that the schema speaks of, all if it speaks of none."""
    return tuple(each for each in cases if each.asked) or cases
