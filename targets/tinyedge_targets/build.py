"""Compiles llama.cpp as llama-cpp-python's sources have it, for one kind of processor or for all of a family.

CMake and ninja are called directly, with the targets that the Python package loads and no others. What comes out is a folder of
libraries in the cache, named by a hash of everything that went in: sources, compiler, scripts, flags.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import BoardError, BuildError, DiskSpaceError
from tinyedge_targets import zig
from tinyedge_targets.boards import Board
from tinyedge_targets.cache import cache_folder, content_key, entry_in_progress, is_sealed, seal
from tinyedge_targets.progress import Progress
from tinyedge_targets.runner import Runner
from tinyedge_targets.sdist import Sdist, unpack

# What makes quantizing about three times faster: ggml compiles its base library with strict float order. -ffinite-math-only is
# left out on purpose: the kernels test for NaN and infinity. The proof of a wheel bounds the error that results.
C_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")

_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",  # one file per library: a wheel has no links, so each name would be a copy
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_CURL=OFF",
    # Else ggml holds a commit where git is installed and none where it is not.
    "-DCMAKE_DISABLE_FIND_PACKAGE_Git=ON",
    "-DGIT_EXE=OFF",
    "-DGIT_EXECUTABLE=OFF",
    "-DGGML_RPC=ON",
)
_CROSS_OPTIONS = ("-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF")
_LAYOUT_OPTIONS = {
    "variants": ("-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"),
    "single": ("-DGGML_BACKEND_DL=OFF",),
}
# On x86 ggml adds -mavx and the like by itself unless told not to; zig's -mcpu says it all.
_X86_OPTIONS = tuple(f"-DGGML_{name}=OFF" for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C", "AVX512"))

# Included by CMake at its project() command: a library finds the others in its own folder and nowhere else. llama-cpp-python's
# own setting covers but a few of the libraries, none of the CPU variants.
_RPATH_HOOK = """function(tinyedge_set_rpath)
    set(origin "$<IF:$<PLATFORM_ID:Darwin>,@loader_path,$ORIGIN>")
    foreach(target IN ITEMS llama ggml ggml-base LISTS GGML_AVAILABLE_BACKENDS)
        if(TARGET ${target})
            set_target_properties(${target} PROPERTIES
                BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${origin}" INSTALL_RPATH_USE_LINK_PATH OFF)
        endif()
    endforeach()
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL tinyedge_set_rpath)
"""

_TARGETS = ("llama", "ggml")
PACKED_SOURCES = ("llama_cpp", "PKG-INFO", "LICENSE.md", "vendor/llama.cpp/LICENSE")  # kept beside the libraries
# What CMake, ninja, the shell or -ffile-prefix-map take for something else than a part of a name.
_UNUSABLE = re.compile(r"""[\x00-\x1f\x7f\ud800-\udfff"$`:;=\\]""")
_FREE_BYTES = 1 << 30  # a universal build takes 0.6 GB: sources, objects and zig's own libraries


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What is compiled: for which processor, how laid out, with which options. Equal builds are the same build."""

    triple: str
    toolchain: str
    layout: str
    cpu: str
    options: tuple[str, ...]

    @property
    def title(self) -> str:
        """`aarch64, all CPU variants`, `aarch64, cortex_a76 only`."""
        family = self.triple.partition("-")[0]
        return f"{family}, all CPU variants" if self.layout == "variants" else f"{family}, {self.cpu} only"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltLibraries:
    """A cache entry: the folder with the libraries, the compiler they came from, and what it took (0 s when it was there)."""

    build: Build
    folder: Path
    compiler: str
    flags: tuple[str, ...]
    seconds: float


def require_tools() -> None:
    """Raises BuildError with the command that installs them when a part of the extra [targets] is missing."""
    for program in ("cmake", "ninja"):
        _tool(program)
    if importlib.util.find_spec("packaging") is None:
        raise zig.missing("the Python package packaging")


def plan_build(board: Board, *, single: bool) -> Build:
    """What `board` needs. Raises BoardError when that can only be built on another machine than this."""
    layout = "single" if single else board.layout
    if board.toolchain == "native":
        triple = _native_triple(board)
        return Build(triple=triple, toolchain="native", layout="single", cpu="native", options=board.cmake)
    if layout == "variants":
        return Build(triple=board.triple, toolchain="zig", layout=layout, cpu=_baseline(board.triple), options=board.cmake)
    return Build(triple=board.triple, toolchain="zig", layout=layout, cpu=_single_cpu(board), options=board.cmake)


def _baseline(triple: str) -> str:
    return {"aarch64-linux-gnu": "generic", "arm-linux-gnueabihf": "cortex_a7", "x86_64-linux-gnu": "x86_64"}[triple]


def _single_cpu(board: Board) -> str:
    """zig's name of the processor, less the cryptographic instructions where the chip's maker left them out."""
    if board.triple == "aarch64-linux-gnu" and board.cpu.startswith("cortex_") and "aes" not in board.features:
        return f"{board.cpu}-aes-sha2"
    return board.cpu


def _native_triple(board: Board) -> str:
    machine = platform.machine().lower().replace("arm64", "aarch64").replace("amd64", "x86_64")
    here = f"{machine}-macos" if sys.platform == "darwin" else f"{machine}-linux-gnu"
    if board.triple not in ("native", here):
        raise BoardError(
            f"{board.name} is built with its own compiler, and this machine is {here}",
            f"run `tinyedge wheel --board {board.name}` on that machine",
        )
    if any("CUDA=ON" in option.upper() for option in board.cmake) and shutil.which("nvcc") is None:
        raise BuildError("nvcc, the CUDA compiler, is not on PATH", "install the CUDA toolkit, or add its bin folder to PATH")
    return here


def build_libraries(build: Build, sdist: Sdist, *, progress: Progress) -> BuiltLibraries:
    """The libraries of `build`, compiled unless the cache has them.

    Raises BuildError with the last lines and the path of the whole log when that fails, DiskSpaceError before it begins.
    """
    recipe = _Recipe.of(build)
    arguments = _arguments(recipe, Path("sources"), Path("work"))
    inputs = [sdist.sha256, recipe.compiler, recipe.processor, *recipe.scripts.values(), *arguments, _RPATH_HOOK]
    key = content_key({"inputs": inputs, "targets": _TARGETS, "kept": PACKED_SOURCES})
    folder = cache_folder("builds")
    begun = time.monotonic()
    with entry_in_progress(folder, key, is_sealed, lambda: progress("wait for another tinyedge with the same", 0, 0)) as new:
        if new is not None:
            _compile(recipe, sdist, new, cache_folder("logs") / f"build-{key}.log", progress)
    return BuiltLibraries(
        build=build,
        folder=folder / key,
        compiler=recipe.compiler,
        flags=recipe.flags,
        seconds=0.0 if new is None else time.monotonic() - begun,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """Everything that decides what the compiler makes."""

    compiler: str
    scripts: dict[str, str]
    options: tuple[str, ...]
    flags: tuple[str, ...]
    environment: dict[str, str]
    processor: str

    @classmethod
    def of(cls, build: Build) -> _Recipe:
        options = _OPTIONS + _LAYOUT_OPTIONS[build.layout] + build.options
        if build.toolchain == "native":
            compiler = _native_compiler()
            flags = _native_flags(compiler) + C_FLAGS
            return cls(
                compiler=_compiler_version(compiler),
                scripts={},
                options=options,
                flags=flags,
                environment={},
                processor=_processor_facts(),
            )
        found = zig.find_zig()
        options += _CROSS_OPTIONS
        if build.triple.startswith("x86_64"):
            options += _X86_OPTIONS
        return cls(
            compiler=f"zig {found.version}",
            scripts=zig.scripts(build.triple, build.cpu) | {"toolchain.cmake": zig.toolchain(build.triple)},
            options=options,
            flags=C_FLAGS,
            environment={"TINYEDGE_ZIG": str(found.program), "ZIG_GLOBAL_CACHE_DIR": str(cache_folder("zig"))},
            processor=f"{build.triple} {build.cpu}",
        )


def _native_compiler() -> str:
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None or shutil.which(os.environ.get("CXX", "c++")) is None:
        raise BuildError("there is no C++ compiler here", "install one: apt install g++ (macOS: xcode-select --install)")
    return compiler


def _compiler_version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [compiler])[0]


def _native_flags(compiler: str) -> tuple[str, ...]:
    """The flag by which this compiler uses all that this processor has."""
    order = ("-mcpu=native", "-march=native") if platform.machine().startswith(("arm", "aarch")) else ("-march=native",)
    for flag in order:
        command = [compiler, flag, "-x", "c", "-c", "-o", os.devnull, os.devnull]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return (flag,)
    return ()


def _processor_facts() -> str:
    """What tells one processor from another, so that a native build is not used on a machine where it does not belong."""
    facts = [platform.machine(), platform.processor(), sysconfig.get_platform()]
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = {line.strip() for line in text.splitlines() if re.match(r"(model name|flags|Features|CPU part)", line)}
    except OSError:
        lines = set()
    return "\n".join(facts + sorted(lines))


def _compile(recipe: _Recipe, sdist: Sdist, folder: Path, log: Path, progress: Progress) -> None:
    """Fills `folder` with `lib/*.so`; the log stays where it is."""
    if _UNUSABLE.search(str(folder)):
        raise BuildError(
            f"the build tools cannot work in {folder}, whose name has unusual characters",
            "set XDG_CACHE_HOME to a folder with a plain name",
        )
    free = shutil.disk_usage(folder).free
    if free < _FREE_BYTES:
        raise DiskSpaceError(
            f"a build needs {_FREE_BYTES >> 20} MiB of disk in {folder.parent}, and {free >> 20} MiB are free",
            "free some space, or set XDG_CACHE_HOME to a folder on another disk",
        )
    progress("unpack", 0, 0)
    work = folder / "work"
    work.mkdir()
    sources = unpack(sdist, work)
    run = Runner(log, recipe.environment | {"ZIG_LOCAL_CACHE_DIR": str(work / "zig")})
    progress("configure", 0, 0)
    tree = str(work / "build")
    _write_scripts(recipe.scripts | {"rpath.cmake": _RPATH_HOOK}, work / "scripts")
    places = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", "-S", str(sources), "-B", tree]
    run([_tool("cmake"), *places, *_arguments(recipe, sources, work)])
    run(
        [_tool("ninja"), "-C", tree, "-j", str(_jobs()), *_TARGETS],
        lambda done, total: progress("compile", done, total),
    )
    libraries = folder / "lib"
    libraries.mkdir()
    for path in sorted((work / "build/bin").iterdir()):
        if path.is_file() and not path.is_symlink() and re.fullmatch(r"lib(llama|ggml)[\w.-]*\.(so|dylib)", path.name):
            path.replace(libraries / path.name)
    metal = work / "build/bin/default.metallib"
    if metal.is_file():
        metal.replace(libraries / metal.name)
    for name in PACKED_SOURCES:
        target = folder / "sources" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (sources / name).exists():
            (sources / name).rename(target)
    shutil.copyfile(log, folder / "build.log")
    shutil.rmtree(work)
    seal(folder)


def _arguments(recipe: _Recipe, sources: Path, work: Path) -> list[str]:
    """CMake's options but for the places.

    No path of this machine gets into the libraries, so that the same sources give the same bytes anywhere.
    """
    unmapped = f'"-ffile-prefix-map={sources}=."'
    flags = ["-fno-sanitize=undefined", unmapped] if recipe.scripts else [unmapped]
    arguments = [
        *recipe.options,
        f"-DSKBUILD_PLATLIB_DIR={work / 'unused'}",
        f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={work / 'scripts' / 'rpath.cmake'}",
        f"-DCMAKE_C_FLAGS={' '.join([*recipe.flags, *flags])}",
        f"-DCMAKE_CXX_FLAGS={' '.join(flags)}",
    ]
    if sys.platform != "darwin":  # -s strips what only a debugger reads
        arguments += [f"-DCMAKE_{kind}_LINKER_FLAGS=-Wl,-s" for kind in ("SHARED", "MODULE")]
    if recipe.scripts:
        arguments.append(f"-DCMAKE_TOOLCHAIN_FILE={work / 'scripts' / 'toolchain.cmake'}")
    return arguments


def _write_scripts(scripts: dict[str, str], folder: Path) -> None:
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def _tool(name: str) -> str:
    """The program of the same environment as this Python, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise zig.missing(name)
    return found


def _jobs() -> int:
    """As many compilers at a time as there are processors and, at half a GiB each, memory for."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(processors, memory >> 29))
