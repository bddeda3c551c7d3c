"""The text that a perplexity is measured over: a file, or what came through a pipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import EvaluationError, PromptError
from tinyedge.native.model import Model
from tinyedge_quantize.strangers import read_beginning, without_half_character

_SPARE_BYTES = 1 << 16
_LONGER = "give a text of a few thousand words or more"
_CHECK_PATH = "check the path given with --text"
STANDARD_INPUT = "standard input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The text in the file at `path`, or `data` where it was read already."""

    path: Path
    data: bytes | None = None

    @property
    def name(self) -> str:
        """What it is called in messages and results: the file's name."""
        if self.data is not None:
            return STANDARD_INPUT
        return self.path.name.encode("utf-8", "replace").decode()  # a name may hold bytes that are no text

    def check(self) -> None:
        """Raises EvaluationError for a text that is not there, cannot be read or has nothing in it."""
        if not self._bytes(64)[0].strip():
            self.read()

    def read(self, limit: int | None = None) -> str:
        """The text without the line break at its end, which llama-perplexity leaves out too; of more than `limit` bytes those.

        llama.cpp would take any bytes; we refuse what is not UTF-8, since a perplexity of noise looks like a bad model.
        Raises EvaluationError, with the first byte that is wrong.
        """
        data, whole = self._bytes(limit)
        if not data.strip():
            raise EvaluationError(f"{self.name} is empty", _LONGER)
        try:
            return (data.removesuffix(b"\n") if whole else without_half_character(data)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise EvaluationError(
                f"{self.name} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02X})",
                "save it as UTF-8 (`iconv -f LATIN1 -t UTF-8`)",
            ) from None

    def tokens(self, model: Model, enough: int | None = None) -> list[int]:
        """The tokens of the text, BOS in front where the model wants it, as llama-perplexity has them for the same file.

        With `enough`, at least so many where the text has them; the rest of the file need not be read. Raises EvaluationError.
        """
        limit = None if enough is None else enough * model.longest_token_bytes + _SPARE_BYTES
        try:
            return model.tokenize(self.read(limit), parse_special=False)
        except PromptError as error:
            raise EvaluationError(error.problem, "measure a part of the text with --chunks") from error

    def _bytes(self, limit: int | None) -> tuple[bytes, bool]:
        """At most `limit` bytes, and whether these are all."""
        if self.data is not None:
            return self.data[:limit], limit is None or len(self.data) <= limit
        try:
            return read_beginning(self.path, limit)
        except FileNotFoundError:
            raise EvaluationError(f"there is no file {self.path}", _CHECK_PATH) from None
        except OSError as error:
            raise EvaluationError(f"{self.path} cannot be read ({error.strerror})", _CHECK_PATH) from error
