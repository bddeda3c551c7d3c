"""Protobuf's wire format, as far as reading a message needs it: fields by number, without a schema."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, START_GROUP, END_GROUP, FIXED32 = range(6)
_MAX_GROUP_DEPTH = 32


class WireError(ValueError):
    """The bytes are not a protobuf message; the message says what is wrong."""


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field number, wire type, value) of a protobuf message; the value is an int for a varint and bytes otherwise.

    Groups, protobuf's oldest nesting, are skipped. WireError for anything that is not a message.
    """
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if not 0 < field < 2**29:
            raise WireError(f"a field number of {field} at byte {position}")
        if wire == VARINT:
            number, position = _varint(data, position)
            yield field, wire, number
            continue
        if wire == START_GROUP:
            position = _skip_group(data, position, field, 1)
            continue
        if wire == BYTES:
            size, position = _varint(data, position)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise WireError(f"a field of wire type {wire} at byte {position}")
        if size > end - position:
            raise WireError(f"a field of {size} bytes at byte {position} runs past the end")
        yield field, wire, data[position : position + size]
        position += size


def signed32(number: int) -> int:
    """A varint as protobuf's int32: negative numbers are written as 64 bits in two's complement."""
    low = number & (2**32 - 1)
    return low - 2**32 if low >= 2**31 else low


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The base-128 number at `position`, and the position after it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise WireError("it ends inside a number")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & (2**64 - 1), position
    raise WireError(f"a number of more than ten bytes before byte {position}")


def _skip_group(data: bytes, position: int, field: int, depth: int) -> int:
    """The position after a group."""
    if depth > _MAX_GROUP_DEPTH:
        raise WireError("groups nested too deeply")
    while True:
        tag, position = _varint(data, position)
        inner, wire = tag >> 3, tag & 7
        if wire == END_GROUP:
            if inner != field:
                raise WireError(f"group {field} is closed as group {inner}")
            return position
        if wire == START_GROUP:
            position = _skip_group(data, position, inner, depth + 1)
        elif wire == VARINT:
            _, position = _varint(data, position)
        elif wire in (BYTES, FIXED32, FIXED64):
            size = {FIXED32: 4, FIXED64: 8}.get(wire, 0)
            if wire == BYTES:
                size, position = _varint(data, position)
            position += size
            if position > len(data):
                raise WireError("a group runs past the end")
        else:
            raise WireError(f"a field of wire type {wire} at byte {position}")
