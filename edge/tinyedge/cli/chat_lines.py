"""A chat through a pipe: every line of stdin is a message."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tinyedge.cli.output import write_text
from tinyedge.cli.repl import decoded
from tinyedge.cli.signals import EXIT_INTERRUPTED
from tinyedge.cli.text import print_json_line, say_error
from tinyedge.errors import OutputError, PromptError, TinyEdgeError

if TYPE_CHECKING:
    from tinyedge.cli.dialogue import Dialogue

_MAX_LINE_BYTES = 16 << 20  # more than any context holds


def answer_lines(dialogue: Dialogue, *, json: bool) -> int:
    """Answers the lines of stdin, each a message; the exit code of the first that could not be answered.

    With `json` there is an object on stdout for every message, and a line may be an object itself (`message_in`).
    """
    code, separator = 0, ""
    for number, raw in enumerate(_lines(), 1):
        if not raw.strip():
            continue
        try:
            message = decoded(raw, f"line {number}")
            if json:
                message = message_in(message, f"line {number}")
            else:
                write_text(separator)
            answer = dialogue.ask(message)
        except OutputError:
            raise
        except TinyEdgeError as error:
            say_error(error)
            code, separator = code or error.exit_code, ""
            if json:
                print_json_line({"error": str(error), "exit_code": error.exit_code, **dialogue.setting()})
            continue
        separator = "\n"
        if json:
            print_json_line(dialogue.as_object(answer))
        if answer.speed.stop_reason == "interrupted":
            return EXIT_INTERRUPTED
    return code


def message_in(line: str, name: str) -> str:
    """The message in a line: the content of a JSON object that has one, the line itself where it is none.

    Raises PromptError, with `name` for the line, for a content that is no text and for a message that is not the user's.
    """
    if not line.lstrip().startswith("{"):
        return line
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(value, dict) or "content" not in value:
        return line
    content = value["content"]
    if not isinstance(content, str) or value.get("role", "user") != "user":
        raise PromptError(f"{name} is an object, but not a message of the user", 'write {"content": "TEXT"}')
    return content


def _lines() -> Iterator[bytes]:
    """The lines of stdin, the end of one beyond all measure left out."""
    if sys.stdin is None:
        return
    while line := sys.stdin.buffer.readline(_MAX_LINE_BYTES):
        rest = line
        while len(rest) == _MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = sys.stdin.buffer.readline(_MAX_LINE_BYTES)
        yield line
