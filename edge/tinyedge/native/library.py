"""Finds, loads and describes the native libraries that llama-cpp-python installed.

Loading is quick (about 30 ms) because only the ctypes bindings are imported, and quiet: llama.cpp's log goes to `log`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tinyedge.errors import NativeError
from tinyedge.native import log

# ggml_backend_dev_type in ggml-backend.h.
_DEVICE_TYPES = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator", 4: "meta"}

# The name a backend registers under (ggml_backend_reg_name) -> the word that --backend takes.
_KINDS = {"mtl": "metal", "rocm": "rocm"}


@dataclass(frozen=True, slots=True)
class Device:
    """One ggml device. `kind` is the backend's word (cpu, cuda, metal, vulkan, ...), memory is in bytes.

    `type` is ggml's class of it: cpu, gpu, igpu (shares the main memory) or accelerator (helps the CPU, such as BLAS).
    """

    kind: str
    name: str
    description: str
    memory_total: int
    memory_free: int
    type: str = "gpu"


@dataclass(frozen=True, slots=True)
class LibraryVersions:
    """What is installed: versions as the packages give them, `system_info` as llama.cpp prints it."""

    llama_cpp_python: str
    llama_cpp: str | None
    ggml: str
    ggml_commit: str
    system_info: str


def _bindings(name: str) -> ModuleType:
    """The module `llama_cpp.NAME`, without running the package's own __init__.

    That __init__ imports numpy, jinja2, diskcache and the high-level API, which cost 0.3 s and nothing here uses. So
    the package stands in sys.modules as an empty module with the right search path while its submodule is imported,
    and is taken out again: a later `import llama_cpp` by someone else gets the whole package, with this submodule.
    """
    package = "llama_cpp"
    if package in sys.modules:
        return importlib.import_module(f"{package}.{name}")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"No module named {package!r}")
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(f"{package}.{name}")
    finally:
        del sys.modules[package]


@functools.cache
def llama() -> ModuleType:
    """The ctypes bindings of llama.cpp (`llama_cpp.llama_cpp`).

    Raises NativeError when llama-cpp-python is missing or its shared library does not load on this machine.
    """
    try:
        bindings = _bindings("llama_cpp")
    except ImportError as error:
        raise NativeError(
            f"llama-cpp-python cannot be imported ({error})", "install it with `pip install llama-cpp-python`"
        ) from error
    except (OSError, RuntimeError) as error:
        raise NativeError(
            f"the llama.cpp library does not load ({error})",
            "rebuild it on this machine with `pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python`",
        ) from error
    log.capture(bindings)
    return bindings


@functools.cache
def ggml() -> ctypes.CDLL:
    """libggml, through which the symbols of libggml-base resolve as well."""
    llama()
    library: ctypes.CDLL = _bindings("_ggml").libggml
    return library


@functools.cache
def ready() -> ModuleType:
    """The bindings with every backend registered: what models and devices need, row kernels do not.

    A build with dynamically loaded backends (GGML_BACKEND_DL) registers none by itself, so they are loaded from the
    package's own folder; any other build must not look there, it would register its backends twice.
    """
    bindings = llama()
    registered = function("ggml_backend_reg_count", ctypes.c_size_t)
    if registered() == 0:
        folder = Path(str(bindings.__file__)).parent / "lib"
        function("ggml_backend_load_all_from_path", None, ctypes.c_char_p)(os.fsencode(folder))
        if registered() == 0:
            raise NativeError(
                f"no ggml backend could be loaded from {folder}",
                "reinstall llama-cpp-python: its lib folder is incomplete",
            )
    bindings.llama_backend_init()
    return bindings


def function(name: str, result: object, *arguments: object) -> ctypes._NamedFuncPointer:
    """The function `name` of ggml with its C types. Raises NativeError when the installed library lacks it."""
    try:
        pointer = ggml()[name]  # indexing makes a new object, so the types stay ours alone
    except AttributeError as error:
        raise NativeError(
            f"the installed ggml has no function {name}", "upgrade it with `pip install -U llama-cpp-python`"
        ) from error
    pointer.restype = result  # type: ignore[assignment]
    pointer.argtypes = arguments  # type: ignore[assignment]
    return pointer


def devices() -> tuple[Device, ...]:
    """Every device that ggml sees now, in its own order: accelerators before the CPU. Memory is read anew each time."""
    ready()
    count = function("ggml_backend_dev_count", ctypes.c_size_t)
    get = function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    return tuple(_device(get(index)) for index in range(count()))


def _device(handle: int) -> Device:
    registry = function("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)(handle)
    registry_name = function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)(registry).decode().lower()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    function("ggml_backend_dev_memory", None, *[ctypes.c_void_p] * 3)(handle, ctypes.byref(free), ctypes.byref(total))
    return Device(
        kind=_KINDS.get(registry_name, registry_name),
        name=function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)(handle).decode(),
        description=function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)(handle).decode(),
        memory_total=total.value,
        memory_free=free.value,
        type=_DEVICE_TYPES.get(function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)(handle), "unknown"),
    )


def device_handle(name: str) -> int:
    """ggml's handle of the device called `name`. Raises NativeError when there is none."""
    ready()
    handle: int | None = function("ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)(name.encode())
    if handle is None:
        raise NativeError(f"ggml has no device {name}")
    return handle


def compiled_backends() -> tuple[str, ...]:
    """The words of the backends compiled in, with or without a device present: ("cuda", "cpu")."""
    ready()
    count = function("ggml_backend_reg_count", ctypes.c_size_t)
    get = function("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    names = (name(get(index)).decode().lower() for index in range(count()))
    return tuple(_KINDS.get(each, each) for each in names)


def versions() -> LibraryVersions:
    """Versions and build flags of the installed libraries."""
    bindings = ready()
    return LibraryVersions(
        llama_cpp_python=package_version(),
        llama_cpp=bindings.llama_version().decode() if hasattr(bindings, "llama_version") else None,
        ggml=function("ggml_version", ctypes.c_char_p)().decode(),
        ggml_commit=function("ggml_commit", ctypes.c_char_p)().decode(),
        system_info=bindings.llama_print_system_info().decode(),
    )


def package_version() -> str:
    """The version of llama-cpp-python, without loading it; `unknown` for one that was not installed as a package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llama_cpp_python")
    except PackageNotFoundError:
        return "unknown"
