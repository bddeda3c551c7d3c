"""Checks a GBNF grammar before llama.cpp sees it.

llama.cpp's parser prints to stderr, recurses once for each parenthesis, and follows some grammars without end: hidden left
recursion, repetitions of repetitions, and alternatives that begin alike make its set of parse stacks grow until the memory
is gone. So the text is read here first, and what would harm is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from tinyedge.errors import GrammarError
from tinyedge.structured.gbnf import Alternatives, Characters, Element, Parser

MAX_CHARACTERS = 1 << 20
_MAX_LEFT_DEPTH = 2500  # rules that begin with one another; llama.cpp's search recurses so deep
_MAX_LEFT_WORK = 50_000_000  # elements that this search visits: it forgets what it has seen
_MAX_STACKS = 10_000  # that one step of the parser may lead through
_MANY_STACKS = 1000  # to which a grammar of few may not grow
_MAX_SEARCH = 12_000  # stacks that our search for an explosion looks at


@functools.lru_cache(maxsize=8)
def check_grammar(text: str) -> None:
    """Raises GrammarError, one sentence, when llama.cpp could not read or follow the grammar or no text satisfies it."""
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(f"the grammar has {len(text)} characters and at most {MAX_CHARACTERS} can be followed")
    parser = Parser(text)
    parser.parse()
    rules = parser.rules
    _check_left(rules, _may_be_empty(rules), parser.names)
    if not _productive(rules)[parser.root]:
        raise GrammarError("no text satisfies the grammar: from its root a text could begin but never end")
    _Search(rules).run(parser.root)


def _may_be_empty(rules: list[Alternatives]) -> list[bool]:
    """Which rules the empty text satisfies."""
    return _derive(rules, lambda _characters: False)


def _productive(rules: list[Alternatives]) -> list[bool]:
    """Which rules some text satisfies."""
    return _derive(rules, lambda characters: characters.example is not None)


def _derive(rules: list[Alternatives], holds: Callable[[Characters], bool]) -> list[bool]:
    """Which rules have an alternative all of whose elements hold, where a rule holds when it is among these."""
    derived = [False] * len(rules)
    waiting: list[list[list[int]]] = [[] for _ in rules]  # for each rule the alternatives, as [owner, open], that wait for it
    ready: list[int] = []
    for owner, alternatives in enumerate(rules):
        for alternative in alternatives:
            if all(isinstance(element, int) or holds(element) for element in alternative):
                wanted = {element for element in alternative if isinstance(element, int)}
                entry = [owner, len(wanted)]
                for rule in wanted:
                    waiting[rule].append(entry)
                if not wanted:
                    ready.append(owner)
    while ready:
        rule = ready.pop()
        if derived[rule]:
            continue
        derived[rule] = True
        for entry in waiting[rule]:
            entry[1] -= 1
            if entry[1] == 0:
                ready.append(entry[0])
    return derived


def _first_rules(alternatives: Alternatives, empty: list[bool]) -> list[int]:
    """The rules that a text of this rule may begin with."""
    first: list[int] = []
    for alternative in alternatives:
        for element in alternative:
            if not isinstance(element, int):
                break
            first.append(element)
            if not empty[element]:
                break
    return first


def _check_left(rules: list[Alternatives], empty: list[bool], names: list[str]) -> None:
    """Refuses rules that begin with themselves, or with one another so deep or so often that llama.cpp's search suffers."""
    firsts = [_first_rules(alternatives, empty) for alternatives in rules]
    depth = [0] * len(rules)
    work = [0] * len(rules)
    state = [0] * len(rules)  # 0 not seen, 1 open, 2 done
    for start in range(len(rules)):
        path = [(start, iter(firsts[start]))] if not state[start] else []
        while path:
            rule, left = path[-1]
            state[rule] = 1
            child = next((each for each in left if state[each] != 2), None)
            if child is None:
                path.pop()
                state[rule] = 2
                depth[rule] = 1 + max((depth[each] for each in firsts[rule]), default=0)
                size = sum(map(len, rules[rule])) + len(rules[rule])
                work[rule] = min(_MAX_LEFT_WORK, size + sum(work[each] for each in firsts[rule]))
            elif state[child] == 1:
                raise GrammarError(f"the rule {names[child][:40]!r} of the grammar begins with itself (left recursion)")
            else:
                path.append((child, iter(firsts[child])))
    if max(depth) > _MAX_LEFT_DEPTH or sum(work) > _MAX_LEFT_WORK:
        raise GrammarError("the rules of the grammar begin with one another too deep or too often to be followed")


