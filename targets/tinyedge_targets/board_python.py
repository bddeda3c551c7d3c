"""What the Python of a board can install: its platform tags (PEP 425, 600) and its environment markers (PEP 508)."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from tinyedge.errors import BoardError
from tinyedge_targets.boards import Board
from tinyedge_targets.zig import PROCESSORS

# The oldest glibc of a manylinux tag (PEP 600): manylinux2014 for ARM; x86-64 began with manylinux1.
_OLDEST_GLIBC = {"x86_64": 5}
# PEP 600's names for the tags before it.
_OLDER_TAGS = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
_OLDEST_MACOS = 11  # the first for Apple silicon


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardPython:
    """The Python that wheels are fetched for. `glibc` is "" on macOS; `platforms` are platform tags, the newest first."""

    python: str
    system: str
    machine: str
    glibc: str
    platforms: tuple[str, ...]

    @property
    def words(self) -> str:
        """`aarch64, Python 3.11, glibc 2.36`."""
        return f"{self.machine}, Python {self.python}" + (f", glibc {self.glibc}" if self.glibc else "")

    @property
    def environment(self) -> dict[str, str]:
        """The values of PEP 508's markers there."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": self.system,
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "darwin" if self.system == "Darwin" else "linux",
        }

    def with_glibc(self, glibc: str) -> BoardPython:
        """The same with another C library."""
        return replace(self, glibc=glibc, platforms=manylinux_tags(self.machine, int(glibc.partition(".")[2])))

    def accepts(self, wheel: str) -> bool:
        """Whether the wheel of this file name can be installed there."""
        return any(tag in self._tags for tag in wheel_tags(wheel))

    @property
    def _tags(self) -> frozenset[Tag]:
        version, platforms = (3, int(self.python.partition(".")[2])), [*self.platforms, f"linux_{self.machine}"]
        interpreter = f"cp{version[0]}{version[1]}"
        tags = (cpython_tags(version, [interpreter], platforms), compatible_tags(version, interpreter, platforms))
        return frozenset(tag for each in tags for tag in each)


def wheel_tags(wheel: str) -> frozenset[Tag]:
    """The tags in a wheel's file name; none when it is not the name of a wheel."""
    try:
        return parse_wheel_filename(wheel)[3]
    except InvalidWheelFilename:
        return frozenset()


def board_python(board: Board, python: str) -> BoardPython:
    """What Python `python` ("3.11") on `board` can install. Raises BoardError."""
    if not re.fullmatch(r"3\.\d{1,2}", python):
        raise BoardError(f"{python!r} is not a version of Python", "give it as in --python 3.11")
    if board.triple == "aarch64-macos" or (board.triple == "native" and sys.platform == "darwin"):
        native = int(platform.mac_ver()[0].partition(".")[0] or 0) if sys.platform == "darwin" else 0
        machine = platform.machine() if board.triple == "native" else "arm64"
        tags = tuple(mac_platforms((max(native, _OLDEST_MACOS), 0), machine))
        return BoardPython(python=python, system="Darwin", machine=machine, glibc="", platforms=tags)
    if board.triple == "native":
        machine, glibc = _native_machine(), platform.libc_ver()[1]
    else:
        machine, glibc = PROCESSORS[board.triple], board.glibc
    if not re.fullmatch(r"2\.\d+", glibc):
        raise BoardError(f"{board.title} has no glibc that wheels could be chosen for", "name the board itself with --board")
    return BoardPython(python=python, system="Linux", machine=machine, glibc="", platforms=()).with_glibc(glibc)


def _native_machine() -> str:
    """This Python's own processor: a 32-bit one on a 64-bit kernel is told by the size of its words."""
    machine = platform.machine()
    return {"aarch64": "armv7l", "armv8l": "armv7l"}.get(machine, machine) if sys.maxsize < 1 << 32 else machine


def manylinux_tags(machine: str, glibc: int) -> tuple[str, ...]:
    """The platform tags for glibc 2.`glibc` and all older ones, the newest first."""
    tags = []
    for minor in range(glibc, _OLDEST_GLIBC.get(machine, 17) - 1, -1):
        tags.append(f"manylinux_2_{minor}_{machine}")
        if minor in _OLDER_TAGS:
            tags.append(f"{_OLDER_TAGS[minor]}_{machine}")
    return tuple(tags)


def needed_glibc(wheels: Iterable[Path], target: BoardPython) -> str:
    """The oldest glibc ("2.28") that all of `wheels` run with, by their tags; "" where there is no glibc.

    A tag that says nothing (linux_x86_64) stands for the glibc of `target`, for which such a wheel was built.
    """
    if not target.glibc:
        return ""
    named = {name: minor for minor, name in _OLDER_TAGS.items()}
    needs = [0]
    for wheel in wheels:
        minors = []
        for tag in wheel_tags(wheel.name):
            older, _, _ = tag.platform.partition("_")
            if match := re.match(r"manylinux_2_(\d+)_", tag.platform):
                minors.append(int(match[1]))
            elif tag.platform != "any":
                minors.append(named.get(older, int(target.glibc.partition(".")[2])))
        needs.append(min(minors, default=0))
    return f"2.{max(needs)}"
