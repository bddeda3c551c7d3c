"""Reads messages from a person at a terminal: line editing, history, messages of several lines.

Python's readline module does the editing (GNU readline, or libedit on macOS): it is there, and imports in a millisecond or
two where prompt_toolkit takes a Pi a second. A paste of several lines is one message where the terminal marks pastes.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tinyedge.cli.output import status
from tinyedge.errors import PromptError

HISTORY_ENTRIES = 1000
_MAX_HISTORY_BYTES = 4 << 20
_BLOCK = '"""'
_WAKE_S = 0.5
_PROMPT, _MORE = "> ", "... "
_SETTINGS = ("set enable-bracketed-paste on", "set input-meta on", "set output-meta on", "set convert-meta off")


class LineEditor:
    """Messages from stdin, a terminal. `history` is the file where they are kept for the next time, None for nowhere.

    A line that ends with a backslash goes on in the next one; a block between triple quotes may hold anything.
    """

    def __init__(self, history: Path | None) -> None:
        self._history = history
        self._readline = _readline()
        signal.signal(signal.SIGALRM, lambda _number, _frame: None)
        if self._readline is not None:
            self._readline.set_auto_history(False)
            for entry in _read_history(history):
                self._add(entry)

    def message(self) -> str:
        """The next message. Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C, PromptError for what is not UTF-8."""
        text = self._line(_PROMPT)
        if text.lstrip().startswith(_BLOCK):
            text = self._block(text.lstrip()[len(_BLOCK) :])
        else:
            while text.endswith("\\"):
                following = self._following()
                text = text[:-1] + ("" if following is None else f"\n{following}")
        if self._readline is not None and text.strip():
            self._remember(text)
        return text

    def close(self) -> None:
        """Keeps the history; one that cannot be written is not worth a word."""
        if self._readline is None or self._history is None:
            return
        from tinyedge.cache import write_atomically

        count = self._readline.get_current_history_length()
        first = max(1, count - HISTORY_ENTRIES + 1)
        entries = [self._readline.get_history_item(index) or "" for index in range(first, count + 1)]
        with contextlib.suppress(OSError):
            write_atomically(self._history, "".join(json.dumps(entry) + "\n" for entry in entries).encode())

    @property
    def unfinished(self) -> str:
        """What stood on the line that Ctrl-C took away, as far as it is known."""
        return "" if self._readline is None else str(self._readline.get_line_buffer())

    def _remember(self, text: str) -> None:
        assert self._readline is not None
        count = self._readline.get_current_history_length()
        if count == 0 or self._readline.get_history_item(count) != text:
            self._add(text)

    def _add(self, entry: str) -> None:
        assert self._readline is not None
        with contextlib.suppress(UnicodeEncodeError):  # a locale that cannot write it
            self._readline.add_history(entry)

    def _block(self, line: str) -> str:
        """The lines up to the closing quotes, or to Ctrl-D."""
        lines = []
        following: str | None = line
        while following is not None:
            if following.rstrip().endswith(_BLOCK):
                lines.append(following.rstrip().removesuffix(_BLOCK))
                break
            lines.append(following)
            following = self._following()
        return "\n".join(lines).strip("\n")

    def _following(self) -> str | None:
        try:
            return self._line(_MORE)
        except EOFError:
            return None

    def _line(self, prompt: str) -> str:
        with _woken():
            return self._read(prompt)

    def _read(self, prompt: str) -> str:
        if self._readline is not None:
            try:
                return input(prompt)
            except UnicodeDecodeError as error:
                raise _not_utf8("the message", error) from error
        status(prompt, end="")
        raw = sys.stdin.buffer.readline()
        if not raw:
            raise EOFError
        return decoded(raw, "the message")


@contextlib.contextmanager
def _woken() -> Iterator[None]:
    """Interrupts the wait for a key twice a second.

    Python looks for signals when one ends that wait; one that came a moment before it began would have to wait for a key.
    """
    signal.setitimer(signal.ITIMER_REAL, _WAKE_S, _WAKE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def decoded(raw: bytes, what: str) -> str:
    """The text of a line without its end. Raises PromptError where it is not UTF-8."""
    try:
        return raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(what, error) from error


def _not_utf8(what: str, error: UnicodeDecodeError) -> PromptError:
    return PromptError(f"{what} is not UTF-8 at byte {error.start}", "type it again, or convert it to UTF-8")


def _readline() -> ModuleType | None:
    """The readline module, ready to use; None where stdin and stdout are not both the terminal or Python has none."""
    if not (sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()):
        return None
    try:
        import readline
    except ImportError:
        return None
    if "libedit" not in (readline.__doc__ or ""):
        for setting in _SETTINGS:
            readline.parse_and_bind(setting)
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # type: ignore[union-attr]
    return readline


def _read_history(path: Path | None) -> list[str]:
    """The entries of the history file, the latest last; nothing where it cannot be read."""
    try:
        if path is None or not path.is_file() or path.stat().st_size > _MAX_HISTORY_BYTES:
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines[-HISTORY_ENTRIES:]]
    except (OSError, ValueError, RecursionError):
        return []
    return [entry for entry in entries if isinstance(entry, str) and "\0" not in entry]
