"""GGUF metadata as values: a type beside each value, checked where it is made, so that writing it cannot fail.

Numbers in a checkpoint's configuration come from strangers. A value that does not fit its GGUF type is refused here with a
sentence that names it, not later by `struct.error` in the middle of a half-written file.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyedge.errors import CheckpointError

_INTEGER_RANGES = {"uint32": (0, 2**32 - 1), "int32": (-(2**31), 2**31 - 1)}
_FLOAT32_MAX = (2 - 2**-23) * 2.0**127
_REMEDY = "check the value in config.json or in the tokenizer's files"


@dataclass(frozen=True)
class MetadataEntry:
    """One value of a GGUF header.

    `type` is bool, uint32, int32, float32, string or array, and from a GGUF file any other of GGUF's numbers. `item_type` is
    the type of an array's items and None otherwise. Strings are `str` that encodes to UTF-8, or `bytes` that is UTF-8 already.
    """

    type: str
    value: Any
    item_type: str | None = None


def boolean(value: Any, what: str = "a metadata value") -> MetadataEntry:
    """A bool entry; CheckpointError for anything but True and False."""
    if not isinstance(value, bool):
        raise _unfit(value, "true or false", what)
    return MetadataEntry("bool", value)


def uint32(value: Any, what: str = "a metadata value") -> MetadataEntry:
    """A uint32 entry; CheckpointError when `value` is no integer from 0 to 2**32 - 1."""
    return MetadataEntry("uint32", _integer(value, "uint32", what))


def int32(value: Any, what: str = "a metadata value") -> MetadataEntry:
    """An int32 entry; CheckpointError when `value` is no integer from -2**31 to 2**31 - 1."""
    return MetadataEntry("int32", _integer(value, "int32", what))


def float32(value: Any, what: str = "a metadata value") -> MetadataEntry:
    """A float32 entry holding a Python float; CheckpointError when `value` is not finite as a float32."""
    return MetadataEntry("float32", _float(value, what))


def string(value: Any, what: str = "a metadata value") -> MetadataEntry:
    """A string entry; CheckpointError when `value` has no UTF-8 form."""
    return MetadataEntry("string", _string(value, what))


def strings(values: Iterable[str | bytes], what: str = "a metadata list") -> MetadataEntry:
    """An array of strings, each as `string` takes it."""
    items = list(values)
    if set(map(type, items)) == {bytes}:
        # One decoding of all is the same test: no UTF-8 sequence crosses a line break.
        _string(b"\n".join(items), what)  # type: ignore[arg-type]
        return MetadataEntry("array", items, "string")
    return MetadataEntry("array", [_string(value, what) for value in items], "string")


def floats(values: Iterable[float], what: str = "a metadata list") -> MetadataEntry:
    """An array of float32, each as `float32` takes it."""
    items = list(values)
    plain = set(map(type, items)) == {float} and all(map(math.isfinite, items))
    if plain and max(map(abs, items)) <= _FLOAT32_MAX:
        return MetadataEntry("array", items, "float32")
    return MetadataEntry("array", [_float(value, what) for value in items], "float32")


def int32s(values: Iterable[int], what: str = "a metadata list") -> MetadataEntry:
    """An array of int32, each as `int32` takes it."""
    return MetadataEntry("array", _integers(values, "int32", what), "int32")


def uint32s(values: Iterable[int], what: str = "a metadata list") -> MetadataEntry:
    """An array of uint32, each as `uint32` takes it."""
    return MetadataEntry("array", _integers(values, "uint32", what), "uint32")


def booleans(values: Sequence[bool], what: str = "a metadata list") -> MetadataEntry:
    """An array of bool, each as `boolean` takes it."""
    return MetadataEntry("array", [boolean(value, what).value for value in values], "bool")


def _integer(value: Any, kind: str, what: str) -> int:
    lowest, highest = _INTEGER_RANGES[kind]
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise _unfit(value, "a whole number", what)
    number = operator.index(value)
    if not lowest <= number <= highest:
        raise _unfit(value, f"a whole number from {lowest} to {highest}", what)
    return number


def _integers(values: Iterable[int], kind: str, what: str) -> list[int]:
    items = list(values)
    lowest, highest = _INTEGER_RANGES[kind]
    if set(map(type, items)) == {int} and lowest <= min(items) and max(items) <= highest:
        return items
    return [_integer(value, kind, what) for value in items]


def _float(value: Any, what: str) -> float:
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise _unfit(value, "a number", what)
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        raise _unfit(value, "a number", what) from None
    if not math.isfinite(number) or abs(number) > _FLOAT32_MAX:
        raise _unfit(value, "a finite 32-bit float", what)
    return number


def _string(value: Any, what: str) -> str | bytes:
    if not isinstance(value, str | bytes):
        raise _unfit(value, "text", what)
    try:
        # An encoding attempt is the only complete test: JSON escapes can put half a surrogate pair into a str.
        value.encode("utf-8") if isinstance(value, str) else value.decode("utf-8")
    except UnicodeError:
        raise _unfit(value, "valid UTF-8", what) from None
    return value


def _unfit(value: Any, expected: str, what: str) -> CheckpointError:
    try:
        found = ascii(value)
    except ValueError:  # an integer of more digits than Python prints
        found = "a number of thousands of digits"
    shown = found if len(found) <= 60 else found[:57] + "..."
    return CheckpointError(f"{what} is {shown} where {expected} is needed", _REMEDY)
