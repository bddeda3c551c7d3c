"""What is timed: the cases of a sweep, with llama-bench's meaning and names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of a speed table.

    `prompt` tokens are processed in batches and then `generate` tokens one by one, each left out at 0, with `depth` tokens in
    the KV cache before; `sequences` texts do so side by side, each with tokens of its own. `backend` is a word of
    `tinyedge.backends.BACKENDS`, `kv_type` a name like F16 or Q8_0.
    """

    prompt: int
    generate: int
    depth: int = 0
    sequences: int = 1
    threads: int
    kv_type: str = "F16"
    backend: str = "cpu"

    @property
    def name(self) -> str:
        """llama-bench's name for it, `pp512`, `tg128`, `pp512+tg128`, `tg128 @ d1024`; with `x4` for 4 sequences."""
        parts = [f"{word}{count}" for word, count in (("pp", self.prompt), ("tg", self.generate)) if count]
        name = "+".join(parts) + (f" x{self.sequences}" if self.sequences > 1 else "")
        return f"{name} @ d{self.depth}" if self.depth else name

    @property
    def tokens(self) -> int:
        """The tokens that a run is timed for, of all sequences: what tokens/s counts."""
        return (self.prompt + self.generate) * self.sequences

    @property
    def positions(self) -> int:
        """The places in the KV cache that a run needs, of all sequences."""
        return (self.depth + self.prompt + self.generate) * self.sequences


def threads_text(count: Any) -> str:
    """`1 thread`, `4 threads`; `count` may be the key of a JSON object."""
    return "1 thread" if str(count) == "1" else f"{count} threads"
