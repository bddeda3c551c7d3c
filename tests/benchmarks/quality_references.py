"""What the tests of quality measurements compare with: llama-perplexity itself where there is one, and its formulas.

`logits_of` reads one window at a time with no batching of ours; `kl_statistics` is tools/perplexity/perplexity.cpp's
`kl_divergence` written again in plain Python, with the 16 bits that its file of logits keeps of each log-probability, or
without.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llama_cpp_tools import llama_cpp_tool

from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model

Floats = npt.NDArray[np.float32]


def llama_perplexity(*arguments: str | Path, until: str) -> str:
    """What the program says, run with the ggml library that we use: another build rounds otherwise in the fifth digit.

    It does not wait for its logging thread at its end, so that now and then the last lines are lost; `until` is in those.
    """
    program = llama_cpp_tool("llama-perplexity")
    found = importlib.util.find_spec("llama_cpp")
    assert found is not None and found.origin is not None
    folder = str(Path(found.origin).parent / "lib")
    environment = os.environ | {"LD_LIBRARY_PATH": folder, "DYLD_LIBRARY_PATH": folder}
    command = [program, *map(str, arguments), "-t", "1"]
    for _ in range(10):
        done = subprocess.run(command, capture_output=True, timeout=300, check=False, env=environment)
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        assert done.returncode == 0, text
        if until in text:
            break
    return text


def printed(text: str) -> dict[str, list[str]]:
    """The numbers behind each name in llama-perplexity's statistics of a divergence, as they are printed."""
    lines = (re.fullmatch(r"\s*(.+?)\s*: +(-?\d.*)", line) for line in text.splitlines())
    return {match[1]: re.findall(r"-?\d+\.\d+", match[2]) for match in lines if match and " I " not in match[1]}


def logits_of(model: Model, window: Sequence[int]) -> Floats:
    """The logits (tokens, vocabulary) of every token of a window."""
    size = len(window)
    with Context(model, ContextSettings(context=size, threads=1, outputs=size)) as context:
        context.decode_rows(window)
        return np.array([context.logits(row)[:] for row in range(size)], dtype=np.float32)


def loss(row: Sequence[float], target: int) -> float:
    """The negative log-likelihood of `target`, in nats."""
    return -log_probabilities(row)[target]


def log_probabilities(row: Sequence[float]) -> list[float]:
    """The natural logarithm of each token's probability."""
    highest = max(row)
    total = math.log(math.fsum(math.exp(value - highest) for value in row)) + highest
    return [value - total for value in row]


def in_16_bits(row: Floats) -> npt.NDArray[np.float64]:
    """The log-probabilities that llama-perplexity's file holds of a row of logits, computed in float32 as there."""
    highest = row.max()
    lowest = max(row.min(), highest - np.float32(16))
    total = np.float32(math.log(float(np.exp(row - highest).sum(dtype=np.float64))))
    scale = (highest - lowest) / np.float32(65535)
    steps = np.where(row > lowest, np.rint(np.float32(1) / scale * (row - lowest)), np.float32(0))
    return (scale * steps + (lowest - highest - total)).astype(np.float64)


def kl_statistics(
    rows: Sequence[Floats], base_rows: Sequence[Floats], targets: Sequence[int], *, rounded: bool
) -> dict[str, tuple[float, ...]]:
    """Every figure that llama-perplexity prints, by its name for it, with its error where it has one."""
    losses, base_losses, divergences, changes, same = [], [], [], [], 0
    for row, base_row, target in zip(rows, base_rows, targets, strict=True):
        ours = log_probabilities(row.tolist())
        bases = in_16_bits(base_row).tolist() if rounded else log_probabilities(base_row.tolist())
        losses.append(-ours[target])
        base_losses.append(-bases[target])
        cut = -16.0 if rounded else -math.inf
        divergences.append(math.fsum(math.exp(q) * (q - p) for p, q in zip(ours, bases, strict=True) if q > cut))
        changes.append(math.exp(ours[target]) - math.exp(bases[target]))
        same += ours.index(max(ours)) == bases.index(max(bases))
    count = len(losses)
    (mean, error), (base_mean, base_error) = _mean(losses), _mean(base_losses)
    covariance = math.fsum(a * b for a, b in zip(losses, base_losses, strict=True)) / count - mean * base_mean
    covariance /= count - 1
    ppl, base_ppl = math.exp(mean), math.exp(base_mean)
    ratio_error = math.sqrt(max(0.0, error**2 + base_error**2 - 2 * covariance))
    square, square_error = _mean([change**2 for change in changes])
    share = same / count
    found: dict[str, tuple[float, ...]] = {
        "Mean PPL(Q)": (ppl, ppl * error),
        "Mean PPL(base)": (base_ppl, base_ppl * base_error),
        "Cor(ln(PPL(Q)), ln(PPL(base)))": (100 * covariance / (error * base_error),),
        "Mean ln(PPL(Q)/PPL(base))": (mean - base_mean, ratio_error),
        "Mean PPL(Q)/PPL(base)": (ppl / base_ppl, ppl / base_ppl * ratio_error),
        "Mean PPL(Q)-PPL(base)": (
            ppl - base_ppl,
            math.sqrt((ppl * error) ** 2 + (base_ppl * base_error) ** 2 - 2 * ppl * base_ppl * covariance),
        ),
        "Mean    KLD": _mean(divergences),
        "Mean    Δp": tuple(100 * value for value in _mean(changes)),
        "RMS Δp": (100 * math.sqrt(square), 50 * square_error / math.sqrt(square)),
        "Same top p": (100 * share, 100 * math.sqrt(share * (1 - share) / (count - 1))),
    }
    for unit, values, scale in (("KLD", divergences, 1), ("Δp", changes, 100)):
        ordered = sorted(values)
        found |= {f"Maximum {unit}": (scale * ordered[-1],), f"Minimum {unit}": (scale * ordered[0],)}
        found[f"Median  {unit}"] = (scale * _percentile(ordered, 0.5),)
        for percent in ("99.9", "99.0", "95.0", "90.0", "75.0", "25.0", "10.0", "5.0", "1.0", "0.1"):
            found[f"{percent}%   {unit}"] = (scale * _percentile(ordered, float(percent) / 100),)
    return found


def _mean(values: Sequence[float]) -> tuple[float, float]:
    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum(value * value for value in values) / count - mean * mean
    return mean, math.sqrt(max(variance, 0.0) / (count - 1))


def _percentile(ordered: Sequence[float], fraction: float) -> float:
    place = fraction * (len(ordered) - 1)
    below = int(place)
    return (1 - (place - below)) * ordered[below] + (place - below) * ordered[min(below + 1, len(ordered) - 1)]
