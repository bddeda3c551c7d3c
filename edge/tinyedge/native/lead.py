"""By how much the likeliest token leads: what tells whether rounding could have chosen it.

A pass of several tokens may run through other kernels than single ones. These sum in another order, the next layer's
activations are rounded to 8 bits, and what began as the last bit of a float ends as the noise of that rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyedge.native.context import Context
from tinyedge.native.sampler import Candidates, Sampler

Logits = npt.NDArray[np.float32]

_NEAR = 3.0  # standard deviations below the likeliest token: those that a difference could bring to the top


@dataclass(frozen=True, slots=True)
class Lead:
    """How far the token that would be taken is ahead of the next, and a copy of the logits it was seen in.

    `share` is in standard deviations of the logits over the vocabulary: logits have no unit that models share.
    """

    share: float
    logits: Logits


class Leads:
    """Measures leads as a sampler sees them: after its biases and penalties, and none where its grammar forbids the first.

    `greedy` says whether the sampler takes the likeliest token at all; one that draws has no use for leads. Where steps may
    remove the likeliest token before it is taken, no lead is told from none.
    """

    def __init__(self, context: Context, sampler: Sampler) -> None:
        names, sampling = sampler.names, sampler.sampling
        self._plain = names[-1] == "greedy"
        self.greedy = self._plain or not (sampling.mirostat or sampling.temperature or sampling.dynatemp_range)
        self._context, self._sampler = context, sampler
        self._candidates: Candidates | None = None
        if sampler.grammar is not None or any(not name.startswith("?") for name in names[:-1]):
            self._candidates = Candidates(len(context.logits()))
        penalty = sampling.repeat_penalty
        self._stretch = max(penalty, 1.0 / penalty)  # a penalty multiplies logits, and what they differ by

    def of(self, row: int) -> Lead:
        """The lead in a row of the last decode."""
        logits = logits_of(self._context, row)
        if not self._plain:
            return Lead(0.0, logits)
        gap = _gap(logits) if self._candidates is None else self._gap_after_steps(self._candidates, row)
        return Lead(gap / (float(logits.std()) * self._stretch), logits)

    def _gap_after_steps(self, candidates: Candidates, row: int) -> float:
        sampler = self._sampler
        candidates.fill(self._context.logits(row))
        token = candidates.apply(sampler.chain)
        grammar = sampler.grammar
        if grammar is not None and not (candidates.allowed(grammar, token) and sampler.showable(token)):
            return 0.0
        return _gap(candidates._work["logit"])


def logits_of(context: Context, row: int = -1) -> Logits:
    """A copy of a row of the logits of the last decode."""
    return np.array(context.logits(row), dtype=np.float32)


def difference(one: Logits, other: Logits) -> float:
    """The most that any likely token's distance from the likeliest one differs between two rows, in standard deviations."""
    highest, spread = int(other.argmax()), float(other.std())
    gaps = (one - one[highest]) - (other - other[highest])
    return float(np.abs(gaps[other > other[highest] - _NEAR * spread]).max()) / spread


def _gap(logits: Logits) -> float:
    """By how much the highest is above the next; `logits` are left as they were."""
    highest = int(logits.argmax())
    first = logits[highest]
    logits[highest] = -np.inf
    second = logits.max()
    logits[highest] = first
    return float(first - second)
