"""llama-cpp-python's source archive from PyPI, which holds the whole of llama.cpp."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import BuildError
from tinyedge_targets.cache import cache_folder, file_digest

_MAX_UNPACKED_BYTES = 2 << 30  # 0.3.36 unpacks to 150 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Sdist:
    """An archive in the cache: its file, the version it holds and its SHA-256."""

    path: Path
    version: str
    sha256: str


def installed_version() -> str | None:
    """The public version of the installed llama-cpp-python, None without one: the default, since results compare with it."""
    try:
        return importlib.metadata.version("llama_cpp_python").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def fetch_sdist(version: str | None, log: Path) -> Sdist:
    """The archive of `version` (None: the newest), downloaded once; pip's output goes to the file `log`.

    Raises BuildError when pip cannot get it: no network, no such version.
    """
    if version is not None and not re.fullmatch(r"[0-9][0-9A-Za-z.]{0,40}", version):
        raise BuildError(f"{version!r:.60} is not a version", "give one like 0.3.36: pip index versions llama-cpp-python")
    folder = cache_folder("sdists")
    if version is not None and (kept := folder / f"llama_cpp_python-{version}.tar.gz").is_file():
        return _described(kept)
    wanted = "llama-cpp-python" + (f"=={version}" if version else "")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as new:
        # Past pip's cache of wheels, and without building: only the archive and its metadata.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "--no-cache-dir"]
        with log.open("ab") as output:
            done = subprocess.run([*command, "--dest", new, wanted], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        found = sorted(Path(new).glob("llama_cpp_python-*.tar.gz"))
        if done.returncode or len(found) != 1:
            raise BuildError(
                f"the sources of {wanted} could not be downloaded (log: {log})",
                "check the network and the version: pip index versions llama-cpp-python",
            )
        kept = folder / found[0].name
        found[0].replace(kept)
    return _described(kept)


def _described(path: Path) -> Sdist:
    return Sdist(
        path=path, version=path.name.removeprefix("llama_cpp_python-").removesuffix(".tar.gz"), sha256=file_digest(path)
    )


def unpack(sdist: Sdist, folder: Path) -> Path:
    """The source tree, unpacked in `folder`. Raises BuildError for an archive that is damaged or reaches outside."""
    try:
        with tarfile.open(sdist.path) as archive:
            members = archive.getmembers()
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):  # the checksum is at the end
                pass
            if sum(member.size for member in members) > _MAX_UNPACKED_BYTES:
                raise BuildError(f"{sdist.path} unpacks to more than {_MAX_UNPACKED_BYTES >> 30} GiB", _remedy(sdist))
            for member in members:
                target = os.path.normpath(member.name)
                if target.startswith(("/", "..")) or not (member.isfile() or member.isdir()):
                    continue  # the archive's few links are not needed to build
                archive.extract(member, folder, set_attrs=False)
                if member.mode & 0o100 and member.isfile():
                    (folder / member.name).chmod(0o755)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BuildError(f"{sdist.path} is damaged ({error})", _remedy(sdist)) from error
    tree = folder / f"llama_cpp_python-{sdist.version}"
    if not (tree / "CMakeLists.txt").is_file() or not (tree / "vendor/llama.cpp/CMakeLists.txt").is_file():
        raise BuildError(f"{sdist.path} holds no llama.cpp", _remedy(sdist))
    return tree


def _remedy(sdist: Sdist) -> str:
    return f"delete {sdist.path} and try again"
