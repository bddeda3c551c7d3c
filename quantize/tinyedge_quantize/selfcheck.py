"""Catches a compiler that broke the quantization kernels: the error of each on seeded data, against stored ones.

The kernels search for the scales that fit best, so a miscompiled one still gives a valid file, only a worse one. Dequantizing
is done by gguf's numpy code, which no flag of the C compiler touches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyedge.errors import SelfCheckError
from tinyedge.ggml_types import row_bytes
from tinyedge.native import quantize as native

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
    "Q4_0": 0.0970183,
    "Q3_K": 0.1618618,
    "Q2_K": 0.3123154,
}

_ROWS, _COLUMNS, _SEED = 64, 2048, 20261


@dataclass(frozen=True)
class KernelError:
    """The relative RMS error of one type: norm of the difference over norm of the data; and the most it may be."""

    type: str
    error: float
    bound: float


def sample() -> npt.NDArray[np.float32]:
    """Rows like those of a trained matrix: mostly normal, some heavy-tailed, one nearly zero, one with a single outlier."""
    random = np.random.Generator(np.random.PCG64(_SEED))
    rows: npt.NDArray[np.float32] = random.standard_normal((_ROWS, _COLUMNS)).astype(np.float32) * np.float32(0.02)
    rows[1::4] *= np.exp(random.standard_normal((len(rows[1::4]), _COLUMNS)).astype(np.float32) * np.float32(0.5))
    rows[2] *= np.float32(1e-6)
    rows[3, 100] = 1.0
    return rows


def kernel_error(ggml_type: str, rows: npt.NDArray[np.float32]) -> float:
    """The relative RMS error of one type on (rows, columns) float32."""
    import gguf

    blocks = np.empty((len(rows), row_bytes(ggml_type, rows.shape[1])), np.uint8)
    native.quantize_rows(ggml_type, rows.ctypes.data, blocks.ctypes.data, len(rows), rows.shape[1])
    restored = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[ggml_type])
    difference = np.linalg.norm((restored - rows).astype(np.float64))
    return float(difference / np.linalg.norm(rows.astype(np.float64)))


def check_kernels() -> list[KernelError]:
    """Every type's error, all within bounds; raises SelfCheckError naming the types that are not."""
    rows = sample()
    results = [KernelError(name, kernel_error(name, rows), stock * TOLERANCE) for name, stock in STOCK_ERRORS.items()]
    broken = [result for result in results if not result.error <= result.bound]
    if broken:
        worst = ", ".join(f"{result.type} {result.error:.5f} (bound {result.bound:.5f})" for result in broken)
        raise SelfCheckError(f"the installed quantization kernels are miscompiled: relative RMS error {worst}")
    return results
