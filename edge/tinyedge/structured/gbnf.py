"""Reads GBNF, the grammar notation of llama.cpp, by the rules of its parser (`llama_grammar_parser`, src/llama-grammar.cpp).

Its limits are ours where it has some; where it has none (nested parentheses, the size of what repetitions come to), it would
overflow its stack or take all memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinyedge.errors import GrammarError

MAX_REPETITIONS = 2000  # MAX_REPETITION_THRESHOLD in llama-grammar.cpp
_MAX_ELEMENTS = 300_000  # after repetitions are written out, 8 bytes each in llama.cpp
_MAX_RULES = 50_000
_MAX_PARENTHESES = 64
_END_OF_LINE = "\r\n"
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_LAST_CHARACTER = 0x10FFFF


@dataclass(frozen=True, slots=True)
class Characters:
    """One character out of these ranges, or out of all others."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def matches(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges) != self.negated

    @property
    def example(self) -> int | None:
        """A character that matches, None if there is none."""
        if not self.negated:
            return next((low for low, high in self.ranges if low <= high), None)
        candidates = [ord("a"), *(high + 1 for _, high in self.ranges)]
        return next((code for code in candidates if code <= _LAST_CHARACTER and self.matches(code)), None)


Element = Characters | int  # an int is the number of a rule
Alternatives = tuple[tuple[Element, ...], ...]


