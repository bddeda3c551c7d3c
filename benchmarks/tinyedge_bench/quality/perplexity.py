"""Perplexity and bits per byte of a model over a text, by llama-perplexity's definitions (tools/perplexity/perplexity.cpp)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyedge.errors import EvaluationError
from tinyedge.native.sequences import Floats
from tinyedge_bench.quality.models import OpenModel
from tinyedge_bench.quality.windows import Windows, read_windows

Doubles = npt.NDArray[np.float64]
# Told after each decode: windows done, windows in all, the perplexity so far (NaN before the first scored token).
Progress = Callable[[int, int, float], None]

_SLAB_BYTES = 16 << 20  # of float64 log-probabilities: 16 rows of a vocabulary of 128000
_LARGEST_EXPONENT = 700.0  # e to it is still a float


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """e to the mean negative log-likelihood of the scored tokens; None for an error of fewer than two.

    `bits_per_byte` is their total in bits over the bytes of text that they stand for (`Windows.text_bytes`), so that models
    with different vocabularies compare; None where they stand for none. Errors are standard errors of the mean, carried over.
    """

    value: float
    error: float | None
    tokens: int
    chunks: int
    context: int
    text_bytes: int
    bits_per_byte: float | None
    bits_per_byte_error: float | None


def measure_perplexity(model: OpenModel, windows: Windows, progress: Progress | None = None) -> Perplexity:
    """The perplexity over the windows. Raises EvaluationError when the model computes NaN, NativeError."""
    losses = np.empty(windows.count)
    scored = 0
    for reading in read_windows([model], windows):
        for rows in slabs(reading.logits[0]):
            values = -log_softmax(reading.logits[0][rows])[np.arange(rows.stop - rows.start), reading.targets[rows]]
            losses[scored : scored + len(values)] = values
            scored += len(values)
        check_finite(losses[scored - len(reading.targets) : scored], model, reading.windows)
        if progress is not None:
            progress(reading.windows, len(windows.starts), running(losses[:scored]))
    return summary(losses, windows, model)


def summary(losses: Doubles, windows: Windows, model: OpenModel) -> Perplexity:
    """The figures that follow from the negative log-likelihoods (nats) of the scored tokens of `windows`."""
    mean, error = mean_and_error(losses)
    text_bytes = windows.text_bytes(model.model)
    per_byte = len(losses) / (math.log(2) * text_bytes) if text_bytes else None
    value = running(losses)
    return Perplexity(
        value=value,
        error=None if error is None else value * error,
        tokens=len(losses),
        chunks=len(windows.starts),
        context=windows.context,
        text_bytes=text_bytes,
        bits_per_byte=None if per_byte is None else mean * per_byte,
        bits_per_byte_error=None if per_byte is None or error is None else error * per_byte,
    )


def slabs(logits: Floats) -> Iterator[slice]:
    """The rows of `logits` in pieces that take at most _SLAB_BYTES in float64."""
    height = max(1, _SLAB_BYTES // (8 * logits.shape[1]))
    for start in range(0, len(logits), height):
        yield slice(start, min(start + height, len(logits)))


def log_softmax(logits: Floats) -> Doubles:
    """Log-probabilities (rows, vocabulary) in float64; NaN in a row that has NaN or infinity."""
    shifted: Doubles = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def mean_and_error(values: Doubles) -> tuple[float, float | None]:
    """The mean and its standard error; `perplexity.cpp` divides the variance by n - 1 once, as we do."""
    if len(values) < 2:
        return float(values.mean()), None
    return float(values.mean()), math.sqrt(float(values.var()) / (len(values) - 1))


def running(losses: Doubles) -> float:
    """The perplexity of these losses; NaN of none."""
    return math.exp(min(float(losses.mean()), _LARGEST_EXPONENT)) if len(losses) else math.nan


def check_finite(values: Doubles, model: OpenModel, window: int) -> None:
    """Raises EvaluationError when a value that the model had a part in is not a number."""
    if not np.isfinite(values).all():
        raise EvaluationError(
            f"{model.path.name} computes NaN or infinity (in window {window})",
            "check the file with `tinyedge verify`, or make it again",
        )
