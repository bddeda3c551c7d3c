"""Lets Ctrl-C and SIGTERM end a long native call, then handles them as they would have been handled.

Python runs a signal's handler between bytecodes only, and loading or decoding may take a minute on a board. llama.cpp
calls back into Python meanwhile, which is such bytecode; but an exception raised inside a ctypes callback is lost. So
during the call the handler only takes a note, which the callback hands to llama.cpp as the wish to stop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruptible:
    """A `with` block in which SIGINT and SIGTERM set `requested`; the usual handler of the first runs at its end.

    A signal without a Python handler (ignored, or left to the system) keeps its effect, and outside the main thread
    nothing changes: there is no handler to take the place of.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._usual: dict[int, Callable[[int, FrameType | None], Any]] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came that asks to stop."""
        return self._came is not None

    def __enter__(self) -> Interruptible:
        self._came = None
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                usual = signal.getsignal(number)
                if callable(usual):
                    self._usual[number] = usual
                    signal.signal(number, self._take_note)
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        usual, self._usual = self._usual, {}
        for number, handler in usual.items():
            signal.signal(number, handler)
        if self._came is not None:
            usual[self._came](self._came, None)

    def _take_note(self, number: int, _frame: FrameType | None) -> None:
        if self._came is None:
            self._came = number
