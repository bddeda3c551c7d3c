"""Where llama.cpp's and ggml's log lines go: to stderr when asked, otherwise into a short memory for error messages."""

from __future__ import annotations

import atexit
import ctypes
import sys
from collections import deque
from types import ModuleType
from typing import Any

# ggml_log_level in ggml.h.
_WARN, _ERROR, _CONTINUE = 3, 4, 5


class _Log:
    """The recent warnings and errors, and whether every line is shown."""

    def __init__(self) -> None:
        self.verbose = False
        self.recent: deque[tuple[int, str]] = deque(maxlen=32)

    def take(self, level: int, text: bytes | None, _user_data: object) -> None:
        if self.verbose:
            sys.stderr.write((text or b"").decode("utf-8", "replace"))
        if text and level == _CONTINUE and self.recent:
            kept_level, kept = self.recent[-1]
            self.recent[-1] = (kept_level, kept + text.decode("utf-8", "replace"))
        elif text and level in (_WARN, _ERROR):
            self.recent.append((level, text.decode("utf-8", "replace")))


_log = _Log()
_callbacks: list[Any] = []  # a ctypes callback must outlive its registration


def capture(bindings: ModuleType) -> None:
    """Sends the library's log lines here from now on; `bindings` are those of `library.llama()`."""
    callback = bindings.llama_log_callback(_log.take)
    _callbacks.append(callback)
    bindings.llama_log_set(callback, None)
    atexit.register(_release, bindings)


def _release(bindings: ModuleType) -> None:
    """Points the log at a C function that does nothing: a GPU backend may still log when Python is gone already."""
    nothing = ctypes.cast(bindings.llama_supports_mmap, bindings.llama_log_callback)
    _callbacks.append(nothing)
    bindings.llama_log_set(nothing, None)


def set_verbose(verbose: bool) -> None:
    """Shows llama.cpp's own lines on stderr, or keeps them to itself."""
    _log.verbose = verbose


def forget() -> None:
    """Empties the memory, so that `cause` speaks of what comes after."""
    _log.recent.clear()


def cause() -> str | None:
    """The first error line since `forget`, or else the last warning, without the C function's name; None if there is none.

    The first, because what follows it says only that the caller failed too.
    """
    errors = [text for level, text in _log.recent if level == _ERROR and text.strip()]
    warnings = [text for level, text in _log.recent if level == _WARN and text.strip()]
    line = (errors[:1] or warnings[-1:] or [""])[0].strip()
    return line.partition(": ")[2] or line or None
