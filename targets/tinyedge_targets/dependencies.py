"""The wheels that tinyedge needs on a board: which packages, by the board's own markers, and files that its Python can install.

pip can fetch for another machine but evaluates environment markers (`python_version < "3.11"`, `platform_machine`) for the one
it runs on. So what is needed is worked out here, from the metadata of each package and the board's environment, and pip is
asked for one package at a time without its dependencies: it chooses versions and files, and checks their hashes.
"""

from __future__ import annotations

import email.parser
import json
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from tinyedge.errors import BoardError, BuildError, DiskSpaceError, WheelError
from tinyedge_targets.board_python import BoardPython

_MAX_METADATA_BYTES = 4 << 20
_MAX_ROUNDS = 30

# What pip says when no package index answers; its last line then only says that no version was found.
_OFFLINE = re.compile(r"Retrying \(Retry|NewConnectionError|NameResolutionError|ConnectTimeout|Could not fetch URL|ProxyError")
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that is to be on the board, and what it asks for in turn."""

    name: str
    version: Version
    requires: tuple[Requirement, ...]


def wheel_package(wheel: Path, target: BoardPython) -> Package:
    """What a wheel's own METADATA says. Raises WheelError, and BoardError when `target` cannot install it."""
    try:
        name, version, _, _ = parse_wheel_filename(wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            entry = next(e for e in archive.infolist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", e.filename))
            if entry.file_size > _MAX_METADATA_BYTES:
                raise WheelError(f"the METADATA of {wheel.name} is {entry.file_size:,} bytes long")
            text = archive.read(entry).decode()
        fields = email.parser.HeaderParser().parsestr(text, headersonly=True)
        package = _package(name, fields["Version"] or str(version), fields.get_all("Requires-Dist") or [])
    except InvalidWheelFilename as error:
        raise WheelError(f"{wheel.name} is not the name of a wheel") from error
    except FileNotFoundError as error:
        raise WheelError(f"{wheel} does not exist") from error
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise WheelError(f"{wheel.name} is not a wheel, or damaged ({str(error) or 'it has no METADATA'})") from error
    if not target.accepts(wheel.name):
        raise BoardError(
            f"{wheel.name} does not fit {target.words}", "build it for this board with `tinyedge wheel --board NAME`"
        )
    return package


def _package(name: str, version: str, requires: Sequence[str]) -> Package:
    try:
        wanted = tuple(Requirement(text) for text in requires)
        return Package(name=canonicalize_name(name), version=Version(version), requires=wanted)
    except (InvalidRequirement, InvalidVersion) as error:
        raise WheelError(f"the metadata of {name} cannot be read ({error})") from error


Ask = Mapping[str, frozenset[str]]  # a package -> what is asked of it, as in "numpy>=1.26"


def needed(roots: Sequence[str], known: Mapping[str, Package], environment: dict[str, str]) -> Ask:
    """All that `roots` (requirements) need by the metadata `known` so far, themselves included.

    Packages that are not in `known` are in the answer too, with nothing beyond them. Raises BuildError for a requirement that
    names an address instead of a version.
    """
    asked: dict[str, set[str]] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.url:
            raise BuildError(f"{requirement} names an address, not a version", "use a release of it from the package index")
        asked.setdefault(name, set()).add(f"{name}{requirement.specifier}")
        for extra in ("", *requirement.extras):
            if (name, extra) in seen or name not in known:
                continue
            seen.add((name, extra))
            there = environment | {"extra": extra}
            waiting += [each for each in known[name].requires if each.marker is None or each.marker.evaluate(there)]
    return {name: frozenset(texts) for name, texts in asked.items()}


def download_wheels(
    target: BoardPython, roots: Sequence[str], own: Sequence[Path], folder: Path, index: Sequence[str] = ()
) -> tuple[Path, ...]:
    """The wheels in `folder` of all that `roots` need on `target`, beyond the wheels `own`, which are there already.

    `index`: further options for pip. Raises BuildError when a package has no wheel for `target` or no package index answers,
    and DiskSpaceError.
    """
    ours = {package.name: package for package in (wheel_package(wheel, target) for wheel in own)}
    found: dict[str, Package] = {}
    for _ in range(_MAX_ROUNDS):
        asked = needed(roots, found | ours, target.environment)
        _check_own(asked, ours)
        wanted = sorted(text for name, texts in asked.items() if name not in ours for text in texts)
        if all(_satisfied(text, found) for text in wanted):
            pins = [f"{name}=={found[name].version}" for name in sorted(asked) if name not in ours]
            return _download(target, pins, folder, index)
        found = _choose(target, wanted, index)
    raise BuildError("the requirements of the packages do not settle", "name a llama-cpp-python version that is older or newer")


def _satisfied(text: str, found: Mapping[str, Package]) -> bool:
    requirement = Requirement(text)
    package = found.get(requirement.name)
    return package is not None and requirement.specifier.contains(package.version, prereleases=True)


def _check_own(asked: Ask, ours: Mapping[str, Package]) -> None:
    for name, package in ours.items():
        for text in sorted(asked.get(name, ())):
            if not _satisfied(text, ours):
                raise BuildError(
                    f"{text} is needed and {name} {package.version} was given", "choose another --llama-cpp-python or --python"
                )


def _choose(target: BoardPython, wanted: Sequence[str], index: Sequence[str]) -> dict[str, Package]:
    """The newest versions that pip finds for `wanted`, with their metadata; where the index has that apart, nothing else."""
    with tempfile.TemporaryDirectory() as nowhere:
        options = ["--dry-run", "--ignore-installed", "--report", "-", "--target", nowhere]
        report: dict[str, Any] = json.loads(_pip(["install", *options], target, wanted, index))
    metadata = [entry["metadata"] for entry in report["install"]]
    packages = [_package(each["name"], each["version"], each.get("requires_dist") or []) for each in metadata]
    return {package.name: package for package in packages}


def _download(target: BoardPython, pins: Sequence[str], folder: Path, index: Sequence[str]) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    if pins:
        _pip(["download", "--dest", str(folder)], target, pins, index)
    wheels = sorted(set(folder.iterdir()) - before)
    if len(wheels) != len(pins) or (unfit := [wheel.name for wheel in wheels if not target.accepts(wheel.name)]):
        names = ", ".join(wheel.name for wheel in wheels) if len(wheels) != len(pins) else ", ".join(unfit)
        raise BuildError(f"pip brought other wheels for {target.words} than were asked for: {names}", "try a newer pip")
    return tuple(wheels)


def _pip(command: Sequence[str], target: BoardPython, wanted: Sequence[str], index: Sequence[str]) -> str:
    """What pip prints. Its own settings (index, proxy, certificates) hold."""
    abi = f"cp{target.python.replace('.', '')}"
    line = [sys.executable, "-m", "pip", *command, "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    line += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", target.python]
    line += [part for each in (abi, "abi3", "none") for part in ("--abi", each)]
    line += [part for each in target.platforms for part in ("--platform", each)]
    done = subprocess.run([*line, *index, *wanted], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise _download_error(done.stderr, target, wanted)
    return done.stdout


def _download_error(said: str, target: BoardPython, wanted: Sequence[str]) -> BuildError | DiskSpaceError:
    if _DISK_FULL.search(said):
        return DiskSpaceError("the disk became full while wheels were downloaded")
    if "No module named pip" in said:
        return BuildError("this Python has no pip", f"{sys.executable} -m ensurepip")
    if "no such option" in said:
        return BuildError("this pip is too old to fetch wheels for another machine", "pip install --upgrade pip")
    match = re.search(r"No matching distribution found for ([^\s;(]+)|satisfies the requirement ([^\s;(]+)", said)
    package = (match[1] or match[2]) if match else ", ".join(wanted)
    if _OFFLINE.search(said):
        return BuildError(
            f"no package index answered when {package} was to be downloaded",
            "connect this computer to the network, or set PIP_INDEX_URL or a proxy that can be reached",
        )
    if match:
        return BuildError(
            f"there is no wheel of {package} for {target.words}",
            "choose another --python, or the board's 64-bit system if this one is 32-bit",
        )
    lines = [line.strip() for line in said.splitlines() if line.strip().startswith("ERROR")] or said.strip().splitlines()
    return BuildError(
        f"{package} could not be downloaded: {' | '.join(lines[-3:])}", "pip's own message says what is in the way"
    )