class Parser:
    """Reads GBNF into numbered rules, repetitions written out as llama.cpp does."""

    def __init__(self, text: str) -> None:
        self._text = text + "\0"
        self._position = 0
        self._numbers: dict[str, int] = {}
        self._used_at: dict[int, int] = {}
        self._found: dict[int, Alternatives] = {}
        self._elements = 0
        self._depth = 0

    @property
    def rules(self) -> list[Alternatives]:
        return [self._found[number] for number in range(len(self._numbers))]

    @property
    def names(self) -> list[str]:
        """The rule each number belongs to; those that stand for a part of a rule have its name."""
        return [name.partition("_")[0] for name in self._numbers]

    @property
    def root(self) -> int:
        return self._numbers["root"]

    def parse(self) -> None:
        for place, character in enumerate(self._text[:-1]):
            if character == "\0" or "\ud800" <= character <= "\udfff":
                raise self._error("a character that no text can hold", place)
        self._space(newline=True)
        while not self._at_end:
            self._rule()
        for number, place in self._used_at.items():
            if number not in self._found:
                raise self._error(f"there is no rule {self.names[number]!r}", place)
        if "root" not in self._numbers or self.root not in self._found:
            raise GrammarError("the grammar has no rule `root`, where every text begins")

    @property
    def _at_end(self) -> bool:
        return self._position >= len(self._text) - 1

    @property
    def _next(self) -> str:
        return self._text[self._position]

    def _error(self, what: str, place: int | None = None) -> GrammarError:
        before = self._text[: self._position if place is None else place]
        line = before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1) + 1
        return GrammarError(f"the grammar is wrong at line {line}, column {column}: {what}")

    def _space(self, *, newline: bool) -> None:
        text, position = self._text, self._position
        while (character := text[position]) in " \t#" or (newline and character in _END_OF_LINE):
            position += 1
            if character == "#":
                while text[position] not in "\r\n\0":
                    position += 1
        self._position = position

    def _name(self) -> str:
        start = self._position
        while self._next.isascii() and (self._next.isalnum() or self._next == "-"):
            self._position += 1
        if start == self._position:
            raise self._error("the name of a rule is missing")
        return self._text[start : self._position]

    def _number_of(self, name: str) -> int:
        if len(self._numbers) >= _MAX_RULES:
            raise GrammarError(f"the grammar comes to more than {_MAX_RULES} rules, parentheses and repetitions counted")
        return self._numbers.setdefault(name, len(self._numbers))

    def _new_number(self, rule: str) -> int:
        return self._number_of(f"{rule}_{len(self._numbers)}")

    def _rule(self) -> None:
        place = self._position
        name = self._name()
        self._space(newline=False)
        number = self._number_of(name)
        if number in self._found:
            raise self._error(f"there are two rules {name[:40]!r}", place)
        if not self._text.startswith("::=", self._position):
            raise self._error("::= is missing")
        self._position += 3
        self._space(newline=True)
        self._alternatives(name, number, nested=False)
        if self._text.startswith("\r\n", self._position):
            self._position += 2
        elif self._next in _END_OF_LINE:
            self._position += 1
        elif not self._at_end:
            raise self._error(f"{self._next!r} cannot stand here")
        self._space(newline=True)

    def _alternatives(self, rule: str, number: int, *, nested: bool) -> None:
        alternatives = [self._sequence(rule, nested=nested)]
        while self._next == "|":
            self._position += 1
            self._space(newline=True)
            alternatives.append(self._sequence(rule, nested=nested))
        self._add(number, alternatives)

    def _add(self, number: int, alternatives: Sequence[Sequence[Element]]) -> None:
        self._count(sum(map(len, alternatives)) + len(alternatives))
        self._found[number] = tuple(map(tuple, alternatives))

    def _count(self, elements: int) -> None:
        self._elements += elements
        if self._elements > _MAX_ELEMENTS:
            raise GrammarError(f"the grammar comes to more than {_MAX_ELEMENTS} elements when its repetitions are written out")

    def _sequence(self, rule: str, *, nested: bool) -> list[Element]:
        sequence: list[Element] = []
        last = 0  # where the item begins that a repetition would repeat
        weight = 1  # rules that this item takes, which repetitions multiply
        while not self._at_end:
            character = self._next
            start = len(sequence)
            if character in "*+?{":
                least, most = self._times(nested=nested)
                weight = self._repeat(rule, sequence, last, least, most, weight)
                continue
            if character == '"':
                sequence += self._literal()
            elif character == "[":
                sequence.append(self._class())
            elif character == ".":
                self._position += 1
                sequence.append(Characters((), negated=True))
            elif character == "(":
                before = len(self._numbers)
                sequence.append(self._group(rule))
                last, weight = start, max(1, len(self._numbers) - before)
                self._space(newline=nested)
                continue
            elif character.isascii() and (character.isalnum() or character == "-"):
                place = self._position
                number = self._number_of(self._name())
                self._used_at.setdefault(number, place)
                sequence.append(number)
            elif character in "<!":
                raise self._error("tokens in angle brackets are not supported")
            else:
                break
            last, weight = start, 1
            self._space(newline=nested)
        return sequence

    def _group(self, rule: str) -> int:
        place = self._position
        self._depth += 1
        if self._depth > _MAX_PARENTHESES:
            raise self._error(f"parentheses are nested more than {_MAX_PARENTHESES} deep")
        self._position += 1
        self._space(newline=True)
        number = self._new_number(rule)
        self._alternatives(rule, number, nested=True)
        if self._next != ")":
            raise (
                self._error("a parenthesis is not closed", place)
                if self._at_end
                else self._error(f"{self._next!r} cannot stand here")
            )
        self._position += 1
        self._depth -= 1
        return number

    def _literal(self) -> Iterator[Characters]:
        place = self._position
        self._position += 1
        while self._next != '"':
            if self._at_end:
                raise self._error("a quotation mark is not closed", place)
            code = self._character()
            yield Characters(((code, code),))
        self._position += 1

    def _class(self) -> Characters:
        place = self._position
        self._position += 1
        negated = self._next == "^"
        self._position += negated
        ranges: list[tuple[int, int]] = []
        while self._next != "]":
            if self._at_end:
                raise self._error("a bracket is not closed", place)
            low = high = self._character()
            if self._next == "-" and self._text[self._position + 1] != "]":
                self._position += 1
                high = self._character()
            ranges.append((low, high))
        self._position += 1
        if not ranges:
            raise self._error("the brackets are empty", place)
        self._count(2 * len(ranges))
        return Characters(tuple(ranges), negated)

    def _character(self) -> int:
        """The code of the character that stands here, written out or escaped."""
        if self._at_end:
            raise self._error("the grammar ends too early")
        character = self._next
        self._position += 1
        if character != "\\":
            return ord(character)
        kind = self._next
        if kind in _ESCAPES:
            self._position += 1
            return ord(_ESCAPES[kind])
        digits = self._text[self._position + 1 : self._position + 1 + _HEX_DIGITS.get(kind, 0)]
        if (
            kind not in _HEX_DIGITS
            or len(digits) != _HEX_DIGITS[kind]
            or not all(c in "0123456789abcdefABCDEF" for c in digits)
        ):
            raise self._error("an unknown escape", self._position - 1)
        if (code := int(digits, 16)) > _LAST_CHARACTER:
            raise self._error("an escape that is no character", self._position - 1)
        self._position += 1 + len(digits)
        return code

    def _times(self, *, nested: bool) -> tuple[int, int | None]:
        """How often the item before is repeated, at least and at most; None is without end."""
        character = self._next
        self._position += 1
        if character != "{":
            self._space(newline=nested)
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        place = self._position - 1
        self._space(newline=nested)
        least = self._integer()
        most: int | None = least
        self._space(newline=nested)
        if self._next == ",":
            self._position += 1
            self._space(newline=nested)
            most = None
            if "0" <= self._next <= "9":
                most = self._integer()
                self._space(newline=nested)
        if self._next != "}":
            raise self._error("a brace is not closed", place)
        self._position += 1
        self._space(newline=nested)
        if least > MAX_REPETITIONS:
            raise self._error(f"at most {MAX_REPETITIONS} repetitions can be asked for", place)
        if most is not None and most < least:
            raise self._error("the most repetitions are fewer than the least", place)
        return least, None if most is not None and most > MAX_REPETITIONS else most

    def _integer(self) -> int:
        start = self._position
        while "0" <= self._next <= "9":
            self._position += 1
        digits = self._text[start : self._position]
        if not digits:
            raise self._error("a number of repetitions is missing")
        return int(digits) if len(digits) < 10 else 10**9

    def _repeat(self, rule: str, sequence: list[Element], last: int, least: int, most: int | None, weight: int) -> int:
        """Writes out the repetition of the item from `last` on; the rules that it takes, those of the item counted."""
        item = sequence[last:]
        if not item:
            raise self._error("there is nothing before the repetition")
        times = most or least or 1
        if weight * times > MAX_REPETITIONS:
            raise self._error(f"repetitions of repetitions come to more than {MAX_REPETITIONS} rules")
        optional = 1 if most is None else most - least
        self._count(len(item) * (least + optional))
        sequence[last:] = item * least
        tail: int | None = None
        for _ in range(optional):
            number = self._new_number(rule)
            follower = number if most is None else tail
            self._add(number, [[*item, *([] if follower is None else [follower])], []])
            tail = number
        if tail is not None:
            sequence.append(tail)
        return weight * times
