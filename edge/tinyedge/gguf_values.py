"""The values inside a GGUF header: numbers, strings and arrays, read from a file that may be damaged or hostile."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeAlias, overload

from tinyedge.errors import GGUFError

MAGIC = b"GGUF"
TYPE_NAMES = (
    "u8",
    "i8",
    "u16",
    "i16",
    "u32",
    "i32",
    "f32",
    "bool",
    "str",
    "arr",
    "u64",
    "i64",
    "f64",
)  # by id, ggml/include/gguf.h

_FORMATS: Mapping[str, struct.Struct] = MappingProxyType(
    {
        name: struct.Struct("<" + code)
        for name, code in zip(TYPE_NAMES, ("B", "b", "H", "h", "I", "i", "f", "b", "", "", "Q", "q", "d"), strict=True)
        if code
    }
)
_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 256 << 20  # the largest vocabularies with all their merges take some 20 MB
_MAX_ARRAY_ELEMENTS = 1 << 30  # GGUF_MAX_ARRAY_ELEMENTS
_MAX_SHOWN = 80


def shown(text: str) -> str:
    """`text` quoted for an error message: control characters escaped, long text cut."""
    return repr(text) if len(text) <= _MAX_SHOWN else repr(text[:_MAX_SHOWN]) + "..."


class GGUFArray(Sequence[Any]):
    """An array of the header, decoded at the first access to an element; `len` and `element_type` are free.

    Strings that are not UTF-8 are decoded with replacement characters; `raw_strings` has their bytes.
    """

    def __init__(self, buffer: bytearray, offset: int, element_type: str, count: int) -> None:
        self._buffer, self._offset, self._length = buffer, offset, count
        self.element_type = element_type

    @cached_property
    def raw_strings(self) -> tuple[bytes, ...]:
        """The strings of an array of strings, undecoded."""
        assert self.element_type == "str"
        position, length = self._offset, _FORMATS["u64"].unpack_from
        strings = []
        with memoryview(self._buffer) as data:  # a copy of it for every array would take quadratic time
            for _ in range(self._length):
                start = position + 8
                position = start + length(data, position)[0]
                strings.append(data[start:position].tobytes())
        return tuple(strings)

    @cached_property
    def values(self) -> tuple[Any, ...]:
        """All elements."""
        if self.element_type == "str":
            return tuple(raw.decode("utf-8", "replace") for raw in self.raw_strings)
        code = _FORMATS[self.element_type].format[1:]
        numbers = struct.unpack_from(f"<{self._length}{code}", self._buffer, self._offset)
        return tuple(map(bool, numbers)) if self.element_type == "bool" else numbers

    def head(self, count: int) -> tuple[Any, ...]:
        """The first `count` elements, without decoding the rest."""
        return GGUFArray(self._buffer, self._offset, self.element_type, min(count, self._length)).values

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.values[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __repr__(self) -> str:
        return f"GGUFArray({self.element_type}, {self._length})"


Value: TypeAlias = "int | float | bool | str | GGUFArray"


class HeaderReader:
    """A cursor over a file's beginning that never reads past the file and holds what it has passed in memory.

    It reads rather than maps: on a failing SD card a read raises OSError where a mapped page would kill the process.
    """

    def __init__(self, file: BinaryIO, path: Path, file_bytes: int) -> None:
        self._file, self._path = file, path
        self._buffer = bytearray()
        self.file_bytes = file_bytes
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes of the file behind the cursor."""
        return self.file_bytes - self.position

    def error(self, problem: str) -> GGUFError:
        """The error to raise: `problem` continues a sentence that begins with the file's path."""
        return GGUFError(f"{self._path} {problem}")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self._skip(count)
        return bytes(self._buffer[start : self.position])

    def number(self, kind: str) -> Any:
        """The next number of the named type."""
        form = _FORMATS[kind]
        value = form.unpack_from(self._buffer, self._skip(form.size))[0]
        return value != 0 if kind == "bool" else value

    def name(self, what: str, max_bytes: int) -> str:
        """The next string, which must be a usable name: UTF-8, without NUL, of 1 to `max_bytes` bytes."""
        length = self.number("u64")
        if not 0 < length <= max_bytes:
            raise self.error(f"has {what} of {length} bytes; 1 to {max_bytes} are possible")
        raw = self.take(length)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"has {what} that is not UTF-8: {raw[:_MAX_SHOWN]!r}") from None
        if "\0" in text:
            raise self.error(f"has {what} with a NUL in it: {shown(text)}")
        return text

    def value(self, key: str) -> tuple[str, Value]:
        """The type's name and the value of the metadata entry `key`, whose name the cursor has just passed."""
        kind = self._type_name(key)
        if kind == "arr":
            element_type = self._type_name(key)
            if element_type == "arr":
                raise self.error(f"nests arrays under the metadata key {shown(key)}, which llama.cpp does not read")
            return f"arr[{element_type}]", self._array(key, element_type)
        if kind == "str":
            return kind, self._string().decode("utf-8", "replace")
        value: Value = self.number(kind)
        return kind, value

    def finish(self) -> None:
        """Lets go of what was read beyond the cursor; arrays keep the rest."""
        del self._buffer[self.position :]

    def _type_name(self, key: str) -> str:
        type_id = self.number("u32")
        if type_id >= len(TYPE_NAMES):
            raise self.error(f"gives the metadata key {shown(key)} the value type {type_id}, which does not exist")
        return TYPE_NAMES[type_id]

    def _string(self) -> bytes:
        return self.take(self.number("u64"))

    def _array(self, key: str, element_type: str) -> GGUFArray:
        count = self.number("u64")
        start = self.position
        smallest = 8 if element_type == "str" else _FORMATS[element_type].size
        if count > _MAX_ARRAY_ELEMENTS or count * smallest > self.remaining:
            raise self.error(f"claims {count} elements under the metadata key {shown(key)}, more than the file can hold")
        if element_type == "str":
            self._skip_strings(count)
        else:
            self._skip(count * smallest)
        return GGUFArray(self._buffer, start, element_type, count)

    def _skip_strings(self, count: int) -> None:
        """Passes `count` strings by their lengths alone: 32000 of them in a few milliseconds."""
        buffer, position, loaded = self._buffer, self.position, len(self._buffer)
        length = _FORMATS["u64"].unpack_from
        for _ in range(count):
            if position + 8 > loaded:
                loaded = self._load(position + 8)
            position += 8 + length(buffer, position)[0]
        self._load(position)
        self.position = position

    def _skip(self, count: int) -> int:
        """Moves the cursor by `count` bytes that are then in memory; the position before."""
        start = self.position
        end = start + count
        if end > len(self._buffer):
            self._load(end)
        self.position = end
        return start

    def _load(self, end: int) -> int:
        """The bytes in memory, after reading until there are `end`. Raises GGUFError when the file is shorter."""
        if end > self.file_bytes:
            raise self.error(f"is truncated or damaged: its header runs past the end of its {self.file_bytes} bytes")
        if end > _MAX_HEADER_BYTES:
            raise self.error(f"is damaged: its header would take more than {_MAX_HEADER_BYTES >> 20} MiB")
        while len(self._buffer) < end:
            chunk = self._file.read(max(_CHUNK_BYTES, end - len(self._buffer)))
            if not chunk:
                raise self.error("became shorter while it was read")
            self._buffer += chunk
        return len(self._buffer)
