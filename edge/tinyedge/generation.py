"""The values that a generation yields, and what turns its tokens into text."""

from __future__ import annotations

import codecs
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyedge.errors import NativeError
from tinyedge.stops import StopMatcher

LEAST_LOGPROB = -3.4e38  # in place of minus infinity, for which JSON has no word


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What one generation took. Rates are tokens per second, None where nothing was measured.

    `ttft_s` runs from the call of `stream` to the first token; `generated_tokens_per_s` counts the tokens after it and
    leaves out the time that the reader of the stream took. `stop_reason` is one of end (the model ended the text), stop (a
    stop string), length (max_tokens), context (the context is full), interrupted. `prompt_tokens` are those that were
    read: after an interruption perhaps not the whole prompt; `reused_tokens` were in the KV cache already and cost nothing.
    `drafted_tokens` were guessed by a drafter and `accepted_tokens` of them were what the model said too. `steps` are the
    passes through the weights after the prompt, and `mean_depth` the tokens in the KV cache during one, on average.
    """

    load_s: float
    prompt_tokens: int
    prompt_tokens_per_s: float | None
    ttft_s: float | None
    generated_tokens: int
    generated_tokens_per_s: float | None
    peak_rss_bytes: int
    stop_reason: str
    reused_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    steps_s: float = 0.0
    mean_depth: float = 0.0


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A token, its text, and the natural logarithm of its probability before any sampler touched it: always a finite number."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLikelihood:
    """The token that was drawn and the likeliest ones at its place, best first."""

    drawn: Likelihood
    top: tuple[Likelihood, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text as it comes, always whole characters, with the number of tokens it took. The last one carries the speed.

    `likelihoods` has an entry for each of these tokens when they were asked for.
    """

    text: str
    tokens: int
    speed: Speed | None = None
    likelihoods: tuple[TokenLikelihood, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole generation: its text, the ids of its tokens without the one that ended it, and what it took."""

    text: str
    tokens: tuple[int, ...]
    speed: Speed
    likelihoods: tuple[TokenLikelihood, ...] = ()


@dataclass(slots=True)
class Meter:
    """The counters of the generation that runs now."""

    prompt_tokens: int = 0
    reused: int = 0
    prompt_s: float = 0.0
    ttft_s: float | None = None
    tokens: list[int] = field(default_factory=list)
    after_first: int = 0  # tokens that the steps brought
    steps: int = 0
    steps_s: float = 0.0
    depths: int = 0
    drafted: int = 0
    accepted: int = 0

    def step(self, seconds: float, tokens: int, depth: int, passes: int = 1) -> None:
        """Counts so many passes through the weights, with `depth` tokens in the KV cache, that brought `tokens`."""
        self.steps += passes
        self.steps_s += seconds
        self.after_first += tokens
        self.depths += depth * passes

    def speed(self, stop_reason: str, load_s: float) -> Speed:
        read = self.prompt_tokens - self.reused
        return Speed(
            load_s=load_s,
            prompt_tokens=self.prompt_tokens,
            prompt_tokens_per_s=read / self.prompt_s if self.prompt_s else None,
            ttft_s=self.ttft_s,
            generated_tokens=len(self.tokens),
            generated_tokens_per_s=self.after_first / self.steps_s if self.steps_s else None,
            peak_rss_bytes=peak_rss_bytes(),
            stop_reason=stop_reason,
            reused_tokens=self.reused,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            steps=self.steps,
            steps_s=self.steps_s,
            mean_depth=self.depths / self.steps if self.steps else 0.0,
        )


class TextBuilder:
    """Text in whole characters out of the bytes of tokens, ended by a stop string wherever in a token it begins."""

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = StopMatcher(stops) if stops else None
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain with this token; sets `stopped` when a stop string is complete."""
        return self._match(self._decoder.decode(self._piece(token)))

    def end(self) -> str:
        """What was held back: a broken character as U+FFFD, the beginning of a stop string that did not come."""
        text = "" if self.stopped else self._match(self._decoder.decode(b"", final=True))
        return text + self._matcher.flush() if self._matcher and not self.stopped else text

    def _match(self, text: str) -> str:
        if self._matcher is None or not text:
            return text
        text, self.stopped = self._matcher.feed(text)
        return text


def no_numbers() -> NativeError:
    """The error of a model that computes NaN or infinity."""
    return NativeError(
        "the model computes no numbers from this prompt: its logits are not finite",
        "its file or an adapter is damaged: get it again, or take another KV type (--kv f32)",
    )


def likelihoods(logits: Any, token: int, count: int, text: Callable[[int], str]) -> TokenLikelihood:
    """How likely `token` and the `count` likeliest tokens were by these logits, a ctypes array of floats."""
    import numpy as np

    values = np.frombuffer(logits, dtype=np.float32).astype(np.float64)
    highest = values.max()
    if not math.isfinite(highest):
        raise no_numbers()
    total = highest + math.log(np.exp(values - highest).sum())
    best = np.argpartition(-values, min(count, len(values) - 1))[:count]
    best = best[np.argsort(-values[best], kind="stable")]

    def likelihood(each: int) -> Likelihood:
        return Likelihood(each, text(each), max(float(values[each] - total), LEAST_LOGPROB))

    return TokenLikelihood(likelihood(token), tuple(likelihood(int(each)) for each in best))


def peak_rss_bytes() -> int:
    """The most memory that this process has held, memory-mapped weights included as far as they were touched.

    On Linux from /proc, whose VmHWM begins anew with each program; ru_maxrss starts from the parent's.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
