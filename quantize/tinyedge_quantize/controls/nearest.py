"""What a person who wrote an unknown name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 4
_SIMILAR = 0.7  # of difflib's ratio: one letter wrong among four, and Q4KM for Q4_K_M
_LONGEST = 64  # comparing takes the square of the length


def nearest(wanted: str, names: Iterable[str]) -> list[str]:
    """At most four of the names: those that begin with `wanted`, else the longest that it begins with, else similar ones.

    Names that begin with it keep their order; of more than four none is near. Similar ones come with the most similar first.
    """
    if not 0 < len(wanted) <= _LONGEST:
        return []
    known = list(names)
    begun = [name for name in known if name.startswith(wanted)]
    if 0 < len(begun) <= _MOST:
        return begun
    begins = max((name for name in known if wanted.startswith(name)), key=len, default=None)
    return [begins] if begins else difflib.get_close_matches(wanted, known, _MOST, _SIMILAR)


def nearest_type(wanted: str, names: Iterable[str]) -> list[str]:
    """The same for names of types, however their parts are joined."""
    return nearest(wanted.upper().replace("-", "_"), names)


def did_you_mean(names: list[str]) -> str:
    """`did you mean A, B or C?`; of at least one name."""
    *others, last = names
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"
