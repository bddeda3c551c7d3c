"""Wheels for 32-bit ARM of the packages that have none on PyPI, made from Debian's own packages of them.

numpy and psutil are published for 64-bit processors only. Debian compiles both for every system it releases, for the very
Python of that system and with nothing newer than ARMv7; Raspberry Pi OS and others are that system. numpy's libraries for
linear algebra come along, so the board needs nothing that is not in its smallest installation. The other source of such
wheels, piwheels.org, leaves those to apt, which does not work offline.
"""

from __future__ import annotations

import email.parser
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import BoardError, BuildError, NotEmulatedError
from tinyedge_targets.board_python import BoardPython
from tinyedge_targets.debian import SUITES, python_root
from tinyedge_targets.wheel_writing import write_wheel

MACHINE = "armv7l"
_ARCHITECTURE = "armhf"
_GLIBC = {"bookworm": "2.36", "trixie": "2.41"}  # packages.debian.org, libc6
_PACKAGES_FOLDER = "usr/lib/python3/dist-packages"
_LIBRARIES_FOLDER = "usr/lib/arm-linux-gnueabihf"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """The import packages of a distribution, the modules left out of them, and the system libraries that go with it.

    Libraries are named as the modules ask for them, each after those that it needs itself.
    """

    folders: tuple[str, ...]
    left_out: str = ""
    libraries: tuple[str, ...] = ()


_RECIPES: Mapping[str, _Recipe] = {
    "numpy": _Recipe(
        folders=("numpy",),
        left_out=r"numpy/(f2py|distutils|random/lib|_core/lib|_core/include|core/lib|core/include)/.*",
        libraries=("libgfortran.so.5", "libblas.so.3", "liblapack.so.3"),
    ),
    "psutil": _Recipe(folders=("psutil",)),
    # Without its C module, which needs libyaml, PyYAML works in Python alone.
    "pyyaml": _Recipe(folders=("yaml",), left_out=r".*\.so"),
}

# Appended to the file that numpy keeps for distributors and imports before its compiled modules. A library that is loaded
# already is what a module gets that needs one of that name.
_LOADER = """
import ctypes
import pathlib

for _name in {libraries!r}:
    try:
        ctypes.CDLL(_name)
    except OSError:
        ctypes.CDLL(str(pathlib.Path(__file__).with_name("_libraries") / _name))
"""


def on_debian(target: BoardPython) -> BoardPython:
    """`target` with the C library of the Debian release that has its Python, on which these wheels rely.

    Raises BoardError where no release has it.
    """
    suite = SUITES.get(target.python)
    if suite is None:
        known = " or ".join(f"--python {python}" for python in SUITES)
        raise BoardError(f"there are no 32-bit wheels for Python {target.python}", f"use {known}, or the board's 64-bit system")
    return target.with_glibc(_GLIBC[suite])


def debian_wheels(target: BoardPython, folder: Path) -> tuple[Path, ...]:
    """The wheels, in `folder`, of what PyPI lacks for `target`, a 32-bit ARM system. Raises BuildError without Debian."""
    try:
        root = python_root(_ARCHITECTURE, target.python)
    except NotEmulatedError as error:
        raise BuildError(f"numpy and psutil for {target.words} come from Debian, and {error.problem}", error.remedy) from error
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(_make_wheel(root, name, recipe, target, folder) for name, recipe in _RECIPES.items())


def _make_wheel(root: Path, name: str, recipe: _Recipe, target: BoardPython, folder: Path) -> Path:
    packages = root / _PACKAGES_FOLDER
    files = {
        str(path.relative_to(packages)): path.read_bytes()
        for each in recipe.folders
        for path in sorted((packages / each).rglob("*"))
        if path.is_file() and not path.is_symlink() and path.suffix != ".pyc"
    }
    files = {inside: content for inside, content in files.items() if not re.fullmatch(recipe.left_out, inside)}
    if recipe.libraries:
        top = recipe.folders[0]
        for library in recipe.libraries:
            files[f"{top}/_libraries/{library}"] = (root / _LIBRARIES_FOLDER / library).read_bytes()
        files[f"{top}/_distributor_init.py"] += _LOADER.format(libraries=recipe.libraries).encode()
    version = _debian_version(packages, name)
    tag = f"cp{target.python.replace('.', '')}-none-{target.platforms[0]}"
    info = f"{name}-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tinyedge\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    return write_wheel(folder / f"{name}-{version}-{tag}.whl", info, files)


def _debian_version(packages: Path, name: str) -> str:
    """The version that the package's own metadata, of either form, states."""
    for path in [*packages.glob("*.dist-info/METADATA"), *packages.glob("*.egg-info/PKG-INFO"), *packages.glob("*.egg-info")]:
        if path.is_file() and re.split(r"-\d", path.relative_to(packages).parts[0])[0].lower() == name:
            fields = email.parser.HeaderParser().parsestr(path.read_text(encoding="utf-8"), headersonly=True)
            return str(fields["Version"])
    raise BuildError(f"Debian's packages for {_ARCHITECTURE} hold no {name}", "delete them from the cache and try again")
