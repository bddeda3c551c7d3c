"""How far a model's predictions are from those of a base, by llama-perplexity's definitions (`kl_divergence`).

llama-perplexity writes the base's log-probabilities to a file first, 16 bits each and none below the likeliest's less 16. Here
both models read the same windows side by side and nothing is stored, rounded or cut off. Over prose the means agree to the
fifth digit; over a text with tokens rarer than that, its perplexity of the base is too small, and all that follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinyedge.errors import EvaluationError
from tinyedge.gguf_file import GGUFFile
from tinyedge.gguf_split import read_model
from tinyedge.gguf_values import GGUFArray
from tinyedge.native.sequences import Floats, Integers
from tinyedge_bench.quality.models import OpenModel
from tinyedge_bench.quality.perplexity import (
    Doubles,
    Perplexity,
    Progress,
    check_finite,
    log_softmax,
    mean_and_error,
    running,
    slabs,
    summary,
)
from tinyedge_bench.quality.windows import Windows, read_windows

KL_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 10.0, 5.0, 1.0, 0.1)
DP_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 25.0, 10.0, 5.0, 1.0, 0.1)
_COMPARED = (
    ("kind of tokenizer", "tokenizer.ggml.model"),
    ("way of splitting text", "tokenizer.ggml.pre"),
    ("list of tokens", "tokenizer.ggml.tokens"),
    ("list of scores", "tokenizer.ggml.scores"),
    ("list of merges", "tokenizer.ggml.merges"),
    ("token that begins a text", "tokenizer.ggml.bos_token_id"),
    ("choice of beginning a text with it", "tokenizer.ggml.add_bos_token"),
)


@dataclass(slots=True)
class Samples:
    """What each scored token gives: negative log-likelihoods (nats) of model and base, KL divergence, change of probability."""

    losses: Doubles
    base_losses: Doubles
    divergences: Doubles
    changes: Doubles
    same_top: npt.NDArray[np.bool_]

    @staticmethod
    def room(count: int) -> Samples:
        """Places for so many tokens."""
        return Samples(np.empty(count), np.empty(count), np.empty(count), np.empty(count), np.empty(count, dtype=np.bool_))


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The statistics that llama-perplexity prints, in its order; probabilities as shares, not in percent.

    A divergence is of the base's distribution from the model's, in nats; `dp` is the model's probability of the token that came
    less the base's. Percentiles interpolate linearly. None for what too few tokens, or tokens that do not differ, leave open.
    """

    base_perplexity: Perplexity
    correlation: float | None
    log_ratio: float
    log_ratio_error: float | None
    ratio: float
    ratio_error: float | None
    difference: float
    difference_error: float | None
    mean_kl: float
    mean_kl_error: float | None
    kl_percentiles: Mapping[str, float]
    dp_mean: float
    dp_mean_error: float | None
    dp_percentiles: Mapping[str, float]
    dp_rms: float
    dp_rms_error: float | None
    same_top: float
    same_top_error: float | None


def measure_divergence(
    model: OpenModel, base: OpenModel, windows: Windows, progress: Progress | None = None
) -> tuple[Perplexity, Divergence]:
    """The model's perplexity over the windows and its divergence from the base, both read side by side.

    `check_same_vocabulary` must have passed. Raises EvaluationError when a model computes NaN, NativeError.
    """
    samples = Samples.room(windows.count)
    scored = 0
    for reading in read_windows([model, base], windows):
        before = scored
        for rows in slabs(reading.logits[0]):
            add_samples(samples, scored, reading.logits[0][rows], reading.logits[1][rows], reading.targets[rows])
            scored += rows.stop - rows.start
        new = slice(before, scored)
        check_finite(samples.base_losses[new], base, reading.windows)
        check_finite(samples.losses[new] + samples.divergences[new], model, reading.windows)
        if progress is not None:
            progress(reading.windows, len(windows.starts), running(samples.losses[:scored]))
    perplexity = summary(samples.losses, windows, model)
    return perplexity, statistics(samples, perplexity, summary(samples.base_losses, windows, base))


def add_samples(samples: Samples, start: int, logits: Floats, base_logits: Floats, targets: Integers) -> None:
    """Puts what rows of logits (rows, vocabulary) give into `samples` from `start` on."""
    rows, places = np.arange(len(targets)), slice(start, start + len(targets))
    ours, bases = log_softmax(logits), log_softmax(base_logits)
    samples.losses[places] = -ours[rows, targets]
    samples.base_losses[places] = -bases[rows, targets]
    samples.changes[places] = np.exp(ours[rows, targets]) - np.exp(bases[rows, targets])
    samples.same_top[places] = logits.argmax(axis=1) == base_logits.argmax(axis=1)
    probabilities = np.exp(bases)
    np.subtract(bases, ours, out=bases, where=probabilities > 0)  # what the base rules out has no part, -inf less -inf least
    bases[probabilities == 0] = 0
    samples.divergences[places] = np.einsum("ij,ij->i", probabilities, bases)


