"""zig as a cross compiler for CMake: one C and C++ compiler, with glibc's symbols of any version, for every board.

CMake is given four small shell scripts. The one that compiles turns llama.cpp's GCC-style `-march=armv8.2-a+dotprod+fp16`,
which zig refuses, into zig's `-mcpu=generic+v8_2a+dotprod+fullfp16`.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import BuildError

# What CMake calls the processor of a triple, and what pip calls its platform.
PROCESSORS = {
    "aarch64-linux-gnu": "aarch64",
    "arm-linux-gnueabihf": "armv7l",
    "x86_64-linux-gnu": "x86_64",
}

# The oldest glibc that the wheels run on: that of manylinux2014, which every board's system exceeds.
GLIBC = "2.17"

# fp16 is GCC's name of what LLVM and zig call fullfp16; the other extensions have one name.
_COMPILE = r"""#!/bin/sh
# Compiles for {target}; a later -march= replaces the processor.
cpu={cpu}
count=$#
while [ "$count" -gt 0 ]; do
    argument=$1
    shift
    count=$((count - 1))
    case $argument in
    -march=armv*)
        cpu=$(printf '%s\n' "${{argument#-march=armv}}" |
            sed -e 's/^\([0-9]*\)\.\([0-9]*\)-a/generic+v\1_\2a/' -e 's/^\([0-9]*\)-a/generic+v\1a/' \
                -e 's/+fp16/+fullfp16/g' -e 's/+no/-/g')
        ;;
    -mcpu=* | -march=*)
        echo "unexpected $argument in a build for {target}" >&2
        exit 1
        ;;
    *) set -- "$@" "$argument" ;;
    esac
done
exec "$TINYEDGE_ZIG" {tool} -target {target} "-mcpu=$cpu" "$@"
"""
_ARCHIVE = '#!/bin/sh\nexec "$TINYEDGE_ZIG" {tool} "$@"\n'

_TOOLCHAIN = """set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR {processor})
set(CMAKE_C_COMPILER "${{CMAKE_CURRENT_LIST_DIR}}/cc")
set(CMAKE_CXX_COMPILER "${{CMAKE_CURRENT_LIST_DIR}}/c++")
set(CMAKE_AR "${{CMAKE_CURRENT_LIST_DIR}}/ar")
set(CMAKE_RANLIB "${{CMAKE_CURRENT_LIST_DIR}}/ranlib")
# Nothing of the machine that builds may be found: its libraries are not the board's.
set(CMAKE_FIND_ROOT_PATH "${{CMAKE_CURRENT_LIST_DIR}}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
# Configuration checks compile and do not link: linking would build zig's C++ library once for each CPU variant.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zig:
    """The compiler: its program and its version (`0.17.1`)."""

    program: Path
    version: str


def find_zig() -> Zig:
    """The zig of the ziglang package, else the one on PATH. Raises BuildError when there is none."""
    package = importlib.util.find_spec("ziglang")
    found = Path(package.origin).parent / "zig" if package and package.origin else None
    if found is None or not found.is_file():
        on_path = shutil.which("zig")
        if on_path is None:
            raise missing("the cross compiler zig")
        found = Path(on_path)
    try:
        done = subprocess.run([found, "version"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the compiler {found} does not run ({error})", "reinstall it: pip install -U ziglang") from error
    return Zig(program=found, version=done.stdout.strip())


def missing(what: str) -> BuildError:
    """The error that names what is not installed and the extra that installs it."""
    return BuildError(
        f"{what} is not installed",
        "install the extra: pip install 'tinyedge-llm[targets]', in a clone pip install -e '.[targets]'",
    )


def scripts(triple: str, cpu: str) -> dict[str, str]:
    """The texts of `cc`, `c++`, `ar` and `ranlib`. They find zig in the environment variable TINYEDGE_ZIG."""
    target = f"{triple}.{GLIBC}"
    compilers = {tool: _COMPILE.format(target=target, cpu=cpu, tool=tool) for tool in ("cc", "c++")}
    return compilers | {tool: _ARCHIVE.format(tool=tool) for tool in ("ar", "ranlib")}


def toolchain(triple: str) -> str:
    """The text of CMake's toolchain file, which stands beside the scripts."""
    return _TOOLCHAIN.format(processor=PROCESSORS[triple])
