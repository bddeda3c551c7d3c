"""Drafts from the text so far: what followed the last tokens when they came before (prompt lookup)."""

from __future__ import annotations

from collections.abc import Sequence

_LENGTHS = (4, 3, 2, 1)  # tokens that must have come before, the longest first
_COMPARED = 17  # tokens that a match is followed back
_CHECKED = 16  # tokens by which a text is known to go on from the one that was indexed
_SURENESS = (1, 2, 3, 5, 9, 17)  # tokens of a match from which the next sureness begins
_REPLACED, _MOVED = 7, 8  # sureness of a copy that is followed over a token that differs, and beside one left out or put in
_ANCHOR = 4  # tokens of a match that make it a copy
_LOST = 4  # tokens in a row that differ from the copy, after which it is not followed any more
_AROUND = 8  # tokens after and before its place that are looked through for where a copy goes on


class LookupDrafter:
    """Guesses that the text goes on as it did where its last tokens came before.

    That is where the longest match of up to four tokens last was. A longer match is taken for a copy and followed: a token
    that was replaced, a few that were left out or put in do not end it. Each token costs a few dictionary entries and looks
    at a few tokens, however long the text is.
    """

    def __init__(self) -> None:
        self.sureness = 0
        self._tokens: list[int] = []
        self._ends: list[dict[tuple[int, ...], int]] = [{} for _ in _LENGTHS]  # n-gram -> where its last occurrence ended
        self._indexed = 0  # every n-gram that ends at this position or before is in the index
        self._copied: int | None = None  # where in the text the token to come was found, while a copy is followed
        self._lost = 0  # tokens in a row that were not those of the copy

    def propose(self, tokens: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `tokens`, none when their end never came before.

        A text that repeats itself up to its end is taken to go on repeating.
        """
        self._take(tokens)
        source = self._source()
        if source is None or limit < 1:
            return []
        draft = self._tokens[source : source + limit]
        while len(draft) < limit:
            draft += draft[: limit - len(draft)]
        return draft

    def close(self) -> None:
        """Forgets the text."""
        self._begin()

    def _begin(self) -> None:
        self._tokens.clear()
        for ends in self._ends:
            ends.clear()
        self._indexed, self._copied, self._lost = 0, None, 0

    def _take(self, tokens: Sequence[int]) -> None:
        held, seen = self._tokens, len(self._tokens)
        if seen > len(tokens) or list(tokens[max(0, seen - _CHECKED) : seen]) != held[-_CHECKED:]:
            self._begin()
            seen = 0
        for token in tokens[seen:]:
            held.append(token)
            if self._copied is not None:
                self._follow(token)
        for end in range(self._indexed + 1, len(held)):  # without the last: nothing follows it yet
            for length, ends in zip(_LENGTHS, self._ends, strict=True):
                if length <= end:
                    ends[tuple(held[end - length : end])] = end
        self._indexed = max(0, len(held) - 1)

    def _follow(self, token: int) -> None:
        """Moves the place in the copy by the token that came."""
        held, place = self._tokens, self._copied
        assert place is not None
        if held[place] == token:
            self._copied, self._lost = place + 1, 0
            return
        self._lost += 1
        until = min(place + _AROUND, len(held) - 1)
        around = [*range(place + 1, until), *range(place - 1, max(place - _AROUND, -1), -1)]
        found = next((other for other in around if held[other] == token), None)
        if self._lost > _LOST:
            self._copied = None
        else:
            self._copied = (place if found is None else found) + 1

    def _source(self) -> int | None:
        """The place of the token to come, by the best match of the text's end or by the copy that is followed."""
        held, copied = self._tokens, self._copied
        found, best = None, 0
        for length, ends in zip(_LENGTHS, self._ends, strict=True):
            if length < len(held) and (end := ends.get(tuple(held[-length:]))) is not None:
                found, best = end, self._match(end)
                break
        match = self._match(copied) if copied is not None else 0
        if copied is not None and (match >= best or best < _ANCHOR):
            found, best = copied, match
            if match < _ANCHOR:
                self.sureness = _MOVED if match else _REPLACED
                return found
        if best >= _ANCHOR:
            self._copied, self._lost = found, 0
        self.sureness = sum(best >= least for least in _SURENESS)
        return found

    def _match(self, end: int) -> int:
        """How many tokens before `end` are those at the end of the text, as far as it is followed back."""
        held = self._tokens
        for count in range(min(end, _COMPARED)):
            if held[end - 1 - count] != held[-1 - count]:
                return count
        return min(end, _COMPARED)
