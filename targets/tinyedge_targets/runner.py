"""Runs the programs of a build, with one log that is kept and named when something fails."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil

from tinyedge.errors import BuildError

_ERROR_LINES = 8


class Runner:
    """Runs the steps of one build, their output in one log; a step that is interrupted is stopped with all its children."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        # Flags meant for the machine's own compiler must not reach another; TERM=dumb keeps colours out of the log.
        ours = {name: value for name, value in os.environ.items() if name not in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")}
        self._environment = ours | {"TERM": "dumb", "NINJA_STATUS": "[%f/%t] "} | environment
        log.write_bytes(b"")

    def __call__(self, command: list[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Raises BuildError when the command fails; `progress` is told ninja's counts."""
        with self._log.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    if progress and (counts := re.match(r"\[(\d+)/(\d+)\]", line)):
                        progress(int(counts[1]), int(counts[2]))
                code = process.wait()
            except BaseException:
                _stop(process)
                raise
        if code:
            program = Path(command[0]).name
            raise BuildError(f"the build failed in {program}: {self._last_lines()}", f"read the log {self._log}")

    def _last_lines(self) -> str:
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if re.search(r"\b(error|Error|No space left|FAILED)\b", line)]
        return " | ".join((telling or lines)[-_ERROR_LINES:])


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends a program and all that it started: ninja puts each compiler into a process group of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        parent.suspend()  # so that it starts no more of them
        for each in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()
