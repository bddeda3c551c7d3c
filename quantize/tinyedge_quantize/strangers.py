"""Files and values that come from strangers: opened only when regular, read only to a limit, shown only in short.

A checkpoint may hold a link to /dev/zero or a named pipe where a configuration is expected, and a value whose text would be
larger than memory because its parts refer to each other.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

_SHOWN = 40


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file; raises OSError, with a sentence in its strerror when it is of another kind."""
    # Without O_NONBLOCK, opening a named pipe would wait for someone to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a regular file", str(path))
    return descriptor


def read_limited(path: Path, limit: int) -> bytes | None:
    """The whole of a regular file, or None when it has more than `limit` bytes; raises OSError."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            return None
        # Files of /proc say that they have no bytes; others may grow while they are read.
        data = file.read(min(size, limit) + 1 if size else limit + 1)
        return data if len(data) <= limit else None


def read_beginning(path: Path, limit: int | None) -> tuple[bytes, bool]:
    """At most `limit` bytes of a regular file, and whether these are all of it; raises OSError."""
    with os.fdopen(open_regular(path), "rb") as file:
        whole = limit is None or os.fstat(file.fileno()).st_size <= limit
        return file.read() if whole else file.read(limit), whole


def without_half_character(data: bytes) -> bytes:
    """UTF-8 text that was cut at some byte, less a character at its end that the cut went through."""
    cut = next((back for back in range(1, min(4, len(data) + 1)) if data[-back] >= 0xC0), 0)
    return data[: len(data) - cut]


def show(value: Any) -> str:
    """A short ASCII form of a value from a file, safe for any terminal; containers by their kind and length alone."""
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"a list of {len(value)}"
    if not isinstance(value, str | bytes | int | float | bool | type(None)):
        return f"a {type(value).__name__}"
    try:
        text = ascii(value[: _SHOWN + 1] if isinstance(value, str | bytes) else value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
