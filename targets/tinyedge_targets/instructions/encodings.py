"""Finding instructions of a fixed width by the bits that tell them apart, in a whole section at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

# (mask, value, feature): an instruction is of the first row with word & mask == value; BASE for what every processor has.
Encodings = Sequence[tuple[int, int, str]]
BASE = ""
MOST = 100_000  # that are told of one piece of code: a library made of nothing else must not fill the memory


def words(code: bytes) -> Words:
    """The 32-bit little-endian words of `code`; what is left of an odd end is dropped."""
    return np.frombuffer(code[: len(code) & ~3], "<u4").astype(np.uint32, copy=False)


def matches(code: Words, encodings: Encodings, allowed: Collection[str]) -> Iterator[tuple[int, str]]:
    """Place and feature of every word whose feature is not allowed, in order. A table has at most 255 rows."""
    rows = np.zeros(len(code), np.uint8)
    for number, (mask, value, feature) in reversed(tuple(enumerate(encodings, 1))):
        rows[(code & np.uint32(mask)) == np.uint32(value)] = 0 if feature == BASE or feature in allowed else number
    return ((int(place), encodings[int(rows[place]) - 1][2]) for place in np.flatnonzero(rows))
