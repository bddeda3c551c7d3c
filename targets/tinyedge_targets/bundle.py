"""One archive for the board: wheels of everything, the model, and a script that installs them without a network.

`scp`, `tar -xf`, `sh install.sh`, `tinyedge run`. A .tar without compression: wheels are compressed and weights do not shrink.
The same wheels and model give the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import shlex
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tinyedge.errors import BoardError, BuildError, DiskSpaceError, GGUFError, ModelNotFoundError, OutputError, TinyEdgeError
from tinyedge_targets import debian_wheels
from tinyedge_targets.board_python import BoardPython, board_python, needed_glibc
from tinyedge_targets.boards import Board
from tinyedge_targets.dependencies import download_wheels
from tinyedge_targets.own_wheel import DISTRIBUTION, build_own_wheel
from tinyedge_targets.progress import Progress
from tinyedge_targets.wheel_file import open_wheel

_TIME = 1580601600  # 2020-02-02, as in wheels: an archive's content must not depend on when it was made
_BLOCK = 512  # tar rounds each file up to it, and puts as much in front
_WHEELS_BYTES = 100 << 20  # what the wheels take at most; those of a 64-bit board are 35 MB
_VENV_BYTES = 20 << 20  # beyond the wheels' files: the environment itself, and compiled files as modules are first used
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_README = """tinyedge for {title}, Python {python}, with {count} wheels{model}: nothing is downloaded on the board.
Install: sh install.sh (into ~/.local; --prefix DIR for another place; run it again to upgrade or repair).
The command it prints at its end starts the model. Integrity: sha256sum -c SHA256SUMS.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An archive for a board. `files` are its contents by name and size in bytes, `folder` what it unpacks to."""

    path: Path
    board: Board
    python: str
    glibc: str
    folder: str
    files: tuple[tuple[str, int], ...]
    installed_bytes: int

    @property
    def size(self) -> int:
        """The archive's size in bytes."""
        return self.path.stat().st_size


def make_bundle(
    board: Board,
    python: str,
    llama_wheel: Path,
    model: Path | None,
    folder: Path,
    *,
    model_name: str = "",
    progress: Progress,
) -> Bundle:
    """The archive `tinyedge-BOARD-pyVERSION.tar` in `folder`, whole or not at all.

    `python` is the board's version ("3.11"), `model` a GGUF file, `model_name` what it is called there. Raises BoardError when
    the wheel or the Python does not suit the board, WheelError, BuildError when a package cannot be had, ModelNotFoundError,
    GGUFError, DiskSpaceError, OutputError.
    """
    target = board_python(board, python)
    if target.machine == debian_wheels.MACHINE:
        target = debian_wheels.on_debian(target)
    open_wheel(llama_wheel)
    model_bytes = _model_bytes(model)
    _check_folder(folder, _WHEELS_BYTES + model_bytes)
    try:
        with tempfile.TemporaryDirectory(prefix=".bundle-", dir=folder) as temporary:
            wheels = _collect_wheels(target, llama_wheel, Path(temporary), progress)
            return _write(board, target, wheels, model, model_name, folder, progress)
    except OSError as error:
        raise _os_error(error, folder) from error


def _collect_wheels(target: BoardPython, llama_wheel: Path, folder: Path, progress: Progress) -> list[Path]:
    progress("own wheel", 0, 0)
    own = build_own_wheel(folder / "own")
    _check_python(own, target)
    progress("wheels", 0, 0)
    here = [own, llama_wheel]
    if target.machine == debian_wheels.MACHINE:
        here += debian_wheels.debian_wheels(target, folder / "debian")
    downloaded = download_wheels(target, [DISTRIBUTION, "llama-cpp-python", "pip"], here, folder / "wheels")
    return sorted([*here, *downloaded], key=lambda wheel: wheel.name)


def _check_python(own: Path, target: BoardPython) -> None:
    with zipfile.ZipFile(own) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        match = re.search(rb"(?m)^Requires-Python: >=3\.(\d+)$", archive.read(name))
    if match and int(target.python.partition(".")[2]) < int(match[1]):
        raise BoardError(
            f"tinyedge needs Python 3.{match[1].decode()} or newer, not {target.python}", "choose another --python"
        )


def _model_bytes(model: Path | None) -> int:
    """The size of the model, 0 without one. Raises ModelNotFoundError, GGUFError."""
    if model is None:
        return 0
    try:
        with model.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise GGUFError(f"{model} is not a GGUF file", "give a .gguf file, a checkpoint folder, or `demo`")
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ModelNotFoundError(f"{model} cannot be read ({error.strerror})") from error


