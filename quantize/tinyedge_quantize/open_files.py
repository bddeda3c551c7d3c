"""What an open checkpoint and an open GGUF model have in common: files to close."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tinyedge_quantize.tensors import WeightFile

Opened = TypeVar("Opened", bound="OpenFiles")


@dataclass(frozen=True)
class OpenFiles:
    """A source given as `path` whose weight files are open; close it, or use it in a with statement."""

    path: Path
    files: tuple[WeightFile, ...]

    @property
    def source_bytes(self) -> int:
        """The size of all weight files."""
        return sum(file.size for file in self.files)

    def close(self) -> None:
        for file in self.files:
            file.close()

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
