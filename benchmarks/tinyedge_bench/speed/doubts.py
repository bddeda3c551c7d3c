"""What to doubt about the runs of one case, a sentence each with what helps: all of them are worded here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tinyedge_bench.speed.cases import threads_text

FEWEST_RUNS = 3
_FEWEST_TO_JUDGE = 5  # with fewer runs, neither an outlier nor a trend can be told from chance
# Runs that spread wider than this share of their median say more about the machine's other work than about the model.
_SPREAD = 0.05
_NOTABLE = 0.02  # what differs less than this is not worth a word, however regular it is
# Iglewicz and Hoaglin, "How to detect and handle outliers", 1993 (NIST/SEMATECH e-Handbook, 1.3.5.17): the modified z-score
# 0.6745 (x - median) / MAD, an outlier beyond 3.5.
_Z_FACTOR, _Z_OUTLIER = 0.6745, 3.5
_Z_TREND = 1.96  # 95%, two-sided


def doubts(name: str, samples: Sequence[float], held_back: str = "") -> tuple[str, ...]:
    """The sentences about `samples`, the tokens per second of case `name` in the order of the runs; none when all is well.

    `held_back` says what the machine's sensors saw of throttling during the runs.
    """
    found = []
    if held_back:
        found.append(f"{name}: {held_back}; cool it, give it a better supply, or wait between runs with --cool")
    if len(samples) < FEWEST_RUNS:
        found.append(f"{name}: fewer than {FEWEST_RUNS} runs cannot tell the spread; use -r 5 or more")
        return tuple(found)
    strays, change = outliers(samples), drift(samples)
    if strays:
        which = ", ".join(f"{value:.1f}" for value in strays)
        are = "are" if len(strays) > 1 else "is"
        found.append(
            f"{name}: {len(strays)} of {len(samples)} runs {are} far from the others ({which}, median "
            f"{statistics.median(samples):.1f} tokens/s); close other programs and measure again"
        )
    if change:
        word, hint = (
            ("slower", "let the machine cool, or wait between runs with --cool")
            if change < 0
            else ("faster", "the machine was still warming up or busy; measure again with more runs")
        )
        found.append(f"{name}: the runs got {word} by {abs(change):.0%} from first to last; {hint}")
    low, high, median = min(samples), max(samples), statistics.median(samples)
    if not (strays or change) and high - low > _SPREAD * median:
        found.append(
            f"{name}: runs differ by {(high - low) / median:.0%} ({low:.1f} to {high:.1f}); "
            "close other programs and let it cool"
        )
    return tuple(found)


def row_title(row: Mapping[str, Any]) -> str:
    """What names the case of a row in these sentences: `tg128, 4 threads`, with the engine when it is a peer."""
    threads, cache, engine = row.get("n_threads"), row.get("type_k", "f16"), row.get("engine", "tinyedge")
    parts = (
        (engine != "tinyedge", engine),
        (True, row.get("test")),
        (threads is not None, threads_text(threads)),
        (cache != "f16", f"{cache} cache"),
    )
    return ", ".join(str(text) for told, text in parts if told)


def outliers(samples: Sequence[float]) -> tuple[float, ...]:
    """The samples that lie too far from the median for the spread of the others."""
    if len(samples) < _FEWEST_TO_JUDGE:
        return ()
    median = statistics.median(samples)
    deviation = statistics.median(abs(value - median) for value in samples)
    return tuple(
        value
        for value in samples
        if abs(value - median) > _NOTABLE * median and _Z_FACTOR * abs(value - median) > _Z_OUTLIER * deviation
    )


def drift(samples: Sequence[float]) -> float:
    """By what share the samples rise (or fall, negative) from the first half to the second; 0.0 without a trend.

    A trend is one that the Mann-Kendall test finds at 95% (Mann, Econometrica 13, 1945; normal approximation with the
    correction for continuity).
    """
    count = len(samples)
    if count < _FEWEST_TO_JUDGE:
        return 0.0
    signs = sum((b > a) - (b < a) for index, a in enumerate(samples) for b in samples[index + 1 :])
    variance = count * (count - 1) * (2 * count + 5) / 18
    if abs(signs) - 1 <= _Z_TREND * math.sqrt(variance):
        return 0.0
    half = count // 2
    early, late = statistics.median(samples[:half]), statistics.median(samples[-half:])
    change = late / early - 1
    return change if abs(change) > _NOTABLE else 0.0
