"""rank_pattern and alpha_pattern of an adapter's configuration: regular expressions from a stranger, used with a bound on time.

PEFT (utils/other.py, `get_pattern_key`) takes the first key that matches the end of a module's name. Python's matcher may try
every way a pattern can match, so the number of ways is bounded from above before a pattern is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tinyedge.errors import AdapterError
from tinyedge_quantize.strangers import show

# Ranks and alphas beyond this are no one's.
MAX_NUMBER = 1e9
_MAX_WAYS = 20_000_000
_MAX_PATTERN = 1000
_MAX_KEYS = 10_000
_REMEDY = "name the modules plainly in rank_pattern and alpha_pattern"
# An escape that is no backreference, a character class, a group that captures or not, a counted repeat, anything else.
_TOKEN = re.compile(r"\\[^0-9]|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?:\?:)?|\{\d*,?\d*\}|[^\\]", re.DOTALL)


@dataclass(frozen=True)
class Patterns:
    """The numbers a pattern table gives to modules."""

    key: str
    values: Mapping[str, float]

    def of(self, modules: Collection[str], default: float) -> dict[str, float]:
        """The number for each module: that of the first key matching the end of its name, else `default`.

        Raises AdapterError for a key that is no regular expression or could take too long.
        """
        length, depth = max(map(len, modules), default=0), max((name.count(".") for name in modules), default=0)
        if sum(_ways(self.key, key, length) for key in self.values) * (depth + 1) * len(modules) > _MAX_WAYS:
            raise self._problem("has patterns that could be matched in too many ways")
        try:
            compiled = [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in self.values.items()]
        except (re.error, OverflowError, RecursionError):
            raise self._problem("has a key that is no regular expression") from None
        return {name: next((value for pattern, value in compiled if pattern.match(name)), default) for name in modules}

    def _problem(self, text: str) -> AdapterError:
        return AdapterError(f"{self.key} in adapter_config.json {text}", _REMEDY)


def read_patterns(config: Mapping[str, Any], key: str) -> Patterns:
    """The table config[key]; AdapterError when it is no table of positive numbers."""
    table = config.get(key) or {}
    numbers: list[Any] = list(table.values()) if isinstance(table, dict) else [None]
    if not all(type(n) in (int, float) and 0 < n < MAX_NUMBER for n in numbers) or len(numbers) > _MAX_KEYS:
        raise AdapterError(f"{key} in adapter_config.json is no table of positive numbers", "copy the adapter again")
    return Patterns(key, {name: float(number) for name, number in table.items()})


def _too_complex(key: str, pattern: str) -> AdapterError:
    return AdapterError(f"{key} in adapter_config.json has the pattern {show(pattern)}, which is too complex", _REMEDY)


def _ways(key: str, pattern: str, length: int) -> int:
    """An upper bound of the ways in which `pattern` matches within a name of `length` characters.

    Choices multiply along a sequence and add between alternatives. A repeated group is refused: its choices would be to the
    power of the repeats.
    """
    tokens = [match[0] for match in _TOKEN.finditer(pattern)]
    if len(pattern) > _MAX_PATTERN or sum(map(len, tokens)) != len(pattern):
        raise _too_complex(key, pattern)
    # For each open group: the ways of its finished alternatives, and those of the one being read.
    groups = [[0, 1]]
    last = ""
    for token in tokens:
        if token[0] == "(":
            groups.append([0, 1])
        elif token == ")" and len(groups) > 1:
            finished, reading = groups.pop()
            groups[-1][1] *= finished + reading
        elif token == "|":
            groups[-1] = [sum(groups[-1]), 1]
        elif token in ("*", "+") or (token[0] == "{" and len(token) > 1):
            if last == ")":
                raise _too_complex(key, pattern)
            groups[-1][1] *= length + 1
        elif token == "?":
            if last == "(":
                raise AdapterError(
                    f"{key} in adapter_config.json has the pattern {show(pattern)}, which is too complex", _REMEDY
                )
            groups[-1][1] *= 2
        last = token
    return math.prod(map(sum, groups))
