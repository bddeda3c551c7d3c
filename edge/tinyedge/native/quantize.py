"""ggml's row kernels: widening to float32 and quantizing. Every call releases the GIL for as long as it computes."""

from __future__ import annotations

import ctypes
import functools

from tinyedge.ggml_types import type_named
from tinyedge.native.library import ggml


@functools.cache
def _kernels() -> ctypes.CDLL:
    library = ggml()
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    for name in ("ggml_bf16_to_fp32_row", "ggml_fp16_to_fp32_row"):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = None
    return library


def quantize_rows(ggml_type: str, source: int, target: int, rows: int, columns: int) -> int:
    """Quantizes `rows` rows of float32 at address `source` into `target`; the number of bytes written.

    `columns` must be a multiple of the type's block. The caller owns both buffers and their sizes.
    """
    written: int = _kernels().ggml_quantize_chunk(type_named(ggml_type).id, source, target, 0, rows, columns, None)
    return written


def widen(dtype: str, source: int, target: int, count: int) -> None:
    """Converts `count` BF16 or F16 values at address `source` to float32 at `target`."""
    function = {"BF16": "ggml_bf16_to_fp32_row", "F16": "ggml_fp16_to_fp32_row"}[dtype]
    getattr(_kernels(), function)(source, target, count)


def load_kernels() -> None:
    """Loads the library, so that threads find it ready and its absence is reported before any work."""
    _kernels()
