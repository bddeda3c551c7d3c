"""tinyedge's own wheel, which a board gets beside llama-cpp-python's: built from the sources, or from the installed files.

It is pure Python, one file for every board. The same sources give the same bytes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from tinyedge.errors import BuildError
from tinyedge_targets.wheel_writing import record_digest, write_wheel

DISTRIBUTION = "tinyedge-llm"
# The import package that is in every installation of ours: what it has beside it are the sources or other people's packages.
_HERE = Path(__file__).resolve().parent
# hatchling's own default, stated so that a value in the environment makes no difference.
_SOURCE_DATE_EPOCH = "1580601600"
# Written by the installer about this one installation (PEP 376, 610).
_INSTALLATION_FILES = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "RECORD.jws", "RECORD.p7s"})


def build_own_wheel(folder: Path) -> Path:
    """tinyedge's wheel in `folder`: built where the sources are (a clone, an editable installation), else packed anew.

    Raises BuildError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = source_folder(_HERE)
    if sources is not None:
        return build_from_sources(sources, folder)
    try:
        return pack_installed(distribution(DISTRIBUTION), folder)
    except PackageNotFoundError:
        raise BuildError(
            f"neither the sources of {DISTRIBUTION} nor its installed files are here", f"pip install {DISTRIBUTION}"
        ) from None


def source_folder(package: Path) -> Path | None:
    """The folder of our pyproject.toml when the import package at `package` lies in a source tree, else None."""
    project = package.parent.parent / "pyproject.toml"
    if not project.is_file():
        return None
    named = re.search(r'(?m)^name\s*=\s*"([^"]+)"', project.read_text(encoding="utf-8"))
    return project.parent if named and named[1] == DISTRIBUTION else None


def build_from_sources(sources: Path, folder: Path) -> Path:
    """The wheel that pip and hatchling build from the source tree.

    With hatchling installed nothing is downloaded; otherwise pip fetches it for this build alone. Raises BuildError.
    """
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".own-") as new:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check", *isolation]
        done = subprocess.run(
            [*command, "--no-cache-dir", "--wheel-dir", new, str(sources)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=dict(os.environ) | {"SOURCE_DATE_EPOCH": _SOURCE_DATE_EPOCH},
        )
        built = sorted(Path(new).glob("*.whl"))
        if done.returncode or len(built) != 1:
            lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise BuildError(
                f"{DISTRIBUTION}'s own wheel could not be built: {' | '.join(lines[-3:]) or 'pip made none'}",
                "it needs hatchling: pip install hatchling, or let pip reach its package index",
            )
        return built[0].replace(folder / built[0].name)


def pack_installed(installed: Distribution, folder: Path) -> Path:
    """The wheel that gives the same installation again, from the files that RECORD lists.

    Raises BuildError when one of them is missing or was changed since, or when there is more in it than pure Python.
    """
    name, version = installed.metadata["Name"].replace("-", "_").lower(), installed.version
    files = {}
    for entry in installed.files or ():
        path = PurePosixPath(entry)
        if path.is_absolute() or ".." in path.parts or path.suffix == ".pyc":
            continue  # the command in bin/, which every installation writes for itself, and compiled files
        if path.parent.name.endswith(".dist-info") and path.name in _INSTALLATION_FILES:
            continue
        content = _installed_content(Path(str(entry.locate())), str(path))
        if entry.hash and entry.hash.mode == "sha256" and entry.hash.value != record_digest(content):
            raise BuildError(f"{path} was changed after {name} was installed", f"pip install --force-reinstall {DISTRIBUTION}")
        files[str(path)] = content
    info = f"{name}-{version}.dist-info"
    facts = files.get(f"{info}/WHEEL", b"").decode()
    if "Root-Is-Purelib: true" not in facts or "Tag: py3-none-any" not in facts:
        raise BuildError(
            f"{DISTRIBUTION} {version} as installed here is not a pure Python wheel", f"pip install {DISTRIBUTION} from a wheel"
        )
    return write_wheel(folder / f"{name}-{version}-py3-none-any.whl", info, files)


def _installed_content(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(
            f"{name} cannot be read ({error.strerror})", f"pip install --force-reinstall {DISTRIBUTION}"
        ) from error
