"""The secret by which this user's own KV states are told from those of strangers."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from tinyedge.cache import cache_folder

KEY_BYTES = 32
_NAME = "state.key"


def state_key(folder: Path | None = None) -> bytes | None:
    """32 random bytes, made once and kept in `folder` (by default the cache folder), readable by this user alone.

    None where no such secret can be kept: no home, a disk that is read-only or full, a file system without permissions.
    One that others could read or write is replaced: what it was used for is then computed anew.
    """
    folder = folder if folder is not None else cache_folder(needed=False)
    if folder is None:
        return None
    path = folder / _NAME
    try:
        return _read(path) or _made(path) or _read(path)
    except OSError:
        return None


def _read(path: Path) -> bytes | None:
    """The key at `path` if it is whole and nobody else's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except PermissionError:  # made by root, perhaps, in this user's folder
        path.unlink()
        return None
    try:
        facts = os.fstat(descriptor)
        if os.geteuid() == 0 and facts.st_uid != 0:
            raise PermissionError(f"{path} is another user's")  # which root neither trusts nor takes away
        private = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
        key = os.read(descriptor, KEY_BYTES + 1) if private else b""
    finally:
        os.close(descriptor)
    if len(key) == KEY_BYTES:
        return key
    path.unlink()
    return None


def _made(path: Path) -> bytes | None:
    """A new key, put at `path`; None when another process was quicker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    key = secrets.token_bytes(KEY_BYTES)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{_NAME}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(descriptor)
            if os.fstat(descriptor).st_mode & 0o077:
                return None
        try:
            os.link(name, path)  # unlike a rename it takes nobody's place
        except FileExistsError:
            return None
        except OSError:  # a file system without hard links
            Path(name).replace(path)
        return key
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()