def statistics(samples: Samples, perplexity: Perplexity, base: Perplexity) -> Divergence:
    """The figures of all scored tokens, with the errors that `kl_divergence` propagates."""
    count = len(samples.losses)
    (mean, error), (base_mean, base_error) = mean_and_error(samples.losses), mean_and_error(samples.base_losses)
    covariance = correlation = log_ratio_error = difference_error = None
    log_ratio, ratio = mean - base_mean, math.exp(min(mean - base_mean, 700.0))
    if error is not None and base_error is not None:
        products = (samples.losses - mean) * (samples.base_losses - base_mean)
        covariance = float(products.mean()) / (count - 1)
        correlation = covariance / (error * base_error) if error * base_error > 0 else None
        log_ratio_error = _root(error**2 + base_error**2 - 2 * covariance)
        spreads = perplexity.value * error, base.value * base_error
        difference_error = _root(spreads[0] ** 2 + spreads[1] ** 2 - 2 * perplexity.value * base.value * covariance)
    mean_kl, mean_kl_error = mean_and_error(samples.divergences)
    dp_mean, dp_mean_error = mean_and_error(samples.changes)
    square, square_error = mean_and_error(samples.changes**2)
    same = float(samples.same_top.mean())
    return Divergence(
        base_perplexity=base,
        correlation=correlation,
        log_ratio=log_ratio,
        log_ratio_error=log_ratio_error,
        ratio=ratio,
        ratio_error=None if log_ratio_error is None else ratio * log_ratio_error,
        difference=perplexity.value - base.value,
        difference_error=difference_error,
        mean_kl=mean_kl,
        mean_kl_error=mean_kl_error,
        kl_percentiles=percentiles(samples.divergences, KL_PERCENTILES),
        dp_mean=dp_mean,
        dp_mean_error=dp_mean_error,
        dp_percentiles=percentiles(samples.changes, DP_PERCENTILES),
        dp_rms=math.sqrt(square),
        dp_rms_error=None if square_error is None or not square else 0.5 / math.sqrt(square) * square_error,
        same_top=same,
        same_top_error=math.sqrt(same * (1 - same) / (count - 1)) if count > 1 else None,
    )


def percentiles(values: Doubles, wanted: tuple[float, ...]) -> dict[str, float]:
    """Largest, percentiles and smallest by llama-perplexity's names for them, the largest first."""
    above = [percent for percent in wanted if percent > 50]
    points = [100.0, *above, 50.0, *wanted[len(above) :], 0.0]
    names = ["max", *map(str, above), "median", *map(str, wanted[len(above) :]), "min"]
    return dict(zip(names, np.percentile(values, points).tolist(), strict=True))


def check_same_vocabulary(path: Path, base: Path) -> None:
    """Raises EvaluationError, naming the first difference, unless both GGUF files split a text into the same tokens.

    What only one of them says is no difference: converters leave out what is llama.cpp's default.
    """
    ours, bases = read_model(path), read_model(base)
    for what, key in _COMPARED:
        one, other = _value(ours, key), _value(bases, key)
        if one != other and one is not None and other is not None:
            raise EvaluationError(
                f"{base.name} cannot be the base of {path.name}: its {what} is another{_difference(one, other)}",
                "give a base with the same vocabulary, such as the F16 file that the model was quantized from",
            )


def _value(gguf: GGUFFile, key: str) -> object:
    value = gguf.metadata.get(key)
    if not isinstance(value, GGUFArray):
        return value
    return value.raw_strings if value.element_type == "str" else value.values


def _difference(one: object, other: object) -> str:
    """What differs, where it can be said in a few words."""
    if not (isinstance(one, tuple) and isinstance(other, tuple)):
        return f" ({other!r:.40}, not {one!r:.40})"
    if len(one) != len(other):
        return f" ({len(other)} entries, not {len(one)})"
    place = next(index for index, (left, right) in enumerate(zip(one, other, strict=True)) if left != right)
    return f" (entry {place} is {_shown(other[place])}, not {_shown(one[place])})"


def _shown(value: object) -> str:
    return repr(value.decode("utf-8", "replace")[:24]) if isinstance(value, bytes) else f"{value!r:.40}"


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0))
