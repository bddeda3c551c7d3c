"""Text that a model wrote, on its way to stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tinyedge.cli.output import on_terminal, printable, status, write_text

if TYPE_CHECKING:
    from tinyedge.errors import TinyEdgeError

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def text_writer() -> Callable[[str], None]:
    """A function that puts text on stdout at once.

    A terminal gets no control characters but line ends and tabs: a model's text must not be able to reprogram it.
    """
    dropped = _CONTROLS if sys.stdout is not None and sys.stdout.isatty() else {}

    def write(text: str) -> None:
        write_text(text.translate(dropped) if dropped else text, now=True)

    return write


def print_json_line(value: dict[str, Any]) -> None:
    """One JSON object on a line of stdout, in ASCII."""
    write_text(json.dumps(value, allow_nan=False) + "\n", now=True)


def remark(text: str) -> None:
    """A status line of minor weight, dim on a terminal that has such a thing."""
    plain = not on_terminal() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"
    status(text if plain else f"\x1b[2m{text}\x1b[0m")


def say_error(error: TinyEdgeError) -> None:
    """One sentence on stderr about what could not be done, after which the work goes on."""
    status(f"error: {printable(str(error), 600)}")
