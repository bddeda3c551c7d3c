"""Small integers packed into the words of an integer tensor, lowest bits first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tinyedge_quantize.quantized.parts import Array

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
Small = npt.NDArray[np.uint8]


def unpack(words: Array, bits: int) -> Small:
    """The fields of words (rows, columns) as (rows, fields of a word, columns); bits that make no whole field are left out."""
    unsigned = words.view(_WORDS[words.itemsize])
    kind = unsigned.dtype.type
    fields = np.empty((unsigned.shape[0], words.itemsize * 8 // bits, unsigned.shape[1]), np.uint8)
    for place in range(fields.shape[1]):
        fields[:, place] = (unsigned >> kind(place * bits)) & kind(2**bits - 1)
    return fields


def unpack_stream(words: Array, bits: int) -> Small:
    """The fields of words (rows, columns) as (rows * 32 // bits, columns), a column's words being one stream of bits.

    Fields of three bits go across the ends of 32-bit words: 32 of them fill three words.
    """
    if words.itemsize * 8 % bits == 0:
        return unpack(words, bits).reshape(-1, words.shape[1])
    unsigned = words.view(np.uint32)
    count = unsigned.shape[0] * 32 // bits
    word, shift = np.divmod(np.arange(count) * bits, 32)
    low = unsigned[word] >> shift.astype(np.uint32)[:, None]
    over = np.flatnonzero(shift + bits > 32)
    low[over] |= unsigned[word[over] + 1] << (32 - shift[over]).astype(np.uint32)[:, None]
    fields: Small = (low & np.uint32(2**bits - 1)).astype(np.uint8)
    return fields
