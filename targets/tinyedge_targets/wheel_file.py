"""A wheel of llama-cpp-python as a file: opened, checked for being what it says, and unpacked, without running anything of it.

Wheels come from strangers. The format is the packaging specification "Binary distribution format"; beyond it a member may be
no link, may not be encrypted, may not share bytes with another one, and may not claim more bytes than deflate can hold.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import email.parser
import errno
import hashlib
import io
import itertools
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import DiskSpaceError, OutputError, WheelError
from tinyedge.wheel_facts import FILE_NAME, MOST_BYTES, WheelFacts, parse_wheel_facts

BUILD_FILE = f"llama_cpp/{FILE_NAME}"

_PROJECT = "llama-cpp-python"
_MEMBERS_MAX = 20_000
_READ_MAX = 16 << 20  # zipfile reads the list of members in one go: for the most that are allowed, 800 bytes each
_TOTAL_MAX = 4 << 30  # CUDA wheels of llama-cpp-python unpack to more than 1 GiB
_LIBRARY_MAX = 1 << 30
_TEXT_MAX = 8 << 20
_WHEEL_RATIO = 200  # libraries with debug information reach 10
_DEFLATE_RATIO = 1032  # zlib's technical notes, "Maximum Compression Factor"
_CHUNK = 1 << 20

_FILE_NAME = re.compile(r"([^-]+)-([^-]+)(?:-(\d[^-]*))?-([^-]+)-([^-]+)-([^-]+)\.whl")
_LIBRARY_NAME = re.compile(r"[^/]+(?:\.so(?:\.\d+)*|\.dylib|\.dll|\.pyd)")
_PLATFORM = re.compile(
    r"(linux|manylinux1|manylinux2010|manylinux2014|manylinux_\d+_\d+|musllinux_\d+_\d+|macosx_\d+_\d+|win)_(\w+)"
)
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel whose zip, records and tags were found in order by `open_wheel`.

    `tags` are the expanded ones, `platforms` their last parts and `platform_machine` the machine these name. `sizes` maps each
    member to its bytes once unpacked; `libraries` are the members that are native libraries.
    """

    path: Path
    name: str
    version: str
    tags: tuple[str, ...]
    platforms: tuple[str, ...]
    platform_machine: str
    sizes: Mapping[str, int]
    libraries: tuple[str, ...]
    build: WheelFacts | None

    def read(self, member: str) -> bytes:
        """The bytes of a member.

        Raises:
            WheelError: the file changed since it was opened, or the member is larger than any library is.
        """
        if member not in self.sizes:
            raise WheelError(f"{self.path.name} has no {member}")
        with _open_zip(self.path) as archive:
            return _read(archive, archive.getinfo(member), _LIBRARY_MAX)

    def extract(self, folder: Path) -> None:
        """Writes every member below `folder`, which is made if missing; nothing there may be overwritten.

        Raises:
            WheelError: the file changed since it was opened.
            DiskSpaceError: the disk is full.
            OutputError: the folder cannot be written, or something of this name is there.
        """
        try:
            with _open_zip(self.path) as archive:
                for member in self.sizes:
                    target = folder / member
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as file:
                        for chunk in _chunks(archive, archive.getinfo(member)):
                            file.write(chunk)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskSpaceError(f"no space left to unpack {self.path.name} into {folder}") from error
            raise OutputError(f"cannot unpack {self.path.name} into {folder}: {error.strerror}") from error


