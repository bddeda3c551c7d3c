"""Downloads a file of the hub into the hub's shared cache: resumed, compared with its checksum, never half under its name."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from tinyedge.errors import DiskSpaceError, HubError
from tinyedge.hub.cache import PARTIAL_SUFFIX, repo_folder
from tinyedge.hub.session import BrokenConnectionError, Hub, RepoFile

# Left on the disk beside the file: a full system disk stops more than a download.
DISK_RESERVE_BYTES = 64 << 20

_CHUNK_BYTES = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file goes in the hub's cache. `path` is what others open, a link to `blob`."""

    folder: Path
    blob: Path
    path: Path
    lock: Path

    @property
    def partial(self) -> Path:
        """What has arrived so far of a file that is not whole."""
        return self.blob.with_name(self.blob.name + PARTIAL_SUFFIX)

    @property
    def content(self) -> Path:
        """The file's content where it is whole: the blob, or the name itself where there are no links."""
        return self.blob if self.blob.is_file() else self.path


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is now in the cache; `resumed` bytes of it came from an earlier attempt, `received` over the network."""

    path: Path
    bytes: int
    received: int
    resumed: int


def place_of(hub_folder: Path, file: RepoFile) -> Place:
    """Where `file` belongs in the hub's cache at `hub_folder`."""
    folder = repo_folder(hub_folder, file.repo)
    return Place(
        folder=folder,
        blob=folder / "blobs" / file.checksum,
        path=folder / "snapshots" / file.commit / file.name,
        lock=hub_folder / ".locks" / folder.name / f"{file.checksum}.lock",
    )


def is_there(place: Place, file: RepoFile) -> bool:
    """Whether the cache has the whole file already, under this or another name or commit."""
    return any(path.is_file() and path.stat().st_size == file.bytes for path in (place.path, place.blob))


def missing_bytes(place: Place, file: RepoFile) -> int:
    """What is still to be downloaded."""
    if is_there(place, file):
        return 0
    try:
        arrived = place.partial.stat().st_size
    except OSError:
        return file.bytes
    return file.bytes - arrived if arrived <= file.bytes else file.bytes


def check_disk(place: Place, file: RepoFile, free_bytes: int | None = None) -> None:
    """Raises DiskSpaceError when the disk of the cache, or `free_bytes`, cannot take what is missing of `file`."""
    folder = next(parent for parent in place.blob.parents if parent.exists())
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    missing = missing_bytes(place, file)
    if missing and missing + DISK_RESERVE_BYTES > free:
        raise DiskSpaceError(
            f"{file.name} needs {_size(missing)} more and the disk of {folder} has {_size(free)} free",
            "free some space, choose a smaller type, or set HF_HOME to a folder on another disk",
        )


def fetch(hub: Hub, file: RepoFile, place: Place, revision: str, progress: Progress | None = None) -> Fetched:
    """Brings `file` into the cache, going on where an earlier attempt stopped; `revision` will name its commit.

    `progress` takes the bytes done since its last call and the total. Raises HubError, DiskSpaceError and OSError; what has
    arrived stays for the next attempt unless its checksum is wrong.
    """
    report = progress or (lambda _done, _total: None)
    resumed = received = 0
    with _locked(place, file):
        if not is_there(place, file):
            place.blob.parent.mkdir(parents=True, exist_ok=True)
            with _disk_errors(place, file), place.partial.open("a+b") as partial:
                resumed, received = _complete(hub, file, partial, report)
            place.partial.replace(place.blob)
        _link(place)
        _name_commit(place.folder, revision, file.commit)
    return Fetched(place.path, file.bytes, received, resumed)


