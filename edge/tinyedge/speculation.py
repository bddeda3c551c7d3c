"""Speculative decoding: several guessed tokens are checked in one pass through the weights.

What is drawn is drawn by the target's own sampler from the target's own logits, so sampled text has the target's
distribution whatever was guessed, and greedy text is kept identical to that of single steps (see `exactness`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol

from tinyedge.draft_length import DraftLength
from tinyedge.errors import NativeError
from tinyedge.exactness import Exactness
from tinyedge.native.context import Context
from tinyedge.native.draft_facts import keeps_every_token
from tinyedge.native.lead import Leads, logits_of
from tinyedge.native.sampler import Sampler


class Drafter(Protocol):
    """Guesses the tokens to come."""

    @property
    def sureness(self) -> int:
        """How sure the last guess was, from 0 on: guesses of the same sureness are expected to come true equally often."""
        ...

    def propose(self, tokens: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `tokens`, the text so far with its newest token."""
        ...

    def close(self) -> None:
        """Frees what the drafter holds."""
        ...


class Speculator:
    """Takes steps of one token or of several, by what pays.

    `drafted` counts the guessed tokens that were decoded and `accepted` those that came true, `passes` how often the weights
    were read. With `exact`, greedy text is the same as without a drafter, at the price of computing parts anew; otherwise the
    other of two about equally likely tokens may come. `length` is what was learnt before, `clock` gives seconds.
    """

    def __init__(
        self,
        context: Context,
        drafter: Drafter,
        *,
        exact: bool = True,
        length: DraftLength | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.drafted = self.accepted = self.passes = 0
        self.length = length or DraftLength()
        self._context, self._drafter, self._clock = context, drafter, clock
        self._model = context.model
        self._most = context.settings.outputs - 1 if keeps_every_token(self._model) else 0
        self._exact = Exactness() if exact else None
        self._guard: Exactness | None = None  # the same while it is needed: by greedy sampling
        self._sampler: Sampler | None = None
        self._text: list[int] = []
        self._guess: list[int] = []
        self._seconds = self._plain_seconds = 0.0

    @property
    def speedup(self) -> float | None:
        """How many times the tokens per second of single steps were reached; None before anything is known."""
        return self._plain_seconds / self._seconds if self._plain_seconds else None

    def step(self, cached: list[int], token: int, sampler: Sampler, limit: int) -> list[int]:
        """Decodes `token` and at most `limit` guesses, and returns the tokens drawn, of which the last is not decoded yet.

        `cached` are the tokens in the KV cache. It is kept so that the cache always begins with them, also when an exception
        ends the step.
        """
        started = self._clock()
        self._follow(cached, token, sampler)
        self._guess = []
        draft: list[int] = []
        drawn: list[int] = []
        if self._guard is None or self._guard.doubted is None:
            draft = self._draft(limit)
            drawn = self._pass(cached, token, draft, sampler)
        repaired = not drawn
        if repaired:
            drawn = [self._redo(cached, token, sampler)]
        self._text += drawn
        self._learn(draft, drawn, self._clock() - started, repaired)
        return drawn

    def _follow(self, cached: list[int], token: int, sampler: Sampler) -> None:
        """Notices when the text is not the one that the last step left."""
        known = len(self._text) == len(cached) + 1 and self._text[-1] == token
        if known and sampler is self._sampler:
            return
        self._text, self._sampler = [*cached, token], sampler
        leads = Leads(self._context, sampler)
        self._guard = self._exact if leads.greedy else None
        if self._guard:
            self._guard.begin(leads, len(cached))

    def _draft(self, limit: int) -> list[int]:
        """The guessed tokens to decode; all that the drafter gave are kept in `_guess`."""
        if self._guard and not self._guard.calm:
            return []
        wanted = self.length.wanted(min(limit, self._most))
        if not wanted:
            return []
        started = self._clock()
        guess = self._drafter.propose(self._text, wanted)[:wanted]
        self.length.learn_draft(len(guess), self._clock() - started)
        size = self._model.vocabulary_size
        outside = next((place for place, token in enumerate(guess) if not 0 <= token < size), len(guess))
        self._guess = guess[:outside]
        return self._guess[: self.length.worth(outside, self._drafter.sureness)]

    def _pass(self, cached: list[int], token: int, draft: list[int], sampler: Sampler) -> list[int]:
        """One pass and the tokens drawn from it up to the first that the draft did not have; none when the first is doubted."""
        context, guard, rows = self._context, self._guard, [token, *draft]
        started = self._clock()
        self.passes += 1
        if draft:
            context.decode_rows(rows)
        else:
            context.decode(token)
        clean = not draft and (guard is None or guard.clean == len(cached))
        drawn: list[int] = []
        for row in range(len(rows)):
            if guard and not clean and not guard.believes(row):
                break
            drawn.append(sampler.sample(context, row))
            if drawn[-1:] != draft[row : row + 1] or self._model.ends_generation(drawn[-1]):
                break
        self.length.learn_step(len(rows), self._clock() - started)
        if not drawn:
            return drawn
        cached += rows[: len(drawn)]
        if len(drawn) < len(rows) and not context.remove(len(cached)):
            raise NativeError("the KV cache of this model cannot give up tokens", "leave out --draft and --lookup")
        if guard and clean:
            guard.clean = len(cached)
            if not self.length.paused:
                guard.watch(0)
        return drawn

    def _redo(self, cached: list[int], token: int, sampler: Sampler) -> int:
        """The token after `token`, the KV cache computed anew where it may differ from that of single steps."""
        guard, context = self._guard, self._context
        assert guard is not None
        again = [*cached[guard.clean :], token]
        del cached[guard.clean :]
        if not context.remove(len(cached)):
            raise NativeError("the KV cache of this model cannot give up tokens", "leave out --draft and --lookup")
        for each in again:
            self.passes += 1
            context.decode(each)
            cached.append(each)
        guard.settle(len(cached), logits_of(context))
        return sampler.sample(context)

    def _learn(self, draft: list[int], drawn: list[int], seconds: float, repaired: bool) -> None:
        guess, length = self._guess, self.length
        if draft:
            true = 0 if repaired else sum(a == b for a, b in zip(draft, drawn, strict=False))
            self.drafted += len(draft)
            self.accepted += true
            ended = self._model.ends_generation(drawn[-1])
            length.shares.learn(self._drafter.sureness, true, failed=true < len(draft) and not ended)
        elif guess:
            true = int(guess[0] == drawn[0])
            length.shares.learn(self._drafter.sureness, true, failed=not true)
        if draft or repaired:
            length.learn_gain(len(drawn), seconds)
        if length.costs.single:
            self._seconds += seconds
            self._plain_seconds += len(drawn) * length.costs.single
