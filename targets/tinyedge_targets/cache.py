"""Where builds, downloads and logs are kept, so that the same request twice builds once.

Everything under one folder may be deleted freely. An entry is named by a hash of all that went into it, made beside its place
and renamed into it when complete: an interrupted build leaves nothing half-made, and two of them at a time do not meet.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder(*parts: str) -> Path:
    """`~/.cache/tinyedge/PARTS`, or under XDG_CACHE_HOME; made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(base, "tinyedge", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def content_key(inputs: dict[str, Any]) -> str:
    """16 hexadecimal digits that differ when any of `inputs` (plain JSON values) does."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def entry_in_progress(folder: Path, key: str) -> Iterator[Path | None]:
    """A new folder to fill, which becomes `folder/key` when the block ends well and is removed when it does not.

    None when the entry is there already; one that another process is making is waited for.
    """
    final = folder / key
    with _lock(folder / f".{key}.lock"):
        if final.is_dir():
            yield None
            return
        for left in folder.glob(f".{key}-*"):  # of a process that was killed: the lock says that none is at work
            shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=folder))
        try:
            yield new
            new.rename(final)
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