def _check_folder(folder: Path, needed: int) -> None:
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} is not a folder that can be written")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskSpaceError(f"the bundle needs up to {needed:,} bytes and {folder} has {free:,} free")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file of the archive: `content` is its bytes or where they are."""

    name: str
    content: bytes | Path
    mode: int = 0o644

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def _write(
    board: Board,
    target: BoardPython,
    wheels: Sequence[Path],
    model: Path | None,
    model_name: str,
    folder: Path,
    progress: Progress,
) -> Bundle:
    name = f"tinyedge-{board.name}-py{target.python}"
    model_name = _plain_name(model_name or model.name) if model else ""
    glibc = needed_glibc(wheels, target)
    installed = sum(map(unpacked_bytes, wheels)) + _VENV_BYTES
    facts = {
        "BOARD": board.name,
        "NEED_MACHINE": target.machine,
        "NEED_PYTHON": target.python,
        "NEED_GLIBC": glibc,
        "NEED_KIB": str(installed // 1024),
        "MODEL": model_name,
    }
    with_model = f" and the model {model_name}" if model else ""
    readme = _README.format(title=board.title, python=target.python, count=len(wheels), model=with_model)
    entries = [
        _Entry("README.txt", readme.encode()),
        _Entry("install.sh", install_script(facts), 0o755),
        *(_Entry(f"wheels/{wheel.name}", wheel) for wheel in wheels),
        *([_Entry(model_name, model)] if model else []),
    ]
    total = sum(entry.size for entry in entries)
    _check_folder(folder, total + 2 * _BLOCK * (len(entries) + 32))
    path = folder / f"{name}.tar"
    files = []
    with _new_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        done, sums = 0, []
        for entry in entries:
            progress("bundle", done >> 20, total >> 20)
            sums.append(f"{_add(archive, name, entry)}  {entry.name}\n")
            files.append((entry.name, entry.size))
            done += entry.size
        last = _Entry("SHA256SUMS", "".join(sums).encode())
        _add(archive, name, last)
        files.append((last.name, last.size))
    progress("bundle", total >> 20, total >> 20)
    return Bundle(
        path=path,
        board=board,
        python=target.python,
        glibc=glibc,
        folder=name,
        files=tuple(files),
        installed_bytes=installed,
    )


def install_script(facts: dict[str, str]) -> bytes:
    """install.sh with `facts` as shell variables in it."""
    template = Path(__file__).with_name("install.sh").read_text(encoding="utf-8")
    lines = "\n".join(f"{name}={shlex.quote(value)}" for name, value in facts.items())
    return template.replace("@FACTS@", lines).encode()


def unpacked_bytes(wheel: Path) -> int:
    """The disk that a wheel's files take when installed, in blocks of 4 KiB; pip itself is used but not installed."""
    if wheel.name.startswith("pip-"):
        return 0
    with zipfile.ZipFile(wheel) as archive:
        return sum(-(-entry.file_size // 4096) * 4096 for entry in archive.infolist())


def _plain_name(name: str) -> str:
    """A model's file name in letters that need no quoting in a shell or on another system."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name.removesuffix(".gguf")).strip("-.")
    return f"{stem or 'model'}.gguf"


class _HashingReader(io.RawIOBase):
    """A file, read once, whose SHA-256 is known at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self.digest.update(piece)
        return piece


def _add(archive: tarfile.TarFile, top: str, entry: _Entry) -> str:
    """Puts the file into the archive; its SHA-256 in hexadecimal."""
    info = tarfile.TarInfo(f"{top}/{entry.name}")
    info.mode, info.mtime = entry.mode, _TIME
    if isinstance(entry.content, bytes):
        info.size = len(entry.content)
        archive.addfile(info, io.BytesIO(entry.content))
        return hashlib.sha256(entry.content).hexdigest()
    with entry.content.open("rb") as file:
        info.size = os.fstat(file.fileno()).st_size
        reader = _HashingReader(file)
        archive.addfile(info, reader)
        return reader.digest.hexdigest()


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name `path` when the block ends well, and vanishes when it does not."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with new.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except tarfile.TarError as error:
        raise BuildError(f"{path.name} could not be written ({error})", "try again") from error
    finally:
        new.unlink(missing_ok=True)


def _os_error(error: OSError, folder: Path) -> TinyEdgeError:
    if error.errno in _FULL:
        return DiskSpaceError(f"the disk of {folder} became full while the bundle was made; nothing was left behind")
    return OutputError(f"the bundle could not be written to {folder} ({error.strerror or error})")
