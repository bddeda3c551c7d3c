"""Figures and names from a file of results, checked: what a stranger's file may hold in their place never gets further.

What leaves this module is finite, of its type, printable and of bounded length; what is not so is None or left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_SAMPLES = 200  # of one row, evenly taken
MOST_SENTENCES = 20
_LEAST = 1e-30  # below it a number is 0, above its inverse it is none: products and ratios of those between stay finite
_LONGEST_NAME = 80
_LONGEST_SENTENCE = 400


def number(value: Any, *keys: str) -> float | None:
    """The number at `keys` inside `value`; None where there is none, or one beyond what anything here can measure."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if value == 0 or _LEAST <= abs(value) <= 1 / _LEAST:
        return float(value)
    return 0.0 if abs(value) < _LEAST else None


def count(value: Any, *keys: str) -> int:
    """The whole number at `keys`, 0 where there is none."""
    found = number(value, *keys)
    return int(found) if found is not None and 0 <= found < 1e18 else 0


def text(value: Any, limit: int = _LONGEST_NAME) -> str:
    """A name or sentence with what is not printable escaped, cut at `limit`; empty for what is neither text nor a number."""
    if isinstance(value, (int, float)):
        value = str(value) if abs(value) <= 1 / _LEAST else ""
    if not isinstance(value, str):
        return ""
    cut = value[: limit + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cut)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def file_name(value: Any) -> str:
    """The last part of a path: where a file was on its machine concerns nobody."""
    return text(value.replace("\\", "/").rpartition("/")[2] if isinstance(value, str) else value)


def sentences(value: Any) -> tuple[str, ...]:
    """The texts in a list."""
    found = value[:MOST_SENTENCES] if isinstance(value, list) else []
    return tuple(filter(None, (text(each, _LONGEST_SENTENCE) for each in found)))


def numbers(value: Any) -> tuple[float, ...]:
    """The finite numbers in a list, evenly thinned to MOST_SAMPLES."""
    found = value if isinstance(value, list) else []
    step = max(1, -(-len(found) // MOST_SAMPLES))
    return tuple(each for item in found[::step] if (each := number(item)) is not None)


def passage(value: Any) -> tuple[float | None, ...]:
    """Before, during and after, of which some may be unknown; empty when all are."""
    found = tuple(number(each) for each in value[:3]) if isinstance(value, list) else ()
    return found if any(each is not None for each in found) else ()
