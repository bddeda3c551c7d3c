"""Makes the system forget what it holds of files in its page cache, so that loading them is loading from the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PROBES = 32  # places of a file that are looked at
_PAGE = 4096


def forget(paths: Iterable[Path]) -> str:
    """Drops the files from the page cache; "" when that was done, else why it was not: one sentence.

    It is looked at whether it worked. What a hypervisor or the disk itself keeps cannot be.
    """
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return "this system cannot be told to forget a file"
    for path in paths:
        try:
            reason = _forget(path)
        except OSError as error:
            return f"the page cache of {path.name} could not be dropped ({error.strerror})"
        if reason:
            return reason
    return ""


def _forget(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not on the disk yet are kept
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            left = _resident(descriptor, os.fstat(descriptor).st_size)
        except OSError:
            return f"the file system of {path.name} does not tell whether its page cache was dropped"
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # looking may have begun to read ahead
    finally:
        os.close(descriptor)
    if left:
        return f"{path.name} stays in memory: it lies on a memory disk, or another process has it open"
    return ""


def _resident(descriptor: int, size: int) -> bool:
    """Whether any of some pages all over the file is in memory: a read that must not wait for the disk gets it then."""
    buffer = bytearray(1)
    for index in range(_PROBES):
        offset = size * index // _PROBES // _PAGE * _PAGE
        try:
            if os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT):
                return True
        except BlockingIOError:
            continue
    return False
