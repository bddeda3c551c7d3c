"""JSON schemas as GBNF grammars whose texts all satisfy the schema.

llama-cpp-python has such a converter too; it passes over what it does not know (bounds of numbers, most of allOf, siblings of
$ref), fetches remote schemas and lets raw line ends into strings. Here a keyword is either followed or refused by name. Where a
schema leaves a choice of how to say the same, the grammar takes the usual one: properties in their order, others only when
additionalProperties asks for them, numbers and texts of limited length.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

from tinyedge.errors import GrammarError
from tinyedge.structured.grammar import check_grammar
from tinyedge.structured.json_cases import ANYTHING, Arrays, Case, Goal, Literal, Objects, Strings
from tinyedge.structured.json_goals import Goals
from tinyedge.structured.json_numbers import ANY_NUMBER, Numbers, multiple_rules, shown
from tinyedge.structured.json_pattern import PLAIN, character_class, common, except_for, expression_of

MAX_CHARACTERS = 1 << 20
_MAX_DEPTH = 100
_MAX_GOALS = 3000
_MAX_LENGTH = 100_000  # characters or items that can be asked for
_TIMES = 1000  # repetitions that one pair of braces may hold

_BASE = {
    # The same freedom as llama.cpp's converter gives, but for the second line end.
    "ws": r'("" | " " | "\n" " "{0,16})',
    "char": rf'{character_class(PLAIN)} | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex | [dD] [0-7]) hex hex)',
    "hex": "[0-9a-fA-F]",
    "string": r'"\"" char* "\""',
    "number": ANY_NUMBER,
    "value": 'object | array | string | number | "true" | "false" | "null"',
    "object": '"{" ws (member ("," ws member)* ws)? "}"',
    "member": 'string ":" ws value',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
}
# Days that every month has, and those that some have; the 29th of February is left out.
_DATE = (
    '[0-9]{4} "-" (("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
    ' | ("0" [13-9] | "1" [0-2]) "-" ("29" | "30") | ("0" [13578] | "1" [02]) "-31")'
)
_TIME = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})?'
    ' ("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
)
_BYTE = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9]? [0-9])'
# The grammar of a format, and its lengths.
_FORMATS = {
    "date": (_DATE, 10, 10),
    "time": (_TIME, 9, 21),
    "date-time": (f'{_DATE} "T" {_TIME}', 20, 32),
    "uuid": (' "-" '.join(f"hex{{{count}}}" for count in (8, 4, 4, 4, 12)), 36, 36),
    "ipv4": (' "." '.join([_BYTE] * 4), 7, 15),
}


@functools.lru_cache(maxsize=8)
def grammar_of_schema(text: str) -> str:
    """A GBNF grammar of JSON texts that satisfy the schema in `text`.

    Raises GrammarError, one sentence, for what is no schema, cannot be followed by a grammar, or is satisfied by nothing.
    """
    document = _document(text)
    grammar = _Writer(Goals(document)).grammar()
    try:
        check_grammar(grammar)
    except GrammarError as error:
        raise GrammarError(f"the schema is too large or too ambiguous to be followed ({error.problem})") from error
    return grammar


def _document(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(f"the schema has {len(text)} characters and at most {MAX_CHARACTERS} can be followed")
    try:
        document = json.loads(text, parse_constant=_no_number, parse_float=_number)
    except json.JSONDecodeError as error:
        raise GrammarError(f"the schema is not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError:
        raise GrammarError(f"the schema is nested more than {_MAX_DEPTH} deep") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise GrammarError("the schema holds a number that is too large") from error
    level = [document]
    for _ in range(_MAX_DEPTH):
        level = [child for value in level if isinstance(value, (dict, list)) for child in _children(value)]
    if level:
        raise GrammarError(f"the schema is nested more than {_MAX_DEPTH} deep")
    return document


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _no_number(name: str) -> Any:
    raise GrammarError(f"the schema holds {name}, which is no JSON")


def _number(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise GrammarError("the schema holds a number that is too large")
    return number


class _Writer:
    """Writes a rule for each goal that can be reached and satisfied."""

    def __init__(self, goals: Goals) -> None:
        self._goals = goals
        self._root = goals.root()
        self._possible = self._find_possible()
        self._rules: dict[str, str] = {}
        self._names: dict[Goal, str] = {}
        self._waiting: list[Goal] = []
        self._made = 0

    def grammar(self) -> str:
        if not self._can(self._root):
            raise GrammarError("no JSON value satisfies the schema")
        self._rules["root"] = self._of(self._root)
        while self._waiting:
            goal = self._waiting.pop()
            self._rules[self._names[goal]] = " | ".join(
                self._case(case) for case in self._goals.cases(goal) if self._case_can(case)
            )
        return "".join(f"{name} ::= {rule}\n" for name, rule in (self._rules | _BASE).items())

    def _find_possible(self) -> set[Goal]:
        """The goals that some finite value satisfies, out of all that can be reached."""
        owners: dict[Goal, list[Goal]] = {self._root: []}
        reached = [self._root]
        for goal in reached:
            for child in dict.fromkeys(child for case in self._goals.cases(goal) for child in _parts(case)):
                if child not in owners:
                    owners[child] = []
                    reached.append(child)
                owners[child].append(goal)
            if len(reached) > _MAX_GOALS:
                raise GrammarError(f"the schema comes to more than {_MAX_GOALS} different parts")
        self._possible = set[Goal]({()})
        while reached:
            goal = reached.pop()
            if goal not in self._possible and any(map(self._case_can, self._goals.cases(goal))):
                self._possible.add(goal)
                reached += [owner for owner in owners[goal] if owner not in self._possible]
        return self._possible

    def _can(self, goal: Goal) -> bool:
        return goal in self._possible

    def _case_can(self, case: Case) -> bool:
        """Whether some value is in the case, as far as it is known of its parts."""
        if isinstance(case, Arrays):
            return self._most_items(case) is None or case.least <= (self._most_items(case) or 0)
        if isinstance(case, Objects):
            named = case.named
            if not all(self._can(named[name]) for name in case.required):
                return False
            if case.most is not None and len(case.required) > case.most:
                return False
            unlimited = case.least <= len(case.required) or self._can(case.rest)
            return unlimited or case.least <= sum(map(self._can, named.values()))
        return True

    def _most_items(self, case: Arrays) -> int | None:
        """How many items there can be, None without end."""
        bad = next((index for index, goal in enumerate(case.first) if not self._can(goal)), None)
        end = bad if bad is not None else None if self._can(case.rest) else len(case.first)
        return case.most if end is None else end if case.most is None else min(end, case.most)

    def _rule(self, text: str) -> str:
        """The name of a new rule."""
        self._made += 1
        name = f"r{self._made}"
        self._rules[name] = text
        return name

    def _of(self, goal: Goal) -> str:
        """The name of the rule of a goal."""
        if self._goals.cases(goal) == ANYTHING:
            return "value"
        if goal not in self._names:
            self._names[goal] = f"v{len(self._names)}"
            self._waiting.append(goal)
        return self._names[goal]

    def _case(self, case: Case) -> str:
        if isinstance(case, Literal):
            return _literal(_json(case.value))
        if isinstance(case, Numbers):
            text = case.gbnf()
            if case.has_own_rules:
                self._rules |= multiple_rules(case.divisor)
            return text
        if isinstance(case, Strings):
            return self._strings(case)
        return self._arrays(case) if isinstance(case, Arrays) else self._objects(case)

    def _strings(self, case: Strings) -> str:
        if case.pattern is None and case.format is None:
            return f'"\\"" {self._times("char", case.shortest, case.longest)} "\\""'
        if case.pattern is not None:
            expression = expression_of(case.pattern)
            text, shortest, longest = expression.gbnf, expression.shortest, expression.longest
            if case.format is not None:
                raise GrammarError("the schema has a pattern and a format for one text, which a grammar cannot follow")
        else:
            text, shortest, longest = _FORMATS[case.format or ""]
        if shortest < case.shortest or (case.longest is not None and (longest is None or longest > case.longest)):
            raise GrammarError(
                "the schema has a pattern or format and a length that it may miss, which a grammar cannot follow"
            )
        return f'"\\"" {self._rule(text)} "\\""'

    def _times(self, item: str, least: int, most: int | None) -> str:
        """The rule `item` from `least` to `most` times."""
        if least > _MAX_LENGTH:
            raise GrammarError(
                f"the schema asks for {shown(least)} characters or items and at most {_MAX_LENGTH} can be asked for"
            )
        most = most if most is None else min(most, _MAX_LENGTH)
        if max(least, most or 0) <= _TIMES:
            return f"{item}{{{least},{'' if most is None else most}}}"
        chunk = self._rule(f"{item}{{{_TIMES}}}")
        parts = [f"{chunk}{{{least // _TIMES}}}", f"{item}{{{least % _TIMES}}}"]
        if most is None:
            parts.append(f"{item}*")
        elif most - least < _TIMES:
            parts.append(f"{item}{{0,{most - least}}}")
        else:
            parts += [f"{chunk}{{0,{(most - least) // _TIMES - 1}}}", f"{item}{{0,{_TIMES}}}"]
        return " ".join(parts)

    def _arrays(self, case: Arrays) -> str:
        most = self._most_items(case)
        empty = ['"[" ws "]"'] if case.least == 0 else []
        if most == 0:
            return empty[0]
        tail = self._tail(case, most)
        return " | ".join([*empty, f'"[" ws {self._of(case.item(0))} {tail} ws "]"'])

    def _tail(self, case: Arrays, most: int | None) -> str:
        """The items after the first, each with its comma: those with goals of their own, then the rest."""
        own = max(1, len(case.first) if most is None else min(len(case.first), most))
        left = None if most is None else most - own
        text = ""
        if left != 0:
            text = self._times(self._rule(f'"," ws {self._of(case.rest)}'), max(0, case.least - own), left)
        for index in range(own - 1, 0, -1):
            text = f'"," ws {self._of(case.item(index))} {text}'
            text = self._rule(text if index < case.least else f'({text} | "")')
        return text

    def _objects(self, case: Objects) -> str:
        named = case.named
        names = [name for name, goal in named.items() if self._can(goal)]
        required = set(case.required)
        optional = [name for name in names if name not in required]
        others = self._can(case.rest) and (case.others_wanted or not named)
        most_others = None
        if case.most is not None:
            kept = optional[: case.most - len(required)]
            names = [name for name in names if name in required or name in kept]
            optional = kept
            most_others = max(0, case.most - len(names))
        missing = case.least - len(required)
        while missing > 0 and optional:  # enough of what may be there must be there
            required.add(optional.pop(0))
            missing -= 1
        if missing > 1 or (missing == 1 and not self._can(case.rest)):
            raise GrammarError("the schema asks for more properties than it names, which a grammar cannot follow")
        others = (others or missing > 0) and most_others != 0
        pairs = [(self._rule(f'{_literal(_json(name))} ":" ws {self._of(named[name])}'), name in required) for name in names]
        return self._pairs(pairs, self._other(named, case.rest) if others else None, max(missing, 0), most_others)

    def _pairs(self, pairs: list[tuple[str, bool]], other: str | None, least: int, most: int | None) -> str:
        """An object of these pairs, some of which must be there, and then others from `least` to `most` times."""
        after = "" if other is None else self._times(self._rule(f'"," ws {other}'), least, most)
        start = None  # what an object holds that has no pair yet; None if it may hold nothing more
        may_end = least == 0
        if other is not None:
            following = self._rule(f'"," ws {other}')
            start = f"{other} {self._times(following, max(0, least - 1), None if most is None else most - 1)}"
        for pair, needed in reversed(pairs):
            first = f"{pair} {after}"
            start = first if needed or start is None else f"{first} | {self._rule(start)}"
            may_end = may_end and not needed
            after = self._rule(f'"," ws {pair} {after}' if needed else f'("," ws {pair} | "") {after}')
        if start is None:
            return '"{" ws "}"'
        full = f'"{{" ws {self._rule(start)} ws "}}"'
        return f'"{{" ws "}}" | {full}' if may_end else full

    def _other(self, named: dict[str, Goal], rest: Goal) -> str:
        """A rule for a pair whose name is none of these."""
        tree: dict[str, Any] = {}
        for name in named:
            node = tree
            for character in name:
                node = node.setdefault(character, {})
            node[""] = {}
        key = self._unlike(tree) if named else "char*"
        return self._rule(f'"\\"" {key} "\\":" ws {self._of(rest)}')

    def _unlike(self, tree: dict[str, Any]) -> str:
        """A rule for texts that are not in the tree, of characters that need no escape."""
        plain = character_class(PLAIN)
        rules: dict[int, str] = {}
        order = [tree]
        for node in order:
            order += [child for character, child in node.items() if character]
        for node in reversed(order):  # children first
            taken = tuple((ord(character), ord(character)) for character in node if character)
            ways = [] if "" in node else ['""']
            ways.append(f"{character_class(common(PLAIN, except_for(taken)))} {plain}*")
            ways += [
                f"{character_class(((ord(character),) * 2,))} {rules[id(child)]}"
                for character, child in node.items()
                if character and common(PLAIN, ((ord(character),) * 2,))
            ]
            rules[id(node)] = self._rule(" | ".join(ways))
        return rules[id(tree)]


def _parts(case: Case) -> list[Goal]:
    if isinstance(case, Arrays):
        return [*case.first, case.rest]
    return [*case.named.values(), case.rest] if isinstance(case, Objects) else []


def _json(value: Any) -> str:
    """JSON text of one line; half surrogate pairs, which a schema may hold escaped, stay escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if all(not "\ud800" <= character <= "\udfff" for character in text) else json.dumps(value)


def _literal(text: str) -> str:
    """A GBNF literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
