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
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    return library


class _TypeTraits(ctypes.Structure):
    """ggml.h, struct ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def quantize_rows(ggml_type: str, source: int, target: int, rows: int, columns: int, importance: int | None = None) -> int:
    """Quantizes `rows` rows of float32 at address `source` into `target`; the number of bytes written.

    `columns` must be a multiple of the type's block. `importance` is the address of `columns` float32 weights, one for each
    column, or None. The caller owns all buffers and their sizes.
    """
    written: int = _kernels().ggml_quantize_chunk(type_named(ggml_type).id, source, target, 0, rows, columns, importance)
    return written


def widen(dtype: str, source: int, target: int, count: int) -> None:
    """Converts `count` values of a type other than F32 at address `source` to float32 at `target`.

    Raises ValueError for a type that ggml cannot convert (see `ggml_types.NOT_WEIGHTS`).
    """
    function = _WIDENING.get(dtype)
    if function is not None:
        getattr(_kernels(), function)(source, target, count)
        return
    to_float = _kernels().ggml_get_type_traits(type_named(dtype).id).contents.to_float
    if not to_float:
        raise ValueError(f"ggml does not convert {dtype} to float32")
    to_float(source, target, count)


_WIDENING = {"BF16": "ggml_bf16_to_fp32_row", "F16": "ggml_fp16_to_fp32_row"}


def is_valid(ggml_type: str, source: int, size: int) -> bool:
    """Whether `size` bytes of whole blocks at address `source` hold no NaN or infinite value or scale."""
    valid: bool = _kernels().ggml_validate_row_data(type_named(ggml_type).id, source, size)
    return valid


def load_kernels() -> None:
    """Loads the library, so that threads find it ready and its absence is reported before any work."""
    _kernels()
