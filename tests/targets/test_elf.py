"""What is read from an ELF file is what pyelftools reads, and a damaged one is refused, never worse."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyedge.errors import WheelError
from tinyedge_targets.elf import AARCH64, ARM, X86_64, Elf

elftools = pytest.importorskip("elftools.elf.elffile")
pytest.importorskip("ziglang")
from tiny_wheels import compiled  # noqa: E402  (its libraries need ziglang)

SOURCE = """
#include <math.h>
#include <stdlib.h>
static int count;
__attribute__((constructor)) static void first(void) { count = getenv("HOME") != 0; }
__attribute__((destructor)) static void last(void) { count = 0; }
static int plain(void) { return 1; }
static int (*resolve(void))(void) { return plain; }
#ifdef __aarch64__
int chosen(void) __attribute__((ifunc("resolve")));
#endif
__attribute__((noinline)) double shared(double x) { return pow(x, count); }
double ggml_backend_score(double x) { return shared(x) + 1; }
__attribute__((noinline)) static double hidden(double *x) { return exp(*x) + count; }
double other(double x) { return hidden(&x) * hidden(&x); }
"""
FLAGS = ("-lm", "-Wl,-soname,libx.so", "-Wl,-rpath,$ORIGIN:/opt/lib")
MACHINES = [("aarch64", "generic", AARCH64, 64), ("x86_64", "x86_64", X86_64, 64), ("arm", "cortex_a7", ARM, 32)]


def reference(data: bytes) -> Any:
    return elftools.ELFFile(io.BytesIO(data))


@pytest.mark.parametrize(("machine", "cpu", "number", "bits"), MACHINES)
def test_the_headers_and_the_dynamic_section_are_as_pyelftools_reads_them(
    machine: str, cpu: str, number: int, bits: int
) -> None:
    data = compiled(SOURCE, *FLAGS, machine=machine, cpu=cpu)
    library, other = Elf(data, "libx.so"), reference(data)
    assert (library.machine, library.bits, library.flags) == (number, bits, other["e_flags"])
    tags = list(other.get_section_by_name(".dynamic").iter_tags())
    assert library.needed == tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED")
    assert library.soname == "libx.so"
    assert library.search_path == ("$ORIGIN", "/opt/lib")
    assert not library.executable_stack
    assert not library.text_relocations
    versions = {
        need.name: tuple(each.name for each in auxiliaries)
        for need, auxiliaries in other.get_section_by_name(".gnu.version_r").iter_versions()
    }
    assert library.versions == versions
    assert versions


@pytest.mark.parametrize(("machine", "cpu"), [row[:2] for row in MACHINES])
def test_exported_functions_are_as_pyelftools_reads_them(machine: str, cpu: str) -> None:
    data = compiled(SOURCE, *FLAGS, machine=machine, cpu=cpu)
    (symbol,) = reference(data).get_section_by_name(".dynsym").get_symbol_by_name("ggml_backend_score")
    library = Elf(data, "libx.so")
    assert library.exported("ggml_backend_score") == symbol["st_value"]
    assert library.exported("pow") is None
    assert library.exported("ggml_backend") is None
    assert library.name_at(symbol["st_value"] & ~1) == "ggml_backend_score"


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_what_the_loader_runs_is_found(machine: str) -> None:
    data = compiled(SOURCE, *FLAGS, machine=machine)
    symbols = {symbol.name: symbol["st_value"] for symbol in reference(data).get_section_by_name(".symtab").iter_symbols()}
    run = Elf(data, "libx.so").run_at_load
    assert {symbols["first"], symbols["last"]} <= set(run)
    assert (symbols.get("resolve") in run) == (machine == "aarch64")
    assert symbols["shared"] not in run


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_a_stripped_library_still_shows_its_functions(machine: str) -> None:
    whole = Elf(compiled(SOURCE, *FLAGS, machine=machine), "libx.so")
    bare = Elf(compiled(SOURCE, *FLAGS, "-s", machine=machine), "libx.so")
    assert not len(bare.all_symbols.table)
    function = next(
        int(whole.all_symbols.table["value"][at])
        for at in range(len(whole.all_symbols.table))
        if whole.all_symbols.name(at) == "hidden"
    )
    bounds = whole.function_at(function)
    assert bounds is not None
    assert bounds[0] == function
    assert whole.name_at(function) == "hidden"
    moved = bare.code[0].address - whole.code[0].address
    found = bare.function_at(function + moved)
    assert found is not None
    assert found[0] == bounds[0] + moved
    assert found[1] >= bounds[1] + moved
    assert bare.code_bytes(*found).startswith(whole.code_bytes(*bounds))
    assert whole.function_at(0) is None


def test_pointers_into_this_library_are_told_from_those_into_others() -> None:
    library = Elf(compiled(SOURCE, *FLAGS), "libx.so")
    assert library.exported("shared") in library.slots.values()
    assert 0 not in library.slots.values()


def test_an_executable_stack_is_seen() -> None:
    data = bytearray(compiled(SOURCE, *FLAGS))
    place = data.index(struct.pack("<II", 0x6474E551, 6))  # PT_GNU_STACK, readable and writable
    data[place + 4] = 7
    assert Elf(bytes(data), "x.so").executable_stack
    data[place : place + 4] = bytes(4)
    assert Elf(bytes(data), "x.so").executable_stack


def test_text_relocations_are_seen() -> None:
    source = ".text\n.globl f\nf: .quad f\n"
    assert Elf(compiled(source, "-Wl,-z,notext", suffix="s"), "x.so").text_relocations


def test_constants_between_instructions_are_told_by_mapping_symbols() -> None:
    source = ".text\n.globl f\nf: ret\n.word 0x1ac34041\n.globl g\ng: ret\n"
    library = Elf(compiled(source, suffix="s"), "x.so")
    start = library.exported("f")
    assert start is not None
    assert list(library.data_ranges()) == [(start + 4, start + 8)]


def everything(data: bytes) -> None:
    """Reads all that checks read."""
    library = Elf(data, "libx.so")
    for name in (
        "needed",
        "soname",
        "search_path",
        "versions",
        "executable_stack",
        "text_relocations",
        "run_at_load",
        "attributes",
    ):
        getattr(library, name)
    for section in library.code:
        library.content(section)
        library.function_at(section.address)
        library.code_bytes(section.address, section.address + section.size)
    list(library.data_ranges())
    library.exported("ggml_backend_score")
    library.name_at(4096)
    assert all(isinstance(place, int) for place in library.slots)


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"MZ" + bytes(100), b"\x7fELF\x02\x02" + bytes(100), b"\x7fELF\x02\x01" + bytes(100)]
)
def test_what_is_no_elf_file_is_refused(content: bytes) -> None:
    with pytest.raises(WheelError):
        everything(content)


@pytest.mark.parametrize(("machine", "cpu"), [row[:2] for row in MACHINES])
def test_every_truncation_is_refused(machine: str, cpu: str) -> None:
    data = compiled(SOURCE, *FLAGS, machine=machine, cpu=cpu)
    for size in range(0, len(data) - 1, 211):
        with pytest.raises(WheelError):
            everything(data[:size])


@pytest.mark.parametrize(("machine", "cpu"), [row[:2] for row in MACHINES])
def test_damage_is_never_anything_but_a_wheel_error(machine: str, cpu: str) -> None:
    data = compiled(SOURCE, *FLAGS, machine=machine, cpu=cpu)
    everything(data)
    library, chance, refused = Elf(data, "libx.so"), random.Random(2), 0
    headers = range(52, 64 + 64 * 8)
    dynamic = next(range(each.offset, each.offset + each.file_size) for each in library.segments if each.kind == 2)
    table = range(len(data) - 64 * len(library.sections), len(data))
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            place = chance.choice(chance.choice((headers, dynamic, table, range(len(data)))))
            damaged[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        try:
            everything(bytes(damaged))
        except WheelError:
            refused += 1
    assert refused > 100


def test_counts_that_the_file_cannot_hold_cost_nothing(tmp_path: Path) -> None:
    data = bytearray(compiled(SOURCE, *FLAGS))
    data[56:58] = b"\xff\xff"  # e_phnum
    (tmp_path / "x.so").write_bytes(data)
    script = (
        "import re, resource, sys; from pathlib import Path; resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        "from tinyedge.errors import WheelError; from tinyedge_targets.elf import Elf\n"
        "try: Elf(Path(sys.argv[1]).read_bytes(), 'x')\n"
        # Not getrusage: before exec the process had the memory of pytest, and that counts there.
        "except WheelError: print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) < 200_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.so")], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n"


def test_names_are_printable() -> None:
    library = Elf(compiled("int x;", "-Wl,-soname,a\x1b[2Jb"), "x.so")
    assert library.soname == "a\\x1b[2Jb"
    assert np.all(library.dynamic_symbols.starts_with(b""))
