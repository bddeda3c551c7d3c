"""A file that appears whole or not at all.

On Linux the data goes to a file without a name, which gets one only when it is complete: a killed process or a power cut leaves
nothing behind, not even a temporary file on a board's small card. Elsewhere it is a temporary name beside the target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import DiskSpaceError, OutputError
from tinyedge_quantize.gguf_header import GGUF_MAGIC

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class OutputFile:
    """A file being written at chosen positions, from any thread."""

    path: Path
    descriptor: int

    def write_at(self, data: memoryview | bytes, offset: int) -> None:
        """Writes all of `data` at `offset`; raises DiskSpaceError or OutputError."""
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self.descriptor, view, offset)
                view = view[count:]
                offset += count
        except OSError as error:
            raise _write_error(self.path, error) from error


def check_room(path: Path, needed: int) -> None:
    """Raises OutputError when the folder of `path` cannot be written, DiskSpaceError when `needed` bytes do not fit."""
    folder = path.parent
    _require_replaceable(path)
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", "make it first or choose another path with -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {folder} is not writable")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskSpaceError(
            f"{path.name} needs {needed:,} bytes and {folder} has {free:,} free",
            f"free {needed - free:,} bytes, choose another disk with -o, or a smaller type with -t",
        )


def _require_replaceable(path: Path) -> None:
    """Only an absent file, an empty one or an older GGUF file may be replaced: not a device, nor someone's notes."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise OutputError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise OutputError(f"{path} exists and may not be written")
    with path.open("rb") as file:
        if file.read(4) not in (b"", GGUF_MAGIC):
            raise OutputError(f"{path} exists and is not a GGUF file", "remove it first or choose another path with -o")


@contextmanager
def new_file(path: Path) -> Iterator[OutputFile]:
    """A file that takes the name `path`, replacing what had it, when the block ends well, and vanishes when it does not."""
    with new_files([path]) as outputs:
        yield outputs[0]


@contextmanager
def new_files(paths: Sequence[Path]) -> Iterator[list[OutputFile]]:
    """Several files that belong together: none takes its name before all are complete on the disk."""
    with ExitStack() as stack:
        files = [stack.enter_context(_Unpublished(path)) for path in paths]
        yield [file.output for file in files]
        for file in files:
            file.finish()
        for file in files:
            file.publish()


class _Unpublished:
    """A file on its way: without a name of its own until `publish`, gone when the block ends before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
        descriptor, self._named = _create(path, self._temporary)
        self.output = OutputFile(path, descriptor)

    def __enter__(self) -> _Unpublished:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.output.descriptor)
        if self._named:
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()

    def finish(self) -> None:
        """Waits until the disk has the data."""
        try:
            os.fsync(self.output.descriptor)
        except OSError as error:
            raise _write_error(self._path, error) from error

    def publish(self) -> None:
        """Gives the file its name."""
        try:
            if not self._named:
                # Before it has the name: a signal may come between the two.
                self._named = True
                _give_name(self.output.descriptor, self._temporary)
            self._temporary.replace(self._path)
            self._named = False
            _sync_folder(self._path.parent)
        except OSError as error:
            raise _write_error(self._path, error) from error


def _create(path: Path, temporary: Path) -> tuple[int, bool]:
    """A descriptor for a new file and whether it has its temporary name already."""
    try:
        if sys.platform == "linux" and _can_name_later(path.parent, temporary):
            return os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666), False
        return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except OSError as error:
        raise _write_error(path, error) from error


def _can_name_later(folder: Path, name: Path) -> bool:
    """Whether files without a name can be made in `folder` and named afterwards; tried with an empty one."""
    try:
        probe = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        return False
    try:
        _give_name(probe, name)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            name.unlink()
        os.close(probe)
    return True


def _give_name(descriptor: int, name: Path) -> None:
    """Names a file made with O_TMPFILE, as open(2) describes."""
    folder = os.open(name.parent, os.O_RDONLY)
    try:
        # Only with a folder descriptor does os.link call linkat with AT_SYMLINK_FOLLOW, without which /proc's link is not
        # followed.
        os.link(f"/proc/self/fd/{descriptor}", name.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_error(path: Path, error: OSError) -> DiskSpaceError | OutputError:
    if error.errno in _FULL:
        return DiskSpaceError(f"the disk became full while {path.name} was written; nothing was left behind")
    return OutputError(f"{path} cannot be written ({error.strerror})")
