"""A command in a pseudo-terminal, driven as a person would: keys in, what stands on the screen out."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

COMMAND = Path(sys.executable).with_name("tinyedge")
CTRL_D = "\x04"
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def _as_in_a_shell() -> None:
    """The terminal controls the process, and a hang-up ends it, also where the tests run under nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """`tinyedge` with these arguments, stdin, stdout and stderr a terminal of its own."""

    def __init__(self, *arguments: str | Path, cache: Path, stdout: Path | None = None) -> None:
        self._primary, secondary = pty.openpty()
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "500"}
        output = secondary if stdout is None else os.open(stdout, os.O_WRONLY | os.O_CREAT)
        self.process = subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            stdin=secondary,
            stdout=output,
            stderr=secondary,
            env=environment,
            start_new_session=True,
            preexec_fn=_as_in_a_shell,
        )
        os.close(secondary)
        if stdout is not None:
            os.close(output)
        self._unread = ""
        self._raw = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """Takes the terminal away."""
        if self._primary >= 0:
            os.close(self._primary)
            self._primary = -1

    def send(self, keys: str | bytes) -> None:
        os.write(self._primary, keys if isinstance(keys, bytes) else keys.encode())

    def say(self, line: str) -> None:
        """Types a line once there is a prompt."""
        self.expect(r"> $")
        self.send(line + "\r")

    def interrupt(self) -> None:
        """Presses Ctrl-C, and Enter after it: what is written at the moment of Ctrl-C, the terminal throws away."""
        time.sleep(0.3)
        self.send("\x03")
        time.sleep(0.3)
        self.send("\r")

    def expect(self, pattern: str, seconds: float = 60) -> str:
        """What has come on the screen since the last call, up to and with `pattern`, which must come."""
        end = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self._unread)
            if match:
                seen, self._unread = self._unread[: match.end()], self._unread[match.end() :]
                return seen
            if time.monotonic() > end or not self._read(end - time.monotonic()):
                raise AssertionError(f"{pattern!r} did not come; the screen shows {self._unread[-1000:]!r}")

    def leave(self, seconds: float = 60) -> int:
        """Waits for the end; the exit code."""
        end = time.monotonic() + seconds
        while self._read(max(0.0, end - time.monotonic())):
            pass
        return self.process.wait(max(1.0, end - time.monotonic()))

    @property
    def rest(self) -> str:
        """What has come and was not expected."""
        return self._unread

    def _read(self, seconds: float) -> bool:
        """Takes in what comes; False when nothing came in time or the other side is closed."""
        if not select.select([self._primary], [], [], max(0.0, seconds))[0]:
            return False
        try:
            part = os.read(self._primary, 65536)
        except OSError:  # Linux ends a closed terminal so
            return False
        self._raw += self._decoder.decode(part)
        text = _ESCAPES.sub("", self._raw).replace("\r\n", "\n").replace("\r", "")
        complete = text.find("\x1b")  # the beginning of an escape sequence waits for its end
        complete = len(text) if complete < 0 else complete
        self._unread += text[:complete]
        self._raw = text[complete:]
        return bool(part)
