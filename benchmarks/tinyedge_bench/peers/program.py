"""Running a peer's program: bounded in time and in what it prints, ended with everything it started."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from tinyedge.errors import PeerError
from tinyedge_bench.peers.peer import quoted

MOST_OUTPUT = 1 << 20  # a peer answers in kilobytes
_KEPT_ERRORS = 8 << 10
_BY_HAND = "run it by hand to see why, or leave --peer out"


def run_program(name: str, command: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None) -> str:
    """What `command`, the program of peer `name`, wrote to stdout. No shell; its stdin is empty.

    Raises PeerError when it cannot be started, fails, writes more than MOST_OUTPUT bytes or takes longer than `timeout_s`.
    It and the processes it started are killed then, and on Ctrl-C, which at the terminal is for the caller alone.
    """
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    surroundings = {**os.environ, **(environment or {})}
    try:
        process = subprocess.Popen(command, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True, env=surroundings)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PeerError(f"{name} cannot be started ({quoted(reason)})") from error
    try:
        output, errors = _Tail(process.stdout, MOST_OUTPUT, process), _Tail(process.stderr, _KEPT_ERRORS)
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{name} did not finish within {timeout_s:.0f} s", _BY_HAND) from None
    finally:
        _end(process)
    text = output.text()
    if output.overflowed:
        raise PeerError(f"{name} printed more than {MOST_OUTPUT >> 20} MiB where a short answer was expected", _BY_HAND)
    if status:
        raise PeerError(f"{name} {_how_it_ended(status)}{_last_words(errors.text())}", _BY_HAND)
    return text


class _Tail:
    """Reads a pipe to its end in a thread and keeps the last `limit` bytes; ends `process` at once if there are more."""

    def __init__(self, stream: IO[bytes] | None, limit: int, process: subprocess.Popen[bytes] | None = None) -> None:
        assert stream is not None
        self._stream = stream
        self._limit = limit
        self._process = process
        self._kept = b""
        self.overflowed = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while data := os.read(self._stream.fileno(), 1 << 16):
                self._kept += data
                if len(self._kept) > self._limit:
                    self._kept = self._kept[-self._limit :]
                    if self._process is not None:
                        self.overflowed = True
                        self._process.kill()
                        return

    def text(self) -> str:
        """What was kept; a process that left the group and holds the pipe open is not waited for."""
        self._thread.join(1.0)
        return self._kept.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and its group, which may outlive it."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _how_it_ended(status: int) -> str:
    if status > 0:
        return f"failed with exit code {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _last_words(errors: str) -> str:
    words = quoted(errors)
    return f" and said: {words}" if words else ""
