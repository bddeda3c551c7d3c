"""A text cut into windows, and the windows read by a model: which tokens are scored, and the logits that score them.

The cut is llama-perplexity's (tools/perplexity/perplexity.cpp). Without a stride, windows of `context` tokens follow each
other, the first token of each is replaced by BOS, and of the tokens behind the middle one each is scored given all before it
in its window (`perplexity`). With a stride, windows overlap and the last `stride` tokens of each are scored
(`perplexity_v2`, which leaves the first token as it is).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tinyedge.engine import context_settings
from tinyedge.errors import EvaluationError
from tinyedge.native.context import BATCH_TOKENS
from tinyedge.native.model import Model
from tinyedge.native.sequences import Floats, Integers, SequenceContext
from tinyedge_bench.quality.models import OpenModel

DEFAULT_CONTEXT = 512
LEAST_CONTEXT = 16
_MOST_SEQUENCES = 8  # each has a cache of 256 cells at least, and llama.cpp keeps a row of logits for each
_LOGIT_BYTES = 64 << 20  # of one decode: 524 rows of a vocabulary of 32000, 131 of one of 128000


@dataclass(frozen=True)
class Windows:
    """Windows of `context` tokens of a text, at `starts`; `scored` tokens at the end of each count.

    `bos` is put in the place of a window's first token, nothing where it is None.
    """

    tokens: Integers
    context: int
    scored: int
    starts: range
    bos: int | None

    @property
    def count(self) -> int:
        """How many tokens are scored in all."""
        return len(self.starts) * self.scored

    @cached_property
    def targets(self) -> Integers:
        """The tokens that are scored, in the order in which `read_windows` gives their logits."""
        places = np.arange(self.context - self.scored, self.context)
        chosen: Integers = self.tokens[np.asarray(self.starts)[:, None] + places].ravel()
        return chosen

    def text_bytes(self, model: Model) -> int:
        """The bytes of text that the scored tokens stand for; a control token stands for none."""
        tokens, times = np.unique(self.targets, return_counts=True)
        return sum(len(model.piece(int(token))) * int(count) for token, count in zip(tokens, times, strict=True))


def tokens_wanted(context: int, stride: int | None, chunks: int | None) -> int | None:
    """How many tokens of a text `chunks` windows take, None for all."""
    if chunks is None:
        return None
    return context + 1 + (chunks - 1) * stride if stride else context * chunks


def cut(
    tokens: Sequence[int], name: str, *, context: int, bos: int | None, stride: int | None = None, chunks: int | None = None
) -> Windows:
    """At most `chunks` windows of the tokens of the text called `name`. Raises EvaluationError where not even one fits."""
    if stride is not None and not 0 < stride < context:
        raise EvaluationError(
            f"a stride of {stride} does not fit windows of {context} tokens", f"take a --stride from 1 to {context - 1}"
        )
    needed = context + (stride is not None)
    if len(tokens) < needed:
        smaller = (len(tokens) - (stride is not None)) // 2
        remedy = "give a longer text"
        if smaller >= LEAST_CONTEXT:
            remedy += f", or take smaller windows (--ctx {smaller} would make two)"
        raise EvaluationError(f"{name} has {len(tokens)} tokens, fewer than the {needed} of one window", remedy)
    step = stride or context
    most = -(-(len(tokens) - context) // step) if stride else len(tokens) // context
    return Windows(
        tokens=np.asarray(tokens, dtype=np.int32),
        context=context,
        scored=stride or context - 1 - context // 2,
        starts=range(0, min(most, chunks or most) * step, step),
        bos=None if stride else bos,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """One decode: what `SequenceContext.read` takes; `windows` are done with it; it begins a new group when `fresh`."""

    tokens: Integers
    positions: Integers
    sequences: Integers
    wanted: npt.NDArray[np.bool_]
    windows: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """Logits (rows, vocabulary) of scored tokens, one array for each model that reads; views that the next reading overwrites.

    `targets` (rows,) are the tokens scored; `windows` are done with this reading.
    """

    logits: tuple[Floats, ...]
    targets: Integers
    windows: int


def read_windows(models: Sequence[OpenModel], windows: Windows) -> Iterator[Reading]:
    """What the models, which share a vocabulary, say of the windows, read side by side. Raises NativeError."""
    vocabulary = max(model.model.vocabulary_size for model in models)
    most_rows = max(_MOST_SEQUENCES, min(BATCH_TOKENS, _LOGIT_BYTES // (4 * vocabulary)))
    side_by_side = max(1, min(BATCH_TOKENS // windows.context, _MOST_SEQUENCES, len(windows.starts)))
    contexts = []
    try:
        for model in models:
            settings = replace(
                context_settings(model.plan),
                context=side_by_side * windows.context,
                batch=BATCH_TOKENS,
                outputs=most_rows,
                sequences=side_by_side,
            )
            contexts.append(SequenceContext(model.model, settings))
        yield from _readings(contexts, windows, _parts(windows, side_by_side, most_rows))
    finally:
        for context in contexts:
            context.close()


def _readings(contexts: Sequence[SequenceContext], windows: Windows, parts: Iterator[_Part]) -> Iterator[Reading]:
    scored = 0
    for part in parts:
        logits = []
        for context in contexts:
            if part.fresh:
                context.clear()
            logits.append(context.read(part.tokens, part.positions, part.sequences, part.wanted))
        rows = int(part.wanted.sum())
        yield Reading(tuple(logits), windows.targets[scored : scored + rows], part.windows)
        scored += rows


def _parts(windows: Windows, side_by_side: int, most_rows: int) -> Iterator[_Part]:
    """The decodes: windows laid end to end, cut where a batch is full or has `most_rows` rows of logits."""
    context = windows.context
    for first in range(0, len(windows.starts), side_by_side):
        starts = np.asarray(windows.starts[first : first + side_by_side])
        ids = windows.tokens[starts[:, None] + np.arange(context)]
        if windows.bos is not None:
            ids[:, 0] = windows.bos
        tokens = ids.ravel()
        positions = np.tile(np.arange(context, dtype=np.int32), len(starts))
        sequences = np.repeat(np.arange(len(starts), dtype=np.int32), context)
        wanted = (positions >= context - 1 - windows.scored) & (positions < context - 1)
        rows = np.concatenate([[0], np.cumsum(wanted)])
        start = 0
        while start < len(tokens):
            full = int(np.searchsorted(rows, rows[start] + most_rows, side="right")) - 1
            end = min(start + BATCH_TOKENS, full, len(tokens))
            part = slice(start, end)
            done = first + end // context
            yield _Part(tokens[part], positions[part], sequences[part], wanted[part], windows=done, fresh=not start)
            start = end
