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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyedge.errors import OutputError

_SEAL = "SHA256SUMS"
_REMEDY = "set XDG_CACHE_HOME to a folder you can write"


def cache_folder(*parts: str) -> Path:
    """`~/.cache/tinyedge/PARTS`, or under XDG_CACHE_HOME; made if need be. Raises OutputError."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    except RuntimeError as error:
        raise OutputError("there is no home folder to keep builds in", _REMEDY) from error
    folder = Path(base, "tinyedge", *parts).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror})", _REMEDY) from error
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


def seal(folder: Path) -> None:
    """Notes the SHA-256 of every file in `folder`, for `is_sealed`."""
    folder.joinpath(_SEAL).write_text(_digests(folder), encoding="utf-8")


def is_sealed(folder: Path) -> bool:
    """Whether the files of `folder` are those that it was sealed with: a lost or a cut one shows, as after a power failure."""
    try:
        return folder.joinpath(_SEAL).read_text(encoding="utf-8") == _digests(folder)
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SEAL)
    return "".join(f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths)


@contextmanager
def entry_in_progress(
    folder: Path,
    key: str,
    is_whole: Callable[[Path], bool] = Path.is_dir,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[Path | None]:
    """A new folder to fill, which becomes `folder/key` when the block ends well and is removed when it does not.

    None when the entry is there already; one that is not whole is replaced. One that another process is making is waited for,
    after calling `waiting`.
    """
    final = folder / key
    with _lock(folder / f".{key}.lock", waiting):
        if final.is_dir() and is_whole(final):
            yield None
            return
        shutil.rmtree(final, ignore_errors=True)
        for left in folder.glob(f".{key}-*"):  # of a process that was killed: the lock says that none is at work
            shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=folder))
        try:
            yield new
            new.rename(final)
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
