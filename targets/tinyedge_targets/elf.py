"""What a check of a library needs from its ELF file, as the dynamic loader sees it: program headers and dynamic section first.

Read with struct and numpy within the file's bounds, because the files are strangers': every count is compared with the bytes
that are there before anything is allocated or looped over. pyelftools, which trusts counts, is the reference in the tests.
Layouts: System V gABI chapters 4 and 5; versions: Linux Standard Base, "Symbol Versioning"; .eh_frame_hdr: LSB Core.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from tinyedge.errors import WheelError

I386, ARM, X86_64, AARCH64 = 3, 40, 62, 183  # e_machine

_PT_LOAD, _PT_DYNAMIC, _PT_GNU_EH_FRAME, _PT_GNU_STACK = 1, 2, 0x6474E550, 0x6474E551
_SHT_SYMTAB, _SHT_DYNSYM, _SHT_ARM_ATTRIBUTES = 2, 11, 0x70000003
_SHF_ALLOC, _SHF_EXECINSTR = 2, 4
_EXECUTABLE = 1  # PF_X

_DT_NEEDED, _DT_STRTAB, _DT_INIT, _DT_FINI, _DT_SONAME, _DT_RPATH, _DT_TEXTREL = 1, 5, 12, 13, 14, 15, 22
_DT_JMPREL, _DT_PLTRELSZ, _DT_RELA, _DT_RELASZ, _DT_RUNPATH, _DT_FLAGS = 23, 2, 7, 8, 29, 30
_DT_INIT_ARRAY, _DT_FINI_ARRAY, _DT_INIT_ARRAYSZ, _DT_FINI_ARRAYSZ = 25, 26, 27, 28
_DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
_DF_TEXTREL = 4

# Relocation types by machine: (relative, indirect relative), which both put base + addend into place.
_RELATIVE: Final = {AARCH64: (1027, 1032), X86_64: (8, 37)}
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_STRING_MAX = 4096
# More than any library has; they keep a made-up file from costing more time than its size warrants.
_HEADERS_MAX = 512
_ENTRIES_MAX = 4096
_ADDRESS_MAX = 1 << 56  # no processor has more

Fields = list[tuple[str, str]]
Table = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A program header: where its bytes are in the file and in memory."""

    kind: int
    flags: int
    offset: int
    address: int
    file_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section header, as far as it is used here."""

    index: int
    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """A symbol table: `table` with the fields name, info, shndx, value, size, and the names' bytes."""

    table: Table
    strings: bytes

    def name(self, index: int) -> str:
        """The name of one symbol, printable."""
        return _string(self.strings, int(self.table["name"][index]))

    def starts_with(self, prefix: bytes) -> npt.NDArray[np.bool_]:
        """Which names begin with these bytes."""
        bytes_ = np.frombuffer(self.strings + b"\0" * len(prefix), np.uint8)
        offsets = np.minimum(self.table["name"].astype(np.int64), len(self.strings))
        matches = np.ones(len(offsets), np.bool_)
        for place, value in enumerate(prefix):
            matches &= bytes_[offsets + place] == value
        return matches


