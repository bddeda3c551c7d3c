"""Keeps a conversation within the context: which of the oldest turns go, and where their tokens are in the KV cache."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tinyedge.tokens import common_length

if TYPE_CHECKING:
    from tinyedge.engine import Engine

# When turns have to go, as many go as make this share of the context free, so that not every token moves the cache.
ROOM_SHARE = 4


class Window:
    """The part of a conversation that is in the prompt: the system prompt, the latest turns, the message to answer.

    `render` gives the prompt without the first so many of `turns`; `forgotten` are that many. `slides` counts how often the KV
    cache was moved, `recomputed` how often what is left has to be read again. Without `can_restart` an answer that has begun
    ends where turns cannot be taken out of the cache before it.
    """

    def __init__(
        self, engine: Engine, render: Callable[[int], list[int]], turns: int, *, forgotten: int, can_restart: bool
    ) -> None:
        self._engine = engine
        self._render = render
        self._turns = turns
        self._can_restart = can_restart
        self._rendered: dict[int, list[int]] = {}
        self.forgotten = min(forgotten, turns)
        self.slides = 0
        self.recomputed = 0

    @property
    def prompt(self) -> list[int]:
        return self.without(self.forgotten)

    @property
    def shortest(self) -> list[int]:
        """The prompt without any turn."""
        return self.without(self._turns)

    @property
    def fits(self) -> bool:
        """Whether the prompt leaves room for a token."""
        return len(self.prompt) < self._engine.plan.context

    def slide(self) -> None:
        """Drops the oldest turns from a prompt that is too long, and from the KV cache what it holds of them."""
        before, held, context = self.prompt, self._engine.cached, self._engine.plan.context
        self._forget_to(context - context // ROOM_SHARE)
        span = removed_span(before, self.prompt)
        if span is None or not self._engine.context.can_shift:
            self.recomputed += bool(held)
        elif held[: span[1]] == before[: span[1]]:  # else the cache ends before it, and nothing behind it is lost
            self._engine.discard(*span)
            self.slides += 1

    def make_room(self) -> tuple[int, int] | None:
        """The positions of the oldest turns, which are dropped; None where none can go or the rest would not stay as it is."""
        if self.forgotten == self._turns or not self._engine.context.can_shift:
            return None
        before, forgotten = self.prompt, self.forgotten
        self._forget_to(len(before) - self._engine.plan.context // ROOM_SHARE)
        span = removed_span(before, self.prompt)
        if span is None:
            self.forgotten = forgotten
            return None
        self.slides += 1
        return span

    def restart(self, answer_tokens: int) -> bool:
        """Whether an answer that the context cut can go on, read again behind fewer turns; then the oldest are dropped."""
        if not self._can_restart or self.forgotten == self._turns:
            return False
        context, forgotten = self._engine.plan.context, self.forgotten
        self._forget_to(len(self.prompt) - context // ROOM_SHARE)
        if len(self.prompt) + answer_tokens + 1 >= context:
            self.forgotten = forgotten
            return False
        self.recomputed += 1
        return True

    def without(self, forgotten: int) -> list[int]:
        """The prompt without the first so many turns."""
        if forgotten not in self._rendered:
            self._rendered[forgotten] = self._render(forgotten)
        return self._rendered[forgotten]

    def _forget_to(self, goal: int) -> None:
        """Drops the fewest turns, one at least, that leave at most `goal` tokens in the prompt; all when that is not enough."""
        candidates = range(self.forgotten + 1, self._turns + 1)
        index = bisect_left(candidates, True, key=lambda count: len(self.without(count)) <= goal)
        self.forgotten = candidates[min(index, len(candidates) - 1)]


def removed_span(longer: Sequence[int], shorter: Sequence[int]) -> tuple[int, int] | None:
    """Which part of `longer` must go to leave `shorter`; None when no single part does."""
    start = common_length(longer, shorter)
    end = len(longer) - (len(shorter) - start)
    return (start, end) if end > start and longer[end:] == shorter[start:] else None
