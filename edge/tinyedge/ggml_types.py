"""The tensor types of ggml: the one table of ids, names, block sizes and block bytes that the rest of tinyedge reads.

Import-light on purpose: `tinyedge run` needs it before any native library is loaded. Ids and sizes are those of ggml.h
and ggml-common.h (ggml 0.25); tests compare every row with the installed library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class GGMLType:
    """A tensor type: rows are stored as blocks of `block_elements` values in `block_bytes` bytes."""

    id: int
    name: str
    block_elements: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row. Raises ValueError when `columns` is not a multiple of the block."""
        if columns % self.block_elements:
            raise ValueError(f"{columns} columns do not divide into {self.name} blocks of {self.block_elements}")
        return columns // self.block_elements * self.block_bytes

    def __str__(self) -> str:
        return self.name


_ROWS = (
    GGMLType(0, "F32", 1, 4),
    GGMLType(1, "F16", 1, 2),
    GGMLType(2, "Q4_0", 32, 18),
    GGMLType(3, "Q4_1", 32, 20),
    GGMLType(6, "Q5_0", 32, 22),
    GGMLType(7, "Q5_1", 32, 24),
    GGMLType(8, "Q8_0", 32, 34),
    GGMLType(9, "Q8_1", 32, 36),
    GGMLType(10, "Q2_K", 256, 84),
    GGMLType(11, "Q3_K", 256, 110),
    GGMLType(12, "Q4_K", 256, 144),
    GGMLType(13, "Q5_K", 256, 176),
    GGMLType(14, "Q6_K", 256, 210),
    GGMLType(15, "Q8_K", 256, 292),
    GGMLType(16, "IQ2_XXS", 256, 66),
    GGMLType(17, "IQ2_XS", 256, 74),
    GGMLType(18, "IQ3_XXS", 256, 98),
    GGMLType(19, "IQ1_S", 256, 50),
    GGMLType(20, "IQ4_NL", 32, 18),
    GGMLType(21, "IQ3_S", 256, 110),
    GGMLType(22, "IQ2_S", 256, 82),
    GGMLType(23, "IQ4_XS", 256, 136),
    GGMLType(24, "I8", 1, 1),
    GGMLType(25, "I16", 1, 2),
    GGMLType(26, "I32", 1, 4),
    GGMLType(27, "I64", 1, 8),
    GGMLType(28, "F64", 1, 8),
    GGMLType(29, "IQ1_M", 256, 56),
    GGMLType(30, "BF16", 1, 2),
    GGMLType(34, "TQ1_0", 256, 54),
    GGMLType(35, "TQ2_0", 256, 66),
    GGMLType(39, "MXFP4", 32, 17),
    GGMLType(40, "NVFP4", 64, 36),
    GGMLType(41, "Q1_0", 128, 18),
    GGMLType(42, "Q2_0", 64, 18),
)

BY_ID: Mapping[int, GGMLType] = MappingProxyType({row.id: row for row in _ROWS})
BY_NAME: Mapping[str, GGMLType] = MappingProxyType({row.name: row for row in _ROWS})

# Types that hold no weights of a model: ggml has no conversion from them to float32, or only between its own steps.
NOT_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})

# Ids that ggml once used and whose kernels are gone; a file with one of them must be converted again.
REMOVED: Mapping[int, str] = MappingProxyType(
    {
        4: "Q4_2",
        5: "Q4_3",
        31: "Q4_0_4_4",
        32: "Q4_0_4_8",
        33: "Q4_0_8_8",
        36: "IQ4_NL_4_4",
        37: "IQ4_NL_4_8",
        38: "IQ4_NL_8_8",
    }
)


def type_named(name: str) -> GGMLType:
    """The type called `name`, in any case. Raises KeyError, naming it, when there is none."""
    return BY_NAME[name.upper()]


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of one row of `columns` values of the named type. Raises ValueError when they do not fill whole blocks."""
    return type_named(type_name).row_bytes(columns)
