"""What Ctrl-C and SIGTERM do: end the process at once while nothing is half done, and raise where work must be taken back.

Imports little, so that the first lines of the command can use it.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_waiting: list[int] = []  # the signal that came during an import


def leave_at_once() -> None:
    """From here on a signal ends the process as it is: for the start, when it has only imported, and for the end."""
    _handle_with(_leave)
    if _waiting:
        _leave(_waiting[0], None)


def raise_errors() -> None:
    """From here on SIGINT raises KeyboardInterrupt and SIGTERM SystemExit, so that what was half done is taken back."""
    _handle_with(_raise)


def _handle_with(handler: signal._HANDLER) -> None:
    """Takes the signals over, unless someone ignores or handles them already."""
    for number, usual in _usual.items():
        if signal.getsignal(number) in (usual, _leave, _raise):
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    try:
        if number == signal.SIGINT:
            os.write(2, b"interrupted\n")
    finally:  # also when nobody can be told
        os._exit(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED)


def _raise(number: int, frame: FrameType | None) -> None:
    """Raises, but not within an import, whose own callbacks would swallow it: there it waits for the line after the import.

    It waits as a debugger does that is told to stop there; a timer would come a moment later, in the middle of something.
    """
    importer = _outermost_importer(frame)
    if importer is not None and not _waiting:
        _waiting.append(number)
        importer.f_trace = _after_import
        sys.settrace(lambda _frame, _event, _argument: None)  # frames are traced only while there is such a function
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(EXIT_TERMINATED)


def _after_import(_frame: FrameType, _event: str, _argument: Any) -> None:
    sys.settrace(None)
    if _waiting:
        _raise(_waiting.pop(), None)


def _outermost_importer(frame: FrameType | None) -> FrameType | None:
    """The frame that began what is being imported, None when nothing is."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            found = frame.f_back
        frame = frame.f_back
    return found
