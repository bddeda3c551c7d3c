"""The text that an importance matrix is collected from: a file, or what came through a pipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import ImatrixError
from tinyedge.native.model import Model
from tinyedge_quantize.strangers import read_beginning, without_half_character

_SPARE_BYTES = 1 << 16
_CHECK_PATH = "check the path given with --text"
_NOT_TEXT = "give a text, saved as UTF-8"


@dataclass(frozen=True, slots=True)
class Text:
    """The text in the file at `path`, or `data` where it was read already."""

    path: Path
    data: bytes | None = None

    @property
    def name(self) -> str:
        """What it is called in messages and in the importance matrix."""
        if self.data is not None:
            return "standard input"
        return str(self.path).encode("utf-8", "replace").decode()  # a path may hold bytes that are no text

    def check(self) -> None:
        """Raises ImatrixError for a text that is not there, cannot be read or is empty."""
        if not self._bytes(1)[0]:
            raise ImatrixError(f"{self.name} is empty", "give a text, some thousand words or more")

    def read(self, limit: int | None = None) -> str:
        """The text without the line break at its end; of one of more than `limit` bytes only those. Raises ImatrixError."""
        data, whole = self._bytes(limit)
        try:
            return (data.removesuffix(b"\n") if whole else without_half_character(data)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ImatrixError(f"{self.name} is not UTF-8 text (byte {error.start})", _NOT_TEXT) from None

    def _bytes(self, limit: int | None) -> tuple[bytes, bool]:
        """At most `limit` bytes, and whether these are all."""
        if self.data is not None:
            return self.data[:limit], limit is None or len(self.data) <= limit
        try:
            return read_beginning(self.path, limit)
        except FileNotFoundError:
            raise ImatrixError(f"there is no file {self.path}", _CHECK_PATH) from None
        except OSError as error:
            raise ImatrixError(f"{self.path} cannot be read ({error.strerror})", _CHECK_PATH) from error


def read_tokens(model: Model, text: Text, chunk_size: int, chunks: int | None, *, parse_special: bool = False) -> list[int]:
    """The tokens of the text, which llama-imatrix would have for the same file; with `chunks`, enough for so many.

    With `parse_special` the names of special tokens in the text stand for these. Raises ImatrixError for a text that cannot be
    read, is not UTF-8, or has fewer tokens than one chunk.
    """
    limit = None if chunks is None else chunks * chunk_size * model.longest_token_bytes + _SPARE_BYTES
    tokens = model.tokenize(text.read(limit), parse_special=parse_special)
    if len(tokens) < chunk_size:
        raise ImatrixError(
            f"{text.name} has {len(tokens)} tokens, fewer than one chunk of {chunk_size}",
            "take a longer text, or smaller chunks with --ctx",
        )
    return tokens
