"""The other end of `template_worker`: starts the process that renders a chat template, asks it, and ends it in time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

from tinyedge.errors import TemplateError

_WORKER = Path(__file__).with_name("template_worker.py")
_LOOK_SECONDS = 0.1  # a template that takes longer than this is watched
_READ_BYTES = 1 << 20
_MAX_REPLY_BYTES = 200 << 20  # the longest rendering, six bytes to a character


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a template may take: `seconds` of processor time for a rendering, `memory_bytes` of memory with Python and jinja2.

    A published template takes a few milliseconds and 30 MiB, most of them for Python.
    """

    seconds: int = 5
    memory_bytes: int = 256 << 20

    @property
    def address_space_bytes(self) -> int:
        """What the system grants, which also counts what is mapped and never touched."""
        return 2 * self.memory_bytes

    @property
    def patience_s(self) -> float:
        """Wall-clock time after which a process is given up that does not even use its processor time."""
        return 12.0 * self.seconds


class TemplateProcess:
    """A process that renders one template. It starts with `start` or at the first `render`, and again after its end."""

    def __init__(self, source: str, variables: dict[str, str], limits: Limits) -> None:
        self._limits = limits
        self._opening = {
            "source": source,
            "variables": variables,
            "seconds": limits.seconds,
            "address_space_bytes": limits.address_space_bytes,
            "now": datetime.now().isoformat(),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._lock = threading.RLock()

    def start(self) -> None:
        """Starts the process, which imports jinja2 while the caller does something else. Raises TemplateError."""
        with self._lock:
            if self._process is None:
                self._start()

    def _start(self) -> None:
        command = [sys.executable, "-I", "-S", str(_WORKER), json.dumps([path for path in sys.path if path])]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            # A session of its own: Ctrl-C at the terminal is for the caller alone.
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, bufsize=0, start_new_session=True)
        except OSError as error:
            raise TemplateError(f"cannot be rendered: no process for it could be started ({error.strerror})") from error
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)
        self._send(process, self._opening)

    def close(self) -> None:
        """Ends the process. Closing twice is harmless, and a later `render` starts another."""
        with self._lock:
            self._process = None
            if self._finalizer is not None:
                self._finalizer()

    def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        """What the template makes of `messages`.

        Raises TemplateError, whose problem begins with a verb that the caller puts its own subject before.
        """
        with self._lock:
            try:
                return self._ask({"messages": list(messages), "add_generation_prompt": add_generation_prompt})
            except TemplateRefusal:
                raise
            except BaseException:
                self.close()  # whatever it still answers would be taken for the next reply
                raise

    def _ask(self, request: dict[str, Any]) -> str:
        self.start()
        process = self._process
        assert process is not None
        self._send(process, request)
        line = self._reply(process)
        if not line.endswith(b"\n"):
            raise TemplateError(_cause_of_end(process, self._limits))
        reply = json.loads(line)
        if "problem" in reply:
            raise TemplateRefusal(reply["problem"])
        text: str = reply["text"]
        return text

    def _send(self, process: subprocess.Popen[bytes], value: dict[str, Any]) -> None:
        assert process.stdin is not None
        rest = memoryview(json.dumps(value).encode("ascii") + b"\n")
        try:
            while rest:
                rest = rest[process.stdin.write(rest) or 0 :]
        except BrokenPipeError:
            return  # it has ended; the missing reply tells how

    def _reply(self, process: subprocess.Popen[bytes]) -> bytes:
        """A line, or what came of it before the process ended."""
        assert process.stdout is not None
        begun, size = monotonic(), 0
        parts: list[bytes] = []
        while not parts or not parts[-1].endswith(b"\n"):
            if not select.select([process.stdout], [], [], _LOOK_SECONDS)[0]:
                self._watch(process, monotonic() - begun)
                continue
            part = os.read(process.stdout.fileno(), _READ_BYTES)
            size += len(part)
            if size > _MAX_REPLY_BYTES:
                raise TemplateError("gives out too much text")
            if not part:
                break
            parts.append(part)
        return b"".join(parts)

    def _watch(self, process: subprocess.Popen[bytes], waited_s: float) -> None:
        """Raises TemplateError when the process holds too much memory (not every system keeps it from that) or hangs."""
        import psutil

        try:
            resident: int = psutil.Process(process.pid).memory_info().rss
        except psutil.Error:
            return
        if resident > self._limits.memory_bytes:
            raise TemplateError("takes too much memory")
        if waited_s > self._limits.patience_s:
            raise TemplateError(f"does not answer within {waited_s:.0f} seconds")


class TemplateRefusal(TemplateError):  # noqa: N818  (it is a TemplateError)
    """The template was rendered to its end or to an error of its own; the process is as good as before."""


def _cause_of_end(process: subprocess.Popen[bytes], limits: Limits) -> str:
    """Why there was no reply."""
    status = process.wait()
    if status == -signal.SIGXCPU:
        return f"takes more than {limits.seconds} seconds"
    if status > 0:
        return f"could not be rendered: the Python process for it ended with status {status}"
    return f"made the process that renders it end ({signal.Signals(-status).name if status else 'without a reply'})"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
