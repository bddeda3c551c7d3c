"""Which tokens a context's KV cache holds, kept true through reading, cutting, moving, saving and interruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinyedge.native.context import Context
from tinyedge.tokens import common_length


class KvCache:
    """The cache of one context. `tokens` are those whose state it holds, in order; only what is here may change them."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tokens: list[int] = []

    @property
    def full(self) -> bool:
        """Whether there is room for no more than the token that is to come."""
        return len(self.tokens) + 1 >= self.context.settings.context

    def clear(self) -> None:
        self.context.clear()
        self.tokens.clear()

    def cut(self, count: int) -> None:
        """Leaves the first `count` tokens, or none where the model's state cannot be cut there."""
        if self.context.closed:  # an open stream outlived its engine
            self.tokens.clear()
        elif count and self.context.remove(count):
            del self.tokens[count:]
        else:
            self.clear()

    def settle(self) -> None:
        """Drops what an interrupted step left in the cache beyond `tokens`."""
        self.cut(len(self.tokens))

    def discard(self, start: int, end: int) -> None:
        """Takes out positions `start` up to `end`; what is behind moves up. Without moving, all from `start` on goes.

        Raises ValueError for a range that begins before 0 or ends before it begins.
        """
        if not 0 <= start <= end:
            raise ValueError(f"there are no positions from {start} up to {end}")
        end = min(end, len(self.tokens))
        if start >= end:
            return
        if not self.context.can_shift or not self.context.remove(start, end):
            self.cut(start)
            return
        self.context.shift(end, len(self.tokens), start - end)
        del self.tokens[start:end]

    def keep_common(self, tokens: Sequence[int]) -> int:
        """Leaves what the cache holds of the beginning of `tokens`, all but the last of them at most; how many these are."""
        self.cut(common_length(self.tokens, tokens[:-1]))
        return len(self.tokens)

    def read(self, tokens: Sequence[int], progress: Callable[[int], None]) -> None:
        """Computes what is missing of `tokens`, which begin with what the cache holds; the last gives the logits.

        `progress` is told many times how many of `tokens` are done. Whole batches stay when the rest is interrupted.
        """
        kept = len(self.tokens)

        def done(count: int) -> None:
            if kept + count > len(self.tokens):
                self.tokens[kept:] = tokens[kept : kept + count]
            progress(kept + count)

        self.context.decode_all(tokens[kept:], done)
        self.context.wait()
        self.tokens[kept:] = tokens[kept:]

    def state(self) -> memoryview:
        """The KV state of `tokens`, to be given to `restore` of a cache made alike."""
        if self.context.moved and self.tokens:
            self.context.remove(len(self.tokens) - 1)
            self.context.decode(self.tokens[-1])  # which rotates the keys of all the others
        return self.context.state()

    def restore(self, tokens: Sequence[int], state: bytes | memoryview) -> bool:
        """Fills the cache with a state that `state` gave for these tokens; False and an empty cache otherwise."""
        self.tokens.clear()
        fits = len(tokens) <= self.context.settings.context and self.context.restore(state)
        if fits and self.context.length == len(tokens):
            self.tokens.extend(tokens)
            return True
        self.context.clear()
        return False
