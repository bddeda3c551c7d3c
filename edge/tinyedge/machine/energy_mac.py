"""The power of a Mac's processor, GPU and neural engine as Apple's `powermetrics` prints it; it needs root."""

from __future__ import annotations

import re
import subprocess
import threading
from time import monotonic

# Two samples a second, written line by line, without the averages that it prints in between otherwise.
_OPTIONS = ("--samplers", "cpu_power", "--sample-rate", "500", "--buffer-size", "1", "--poweravg", "0")
_POWERMETRICS = ("powermetrics", *_OPTIONS)
_LINE = re.compile(r"(?:Combined|Package) Power\b[^:]*: *([0-9]+(?:\.[0-9]+)?) *(m?W)")
_REASON = "powermetrics needs root: run `sudo -v` before, which lets it start without a password for some minutes"


class PowerMetrics:
    """`powermetrics` at two samples a second; each is the mean of the time since the one before."""

    name = "powermetrics (processor, GPU and neural engine)"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._watts: list[float] = []
        self._begun = self._end = monotonic()
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read, name="tinyedge-powermetrics", daemon=True)
        self._reader.start()

    @classmethod
    def open(cls) -> tuple[PowerMetrics | None, str]:
        """A running `powermetrics`; None and the reason where sudo would ask for a password or there is none."""
        try:
            allowed = subprocess.run(
                ("sudo", "-n", "-l", *_POWERMETRICS), stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False
            )
            if allowed.returncode != 0:
                return None, _REASON
            process = subprocess.Popen(
                ("sudo", "-n", *_POWERMETRICS),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except (OSError, subprocess.TimeoutExpired):
            return None, _REASON
        return cls(process), ""

    def look(self) -> None:
        """Notes the time; the readings come on their own."""
        self._end = monotonic()

    def joules(self) -> float | None:
        """The mean power over the time between the first look and the last."""
        with self._lock:
            return sum(self._watts) / len(self._watts) * (self._end - self._begun) if self._watts else None

    @property
    def complaint(self) -> str:
        """Why there are no readings, where that is known: sudo may list what it then does not run without a password."""
        return _REASON if self._process.poll() else ""

    def close(self) -> None:
        """Ends the program. It runs as root and takes no signal from us: it ends when nobody reads its next sample."""
        self._ended.set()
        self._reader.join(timeout=2)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if self._ended.is_set():
                    return
                if (match := _LINE.search(line)) is not None:
                    with self._lock:
                        self._watts.append(float(match[1]) * (1e-3 if match[2] == "mW" else 1.0))
