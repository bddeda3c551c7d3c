"""How likely a model finds given continuations of given texts, many at a time, reading what they have in common once.

The answers of a question share the question, and few-shot prompts share their examples. Where a text departs from another, its
KV cache begins as a copy of the other's (the cells are shared, no data moves). Several texts fill each batch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from tinyedge.engine import context_settings
from tinyedge.errors import EvaluationError
from tinyedge.load_plan import LoadPlan
from tinyedge.native.model import Model
from tinyedge.native.sequences import Floats, SequenceContext
from tinyedge.tokens import common_length
from tinyedge_bench.quality.shared_prefixes import Text, Tokens, arrange, groups

_SIDE_BY_SIDE = 64  # texts in one context: enough short answers for full batches
_STATES = 8  # those of a recurrent or hybrid model, which keeps a state of up to 60 MB (granite 4 tiny) for each
_LOGITS_BYTES = 64 << 20  # of the logits that one batch may give: 524 rows of a vocabulary of 32,000

_Sums = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Continuation:
    """The question how likely `tokens` are after `context`, which has at least one token: BOS, if nothing else."""

    context: Tokens
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The sum of the natural logarithms of the tokens' probabilities; whether each token was the likeliest at its place."""

    logprob: float
    greedy: bool


@dataclass(slots=True)
class _Batch:
    """Tokens to be read together, and for each row of logits who waits for it."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    wanted: list[bool] = field(default_factory=list)
    rows: list[list[tuple[int, int]]] = field(default_factory=list)

    def take(self, text: Text, room: int, rows: int) -> bool:
        """Appends from `text` up to its stop; False when `room` tokens or `rows` rows were reached before."""
        stop = text.stop
        while text.done < stop:
            waiting = text.wanted.get(text.done)
            if len(self.tokens) == room or (waiting and len(self.rows) == rows):
                return False
            self.tokens.append(text.tokens[text.done])
            self.positions.append(text.done)
            self.sequences.append(text.sequence)
            self.wanted.append(waiting is not None)
            if waiting:
                self.rows.append(waiting)
            text.done += 1
        return True


class Scorer:
    """Answers requests in one context for texts of up to `context` tokens, read in batches of up to `batch`.

    `read_tokens` counts what was read so far. Raises NativeError when the memory cannot be had.
    """

    def __init__(self, model: Model, plan: LoadPlan, *, context: int, batch: int = 512) -> None:
        self.context = context
        self.read_tokens = 0
        self._cells = max(context, 2 * batch)
        self._shares_cells = _shares_cells(model, plan)
        self._texts = _SIDE_BY_SIDE if self._shares_cells else _STATES
        self._rows = max(self._texts, min(batch, _LOGITS_BYTES // (4 * model.vocabulary_size)))  # llama.cpp wants one each
        settings = context_settings(plan, outputs=self._rows)
        self._native = SequenceContext(
            model, replace(settings, context=self._cells, batch=batch, sequences=self._texts, unified=True)
        )
        self._held = Text(())

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._native.close()

    def score(self, requests: Sequence[Continuation], progress: Progress | None = None) -> list[Likelihood]:
        """One answer per request, in their order. `progress` is told how many are done, and of how many.

        Where a text is too long its beginning is left out, so that `context` tokens are read and the one after them is the last
        predicted (lm_eval/models/huggingface.py, `_loglikelihood_tokens`). A continuation of no tokens is certain.
        Raises EvaluationError for a continuation longer than `context`, or logits that are no numbers.
        """
        texts = {number: self._read_part(request) for number, request in enumerate(requests) if request.tokens}
        sums, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=np.bool_)
        done = len(requests) - len(texts)
        for group in groups(texts, tokens=self._cells, branches=self._texts):
            arranged = arrange(list(dict.fromkeys(texts[number] for number in group)))
            by_tokens = {text.tokens: text for text in arranged}
            for number in group:
                text, tokens = by_tokens[texts[number]], requests[number].tokens
                for position, token in enumerate(tokens, len(text.tokens) - len(tokens)):
                    text.want(position, number, token)
            try:
                self._read(arranged, sums, greedy)
            except BaseException:  # whatever was read of the batch in hand, nothing is to be built on it
                self._native.clear()
                self._held = Text(())
                raise
            done += len(group)
            if progress is not None:
                progress(done, len(requests))
        return [Likelihood(float(total), bool(top)) for total, top in zip(sums, greedy, strict=True)]

    def _read_part(self, request: Continuation) -> Tokens:
        if not request.context:
            raise ValueError("a continuation needs a context of at least one token")
        if len(request.tokens) > self.context:
            raise EvaluationError(
                f"an answer has {len(request.tokens)} tokens and the context {self.context}", "give a larger --ctx"
            )
        return (request.context + request.tokens)[-(self.context + 1) : -1]

    def _read(self, texts: Sequence[Text], sums: _Sums, greedy: _Flags) -> None:
        """Reads all of `texts` and adds to `sums` and `greedy` what their requests asked for.

        The last stays in the cache, for the texts to come that begin like it, where a cache can be cut to what they share.
        """
        first, kept = texts[0], texts[-1] if self._shares_cells else Text(())
        self._begin(first)
        free = [sequence for sequence in range(self._texts) if sequence != first.sequence]
        ready = deque([first])
        self._depart(first, free, ready)
        while ready:
            batch = _Batch()
            arrived: list[Text] = []
            while ready and batch.take(ready[0], self._native.room, self._rows):
                arrived.append(ready.popleft())
            logits = self._native.read(batch.tokens, batch.positions, batch.sequences, batch.wanted)
            self.read_tokens += len(batch.tokens)
            _add(logits, batch.rows, sums, greedy)
            for text in arrived:
                self._depart(text, free, ready)
                if text.done < len(text.tokens):
                    ready.append(text)
        for text in texts:
            if text is not kept:
                self._native.forget(text.sequence)
        self._held = kept

    def _begin(self, first: Text) -> None:
        """Lets `first` begin with what the cache holds of it, up to the first place whose prediction is wanted."""
        held = self._held
        first.sequence = held.sequence
        self._cut(first, min([common_length(held.tokens, first.tokens), *first.wanted]), len(held.tokens))

    def _depart(self, text: Text, free: list[int], ready: deque[Text]) -> None:
        """Makes ready what departs from `text` up to where it is read."""
        for place in [place for place in text.branches if place <= text.done]:
            for branch in text.branches.pop(place):
                branch.sequence = free.pop()
                self._native.copy(text.sequence, branch.sequence)
                self._cut(branch, place, text.done)
                ready.append(branch)

    def _cut(self, text: Text, length: int, held: int) -> None:
        """Keeps the first `length` of the `held` tokens of a text; none where a cache cannot be cut."""
        text.done = length
        if length < held and not self._native.forget(text.sequence, length):
            self._native.forget(text.sequence)
            text.done = 0


def _shares_cells(model: Model, plan: LoadPlan) -> bool:
    """Whether texts that begin alike share the memory of it, which the states of recurrent and hybrid models do not."""
    with SequenceContext(model, replace(context_settings(plan), context=64, batch=64)) as tried:
        shares: bool = tried.can_shift
    return shares


def _add(logits: Floats, rows: Sequence[Sequence[tuple[int, int]]], sums: _Sums, greedy: _Flags) -> None:
    """Adds each row's log-softmax at the wanted tokens, in double precision, to the requests that wait for it."""
    for row, waiting in zip(logits, rows, strict=True):
        wide = row.astype(np.float64)
        top = int(wide.argmax())
        wide -= wide[top]
        normaliser = math.log(np.exp(wide).sum())
        if not math.isfinite(normaliser):
            raise EvaluationError("the model's logits are no numbers", "check the file with `tinyedge verify`")
        for request, token in waiting:
            sums[request] += wide[token] - normaliser
            greedy[request] &= token == top
