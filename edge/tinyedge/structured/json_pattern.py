"""Regular expressions of JSON schemas as GBNF over the text of a JSON string.

The dialect is ECMA-262 as far as a grammar can follow it: classes, groups, alternatives, repetitions, and anchors at the ends.
`\\d`, `\\w`, `\\s` and their opposites stand for ASCII alone, where all dialects agree. What `"` and `\\` and control
characters are in a text, their escapes are in the grammar.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyedge.errors import GrammarError

MAX_PATTERN = 2000  # characters
MAX_REPETITIONS = 1000
_MAX_DEPTH = 24

Ranges = tuple[tuple[int, int], ...]

# Characters that stand in a JSON string as themselves; the rest below U+0020, the quotation mark and the backslash do not.
# Control characters from U+007F on may stand there but in no text of ours; surrogates are no characters.
PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0xA0, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x10FFFF))
_SHORT_ESCAPES = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}

_DIGITS: Ranges = ((0x30, 0x39),)
_WORDS: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACES: Ranges = ((0x09, 0x0D), (0x20, 0x20))
_NAMED = {"d": _DIGITS, "w": _WORDS, "s": _SPACES}
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0x00}
_ASCII_END = 0x7F


def except_for(ranges: Ranges, last: int = 0x10FFFF) -> Ranges:
    """Every character up to `last` that is not in `ranges`."""
    left, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            left.append((start, min(low - 1, last)))
        start = max(start, high + 1)
    return (*left, (start, last)) if start <= last else tuple(left)


def common(first: Ranges, second: Ranges) -> Ranges:
    """The characters that are in both."""
    both = [(max(a, c), min(b, d)) for a, b in first for c, d in second]
    return tuple(sorted((low, high) for low, high in both if low <= high))


def character_class(ranges: Ranges) -> str:
    """A GBNF class of these characters."""
    return "[" + "".join(_code(low) if low == high else f"{_code(low)}-{_code(high)}" for low, high in ranges) + "]"


def _code(code: int) -> str:
    return chr(code) if 0x20 <= code < 0x7F and chr(code) not in "[]^-\\" else f"\\U{code:08X}"


def json_characters(ranges: Ranges) -> str:
    """GBNF of one character of `ranges` as a JSON string holds it. Raises GrammarError when none can be written."""
    alternatives = [character_class(plain)] if (plain := common(ranges, PLAIN)) else []
    alternatives += [
        f'"\\\\{escape if escape.isalpha() else chr(92) + escape}"'
        for code, escape in _SHORT_ESCAPES.items()
        if common(ranges, ((code, code),))
    ]
    if not alternatives:
        raise GrammarError("a pattern in the schema asks for a character that cannot be written")
    return alternatives[0] if len(alternatives) == 1 else f"({' | '.join(alternatives)})"


@dataclass(frozen=True, slots=True)
class Expression:
    """A part of a regular expression: its GBNF, and how many characters a text of it has, at most None without end.

    `single` says that a repetition may follow the GBNF as it stands.
    """

    gbnf: str
    shortest: int
    longest: int | None
    single: bool = False


_EMPTY = Expression('""', 0, 0)
_ANYTHING = Expression(f"{json_characters(except_for(()))}*", 0, None)


def expression_of(pattern: str) -> Expression:
    """What a JSON string (without its quotation marks) must be in which `pattern` is found. Raises GrammarError."""
    if len(pattern) > MAX_PATTERN:
        raise GrammarError(f"a pattern in the schema has {len(pattern)} characters and at most {MAX_PATTERN} can be followed")
    return _Parser(pattern).parse()


def _joined(parts: list[Expression]) -> Expression:
    parts = [part for part in parts if part is not _EMPTY]
    if len(parts) < 2:
        return parts[0] if parts else _EMPTY
    longest = None if any(part.longest is None for part in parts) else sum(part.longest or 0 for part in parts)
    return Expression(" ".join(part.gbnf for part in parts), sum(part.shortest for part in parts), longest)


def _either(parts: list[Expression]) -> Expression:
    if len(parts) == 1:
        return parts[0]
    longest = None if any(part.longest is None for part in parts) else max(part.longest or 0 for part in parts)
    return Expression(
        f"({' | '.join(part.gbnf for part in parts)})", min(part.shortest for part in parts), longest, single=True
    )


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._position = 0
        self._depth = 0

    def parse(self) -> Expression:
        found = self._alternatives(outermost=True)
        if self._position < len(self._text):
            raise self._error("a parenthesis that was never opened")
        return found

    @property
    def _next(self) -> str:
        return self._text[self._position : self._position + 1]

    def _error(self, what: str) -> GrammarError:
        return GrammarError(f"the pattern {self._text[:60]!r} in the schema has {what}, which cannot be followed")

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._position):
            return False
        self._position += len(text)
        return True

    def _alternatives(self, *, outermost: bool = False) -> Expression:
        found = [self._sequence(outermost)]
        while self._take("|"):
            found.append(self._sequence(outermost))
        return _either(found)

    def _sequence(self, outermost: bool) -> Expression:
        """One alternative; the outermost ones may stand anywhere in the text unless anchored."""
        parts = [] if not outermost or self._take("^") else [_ANYTHING]
        anchored = not outermost
        while self._next not in ("", "|", ")"):
            if self._take("$"):
                if not outermost or self._next not in ("", "|"):
                    raise self._error("a $ that is not at its end")
                anchored = True
                break
            parts.append(self._repeated(self._atom()))
        return _joined(parts if anchored else [*parts, _ANYTHING])

    def _atom(self) -> Expression:
        if self._take("("):
            if self._take("?") and not self._take(":"):
                raise self._error("a group of a special kind")
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise self._error(f"groups nested more than {_MAX_DEPTH} deep")
            inner = self._alternatives()
            if not self._take(")"):
                raise self._error("a parenthesis that is not closed")
            self._depth -= 1
            return inner
        if self._take("["):
            return self._one(self._class())
        if self._take("."):
            return self._one(except_for(_LINE_ENDS))
        if self._next in ("^", "*", "+", "?", "{"):
            raise self._error(f"a {self._next!r} with nothing before it")
        return self._one(self._character())

    def _one(self, ranges: Ranges) -> Expression:
        return Expression(json_characters(ranges), 1, 1, single=True)

    def _character(self) -> Ranges:
        """One character written out or escaped, or a named class."""
        character = self._next
        self._position += 1
        if character != "\\":
            return ((ord(character), ord(character)),)
        kind = self._next
        self._position += 1
        if kind.lower() in _NAMED:
            ranges = _NAMED[kind.lower()]
            return ranges if kind.islower() else except_for(ranges, _ASCII_END)
        if kind in _CONTROLS:
            return ((_CONTROLS[kind],) * 2,)
        if kind in ("x", "u"):
            digits = self._text[self._position : self._position + (2 if kind == "x" else 4)]
            self._position += len(digits)
            if len(digits) != (2 if kind == "x" else 4) or not all(c in "0123456789abcdefABCDEF" for c in digits):
                raise self._error("an unknown escape")
            return ((int(digits, 16),) * 2,)
        if not kind or (kind.isascii() and kind.isalnum()):
            raise self._error(f"the escape \\{kind}")
        return ((ord(kind), ord(kind)),)

    def _class(self) -> Ranges:
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        last = 0x10FFFF
        while not self._take("]"):
            if not self._next:
                raise self._error("a bracket that is not closed")
            low = self._class_character()
            if len(low) > 1 or low in (_DIGITS,):
                last = _ASCII_END  # the dialects differ on what is outside of \w beyond ASCII
            if self._next == "-" and self._text[self._position + 1 : self._position + 2] not in ("]", ""):
                self._position += 1
                high = self._class_character()
                if (
                    len(low) > 1
                    or len(high) > 1
                    or low[0][0] != low[0][1]
                    or high[0][0] != high[0][1]
                    or low[0][0] > high[0][0]
                ):
                    raise self._error("a range without meaning")
                low = ((low[0][0], high[0][0]),)
            ranges += low
        found = except_for(tuple(ranges), last) if negated else tuple(ranges)
        if not found:
            raise self._error("an empty class")
        return found

    def _class_character(self) -> Ranges:
        return ((0x08, 0x08),) if self._take("\\b") else self._character()

    def _repeated(self, item: Expression) -> Expression:
        found = item
        while (times := self._times()) is not None:
            if found is not item:
                raise self._error("two repetitions in a row")
            least, most = times
            self._take("?")  # how greedy it is changes nothing about which texts there are
            if most == 0 or item is _EMPTY:
                found = Expression('""', 0, 0)
                continue
            if most is None and item.shortest == 0:
                raise self._error("a repetition without end of what may be empty")
            if max(least, most or 0) > MAX_REPETITIONS:
                raise self._error(f"more than {MAX_REPETITIONS} repetitions")
            longest = None if most is None or item.longest is None else item.longest * most
            bounds = f"{{{least},{'' if most is None else most}}}"
            repeated = item.gbnf if item.single else f"({item.gbnf})"
            found = Expression(f"{repeated}{bounds}", item.shortest * least, longest)
        return found

    def _times(self) -> tuple[int, int | None] | None:
        for sign, times in {"*": (0, None), "+": (1, None), "?": (0, 1)}.items():
            if self._take(sign):
                return times
        if self._next != "{":
            return None
        end = self._text.find("}", self._position)
        least, comma, most = self._text[self._position + 1 : max(end, 0)].partition(",")
        if end < 0 or not _whole(least) or not (_whole(most) or most == ""):
            raise self._error("a brace that is no repetition")
        self._position = end + 1
        bounds = int(least), (int(most) if most else None if comma else int(least))
        if bounds[1] is not None and bounds[1] < bounds[0]:
            raise self._error("a repetition whose most is less than its least")
        return bounds


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
