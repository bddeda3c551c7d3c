"""The loop that turns logits into chunks of text: draw, show, decode, until something ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from tinyedge.generation import Chunk, Meter, Speed, TextBuilder, likelihoods
from tinyedge.kv_cache import KvCache
from tinyedge.native.model import Model
from tinyedge.native.sampler import Sampler

if TYPE_CHECKING:
    from tinyedge.speculation import Speculator

# Asked when the context is full: which positions of the KV cache may go, from and up to; None ends the text.
MakeRoom = Callable[[], "tuple[int, int] | None"]

_LAST_ROW = -1


@dataclass(slots=True, kw_only=True)
class TokenStream:
    """One generation behind a prompt that `cache` holds. The arguments are those of `Engine.stream`.

    `speed` gives the figures of the last chunk by the reason why the text ended.
    """

    model: Model
    cache: KvCache
    sampler: Sampler
    text: TextBuilder
    meter: Meter
    speed: Callable[[str], Speed]
    max_tokens: int | None
    logprobs: int
    speculator: Speculator | None
    make_room: MakeRoom | None

    def chunks(self, token: int) -> Iterator[Chunk]:
        """The text from its first token on, which was drawn from the prompt's logits."""
        meter, text = self.meter, self.text
        pending, tops = 0, []
        drawn, row = [token], _LAST_ROW
        while True:
            reason = ""
            piece = ""
            for token in drawn:
                if self.model.ends_generation(token):
                    reason = "end"
                elif len(meter.tokens) == self.max_tokens:
                    reason = "length"
                if reason:
                    break
                if self.logprobs:
                    tops.append(likelihoods(self.cache.context.logits(row), token, self.logprobs, self._shown))
                row += 1
                meter.tokens.append(token)
                pending += 1
                piece = text.add(token)
                if text.stopped:
                    reason = "stop"
                    break
                if piece:
                    yield Chunk(piece, pending, likelihoods=tuple(tops))
                    pending, tops = 0, []
            if not reason:
                reason = self._limit()
            if reason:
                tail = (piece if text.stopped else "") + text.end()
                yield Chunk(tail, pending, self.speed(reason), tuple(tops))
                return
            drawn, row = self._step(token), 0

    def _limit(self) -> str:
        """The limit that is reached, as a reason; "" while there is room."""
        if len(self.meter.tokens) == self.max_tokens:
            return "length"
        return "context" if self.cache.full and not self._made_room() else ""

    def _step(self, token: int) -> list[int]:
        """The tokens that follow `token`, one or, with a drafter, several."""
        cache, meter, passes = self.cache, self.meter, 1
        depth, started = len(cache.tokens), perf_counter()
        if self.speculator is None:
            cache.context.decode(token)
            cache.tokens.append(token)
            drawn = [self.sampler.sample(cache.context)]
        else:
            room = cache.context.settings.context - depth - 2
            left = room if self.max_tokens is None else min(room, self.max_tokens - len(meter.tokens) - 1)
            before = self.speculator.passes
            drawn = self.speculator.step(cache.tokens, token, self.sampler, left)
            passes = self.speculator.passes - before
            meter.drafted, meter.accepted = self.speculator.drafted, self.speculator.accepted
        meter.step(perf_counter() - started, len(drawn), depth, passes)
        return drawn

    def _made_room(self) -> bool:
        """Whether a part of the full KV cache could be dropped."""
        dropped = self.make_room() if self.make_room is not None else None
        if dropped is None or not self.cache.context.can_shift:
            return False
        self.cache.discard(*dropped)
        return not self.cache.full

    def _shown(self, token: int) -> str:
        return self.model.piece(token).decode("utf-8", "replace") or self.model.token_text(token)
