"""Number formats, progress bars and the human / --json switch: everything the commands print goes through here.

Data goes to stdout, everything else (status lines, bars, errors) to stderr. rich is imported only where a bar is drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_COUNT_UNITS = ("", "K", "M", "B", "T")

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
    text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_line(text: str = "") -> None:
    """A line of data on stdout."""
    sys.stdout.write(text + "\n")


def status(text: str) -> None:
    """A line about what is going on, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def byte_progress(label: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """A bar of bytes with speed and time left on stderr; None when stderr is not a terminal or `quiet`.

    Yields a function that takes the bytes done since its last call and the total.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(compact=True),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)
