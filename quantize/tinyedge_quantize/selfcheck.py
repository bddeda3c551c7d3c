"""Catches a compiler that broke the quantization kernels: the error of each on seeded data, against stored ones.

The kernels search for the scales that fit best, so a miscompiled one still gives a valid file, only a worse one. With an
importance matrix most of them search by other code, so they are measured with one too. Dequantizing is done by numpy code,
gguf's where it has the type, which no flag of the C compiler touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyedge.errors import SelfCheckError
from tinyedge.ggml_types import row_bytes
from tinyedge.native import quantize as native

Floats = npt.NDArray[np.float32]

# Relative RMS error of each type on `sample()`, by ggml as llama.cpp's own build compiles it (llama-cpp-python 0.3.36, no extra
# flags; tests/quantize/test_selfcheck.py measures them anew). A kernel may be this much worse before it counts as broken.
TOLERANCE = 1.01
STOCK_ERRORS = {
    "F16": 0.0002053,
    "BF16": 0.0016356,
    "Q8_0": 0.0062687,
    "Q6_K": 0.0200230,
    "Q5_K": 0.0394604,
    "Q5_1": 0.0412768,
    "Q5_0": 0.0493146,
    "Q4_K": 0.0775507,
    "Q4_1": 0.0845498,
    "Q4_0": 0.0970183,
    "IQ4_NL": 0.0827122,
    "IQ4_XS": 0.0834248,
    "MXFP4": 0.1200904,
    "NVFP4": 0.1005016,
    "Q3_K": 0.1618618,
    "IQ3_S": 0.1817314,
    "IQ3_XXS": 0.2371155,
    "Q2_K": 0.3123154,
    "TQ2_0": 0.8124599,
    "TQ1_0": 0.8124599,
    "Q2_0": 0.7153023,
    "Q1_0": 0.6482648,
}
# The same with the importance of `importance()`, by which the errors are weighted.
STOCK_WEIGHTED_ERRORS = {
    "Q6_K": 0.0183555,
    "Q5_K": 0.0362675,
    "Q5_1": 0.0337584,
    "Q5_0": 0.0452912,
    "Q4_K": 0.0706487,
    "Q4_1": 0.0693136,
    "Q4_0": 0.0898706,
    "IQ4_NL": 0.0768785,
    "IQ4_XS": 0.0778186,
    "Q3_K": 0.1462108,
    "IQ3_S": 0.1333122,
    "IQ3_XXS": 0.1644687,
    "Q2_K": 0.2476288,
    "IQ2_S": 0.2570673,
    "IQ2_XS": 0.2863409,
    "IQ2_XXS": 0.3328452,
    "IQ1_M": 0.4089437,
    "IQ1_S": 0.4750614,
}
# ggml builds tables for these when they are first used, which takes seconds, and minutes under emulation.
SLOW = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M"})

_ROWS, _COLUMNS, _SEED = 64, 2048, 20261


@dataclass(frozen=True)
class KernelError:
    """The relative RMS error of one type: norm of the difference over norm of the data; and the most it may be.

    With an importance matrix the type's name ends in `+imatrix` and every square counts by its column's importance.
    """

    type: str
    error: float
    bound: float


def sample() -> Floats:
    """Rows like those of a trained matrix: mostly normal, some heavy-tailed, one nearly zero, one with a single outlier."""
    random = np.random.Generator(np.random.PCG64(_SEED))
    rows: Floats = random.standard_normal((_ROWS, _COLUMNS)).astype(np.float32) * np.float32(0.02)
    rows[1::4] *= np.exp(random.standard_normal((len(rows[1::4]), _COLUMNS)).astype(np.float32) * np.float32(0.5))
    rows[2] *= np.float32(1e-6)
    rows[3, 100] = 1.0
    return rows


def importance() -> Floats:
    """Importance of the columns of `sample()`, as unequal as measured ones."""
    random = np.random.Generator(np.random.PCG64(_SEED + 1))
    return np.exp(random.standard_normal(_COLUMNS)).astype(np.float32)


def kernel_error(ggml_type: str, rows: Floats, weights: Floats | None = None) -> float:
    """The relative RMS error of one type on (rows, columns) float32, weighted by column when `weights` are given."""
    blocks = np.empty((len(rows), row_bytes(ggml_type, rows.shape[1])), np.uint8)
    address = None if weights is None else weights.ctypes.data
    native.quantize_rows(ggml_type, rows.ctypes.data, blocks.ctypes.data, len(rows), rows.shape[1], address)
    difference = (dequantized(ggml_type, blocks) - rows).astype(np.float64)
    scale = np.ones(1) if weights is None else np.sqrt(weights.astype(np.float64))
    return float(np.linalg.norm(difference * scale) / np.linalg.norm(rows.astype(np.float64) * scale))


def check_kernels(*, slow: bool = False) -> list[KernelError]:
    """Every type's error, all within bounds; raises SelfCheckError naming the types that are not.

    Those of `SLOW` are checked only when asked for.
    """
    rows, weights = sample(), importance()
    results = [KernelError(name, kernel_error(name, rows), stock * TOLERANCE) for name, stock in STOCK_ERRORS.items()] + [
        KernelError(f"{name}+imatrix", kernel_error(name, rows, weights), stock * TOLERANCE)
        for name, stock in STOCK_WEIGHTED_ERRORS.items()
        if slow or name not in SLOW
    ]
    broken = [result for result in results if not result.error <= result.bound]
    if broken:
        worst = ", ".join(f"{result.type} {result.error:.5f} (bound {result.bound:.5f})" for result in broken)
        raise SelfCheckError(f"the installed quantization kernels are miscompiled: relative RMS error {worst}")
    return results


def dequantized(ggml_type: str, blocks: npt.NDArray[np.uint8]) -> Floats:
    """The float32 values of (rows, bytes) of blocks, by numpy."""
    own = _DEQUANTIZED_HERE.get(ggml_type)
    if own is not None:
        return own(blocks)
    import gguf

    restored: Floats = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[ggml_type])
    return restored


def _unpacked(blocks: npt.NDArray[np.uint8], bits: int) -> Floats:
    """What gguf does not know, ggml-quants.c, dequantize_row_q1_0 and _q2_0: a float16 scale and 16 bytes of small numbers.

    One bit stands for -1 or 1, two for -1 to 2; the first weight is in the lowest bits.
    """
    parts = blocks.reshape(len(blocks), -1, 18)
    scales = parts[..., :2].copy().view(np.float16).astype(np.float32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = ((parts[..., 2:, None] >> shifts) & (2**bits - 1)).reshape(*parts.shape[:2], -1)
    values: Floats = (numbers.astype(np.float32) * (2 if bits == 1 else 1) - 1) * scales
    return values.reshape(len(blocks), -1)


_DEQUANTIZED_HERE: Mapping[str, Callable[[npt.NDArray[np.uint8]], Floats]] = {
    "Q1_0": lambda blocks: _unpacked(blocks, 1),
    "Q2_0": lambda blocks: _unpacked(blocks, 2),
}
