"""Texts that begin alike, arranged so that what they have in common is read once.

Sorted by its tokens each text begins with as much as possible of the one before it. It need only be read from where it departs,
in a KV cache that begins as a copy of the other's. This is a radix tree whose paths are told by where they leave each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tinyedge.tokens import common_length

Tokens = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Text:
    """Tokens to be read; those before `start` are read with its `parent`. Other texts depart from it at `branches`.

    `wanted` says who waits for the prediction after a position: (number of the request, token whose share is asked for).
    `sequence` and `done`, the tokens read so far, are the reader's.
    """

    tokens: Tokens
    start: int = 0
    parent: Text | None = None
    branches: dict[int, list[Text]] = field(default_factory=dict)
    wanted: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    sequence: int = 0
    done: int = 0

    @property
    def stop(self) -> int:
        """How far it can be read before another text departs."""
        return min((place for place in self.branches if place > self.done), default=len(self.tokens))

    def want(self, position: int, request: int, token: int) -> None:
        """Asks for `token` after `position`, of whichever text that position is read with."""
        text = self
        while position < text.start and text.parent is not None:
            text = text.parent
        text.wanted.setdefault(position, []).append((request, token))


def groups(texts: Mapping[int, Tokens], *, tokens: int, branches: int) -> Iterator[list[int]]:
    """The keys of `texts`, sorted by their texts, in groups of up to `branches` different ones.

    No group has more than `tokens` to be read, unless a single text does.
    """
    group: list[int] = []
    used = count = 0
    before: Tokens = ()
    for key in sorted(texts, key=texts.__getitem__):
        text = texts[key]
        new = text != before or not group
        added = (len(text) - common_length(before, text) if group else len(text)) if new else 0
        if group and (used + added > tokens or count + new > branches):
            yield group
            group, used, count, added, new = [], 0, 0, len(text), True
        group.append(key)
        used, count, before = used + added, count + new, text
    if group:
        yield group


def arrange(texts: Sequence[Tokens]) -> list[Text]:
    """A Text for each of `texts`, which are sorted and all different. All but the first depart from one before them."""
    arranged = [Text(texts[0])]
    path = [arranged[0]]
    for tokens in texts[1:]:
        start = common_length(arranged[-1].tokens, tokens)
        while len(path) > 1 and path[-1].start >= start:
            path.pop()
        text = Text(tokens, start, path[-1])
        path[-1].branches.setdefault(start, []).append(text)
        path.append(text)
        arranged.append(text)
    return arranged
