"""What can be said of a wheel without running it: whether its libraries fit the machine in its tag and the board it is for.

Each check is a function of a `Case` that gives one Check. A file that is no sound wheel, or a library that is no sound ELF
file, is not a failed check but a WheelError.
"""

from __future__ import annotations

import bisect
import hashlib
import platform
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tinyedge_targets import elf
from tinyedge_targets.boards import Board
from tinyedge_targets.checks import Check
from tinyedge_targets.elf import Elf
from tinyedge_targets.instructions import aarch64, arm, x86_64
from tinyedge_targets.instructions.processors import features_of
from tinyedge_targets.instructions.reach import Branches, reached
from tinyedge_targets.wheel_file import Wheel, open_wheel

_NATIVE = "native"
_SHOWN = 3


class _Beyond(Protocol):
    def __call__(self, code: bytes, address: int, allowed: Collection[str]) -> list[tuple[int, str]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    """What a platform tag's machine is to ELF, in a triple, and to us; only some have CPU variants (`branches`)."""

    number: int
    bits: int
    triple: str
    beyond: _Beyond
    branches: Branches | None
    lowest_variant: str


_MACHINES = {
    "aarch64": _Machine(
        number=elf.AARCH64, bits=64, triple="aarch64", beyond=aarch64.beyond, branches=aarch64, lowest_variant="armv8.0_1"
    ),
    "armv7l": _Machine(number=elf.ARM, bits=32, triple="arm", beyond=arm.beyond, branches=None, lowest_variant=""),
    "x86_64": _Machine(
        number=elf.X86_64, bits=64, triple="x86_64", beyond=x86_64.beyond, branches=x86_64, lowest_variant="x64"
    ),
}
_MACHINE_NAMES = {elf.I386: "i386", elf.ARM: "arm", elf.X86_64: "x86-64", elf.AARCH64: "aarch64"}

# PEP 513, 571, 599: the glibc that each of the older names stands for.
_GLIBC = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_GLIBC_TAG = re.compile(r"manylinux_(\d+)_(\d+)")
_GLIBC_VERSION = re.compile(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", re.ASCII)
_LIBC_FAMILY = re.compile(r"lib(?:c\.so\.6|m\.so\.6|dl\.so\.2|pthread\.so\.0|rt\.so\.1)|ld-linux[\w-]*\.so\.\d")
_ORIGIN = re.compile(r"\$(?:ORIGIN|\{ORIGIN\})/?")

_EABI5, _HARD_FLOAT = 0x05000000, 0x400  # e_flags, ELF for the Arm Architecture (IHI 0044)
_VARIANT = re.compile(r"libggml-cpu-([\w.]+)\.so")
_SCORE = "ggml_backend_score"
# What Python finds in site-packages: modules, packages, and the .pth files that it runs at every start.
_BESIDE = re.compile(r"(?:[^/]+\.data/(?:pure|plat)lib/)?(?!llama_cpp/)(?:[^/]+/__init__|[^/]+)\.(?:pyc?|pth|(?:[\w-]+\.)?so)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The wheel, its libraries by member name, and the board it is to run on, if one is named."""

    wheel: Wheel
    libraries: dict[str, Elf]
    board: Board | None


def check_wheel(wheel: Path, board: Board | None) -> tuple[Check, ...]:
    """The results of every check that applies to the wheel, the same ones whatever fails.

    Raises:
        WheelError: the file is missing, damaged or not a wheel of llama-cpp-python.
        BuildError: the extra `[targets]` is needed to read its code, and not installed.
    """
    opened = open_wheel(wheel)
    held = Check(
        name="wheel file",
        passed=True,
        detail=f"{len(opened.sizes)} files as RECORD lists them, tag {', '.join(opened.platforms)}",
    )
    if not opened.platforms[0].startswith(("linux", "manylinux", "musllinux")):
        return held, _foreign(opened, board)
    libraries = {name: Elf(opened.read(name), name) for name in opened.libraries}
    case = Case(wheel=opened, libraries=libraries, board=board)
    return held, *(check(case) for check in (contents, machine, glibc, needs, twice, instructions))


def _foreign(wheel: Wheel, board: Board | None) -> Check:
    """A wheel for macOS or Windows has no ELF files: only its tag is compared with the board."""
    wanted = (
        "macosx_"
        if board is None or board.triple.endswith("macos")
        else "linux"
        if board.triple != _NATIVE
        else wheel.platforms[0]
    )
    return Check(
        name="machine",
        passed=all(each.startswith(wanted) for each in wheel.platforms),
        detail=f"built for {', '.join(wheel.platforms)}; its libraries are not ELF files and were not examined",
    )


def contents(case: Case) -> Check:
    """llama_cpp with libllama, no other package or start-up file, and of the CPU modules just those that the build names."""
    problems = []
    if "llama_cpp/__init__.py" not in case.wheel.sizes:
        problems.append("llama_cpp/__init__.py is missing")
    if not any(_base(name).startswith("libllama.so") for name in case.libraries):
        problems.append("libllama.so is missing")
    problems += [f"{name} would be imported or run beside llama_cpp" for name in case.wheel.sizes if _BESIDE.fullmatch(name)]
    variants = {match.group(1) for name in case.libraries if (match := _VARIANT.fullmatch(_base(name)))}
    if (build := case.wheel.build) is not None:
        expected = set(build.variants) if build.layout == "variants" else set()
        problems += [
            f"libggml-cpu-{each}.so is {'missing' if each in expected else 'not one of its variants'}"
            for each in sorted(variants ^ expected)
        ]
    found = f"{len(case.libraries)} libraries" + (f", CPU variants {', '.join(sorted(variants))}" if variants else "")
    return _result("contents", problems, found)


def machine(case: Case) -> Check:
    """Every library is for the processor of the platform tag, and that is the board's."""
    name = case.wheel.platform_machine
    expected = _MACHINES.get(name)
    if expected is None:
        return Check(name="machine", passed=False, detail=f"tagged for {name}, which no board has")
    problems = []
    for library in case.libraries.values():
        if (library.machine, library.bits) != (expected.number, expected.bits):
            found = _MACHINE_NAMES.get(library.machine, f"machine {library.machine}")
            problems.append(f"{_base(library.name)} is for {found}, {library.bits} bit")
        elif library.machine == elf.ARM and library.flags & 0xFF000000 != _EABI5:
            problems.append(f"{_base(library.name)} does not follow EABI version 5")
        elif library.machine == elf.ARM and not _is_hard_float(library):
            problems.append(f"{_base(library.name)} does not pass floating point arguments in registers")
    if case.board is not None and not _is_for(case.board, name):
        problems.append(f"{case.board.name} is {platform.machine() if case.board.triple == _NATIVE else case.board.triple}")
    return _result("machine", problems, f"all for {name}, {expected.bits} bit")


def _is_for(board: Board, machine: str) -> bool:
    """Whether a Linux wheel for `machine` is for this board's processor and system."""
    if board.triple == _NATIVE:
        return platform.machine() == machine
    processor, _, system = board.triple.partition("-")
    return processor == _MACHINES[machine].triple and system.startswith("linux")


def _is_hard_float(library: Elf) -> bool:
    return bool(library.flags & _HARD_FLOAT) or arm.attributes(library.attributes).get(arm.HARD_FLOAT_TAG) == 1


def glibc(case: Case) -> Check:
    """No library needs a newer glibc than the platform tag promises and the board has."""
    name = "glibc"
    if any(each.startswith("musllinux") for each in case.wheel.platforms):
        return Check(name=name, passed=False, detail="tagged for musl, which no board's system uses")
    needed, by = max(
        ((version, library.name) for library in case.libraries.values() for version in _glibc_versions(library)),
        default=((0, 0), ""),
    )
    limits = [(promise, each) for each in case.wheel.platforms if (promise := _promise(each)) is not None]
    if case.board is not None and case.board.glibc:
        limits.append((_pair(case.board.glibc), case.board.name))
    problems = [f"{_base(by)} needs {_dotted(needed)}, {of} has {_dotted(limit)}" for limit, of in limits if needed > limit]
    return _result(name, problems, f"needs {_dotted(needed)}" + "".join(f", {of} has {_dotted(limit)}" for limit, of in limits))


def _glibc_versions(library: Elf) -> Iterable[tuple[int, int]]:
    for versions in library.versions.values():
        for version in versions:
            if match := _GLIBC_VERSION.fullmatch(version):
                yield int(match.group(1)), int(match.group(2))


def _promise(platform: str) -> tuple[int, int] | None:
    """The glibc a platform tag promises, None for a plain linux tag, which promises nothing."""
    if match := _GLIBC_TAG.match(platform):
        return int(match.group(1)), int(match.group(2))
    return _GLIBC.get(platform.partition("_")[0])


def _pair(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def needs(case: Case) -> Check:
    """Only in-wheel libraries, found beside the one that needs them, and glibc's are needed; nothing asks for unsafe memory.

    A build for the machine it is made on may also need that machine's other libraries (C++ and OpenMP runtimes, CUDA).
    """
    native = _is_native(case)
    problems, outside = [], Counter[str]()
    for member, library in case.libraries.items():
        name, folder = _base(member), member.rpartition("/")[0]
        inside = [each for each in library.needed if f"{folder}/{each}" in case.libraries]
        for each in set(library.needed) - set(inside):
            if not _LIBC_FAMILY.fullmatch(each):
                outside[each] += 1
                problems += [] if native else [f"{name} needs {each}, which is neither in the wheel nor glibc's"]
        if inside and not any(_ORIGIN.fullmatch(entry) for entry in library.search_path):
            problems.append(f"{name} needs {inside[0]} but does not look for it in its own folder ($ORIGIN)")
        problems += [
            f"{name} looks for libraries in {entry or '.'!r}" for entry in library.search_path if not _ORIGIN.match(entry)
        ]
        if library.soname and library.soname != name:
            problems.append(f"{name} calls itself {library.soname}")
        if library.executable_stack:
            problems.append(f"{name} wants an executable stack")
        if library.text_relocations:
            problems.append(f"{name} has text relocations")
    also = f", and this machine's {', '.join(sorted(outside))}" if outside else ""
    return _result("needed libraries", problems, f"all in the wheel or glibc's{also}")


def twice(case: Case) -> Check:
    """No library is in the wheel under two names, nor two of one name but for version or folder."""
    problems = []
    for kind, key in (("the same bytes", _digest), ("the same library", _stem)):
        groups: dict[str, list[str]] = {}
        for library in case.libraries.values():
            groups.setdefault(key(library), []).append(library.name)
        problems += [f"{' and '.join(names)} are {kind}" for names in groups.values() if len(names) > 1]
    return _result("no library twice", problems, f"{len(case.libraries)} different ones")


def _digest(library: Elf) -> str:
    return hashlib.sha256(library.data).hexdigest()


def _stem(library: Elf) -> str:
    return _base(library.name).partition(".so")[0] if not _VARIANT.fullmatch(_base(library.name)) else library.name


def instructions(case: Case) -> Check:
    """No instruction that the weakest processor lacks, in code that may run before the CPU variant is chosen.

    That is all code of every library but the CPU variants; of these, the lowest one's whole code, and of each other one what
    runs when it is opened, asked for its score and closed, as far as direct branches lead (instructions.reach). Code that runs
    only behind a check of the processor is left out (instructions.guarded). For a wheel with variants the weakest processor is
    the plainest of its machine, whatever board is named, because it installs on all; for a single build it is the board's,
    else the one that the build names, else the plainest.
    """
    name = "instructions"
    if _is_native(case):
        return Check(name=name, passed=True, detail="built for the machine it was made on: not examined")
    target = _MACHINES.get(case.wheel.platform_machine)
    if target is None or any(library.machine != target.number for library in case.libraries.values()):
        return Check(name=name, passed=False, detail=f"not all code is for {case.wheel.platform_machine}")
    if case.board is not None and not _is_for(case.board, case.wheel.platform_machine):
        return Check(name=name, passed=False, detail=f"not compared: {case.board.name} is another machine")
    cpu, allowed = _baseline(case)
    if allowed is None:
        return Check(name=name, passed=False, detail=f"what the processor {cpu!r} has is not known")
    problems = []
    for library in case.libraries.values():
        problems += _beyond(library, target, allowed)
        if library.machine == elf.ARM:
            problems += _attributes_beyond(library, allowed)
    return _result(name, problems, f"none beyond {cpu}" + (f" with {', '.join(sorted(allowed))}" if allowed else ""))


def _baseline(case: Case) -> tuple[str, frozenset[str] | None]:
    """The processor's name and its features, None for one that is not in our tables."""
    machine, build, board = case.wheel.platform_machine, case.wheel.build, case.board
    if any(_VARIANT.fullmatch(_base(name)) for name in case.libraries) or (board is None and build is None):
        return "generic", features_of(machine, "generic")
    if board is not None:
        features = features_of(machine, board.cpu)
        return board.name, None if features is None else features | frozenset(board.features)
    cpu = build.cpu if build is not None else "generic"
    return cpu, features_of(machine, cpu)


def _is_native(case: Case) -> bool:
    """Whether the wheel is for the very machine it is made on: its board says so, or else the build does."""
    if case.board is not None:
        return case.board.cpu == _NATIVE
    return case.wheel.build is not None and case.wheel.build.cpu == _NATIVE


def _beyond(library: Elf, target: _Machine, allowed: frozenset[str]) -> list[str]:
    variant = _VARIANT.fullmatch(_base(library.name))
    if variant is None or target.branches is None or variant.group(1) == target.lowest_variant:
        ranges = [(section.address, section.address + section.size) for section in library.code]
    else:
        score = library.exported(_SCORE)
        if score is None:
            return [f"{_base(library.name)} has no {_SCORE}: nothing keeps it off processors it is not for"]
        ranges = reached(library, [*library.run_at_load, score], target.branches)
    data = sorted(library.data_ranges())
    found = [
        (address, feature)
        for start, end in ranges
        for address, feature in target.beyond(library.code_bytes(start, end), start, allowed)
        if not _is_inside(address, data)
    ]
    if not found:
        return []
    places = ", ".join(f"{feature} at {address:#x} {library.name_at(address)}".rstrip() for address, feature in found[:_SHOWN])
    counts = ", ".join(f"{count} {feature}" for feature, count in Counter(feature for _, feature in found).most_common())
    return [f"{_base(library.name)} has {counts} ({places})"]


def _is_inside(address: int, ranges: list[tuple[int, int]]) -> bool:
    """Whether an address is in one of the sorted ranges."""
    place = bisect.bisect_right(ranges, (address, 1 << 64)) - 1
    return place >= 0 and address < ranges[place][1]


def _attributes_beyond(library: Elf, allowed: frozenset[str]) -> list[str]:
    tags = arm.attributes(library.attributes)
    if not tags:
        return [f"{_base(library.name)} does not say what processor it is for (.ARM.attributes)"]
    missing = arm.needs(tags) - allowed
    return [f"{_base(library.name)} needs {', '.join(sorted(missing))}"] if missing else []


def _base(member: str) -> str:
    return member.rpartition("/")[2]


def _result(name: str, problems: list[str], found: str) -> Check:
    """A passed check with what was found, or a failed one with the first problems."""
    if not problems:
        return Check(name=name, passed=True, detail=found)
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return Check(name=name, passed=False, detail="; ".join(problems[:_SHOWN]) + more)
