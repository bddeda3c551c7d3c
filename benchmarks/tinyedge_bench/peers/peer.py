"""What a peer is: another program that is timed on the same case as tinyedge, in turn with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tinyedge.errors import PeerError
from tinyedge_bench.speed.cases import Case

_QUOTED = 200
# What a peer may take before it is called hung: far more than the slowest board that could hold the model needs.
_START_S = 120.0
_LOAD_BYTES_PER_S = 5e6  # a quarter of a slow SD card's
_TOKEN_BYTES_PER_S = 0.5e9  # a fifth of a Pi 4's memory bandwidth


class Peer(Protocol):
    """Another program. `sample` may raise PeerError, after which another case may still succeed; the rest does not raise."""

    @property
    def name(self) -> str:
        """What the column "engine" says: llama-bench, ollama, llama-cpp-python, mlx-lm."""

    @property
    def version(self) -> str:
        """As the program gives it."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of its figures must know, a sentence each; there may be more after a sample than before."""

    def supports(self, case: Case) -> str | None:
        """Why the case cannot be asked of it, one sentence, or None when it can."""

    def sample(self, case: Case) -> float:
        """Seconds of the timed part of one run, loading and warm-up done before."""

    def close(self) -> None:
        """Ends what it started and removes what it left, saying in `notes` what it could not. Closing twice is harmless."""


def patience_s(weight_bytes: int, tokens: int = 0) -> float:
    """Seconds after which a program that loads these weights and processes `tokens` with them is taken to hang."""
    load_s = weight_bytes / _LOAD_BYTES_PER_S
    return _START_S + load_s + tokens * (0.5 + weight_bytes / _TOKEN_BYTES_PER_S)


def no_value(name: str, value: str) -> None:
    """Raises PeerError for `--peer NAME=VALUE` of a peer that takes none."""
    if value:
        raise PeerError(f"--peer {name} takes no value ({quoted(value)})", f"write --peer {name}")


def quoted(text: str) -> str:
    """A peer's words, safe to show: its last line that is not empty, control characters removed, cut at 200."""
    lines = ("".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines())
    last = next((line for line in reversed(list(lines)) if line), "")
    return last if len(last) <= _QUOTED else last[: _QUOTED - 1] + "…"