def open_wheel(path: Path) -> Wheel:
    """The wheel at `path`, every byte of it compared with its RECORD.

    Raises:
        WheelError: it is missing, not a zip, not a wheel of llama-cpp-python, damaged, or made to harm.
    """
    if not path.exists():
        raise WheelError(f"no wheel at {path}")
    parts = _FILE_NAME.fullmatch(path.name)
    if parts is None:
        raise WheelError(f"{path} is not named like a wheel (NAME-VERSION-PYTHON-ABI-PLATFORM.whl)")
    name, version, _, *tag_sets = parts.groups()
    if _normal(name) != _PROJECT:
        raise WheelError(f"{path.name} is not a wheel of {_PROJECT}")
    tags = tuple("-".join(each) for each in itertools.product(*(each.split(".") for each in tag_sets)))
    platforms = tuple(tag_sets[-1].split("."))
    with _open_zip(path) as archive:
        members = _members(path, archive)
        folder = _dist_info(path, members, f"{name}-{version}.dist-info")
        _check_metadata(path, _text(archive, members, f"{folder}/METADATA"), version)
        _check_tags(path, _text(archive, members, f"{folder}/WHEEL"), tags)
        _check_record(path, archive, members, folder)
        build = None
        if BUILD_FILE in members:
            build = parse_wheel_facts(_read(archive, members[BUILD_FILE], MOST_BYTES), f"{path.name}: {BUILD_FILE}")
    return Wheel(
        path=path,
        name=_PROJECT,
        version=version,
        tags=tags,
        platforms=platforms,
        platform_machine=_machine(path, platforms),
        sizes={member: info.file_size for member, info in members.items()},
        libraries=tuple(sorted(member for member in members if _LIBRARY_NAME.fullmatch(member.rpartition("/")[2]))),
        build=build,
    )


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The open zip; whatever is wrong with it, or with what is read from it inside the `with`, is a WheelError."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for someone to write to it.
        file = _BoundedFile(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError:
        raise WheelError(f"no wheel at {path}") from None
    except OSError as error:
        raise WheelError(f"{path.name} cannot be read ({error.strerror})") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise WheelError(f"{path.name} is not a regular file")
        try:
            archive = zipfile.ZipFile(file)
        except (OSError, *_UNREADABLE) as error:
            raise WheelError(f"{path.name} is not a readable zip file: {error}") from error
        try:
            yield archive
        except KeyError as error:
            raise WheelError(f"{path.name} changed while it was read: {error.args[0]}") from error
        except _UNREADABLE as error:
            raise WheelError(f"{path.name} is damaged: {error}") from error


class _BoundedFile(io.FileIO):
    """A file of which zipfile reads no more at a time than a wheel warrants, whatever sizes the file claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _READ_MAX:
            raise ValueError(f"its list of members claims {size} bytes")
        return super().read(size) or b""


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files of the zip by name, folders left out; every entry's form is checked before a byte of it is unpacked."""
    infos = archive.infolist()
    if len(infos) > _MEMBERS_MAX:
        raise WheelError(f"{path.name} has {len(infos)} members, more than any wheel of {_PROJECT}")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if fault := _fault(info):
            raise WheelError(f"{path.name}: member {info.orig_filename!r} {fault}")
        if info.filename in found:
            raise WheelError(f"{path.name}: member {info.filename!r} is there twice")
        found[info.filename] = info
    total, packed = sum(info.file_size for info in infos), path.stat().st_size
    if total > min(_TOTAL_MAX, packed * _WHEEL_RATIO):
        raise WheelError(f"{path.name} would unpack from {packed} to {total} bytes, more than any wheel of {_PROJECT}")
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise WheelError(f"{path.name}: member {info.filename!r} shares bytes with another one")
        end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size  # 30: the local header's fixed part
    return {name: info for name, info in found.items() if not name.endswith("/")}


def _fault(info: zipfile.ZipInfo) -> str:
    """What is wrong with an entry's form, "" if nothing."""
    name = info.orig_filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    parts = name.removesuffix("/").split("/")
    if not name.isprintable() or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
        return "has a name that could leave its folder"
    if len(name) > 1000:
        return "has a name of more than 1000 characters"
    if info.flag_bits & 0x41:
        return "is encrypted"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (stat.S_ISDIR(kind) != name.endswith("/") and kind):
        return "is neither a file nor a folder"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed with a method wheels do not use"
    if info.file_size > (
        info.compress_size if info.compress_type == zipfile.ZIP_STORED else info.compress_size * _DEFLATE_RATIO
    ):
        return f"claims {info.file_size} bytes, more than its {info.compress_size} packed bytes can hold"
    if name.endswith("/") and info.file_size:
        return "is a folder with content"
    return ""


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """A member's bytes, a little at a time; zipfile compares their checksum, this their number."""
    size = 0
    with archive.open(info) as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            yield chunk
    if size != info.file_size:
        raise WheelError(f"member {info.filename!r} has {size} bytes, not the {info.file_size} it claims")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    if info.file_size > limit:
        raise WheelError(f"member {info.filename!r} has {info.file_size} bytes, more than the {limit} it may have")
    return b"".join(_chunks(archive, info))


def _text(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str) -> str:
    if name not in members:
        raise WheelError(f"the wheel has no {name}")
    try:
        return _read(archive, members[name], _TEXT_MAX).decode("utf-8")
    except UnicodeDecodeError as error:
        raise WheelError(f"{name} in the wheel is not UTF-8: {error.reason}") from error


def _dist_info(path: Path, members: Mapping[str, zipfile.ZipInfo], expected: str) -> str:
    """The one .dist-info folder, which must be named for the file's name and version."""
    folders = {top for top, slash, _ in (name.partition("/") for name in members) if slash and top.endswith(".dist-info")}
    if len(folders) != 1:
        raise WheelError(f"{path.name} has {len(folders)} .dist-info folders; a wheel has one")
    folder = folders.pop()
    if _normal(folder) != _normal(expected):
        raise WheelError(f"{path.name} has the folder {folder}, expected {expected}")
    return folder


def _headers(text: str) -> list[tuple[str, str]]:
    return [(key.lower(), str(value).strip()) for key, value in email.parser.HeaderParser().parsestr(text).items()]


def _check_metadata(path: Path, text: str, version: str) -> None:
    headers = dict(reversed(_headers(text)))
    if _normal(headers.get("name", "")) != _PROJECT:
        raise WheelError(f"{path.name}: METADATA names the project {headers.get('name', '')!r}, not {_PROJECT}")
    if _normal(headers.get("version", "")) != _normal(version):
        raise WheelError(f"{path.name}: METADATA says version {headers.get('version', '')!r}, the file name {version!r}")


def _check_tags(path: Path, text: str, tags: tuple[str, ...]) -> None:
    headers = _headers(text)
    if not dict(headers).get("wheel-version", "").startswith("1."):
        raise WheelError(f"{path.name}: WHEEL does not give format version 1")
    inside = {value for key, value in headers if key == "tag"}
    if inside != set(tags):
        raise WheelError(f"{path.name}: WHEEL has the tags {sorted(inside)}, the file name {sorted(tags)}")


def _check_record(path: Path, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], folder: str) -> None:
    """Every member is in RECORD with its SHA-256 and size, and RECORD names nothing else."""
    own = f"{folder}/RECORD"
    unlisted = {own, f"{own}.jws", f"{own}.p7s"}
    try:
        rows = [row for row in csv.reader(_text(archive, members, own).splitlines()) if row]
    except csv.Error as error:
        raise WheelError(f"{path.name}: RECORD is not a table: {error}") from error
    listed: dict[str, tuple[str, str]] = {}
    for row in rows:
        if len(row) != 3 or row[0] in listed:
            raise WheelError(f"{path.name}: RECORD has a malformed or repeated row for {row[0][:200]!r}")
        listed[row[0]] = (row[1], row[2])
    odd = (set(listed) ^ set(members)) - unlisted
    if odd:
        raise WheelError(f"{path.name}: RECORD and the files differ in {sorted(odd)[0][:200]!r}")
    for name, info in members.items():
        if name in unlisted:
            continue
        digest = hashlib.sha256()
        for chunk in _chunks(archive, info):
            digest.update(chunk)
        expected = "sha256=" + base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode("ascii")
        if listed[name] != (expected, str(info.file_size)):
            raise WheelError(f"{path.name}: {name!r} is not the file its RECORD was written for")


def _machine(path: Path, platforms: tuple[str, ...]) -> str:
    """The one machine that all platform tags name; "any" for a wheel without native code."""
    found = {match.group(2) if (match := _PLATFORM.fullmatch(each)) else each for each in platforms}
    if len(found) != 1:
        raise WheelError(f"{path.name} is tagged for several machines: {sorted(found)}")
    return found.pop()


def _normal(name: str) -> str:
    """A project name or a version as packaging compares it."""
    return re.sub(r"[-_]+", "-", name).lower()