class Elf:
    """A shared library's file, read without running or mapping it.

    Raises WheelError on construction or from any property when the file is damaged, not little-endian ELF, or stripped of its
    section table.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        if data[:4] != b"\x7fELF" or len(data) < 52 or data[4] not in (1, 2) or data[5] != 1:
            raise self._damaged("is not a little-endian ELF file")
        self.bits = 64 if data[4] == 2 else 32
        wide = self.bits == 64
        self._word = "<u8" if wide else "<u4"
        _, self.machine, _, _, program, sections, self.flags, _, *counts = self._unpack(
            "HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH", 16
        )
        program_size, program_count, section_size, section_count, names = counts
        if (program_size, section_size) != ((56, 64) if wide else (32, 40)):
            raise self._damaged("has headers of unknown size")
        if program_count > _HEADERS_MAX or section_count > _HEADERS_MAX:
            raise self._damaged(f"has {max(program_count, section_count)} headers, more than any library")
        self.segments = tuple(self._segment(program + place * program_size) for place in range(program_count))
        raw = [
            self._unpack("IIQQQQIIQQ" if wide else "IIIIIIIIII", sections + place * section_size)
            for place in range(section_count)
        ]
        if any(value > _ADDRESS_MAX for header in raw for value in header):
            raise self._damaged("has a section beyond the address space")
        if names >= len(raw):
            raise self._damaged("has no section table, so its code cannot be told from its data")
        strings = self._slice(raw[names][4], raw[names][5])
        self.sections = tuple(
            Section(
                index=index,
                name=_string(strings, at),
                kind=kind,
                flags=flags,
                address=address,
                offset=offset,
                size=size,
                link=link,
            )
            for index, (at, kind, flags, address, offset, size, link, *_) in enumerate(raw)
        )

    def _segment(self, at: int) -> Segment:
        if self.bits == 64:
            kind, flags, offset, address, _, size = self._unpack("IIQQQQ", at)
        else:
            kind, offset, address, _, size, _, flags = self._unpack("IIIIIII", at)
        if max(offset, address, size) > _ADDRESS_MAX:
            raise self._damaged("has a segment beyond the address space")
        return Segment(kind=kind, flags=flags, offset=offset, address=address, file_size=size)

    def _damaged(self, problem: str) -> WheelError:
        return WheelError(f"{self.name} {problem}")

    def _unpack(self, form: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from("<" + form, self.data, offset)
        except (struct.error, OverflowError):
            raise self._damaged(f"ends before offset {offset} that its headers name") from None

    def _slice(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.data):
            raise self._damaged(f"ends before offset {offset + size} that its headers name")
        return self.data[offset : offset + size]

    def _array(self, offset: int, size: int, fields: Fields) -> Table:
        """The whole records of these fields in `size` bytes."""
        record = np.dtype(fields)
        return np.frombuffer(self._slice(offset, size - size % record.itemsize), record)

    def offset(self, address: int) -> int:
        """Where in the file the byte at this address is."""
        for segment in self.segments:
            if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.file_size:
                return address - segment.address + segment.offset
        raise self._damaged(f"refers to address {address:#x}, which is in none of its segments")

    @cached_property
    def dynamic(self) -> dict[int, list[int]]:
        """The dynamic section: the values of each tag in their order."""
        found: dict[int, list[int]] = {}
        for segment in self.segments:
            if segment.kind == _PT_DYNAMIC:
                for tag, value in self._array(
                    segment.offset, segment.file_size, [("tag", self._word), ("value", self._word)]
                ).tolist():
                    if tag == 0:
                        break
                    found.setdefault(tag, []).append(value)
        if not found:
            raise self._damaged("has no dynamic section: it is not a shared library")
        return found

    def _first(self, tag: int) -> int:
        return self.dynamic.get(tag, [0])[0]

    def _dynamic_string(self, at: int) -> str:
        return _string(self.data, self.offset(self._first(_DT_STRTAB)) + at)

    @property
    def needed(self) -> tuple[str, ...]:
        """The libraries this one needs (DT_NEEDED)."""
        return tuple(self._dynamic_string(at) for at in self.dynamic.get(_DT_NEEDED, []))

    @property
    def soname(self) -> str:
        """The name others need it by (DT_SONAME), "" if it has none, as modules opened by path do."""
        return self._dynamic_string(self._first(_DT_SONAME)) if _DT_SONAME in self.dynamic else ""

    @property
    def search_path(self) -> tuple[str, ...]:
        """Where the loader looks for what it needs: DT_RUNPATH, else DT_RPATH."""
        tag = _DT_RUNPATH if _DT_RUNPATH in self.dynamic else _DT_RPATH
        return tuple(self._dynamic_string(self._first(tag)).split(":")) if tag in self.dynamic else ()

    @property
    def executable_stack(self) -> bool:
        """Whether loading it makes the stack executable; without PT_GNU_STACK the kernel's default is that on most machines."""
        stacks = [segment.flags for segment in self.segments if segment.kind == _PT_GNU_STACK]
        return not stacks or any(flags & _EXECUTABLE for flags in stacks)

    @property
    def text_relocations(self) -> bool:
        """Whether the loader must write into its code."""
        return _DT_TEXTREL in self.dynamic or bool(self._first(_DT_FLAGS) & _DF_TEXTREL)

    @cached_property
    def versions(self) -> dict[str, tuple[str, ...]]:
        """The symbol versions it needs of each library: {"libc.so.6": ("GLIBC_2.17",)}."""
        found: dict[str, list[str]] = {}
        if _DT_VERNEED not in self.dynamic:
            return {}
        at, left = self.offset(self._first(_DT_VERNEED)), _ENTRIES_MAX
        for _ in range(min(self._first(_DT_VERNEEDNUM), _ENTRIES_MAX)):
            _, count, file, first, following = self._unpack("HHIII", at)
            names = found.setdefault(self._dynamic_string(file), [])
            entry = at + first
            for _ in range(min(count, left)):
                _, _, _, name, step = self._unpack("IHHII", entry)
                names.append(self._dynamic_string(name))
                entry += step
            left -= min(count, left)
            at += following
        return {file: tuple(names) for file, names in found.items()}

    @cached_property
    def code(self) -> tuple[Section, ...]:
        """The sections with instructions, by address; each must lie in an executable segment at its own offset."""
        found = [
            section
            for section in self.sections
            if section.flags & _SHF_EXECINSTR and section.flags & _SHF_ALLOC and section.size
        ]
        executable = [segment for segment in self.segments if segment.kind == _PT_LOAD and segment.flags & _EXECUTABLE]
        for section in found:
            if not any(
                segment.address <= section.address
                and section.address + section.size <= segment.address + segment.file_size
                and section.address - segment.address == section.offset - segment.offset
                for segment in executable
            ):
                raise self._damaged(f"has the code section {section.name} outside its executable segments")
        found.sort(key=lambda section: section.address)
        if any(before.address + before.size > after.address for before, after in itertools.pairwise(found)):
            raise self._damaged("has code sections that share addresses")
        return tuple(found)

    def content(self, section: Section) -> bytes:
        """The bytes of a section."""
        return self._slice(section.offset, section.size)

    def code_bytes(self, start: int, end: int) -> bytes:
        """The bytes of the code from one address to another, cut at the end of its section; none outside the code."""
        for section in self.code:
            if section.address <= start < section.address + section.size:
                offset = section.offset + start - section.address
                return self.data[offset : min(offset + end - start, section.offset + section.size)]
        return b""

    @cached_property
    def attributes(self) -> bytes:
        """The content of .ARM.attributes, empty where there is none."""
        return next((self.content(section) for section in self.sections if section.kind == _SHT_ARM_ATTRIBUTES), b"")

    def _symbols(self, kind: int) -> Symbols:
        name, info, other, shndx = ("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2")
        value, size = ("value", self._word), ("size", self._word)
        fields = [name, info, other, shndx, value, size] if self.bits == 64 else [name, value, size, info, other, shndx]
        for section in self.sections:
            if section.kind == kind and section.link < len(self.sections):
                strings = self.content(self.sections[section.link])
                return Symbols(table=self._array(section.offset, section.size, fields), strings=strings)
        return Symbols(table=np.empty(0, fields), strings=b"")

    @cached_property
    def dynamic_symbols(self) -> Symbols:
        """The symbols the loader binds (.dynsym)."""
        return self._symbols(_SHT_DYNSYM)

    @cached_property
    def all_symbols(self) -> Symbols:
        """The linker's symbols (.symtab), none once stripped."""
        return self._symbols(_SHT_SYMTAB)

    def exported(self, name: str) -> int | None:
        """The address of a function it exports, None where there is no such."""
        symbols = self.dynamic_symbols
        for index in np.flatnonzero(symbols.starts_with(name.encode() + b"\0") & (symbols.table["shndx"] != 0)):
            return int(symbols.table["value"][index])
        return None

    @cached_property
    def functions(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Sorted start and end addresses of its functions, from symbols and unwind tables; an unknown end is the next start."""
        starts, ends = [_EMPTY], [_EMPTY]
        for symbols in (self.dynamic_symbols, self.all_symbols):
            chosen = symbols.table[
                np.isin(symbols.table["info"] & 15, (_STT_FUNC, _STT_GNU_IFUNC)) & (symbols.table["shndx"] != 0)
            ]
            starts.append(chosen["value"].astype(np.uint64))
            ends.append(chosen["value"].astype(np.uint64) + chosen["size"].astype(np.uint64))
        unwound = self._unwind_starts()
        edges = np.array(
            [section.address for section in self.code] + [section.address + section.size for section in self.code], np.uint64
        )
        starts += [unwound, edges]
        ends += [unwound, edges]
        start, end = np.concatenate(starts), np.concatenate(ends)
        order = np.lexsort((end, start))
        start, end = start[order], end[order]
        last = np.append(start[1:] != start[:-1], True)  # of equal starts the one with the largest end
        start, end = start[last], end[last]
        following = np.append(start[1:], start[-1:])
        return start, np.where(end > start, end, following)

    def _unwind_starts(self) -> npt.NDArray[np.uint64]:
        """Function starts from .eh_frame_hdr's sorted table, in the one encoding that linkers write (datarel sdata4)."""
        for segment in self.segments:
            if segment.kind == _PT_GNU_EH_FRAME and segment.file_size >= 12:
                version, _, count_encoding, table_encoding, _, count = self._unpack("BBBBiI", segment.offset)
                if (version, count_encoding, table_encoding) == (1, 0x03, 0x3B):
                    size = min(count * 8, segment.file_size - 12)
                    rows = self._array(segment.offset + 12, size, [("start", "<i4"), ("entry", "<i4")])
                    starts: npt.NDArray[np.uint64] = (rows["start"].astype(np.int64) + segment.address).astype(np.uint64)
                    return starts
        return _EMPTY

    def function_at(self, address: int) -> tuple[int, int] | None:
        """The bounds of the function that holds an address, None outside the code."""
        if not any(section.address <= address < section.address + section.size for section in self.code):
            return None
        starts, ends = self.functions
        place = int(np.searchsorted(starts, np.uint64(address), side="right")) - 1
        start, end = int(starts[place]), int(ends[place])
        return (start, end) if address < end else (end, int(starts[place + 1]))

    def name_at(self, address: int) -> str:
        """The name of the function that holds an address, "" where no symbol says it."""
        for symbols in (self.all_symbols, self.dynamic_symbols):
            value, size = symbols.table["value"], symbols.table["size"]
            function = np.isin(symbols.table["info"] & 15, (_STT_FUNC, _STT_GNU_IFUNC)) & (symbols.table["shndx"] != 0)
            inside = function & (value <= address) & (address < value.astype(np.uint64) + size.astype(np.uint64))
            for index in np.flatnonzero(inside):
                return symbols.name(int(index))
        return ""

    @cached_property
    def _relocations(self) -> Table:
        """All relocations with addend: offset, info, addend."""
        fields = [("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")]
        tables = [(_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)]
        parts = [
            self._array(self.offset(self._first(at)), self._first(size), fields) for at, size in tables if self._first(size)
        ]
        return np.concatenate([np.empty(0, fields), *parts])

    @cached_property
    def slots(self) -> dict[int, int]:
        """Pointer slot -> the address in this library that the loader puts there; other libraries' are left out."""
        if self.machine not in _RELATIVE:
            return {}
        table, symbols = self._relocations, self.dynamic_symbols.table
        kinds, indexes = table["info"] & np.uint64(0xFFFFFFFF), table["info"] >> np.uint64(32)
        relative = np.isin(kinds, _RELATIVE[self.machine])
        found = dict(zip(table["offset"][relative].tolist(), table["addend"][relative].tolist(), strict=True))
        known = ~relative & (indexes > 0) & (indexes < len(symbols))
        chosen = indexes[known].astype(np.int64)
        here = symbols["shndx"][chosen] != 0
        places, values = table["offset"][known][here], symbols["value"][chosen][here]
        return found | dict(zip(places.tolist(), values.tolist(), strict=True))

    @cached_property
    def run_at_load(self) -> tuple[int, ...]:
        """Addresses the loader itself calls when the library is opened and closed: constructors, destructors, resolvers."""
        found = [self._first(tag) for tag in (_DT_INIT, _DT_FINI) if tag in self.dynamic]
        for tag, size_tag in ((_DT_INIT_ARRAY, _DT_INIT_ARRAYSZ), (_DT_FINI_ARRAY, _DT_FINI_ARRAYSZ)):
            found += self._pointers(self._first(tag), self._first(size_tag)) if self._first(size_tag) else []
        for section in self.sections:
            if section.name in (".ctors", ".dtors") and section.size:
                found += self._pointers(section.address, section.size)
        if self.machine in _RELATIVE:
            table, symbols = self._relocations, self.dynamic_symbols.table
            chosen_late = ((symbols["info"] & 15) == _STT_GNU_IFUNC) & (symbols["shndx"] != 0)
            found += symbols["value"][chosen_late].tolist()
            found += table["addend"][(table["info"] & np.uint64(0xFFFFFFFF)) == _RELATIVE[self.machine][1]].tolist()
        return tuple(sorted({address for address in found if address not in (0, (1 << self.bits) - 1)}))

    def _pointers(self, address: int, size: int) -> list[int]:
        """An array of code pointers: what the relocations put there, else what the file holds."""
        stored = self._array(self.offset(address), size, [("pointer", self._word)])["pointer"].tolist()
        width = self.bits // 8
        return [self.slots.get(address + place * width, value) for place, value in enumerate(stored)]

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Address ranges inside code that mapping symbols ($d until the next $x) mark as data; none once stripped."""
        symbols = self.all_symbols
        marks = np.flatnonzero(symbols.starts_with(b"$d") | symbols.starts_with(b"$x"))
        marks = marks[np.argsort(symbols.table["value"][marks], kind="stable")]
        addresses, sections, data = (
            symbols.table["value"][marks],
            symbols.table["shndx"][marks],
            symbols.starts_with(b"$d")[marks],
        )
        for section in self.code:
            here = sections == section.index
            starts, last = addresses[here].tolist(), section.address + section.size
            for start, end, is_data in zip(starts, [*starts[1:], last], data[here].tolist(), strict=False):
                if is_data and section.address <= start < end <= last:
                    yield start, end


_EMPTY: Final[npt.NDArray[np.uint64]] = np.empty(0, np.uint64)


def _string(data: bytes, at: int) -> str:
    """The zero-ended string at an offset, at most 4096 bytes of it, with anything unprintable escaped."""
    text = data[at : at + _STRING_MAX].partition(b"\0")[0].decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]