def _complete(hub: Hub, file: RepoFile, partial: BinaryIO, report: Progress) -> tuple[int, int]:
    """Appends to `partial` until it is the whole file and checks it; the bytes that were there and those that came."""
    digest = _digest(file)
    there = _hash_existing(partial, file, digest, report)
    done, received, failures = there, 0, 0
    while done < file.bytes:
        try:
            for piece, start in _pieces(hub, file, done):
                if start != done:  # a server that knows no ranges begins again
                    report(-done, file.bytes)
                    partial.truncate(0)
                    digest, done = _digest(file), 0
                if done + len(piece) > file.bytes:
                    _drop(partial)
                    raise HubError(f"the hub sends more than the {file.bytes} bytes that {file.name} has", "try again later")
                partial.write(piece)
                digest.update(piece)
                done, received, failures = done + len(piece), received + len(piece), 0
                report(len(piece), file.bytes)
            if done < file.bytes:
                raise BrokenConnectionError("the connection to the hub broke")
        except BrokenConnectionError as error:
            partial.flush()
            failures += 1
            hub.pause_after(failures, error)
    if digest.hexdigest() != file.checksum:
        _drop(partial)
        raise HubError(
            f"{file.name} arrived with another checksum than the hub gives for it and was deleted",
            "run the command again; if it happens twice, the file on the hub or the way to it is damaged",
        )
    partial.flush()
    os.fsync(partial.fileno())
    return there, received


def _pieces(hub: Hub, file: RepoFile, done: int) -> Iterator[tuple[bytes, int]]:
    """The rest of the file in pieces, each with where in the file it begins."""
    with hub.open(file, done) as reply:
        position = reply.start
        for piece in reply.body:
            yield piece, position
            position += len(piece)


def _hash_existing(partial: BinaryIO, file: RepoFile, digest: Any, report: Progress) -> int:
    """Feeds what is there to `digest`; its length. More than the file has is thrown away."""
    if os.fstat(partial.fileno()).st_size > file.bytes:
        partial.truncate(0)
    partial.seek(0)
    length = 0
    while chunk := partial.read(_CHUNK_BYTES):
        digest.update(chunk)
        length += len(chunk)
        report(len(chunk), file.bytes)
    return length


def _digest(file: RepoFile) -> Any:
    """A fresh hash for the file's checksum: SHA-256, or git's SHA-1 of a blob, which begins with its length."""
    if len(file.checksum) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)


def _drop(partial: BinaryIO) -> None:
    with suppress(OSError):
        Path(partial.name).unlink()


@contextmanager
def _locked(place: Place, file: RepoFile) -> Iterator[None]:
    """Holds the lock that every program with this cache takes for this file. Raises HubError when another one has it."""
    filelock: Any = import_module("filelock")  # which huggingface_hub needs, too
    place.lock.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place.lock, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise HubError(
            f"another program is downloading {file.name}", "wait until it is done and run the command again"
        ) from error
    except NotImplementedError:  # a file system without locks: two downloads at once would end with a wrong checksum
        pass
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(place: Place, file: RepoFile) -> Iterator[None]:
    """A disk that is full after all, in the words of `check_disk`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise DiskSpaceError(
            f"the disk of {place.folder} is full with {_size(missing_bytes(place, file))} of {file.name} still missing",
            "free some space and run the command again: it goes on where it stopped",
        ) from error


def _link(place: Place) -> None:
    """Makes the file's name a link to its content; where there are no links the content itself gets the name."""
    if place.path.is_file():
        return
    place.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.path.with_name(f".{place.path.name[:200]}.{os.getpid()}")
    try:
        temporary.symlink_to(os.path.relpath(place.blob, place.path.parent))
    except OSError:  # FAT, as on many an SD card
        place.blob.replace(place.path)
    else:
        temporary.replace(place.path)


def _name_commit(folder: Path, revision: str, commit: str) -> None:
    """Notes that `revision` is now `commit`, as huggingface_hub does."""
    if revision == commit:
        return
    path = folder / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    temporary.write_text(commit)
    temporary.replace(path)


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 10 << 30 else f"{max(0, count) / (1 << 20):.0f} MiB"
