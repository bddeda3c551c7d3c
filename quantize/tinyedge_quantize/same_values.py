"""Whether two tensors hold the same numbers, in little memory."""

from __future__ import annotations

import numpy as np

from tinyedge_quantize.tensors import FLOAT_BYTES, SourceTensor, float_rows

_COMPARED_ELEMENTS = 256 * 1024


def same_values(one: SourceTensor, other: SourceTensor) -> bool:
    """Whether both have the same shape, floating-point dtypes and numbers; reads them slab by slab to the first difference."""
    if one.shape != other.shape or one.dtype not in FLOAT_BYTES or other.dtype not in FLOAT_BYTES:
        return False
    if one.dtype == other.dtype and one.reader == other.reader and one.order is None and other.order is None:
        return True  # one place in a file under two names
    step = max(1, _COMPARED_ELEMENTS // one.columns)
    return all(
        np.array_equal(float_rows(one, first, count), float_rows(other, first, count))
        for first in range(0, one.rows, step)
        for count in (min(step, one.rows - first),)
    )
