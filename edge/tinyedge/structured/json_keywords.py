"""Reads the keywords of one JSON schema, without looking into the schemas inside of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from tinyedge.errors import GrammarError
from tinyedge.structured.json_cases import (
    ANYTHING,
    FALSE,
    FORMATS,
    Arrays,
    Asked,
    Case,
    Goal,
    Literal,
    Objects,
    Strings,
    exact,
    is_empty,
)
from tinyedge.structured.json_numbers import Numbers

MAX_ALTERNATIVES = 2000

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Keywords that say what a value must be like, and that no grammar or not ours can follow.
_NOT_FOLLOWED = (
    *("not", "if", "contains", "uniqueItems", "propertyNames", "patternProperties", "dependencies", "dependentRequired"),
    *("dependentSchemas", "$dynamicRef", "$recursiveRef"),
)
# With these values they say nothing.
_EMPTY_VALUES: dict[str, Any] = {"not": False, "uniqueItems": False, "propertyNames": {}, "patternProperties": {}} | {
    keyword: {} for keyword in ("dependencies", "dependentRequired", "dependentSchemas")
}


@dataclass(frozen=True, slots=True)
class Keywords:
    """One schema with the JSON pointer that leads to it. All methods raise GrammarError for what cannot be followed.

    `goal_of` gives the goal of a schema inside of this one and the pointer to it.
    """

    schema: Mapping[str, Any]
    path: str
    goal_of: Callable[[Any, str], Goal]

    def error(self, what: str) -> GrammarError:
        return GrammarError(f"the schema at {self.path[:80]!r} {what}")

    def refuse_what_cannot_be_followed(self) -> None:
        schema = self.schema
        for keyword in _NOT_FOLLOWED:
            if keyword not in schema or (keyword in _EMPTY_VALUES and schema[keyword] == _EMPTY_VALUES[keyword]):
                continue
            if keyword == "if" and "then" not in schema and "else" not in schema:
                continue
            raise self.error(f"has {keyword}, which a grammar cannot follow")
        for keyword in ("unevaluatedProperties", "unevaluatedItems"):
            if schema.get(keyword, True) not in (True, False, {}):
                raise self.error(f"has {keyword} that is neither true nor false, which a grammar cannot follow")
        if self.path != "#" and "$id" in schema:
            raise self.error("has an $id of its own, which is not supported")

    def list_of(self, keyword: str) -> list[Any]:
        value = self.schema.get(keyword, [])
        if not isinstance(value, list):
            raise self.error(f"has {keyword} that is no list")
        if len(value) > MAX_ALTERNATIVES:
            raise self.error(f"has {keyword} with more than {MAX_ALTERNATIVES} entries")
        return value

    def goals_of(self, keyword: str) -> list[Goal]:
        """The goals of a list of schemas."""
        return [self.goal_of(each, f"{self.path}/{keyword}/{index}") for index, each in enumerate(self.list_of(keyword))]

    def by_type(self) -> tuple[Asked, ...]:
        """What the keywords allow that each speak of one type."""
        types = self.schema.get("type")
        named = types if isinstance(types, list) else _TYPES if types is None else [types]
        for name in named:
            if name not in _TYPES:
                raise self.error(f"has the unknown type {str(name)[:40]!r}")
        found: list[Case] = []
        if "null" in named:
            found.append(Literal(None))
        if "boolean" in named:
            found += [Literal(True), Literal(False)]
        if "number" in named or "integer" in named:
            found.append(self._numbers_of(integer="number" not in named))
        if "string" in named:
            found.append(self._strings_of())
        if "array" in named:
            found.append(self._arrays_of())
        if "object" in named:
            found.append(self._objects_of())
        return tuple(Asked(case, types is not None or case not in ANYTHING) for case in found if not is_empty(case))

    def sealed(self, asked: Asked) -> Asked:
        """The case without what no part of this schema speaks of, when it forbids the unevaluated."""
        case = asked.case
        if isinstance(case, Objects) and self.schema.get("unevaluatedProperties") is False and not case.others_wanted:
            return replace(asked, case=replace(case, rest=(FALSE,)))
        if isinstance(case, Arrays) and self.schema.get("unevaluatedItems") is False and not case.rest:
            return replace(asked, case=replace(case, rest=(FALSE,)))
        return asked

    def _numbers_of(self, *, integer: bool) -> Numbers:
        schema = self.schema
        numbers = Numbers(integer=integer)
        for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            value = schema.get(keyword)
            if value is None or isinstance(value, bool):  # draft 4 has a boolean beside the bound
                continue
            bound = self._number(keyword)
            is_open = keyword.startswith("exclusive") or schema.get(f"exclusive{keyword.capitalize()}") is True
            is_low = keyword.endswith("inimum")
            other = Numbers(low=bound, low_open=is_open) if is_low else Numbers(high=bound, high_open=is_open)
            numbers = numbers.both(other)
        if "multipleOf" in schema:
            divisor = self._number("multipleOf")
            if divisor <= 0:
                raise self.error("has multipleOf that is not above 0")
            if divisor.denominator != 1:
                raise self.error("has multipleOf that is no whole number, which a grammar cannot follow")
            numbers = replace(numbers, integer=True, divisor=int(divisor))
        return numbers

    def _number(self, keyword: str) -> Fraction:
        value = self.schema[keyword]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(f"has {keyword} that is no number")
        return exact(value)

    def _count(self, keyword: str) -> int | None:
        if keyword not in self.schema:
            return None
        count = self._number(keyword)
        if count < 0 or count.denominator != 1:
            raise self.error(f"has {keyword} that is no count")
        return int(count)

    def _strings_of(self) -> Strings:
        pattern, name = (self._text(keyword) for keyword in ("pattern", "format"))
        return Strings(
            self._count("minLength") or 0,
            self._count("maxLength"),
            pattern,
            name if name in FORMATS else None,
        )

    def _text(self, keyword: str) -> str | None:
        value = self.schema.get(keyword)
        if value is not None and not isinstance(value, str):
            raise self.error(f"has {keyword} that is no text")
        return value

    def _arrays_of(self) -> Arrays:
        schema, path = self.schema, self.path
        items, rest_keyword = schema.get("items", True), "items"
        first: Any = schema.get("prefixItems", [])
        first_keyword = "prefixItems"
        if isinstance(items, list):  # before draft 2020-12
            first, first_keyword = items, "items"
            items, rest_keyword = schema.get("additionalItems", True), "additionalItems"
        if not isinstance(first, list):
            raise self.error(f"has {first_keyword} that is no list")
        return Arrays(
            tuple(self.goal_of(each, f"{path}/{first_keyword}/{index}") for index, each in enumerate(first)),
            self.goal_of(items, f"{path}/{rest_keyword}"),
            self._count("minItems") or 0,
            self._count("maxItems"),
        )

    def _objects_of(self) -> Objects:
        schema, path = self.schema, self.path
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise self.error("has properties that are no object")
        if isinstance(required, bool):  # draft 3, and a frequent mistake
            raise self.error("has required that is no list of names")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self.error("has required that is no list of names")
        additional = schema.get("additionalProperties", True)
        return Objects(
            tuple((name, self.goal_of(each, f"{path}/properties/{name}")) for name, each in properties.items()),
            frozenset(required),
            self.goal_of(additional, f"{path}/additionalProperties"),
            "additionalProperties" in schema and additional is not False,
            self._count("minProperties") or 0,
            self._count("maxProperties"),
        )
