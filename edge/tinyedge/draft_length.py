"""How many tokens to draft: learnt from what passes of so many rows cost here and from how many guesses came true.

A draft of n tokens pays when the tokens it is expected to bring, divided by the time of a pass of n + 1 rows, are more per
second than those of single steps. Nothing here reads a clock or a model: the numbers come from outside.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

# Rows of a pass -> its time in single steps, TinyLlama 1.1B Q4_K_M on two cores: where learning begins.
_FIRST_COSTS = ((1, 1.0), (2, 1.8), (3, 2.4), (4, 3.1), (8, 4.9), (16, 6.5), (32, 11.0))
# Passes that are considered. ggml's CPU kernels take rows four at a time, so those between cost as much as the next.
_ROWS = (2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32)
_GROWTH = 4  # a pass may have as many times the rows of the largest one that was ever timed here
_LEARN = 0.25  # weight of a new time beside the old ones
_OUTLIER = 2.0  # a time counts at most as so many times what was expected: the machine has other work too
_RELAX = (
    0.99  # what a cost that was learnt keeps, at each plain step, of its distance to _FIRST_COSTS, so that it is tried again
)

# Sureness of a draft (see Drafter) -> the share of first tokens that come true, before any was seen.
_FIRST_SHARES = (0.7, 0.3, 0.5, 0.65, 0.75, 0.85, 0.9, 0.4, 0.6)
_LATER_SHARE = 0.85
_FIRST_WEIGHT = 2.0  # tokens that this expectation is worth
_KEEP = 0.95  # weight that what was seen keeps with each further token

_WORTH = 1.05  # a draft must promise so many times the speed of single steps
_LOSS = 4.0  # single steps lost by which drafting is turned off
_GAIN = 8.0  # single steps gained by which it is trusted again as at first; more is not put by for later losses
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 512  # steps
_CHEAP = 0.1  # of a single step: a drafter that takes less for a token is asked even when nothing will be decoded, to learn
_TRIAL = 3  # tokens that every drafter is asked for at first, and one that takes more after each pause, to see what they bring


@dataclass(slots=True)
class Costs:
    """Seconds that a pass takes by its rows, as learnt so far."""

    single: float | None = None
    _extras: dict[int, float] = field(default_factory=dict)  # what the rows after the first cost, _FIRST_COSTS being 1

    def learn(self, rows: int, seconds: float) -> None:
        if rows == 1:
            before = self.single
            self.single = seconds if before is None else _blend(before, min(seconds, _OUTLIER * before))
            self._extras = {each: 1.0 + (extra - 1.0) * _RELAX for each, extra in self._extras.items()}
        elif self.single:
            seconds = min(seconds, _OUTLIER * self.of(rows))
            extra = max(0.0, seconds / self.single - 1.0) / (_first_cost(rows) - 1.0)
            self._extras[rows] = _blend(self._extras[rows], extra) if rows in self._extras else extra

    def of(self, rows: int) -> float:
        """Seconds of a pass of `rows`, between and beyond the passes that were timed by the shape of _FIRST_COSTS."""
        extra = _between(sorted(self._extras.items()), rows) if self._extras else 1.0
        return (self.single or 0.0) * (1.0 + (_first_cost(rows) - 1.0) * extra)

    @property
    def most_rows(self) -> int:
        """The most rows that are worth a try."""
        return _GROWTH * max(self._extras, default=1)


@dataclass(slots=True)
class Shares:
    """The share of drafted tokens that come true: of first ones, and of each later one when the one before it did.

    Both are kept apart by how sure the draft was.
    """

    _seen: dict[tuple[int, bool], tuple[float, float]] = field(default_factory=dict)  # came true, were tried

    def learn(self, sureness: int, came_true: int, failed: bool) -> None:
        """Counts `came_true` tokens in a row and the one after them when it `failed`."""
        for place, hit in enumerate([1.0] * came_true + [0.0] * failed):
            kind = sureness, place > 0
            true, tried = self._seen.get(kind, (0.0, 0.0))
            self._seen[kind] = true * _KEEP + hit, tried * _KEEP + 1.0

    def of(self, sureness: int, *, later: bool = False) -> float:
        true, tried = self._seen.get((sureness, later), (0.0, 0.0))
        first = _LATER_SHARE if later else _FIRST_SHARES[min(sureness, len(_FIRST_SHARES) - 1)]
        return (true + first * _FIRST_WEIGHT) / (tried + _FIRST_WEIGHT)

    def expected(self, length: int, sureness: int) -> float:
        """The tokens that a pass with a draft of `length` brings: those that come true, and the one drawn after them."""
        first, later = self.of(sureness), self.of(sureness, later=True)
        run = float(length) if later >= 1.0 else (1.0 - later**length) / (1.0 - later)
        return 1.0 + first * run

    @property
    def surest(self) -> int:
        """The sureness whose first tokens came true most often."""
        seen = [sureness for sureness, later in self._seen if not later]
        return max(seen, key=self.of, default=0)


@dataclass(slots=True)
class DraftLength:
    """Decides how long a draft may be, and pauses drafting when it has cost more than it gave.

    Each step goes: `wanted` tells how many tokens to ask the drafter for, `worth` how many of those it gave to decode, and
    the `learn_` methods are told what came of it.
    """

    costs: Costs = field(default_factory=Costs)
    shares: Shares = field(default_factory=Shares)
    paused: int = 0  # steps until drafting is tried again
    _pause: int = _FIRST_PAUSE
    _account: float = 0.0  # single steps won by drafting, lately
    _draft_s: float | None = None  # seconds that the drafter takes for a token
    _trial: bool = True

    def wanted(self, limit: int) -> int:
        """How many tokens to ask for, at most `limit`."""
        if self.costs.single is None or limit < 1:
            return 0
        if self.paused:
            self.paused -= 1
            return 0
        if self._draft_s is None:
            return min(limit, _TRIAL)
        if not self._costly:
            return limit
        length = self._best(limit, self.shares.surest)
        if self._trial:
            self._trial, length = False, max(length, min(limit, _TRIAL))
        elif not length:
            self._turn_off()
        return length

    def worth(self, length: int, sureness: int) -> int:
        """How many tokens of a draft of `length` to decode; 0 when single steps are faster."""
        if self._costly:
            return length  # weighed before it was made
        return self._best(length, sureness) if length else 0

    @property
    def _costly(self) -> bool:
        return self._draft_s is not None and self._draft_s >= _CHEAP * (self.costs.single or 0.0)

    def learn_draft(self, tokens: int, seconds: float) -> None:
        """What the drafter took; one that gave nothing is counted as if it gave a token."""
        each = seconds / max(tokens, 1)
        self._draft_s = each if self._draft_s is None else _blend(self._draft_s, each)

    def learn_step(self, rows: int, seconds: float) -> None:
        """What a pass of so many rows took."""
        self.costs.learn(rows, seconds)

    def learn_gain(self, tokens: int, seconds: float) -> None:
        """What a step that drafted, or repaired what drafting did, brought and took altogether."""
        single = self.costs.single
        if not single:
            return
        self._account = min(self._account + tokens - seconds / single, _GAIN)
        if self._account == _GAIN:
            self._pause = _FIRST_PAUSE
        elif self._account < -_LOSS:
            self._turn_off()

    def _turn_off(self) -> None:
        self.paused, self._account, self._trial = self._pause, 0.0, True
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _best(self, limit: int, sureness: int) -> int:
        """The length up to `limit` with the most tokens per second; 0 when that is not clearly more than plain."""
        costs = self.costs
        best, best_rate = 0, _WORTH / costs.of(1) if costs.single else 0.0
        for rows in _ROWS:
            length = rows - 1
            if length > limit or rows > costs.most_rows:
                break
            rate = self.shares.expected(length, sureness) / (costs.of(rows) + length * (self._draft_s or 0.0))
            if rate > best_rate:
                best, best_rate = length, rate
        return best


def _blend(before: float, new: float) -> float:
    return before + _LEARN * (new - before)


def _first_cost(rows: int) -> float:
    return _between(_FIRST_COSTS, rows)


def _between(points: tuple[tuple[int, float], ...] | list[tuple[int, float]], at: int) -> float:
    """The value at `at` on the line through the points; that of the nearest point outside of them."""
    index = bisect_left(points, at, key=lambda point: point[0])
    if index == len(points):
        return points[-1][1]
    if index == 0 or points[index][0] == at:
        return points[index][1]
    (left, low), (right, high) = points[index - 1], points[index]
    return low + (high - low) * (at - left) / (right - left)
