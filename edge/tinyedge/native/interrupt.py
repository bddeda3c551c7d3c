"""Lets Ctrl-C end a long native call, then handles it as it would have been handled.

Python runs a signal's handler between bytecodes only, and loading or decoding may take a minute on a board. llama.cpp
calls back into Python meanwhile, which is such bytecode; but an exception raised inside a ctypes callback is lost. So
during the call the handler only takes a note, which the callback hands to llama.cpp as the wish to stop.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interruptible:
    """A `with` block in which SIGINT sets `requested`; the usual handler runs at its end.

    Outside the main thread, or where SIGINT is ignored, it does nothing: there is no handler to take the place of.
    """

    def __init__(self) -> None:
        self.requested = False
        self._usual: signal._HANDLER = None

    def __enter__(self) -> Interruptible:
        self.requested = False
        usual = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(usual):
            self._usual = usual
            signal.signal(signal.SIGINT, self._take_note)
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        usual, self._usual = self._usual, None
        if callable(usual):
            signal.signal(signal.SIGINT, usual)
            if self.requested:
                usual(signal.SIGINT, None)

    def _take_note(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