class _Search:
    """Walks through texts of a grammar, looking for one that makes llama.cpp's set of parse stacks explode.

    A stack is what is still to come; it is kept as the number of a node: the next element and the stack below it.
    """

    def __init__(self, rules: list[Alternatives]) -> None:
        self._rules = rules
        self._numbers: dict[tuple[int, int, int, int], int] = {}
        self._nodes: list[tuple[int, int, int, int]] = [(-1, -1, -1, -1)]  # rule, alternative, index, below; 0 is the end
        self._looked_at = 0

    def run(self, root: int) -> None:
        """Raises GrammarError when a set of stacks grows beyond what can be followed."""
        stacks = self._terminal([self._node(root, each, 0, 0) for each in range(len(self._rules[root]))])
        seen = {stacks}
        most = max(_MANY_STACKS, 4 * len(stacks))
        while self._looked_at < _MAX_SEARCH:
            followers = (self._after(stacks, code) for code in self._likely(stacks))
            fresh = [each for each in followers if each not in seen]
            if not fresh:
                return
            stacks = max(fresh, key=len)
            seen.add(stacks)
            if len(stacks) > most:
                raise _too_ambiguous()

    def _node(self, rule: int, alternative: int, index: int, below: int) -> int:
        """The stack with this element on top; just `below` where the alternative ends."""
        if index == len(self._rules[rule][alternative]):
            return below
        key = (rule, alternative, index, below)
        number = self._numbers.setdefault(key, len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(key)
        return number

    def _element(self, stack: int) -> Element:
        rule, alternative, index, _ = self._nodes[stack]
        return self._rules[rule][alternative][index]

    def _terminal(self, stacks: Iterable[int]) -> frozenset[int]:
        """The stacks that these become once every rule on top is replaced by its alternatives."""
        todo, seen, found = list(stacks), set[int](), set[int]()
        while todo:
            stack = todo.pop()
            if stack in seen:
                continue
            seen.add(stack)
            self._looked_at += 1
            if len(seen) > _MAX_STACKS:
                raise _too_ambiguous()
            if stack == 0 or not isinstance(element := self._element(stack), int):
                found.add(stack)
                continue
            rule, alternative, index, below = self._nodes[stack]
            after = self._node(rule, alternative, index + 1, below)
            todo += (self._node(element, each, 0, after) for each in range(len(self._rules[element])))
        return frozenset(found)

    def _likely(self, stacks: frozenset[int]) -> list[int]:
        """Characters that many of the stacks let come next."""
        tops = [element for stack in stacks if stack and isinstance(element := self._element(stack), Characters)]
        examples = {code for element in tops[:64] if (code := element.example) is not None}
        return sorted(examples, key=lambda code: -sum(element.matches(code) for element in tops[:256]))[:3]

    def _after(self, stacks: frozenset[int], code: int) -> frozenset[int]:
        following = []
        for stack in stacks:
            if stack and isinstance(element := self._element(stack), Characters) and element.matches(code):
                rule, alternative, index, below = self._nodes[stack]
                following.append(self._node(rule, alternative, index + 1, below))
        return self._terminal(following)


def _too_ambiguous() -> GrammarError:
    return GrammarError("the grammar is too ambiguous to be followed: a text can be read in thousands of ways")
