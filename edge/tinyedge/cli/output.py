"""Number formats, progress bars and the human / --json switch: everything the commands print goes through here.

Data goes to stdout, everything else (status lines, bars, errors) to stderr. rich is imported only where a bar is drawn.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from time import monotonic
from typing import Any, TextIO

from tinyedge.errors import OutputError

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_COUNT_UNITS = ("", "K", "M", "B", "T")

# What may not be printable, in pieces, so that a text of megabytes is never taken apart as a whole.
_UNUSUAL = re.compile(r"[^ -~\n]{1,4096}")
MAX_TOKENS = 2**31 - 1  # what llama.cpp can count
_REMEDY = "send it to a file on a disk with room, or to a program that reads it"

Progress = Callable[[int, int], None]


def format_bytes(count: int) -> str:
    """`637 MiB`, `1.1 GiB`, `12 KiB`: binary units, two digits below ten."""
    value, unit = _scaled(count, 1024, 1023.5, _BINARY_UNITS)
    if unit == "B":
        return f"{count} B"
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def format_count(count: int) -> str:
    """`1.1 B`, `5.2 M`, `256`: a number of parameters or tokens in decimal steps."""
    value, unit = _scaled(count, 1000, 999.5, _COUNT_UNITS)
    if not unit:
        return str(count)
    return f"{value:.2f} {unit}" if value < 9.995 else f"{value:.1f} {unit}"


def _scaled(count: int, step: int, limit: float, units: tuple[str, ...]) -> tuple[float, str]:
    """`count` in the first unit in which it is below `limit`."""
    value, power = float(count), 0
    while value >= limit and power < len(units) - 1:
        value, power = value / step, power + 1
    return value, units[power]


def format_seconds(seconds: float) -> str:
    """`8.2 s`, `1 min 05 s`, `340 ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def printable(text: str, limit: int = 200) -> str:
    """Text from a stranger's file, safe for a terminal: control characters escaped, long text cut."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout, the whole of it; what could drive a terminal is escaped, other text stays readable."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    write_text(_UNUSUAL.sub(_escaped, text))
    write_text("\n", now=True)


def _escaped(match: re.Match[str]) -> str:
    text = match[0]
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def print_line(text: str = "") -> None:
    """A line of data on stdout."""
    write_text(text + "\n")


def write_text(text: str, *, now: bool = False) -> None:
    """Text on stdout, sent on its way if `now`.

    Raises OutputError when it cannot be written, BrokenPipeError when its reader is gone.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed", _REMEDY)
    with _output_errors():
        sys.stdout.write(text)
        if now:
            sys.stdout.flush()


def flush() -> None:
    """Sends what is on its way to stdout. Raises as `write_text` does."""
    if sys.stdout is not None:
        with _output_errors():
            sys.stdout.flush()


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up(sys.stdout)
        raise OutputError(f"standard output cannot be written ({error.strerror})", _REMEDY) from error


def give_up(stream: TextIO | None) -> None:
    """Sends `stream` to nowhere from now on, so that what it still holds does not fail again when Python ends."""
    try:
        descriptor = stream.fileno() if stream is not None else -1
    except io.UnsupportedOperation:  # text in memory, as in a notebook, holds nothing back
        descriptor = -1
    if descriptor >= 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def status(text: str, *, end: str = "\n") -> None:
    """A line about what is going on, on stderr; the work goes on where nobody can be told."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text + end)
        sys.stderr.flush()
    except OSError:
        give_up(sys.stderr)


def prepare_streams() -> None:
    """Makes stdout and stderr take any text, and a stream that was closed a file that was opened since not its heir."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def on_terminal() -> bool:
    """Whether stderr is a terminal, where a bar can be drawn."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def byte_progress(label: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """A bar of bytes with speed and time left on stderr; None when stderr is not a terminal or `quiet`.

    Yields a function that takes the bytes done since its last call and the total.
    """
    if quiet or not on_terminal():
        yield None
        return
    with counting_bar("bytes") as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)


@contextmanager
def late_progress(label: str, unit: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """A bar that appears once a second has passed and goes when all is done; None as for `byte_progress`.

    `unit` is bytes or tokens. Yields a function that takes how many are done by now and the total.
    """
    if quiet or not on_terminal():
        yield None
        return
    with ExitStack() as shown:
        begun = monotonic()
        bar: Any = None
        last = -1

        def progress(done: int, total: int) -> None:
            nonlocal bar, last
            if done >= total:
                shown.close()
                return
            if bar is None and monotonic() - begun > 1.0:
                bar = shown.enter_context(counting_bar(unit))
                bar.add_task(label, total=total)
            if bar is not None and done != last:
                bar.update(bar.task_ids[0], completed=done)
                last = done

        yield progress


@contextmanager
def counting_bar(unit: str) -> Iterator[Any]:
    """rich's bar on stderr that counts bytes or what else `unit` says, to which a task can be added; it goes in the end."""
    from rich import progress as rich
    from rich.console import Console

    amount: tuple[Any, ...] = (rich.DownloadColumn(binary_units=True), rich.TransferSpeedColumn())
    if unit != "bytes":
        amount = (rich.MofNCompleteColumn(), rich.TextColumn(unit))
    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        *amount,
        rich.TimeRemainingColumn(compact=True),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield bar
