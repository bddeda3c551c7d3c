"""Keeps greedy text with drafts identical to that of single steps.

A pass of several tokens computes with other kernels than a single step, and the KV entries that it writes are seen by every
later token. Both change logits by the noise of the activations' rounding, however small the first difference was: it is not
the last bits that differ. So where the likeliest token leads by less than several times that noise, it is not believed; the
KV cache is then computed anew, one token at a time, from the first place where it may differ.
"""

from __future__ import annotations

from tinyedge.native.lead import Leads, Logits, difference

# Standard deviations of a row's logits by which passes of several tokens were seen to differ from single steps: up to 0.004
# for F16 weights, 0.05 for Q8_0, 0.10 for Q4_K_M, 0.17 with a Q4_0 KV cache as well (the trained demo model, passes of 2 to
# 17 tokens, 1,200 places each), and 0.38 for the random weights of a 1.1B model.
_FIRST_DIFFERENCE = 0.15
_TIMES = 3.0  # a lead is believed from so many times the largest difference on
_ENOUGH = 64  # differences seen, from which on the largest of them counts in place of the first
_LEAST_BOUND = 0.02  # standard deviations
_CALM = 16  # places in a row that are believed before drafting begins again after one that was not


class Exactness:
    """Knows which part of the KV cache is as single steps would have left it, and which tokens to believe.

    `clean` counts the leading tokens of the cache that are; `doubted` are the logits of the token to be drawn next when its
    lead was too small.
    """

    def __init__(self) -> None:
        self.clean = 0
        self.doubted: Logits | None = None
        self._leads: Leads | None = None
        self._calm = _CALM
        self._largest, self._seen = 0.0, 0

    def begin(self, leads: Leads, clean: int) -> None:
        """Starts with a KV cache of `clean` tokens, none of which a draft brought."""
        self._leads, self.clean, self.doubted = leads, clean, None

    @property
    def calm(self) -> bool:
        """Whether leads were large for a while. Where they are not, drafts only bring work that must be done again."""
        return self._calm >= _CALM

    @property
    def bound(self) -> float:
        """The lead from which a token is believed, in standard deviations of the logits."""
        known = self._largest if self._seen >= _ENOUGH else max(self._largest, _FIRST_DIFFERENCE)
        return max(_TIMES * known, _LEAST_BOUND)

    def believes(self, row: int) -> bool:
        """Whether the token that would be drawn from this row of the last decode is the one a single step would give."""
        assert self._leads is not None
        lead = self._leads.of(row)
        if lead.share >= self.bound:
            self._calm += 1
            return True
        self._calm, self.doubted = 0, lead.logits
        return False

    def watch(self, row: int) -> None:
        """Takes note of the lead in a row that needs no belief, for it was computed as single steps do."""
        self.believes(row)
        self.doubted = None

    def settle(self, clean: int, logits: Logits) -> None:
        """Takes note that all `clean` tokens of the cache are computed anew, and compares what came of it with the doubted."""
        if self.doubted is not None:
            self._largest = max(self._largest, difference(self.doubted, logits))
            self._seen += 1
        self.clean, self.doubted = clean, None
