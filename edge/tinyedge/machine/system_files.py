"""Reads the small text files in which Linux describes a machine: sysfs, procfs, control groups.

All take the root of the file system, so that a test can lay out another machine's files. What is missing, closed to us or
not a number is None or "", never an error: no two machines have the same of these files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

_DIGITS = 19  # version 1 of the control groups writes 9223372036854771712 for no limit


def read_text(path: Path) -> str:
    """The file's text without surrounding blanks; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return ""


def read_integer(path: Path) -> int | None:
    """The decimal number that is the file's whole text; None for anything else."""
    return integer(read_text(path))


def integer(text: str) -> int | None:
    """The decimal number that `text` is; None for anything else."""
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS else None


def cgroup_values(
    root: Path, controller: str, version_2: Callable[[Path], float | None], version_1: Callable[[Path], float | None]
) -> Iterator[float]:
    """What `version_2` or `version_1` reads in the folder of this process's control group and of each above it.

    In a container the mount itself is the group, so the path is followed up to the mount. `controller` is cpu or memory.
    """
    mount = root / "sys/fs/cgroup"
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            folder, read = mount, version_2
        elif controller in controllers.split(","):
            folder, read = mount / controller, version_1
        else:
            continue
        group = PurePosixPath(path.strip().lstrip("/"))
        for each in (group, *group.parents):
            if ".." not in each.parts and (found := read(folder / each)) is not None:
                yield found
