"""Where llama.cpp's and ggml's log lines go: to stderr when asked, otherwise into a short memory for error messages.

No line of Python runs when llama.cpp logs. A signal's handler runs at the next bytecode, and what it raises inside a
ctypes callback is lost: a Ctrl-C that fell into a log line would have no effect.
"""

from __future__ import annotations

import atexit
import ctypes
from types import ModuleType
from typing import Any

_ERROR = 4  # ggml_log_level in ggml.h

_first: dict[int, bytes | None] = {}  # the first line of each level since `forget`
# `setdefault` is C. It takes the level and the text; the third argument, the user's data, it need not see: in every C
# calling convention that llama.cpp is built for, it is the caller who puts arguments away.
_remember = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)(_first.setdefault)
_callbacks: list[Any] = []  # a ctypes callback must outlive its registration
_captured: list[ModuleType] = []
_verbose = False


def capture(bindings: ModuleType) -> None:
    """Takes charge of the library's log lines from now on; `bindings` are those of `library.llama()`."""
    _captured.append(bindings)
    _direct()
    atexit.register(_release)


def set_verbose(verbose: bool) -> None:
    """Shows llama.cpp's own lines on stderr, or keeps them to itself."""
    global _verbose
    _verbose = verbose
    _direct()


def _direct() -> None:
    """Sends the lines to llama.cpp's own printer or into the memory."""
    for bindings in _captured:
        prototype = bindings.llama_log_callback
        _set(bindings, prototype() if _verbose else ctypes.cast(_remember, prototype))


def _release() -> None:
    """Points the log at a C function that does nothing: a GPU backend may still log when Python is gone already."""
    for bindings in _captured:
        _set(bindings, ctypes.cast(bindings.llama_supports_mmap, bindings.llama_log_callback))


def _set(bindings: ModuleType, callback: Any) -> None:
    _callbacks.append(callback)
    bindings.llama_log_set(callback, None)


def forget() -> None:
    """Empties the memory, so that `cause` speaks of what comes after."""
    _first.clear()


def cause() -> str | None:
    """The first error line since `forget`, without the C function's name; None if there is none, or all were shown.

    The first, because what follows it says only that the caller failed too.
    """
    line = (_first.get(_ERROR) or b"").decode("utf-8", "replace").strip()
    return line.partition(": ")[2] or line or None
