"""Packs compiled libraries and llama-cpp-python's own Python files into a wheel: the same input gives the same bytes.

Each library is there once, the tag says what the libraries need, and `llama_cpp/tinyedge_build.json` says what was built.
"""

from __future__ import annotations

import email.parser
import re
import sysconfig
from pathlib import Path

from tinyedge.errors import BuildError
from tinyedge.wheel_facts import WheelFacts
from tinyedge_targets import zig
from tinyedge_targets.boards import Board, boards
from tinyedge_targets.build import Build, BuiltLibraries, plan_build
from tinyedge_targets.wheel_file import BUILD_FILE
from tinyedge_targets.wheel_writing import write_wheel

# What a plain `import llama_cpp` lacks when the CPU code is in modules: without this, the first model finds no backend.
_LOADER = """

# Added by `tinyedge wheel`: the CPU code is in modules, one for each kind of processor; the best for this one is loaded here.
def _load_cpu_variant() -> None:
    _lib.ggml_backend_reg_count.restype = ctypes.c_size_t
    if _lib.ggml_backend_reg_count() == 0:
        silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)
        _lib.ggml_log_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        _lib.ggml_log_set.restype = None
        _lib.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
        _lib.ggml_backend_load_all_from_path.restype = None
        _lib.ggml_log_set(ctypes.cast(silent, ctypes.c_void_p), None)
        _lib.ggml_backend_load_all_from_path(os.fsencode(_base_path))
        _lib.ggml_log_set(None, None)


_load_cpu_variant()
"""


def pack(built: BuiltLibraries, version: str, folder: Path) -> Path:
    """The wheel of `built`, which is llama-cpp-python `version`, in `folder`.

    Written under a temporary name and renamed. Raises BuildError when the sources are not laid out as expected.
    """
    sources = built.folder / "sources"
    local = f"{version}+{_label(built.build)}"
    tag = f"py3-none-{_platform_tag(built.build)}"
    info = f"llama_cpp_python-{local}.dist-info"
    files = _python_files(sources, variants=built.build.layout == "variants")
    files |= {f"llama_cpp/lib/{path.name}": path.read_bytes() for path in sorted((built.folder / "lib").iterdir())}
    files[BUILD_FILE] = _build_facts(built, version)
    files[f"{info}/METADATA"] = _metadata(sources, local)
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tinyedge\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    files[f"{info}/licenses/LICENSE.md"] = _source_file(sources / "LICENSE.md")
    files[f"{info}/licenses/LICENSE-llama.cpp"] = _source_file(sources / "vendor/llama.cpp/LICENSE")
    folder.mkdir(parents=True, exist_ok=True)
    return write_wheel(folder / f"llama_cpp_python-{local}-{tag}.whl", info, files)


def _label(build: Build) -> str:
    """The local version that tells this build from PyPI's and from its siblings: `tinyedge`, `tinyedge.cortex.a76`."""
    if build.layout == "variants":
        return "tinyedge"
    cpu = build.cpu.partition("-")[0]
    gpu = "".join(f".{match[1]}" for option in build.options if (match := re.fullmatch(r"-DGGML_(CUDA|METAL)=ON", option)))
    return "tinyedge." + re.sub(r"[^a-z0-9]+", ".", (cpu + gpu).lower())


def _platform_tag(build: Build) -> str:
    if build.toolchain == "native":
        return re.sub(r"[-.]", "_", sysconfig.get_platform())
    return f"manylinux{zig.GLIBC.replace('.', '_')}_{zig.PROCESSORS[build.triple]}".replace("manylinux2_17", "manylinux2014")


def _python_files(sources: Path, *, variants: bool) -> dict[str, bytes]:
    package = sources / "llama_cpp"
    files = {
        f"llama_cpp/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.suffix in (".py", ".typed", ".jinja2") and path.is_file()
    }
    if "llama_cpp/__init__.py" not in files:
        raise BuildError(
            f"the sources in {sources} hold no Python package llama_cpp", "choose another --llama-cpp-python version"
        )
    if variants:
        bindings = files.get("llama_cpp/llama_cpp.py", b"")
        if b"\n_lib = " not in bindings or b"\n_base_path = " not in bindings:
            raise BuildError(
                "this version of llama-cpp-python loads its library in a way that is not known here",
                "choose another --llama-cpp-python version, or --single",
            )
        files["llama_cpp/llama_cpp.py"] = bindings + _LOADER.encode()
    return files


def _build_facts(built: BuiltLibraries, version: str) -> bytes:
    build = built.build
    names = sorted(path.name for path in (built.folder / "lib").iterdir())
    facts = WheelFacts(
        llama_cpp_python=version,
        triple=build.triple,
        glibc=zig.GLIBC if build.toolchain == "zig" else "",
        cpu=build.cpu,
        layout=build.layout,
        variants=tuple(match[1] for name in names if (match := re.fullmatch(r"libggml-cpu-(.+)\.(?:so|dylib)", name))),
        compiler=built.compiler,
        flags=built.flags,
        boards=tuple(sorted(board.name for board in boards() if _serves(build, board))),
    )
    return facts.to_json()


def _serves(build: Build, board: Board) -> bool:
    """Whether this build is what `board` gets: by default, or with --single."""
    if board.toolchain != build.toolchain or board.toolchain == "native":
        return False
    return build in (plan_build(board, single=False), plan_build(board, single=True))


def _source_file(path: Path) -> bytes:
    if not path.is_file():
        raise BuildError(f"the sources lack {path.name}", "choose another --llama-cpp-python version")
    return path.read_bytes()


def _metadata(sources: Path, version: str) -> bytes:
    """The archive's own metadata under our local version."""
    text = _source_file(sources / "PKG-INFO").decode()
    if email.parser.HeaderParser().parsestr(text, headersonly=True)["Version"] != version.partition("+")[0]:
        raise BuildError("the sources' PKG-INFO names another version", "delete them from the cache and try again")
    return re.sub(r"(?m)^Version: .*$", f"Version: {version}", text, count=1).encode()
