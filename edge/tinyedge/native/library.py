"""Finds, loads and describes the native libraries that llama-cpp-python installed."""

from __future__ import annotations

import ctypes
import functools
from types import ModuleType

from tinyedge.errors import NativeError


@functools.cache
def llama() -> ModuleType:
    """The ctypes bindings of llama.cpp (`llama_cpp.llama_cpp`).

    Raises NativeError when llama-cpp-python is missing or its shared library does not load on this machine.
    """
    try:
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise NativeError(
            f"llama-cpp-python cannot be imported ({error})", "install it with `pip install llama-cpp-python`"
        ) from error
    except (OSError, RuntimeError) as error:
        raise NativeError(
            f"the llama.cpp library does not load ({error})",
            "rebuild it on this machine with `pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python`",
        ) from error
    return llama_cpp


@functools.cache
def ggml() -> ctypes.CDLL:
    """libggml, through which the symbols of libggml-base resolve as well."""
    llama()
    from llama_cpp import _ggml

    library: ctypes.CDLL = _ggml.libggml
    return library
