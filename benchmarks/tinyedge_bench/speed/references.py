"""Published speeds that may stand beside a measurement: the rows of references.toml."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

_toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # tomli is what became tomllib

# How far a model may be from that of a published figure to stand beside it, as a ratio.
_SIZE = 1.5
_BITS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A figure that someone published; the fields are explained at the head of references.toml."""

    board: str
    model: str
    parameters: int
    type: str
    bits: int
    test: str
    tokens_per_s: float
    engine: str
    source: str
    url: str
    retrieved: str
    note: str

    def as_object(self) -> dict[str, Any]:
        """As a document of results keeps it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@cache
def all_references() -> tuple[Reference, ...]:
    """Every row of references.toml, in its order."""
    data = _toml.loads(files(__package__).joinpath("references.toml").read_text("utf-8"))
    return tuple(Reference(**row) for row in data["reference"])


def references_for(parameters: int, file_type: str) -> tuple[Reference, ...]:
    """Those of models of about as many parameters, within a ratio of 1.5, and about as many bits a weight, within one of 2.

    The nearest in bits first. `file_type` is a name such as Q4_K_M; one without a number fits any, as does a figure whose type
    was not told.
    """
    bits = _bits(file_type)
    near = [each for each in all_references() if parameters > 0 and _apart(each.parameters, parameters) <= _SIZE]
    alike = [each for each in near if not (bits and each.bits) or _apart(each.bits, bits) <= _BITS]
    return tuple(sorted(alike, key=lambda each: _apart(each.bits, bits) if bits and each.bits else _BITS))


def _bits(file_type: str) -> int:
    """The number in a type's name: 4 in Q4_K_M, IQ4_XS and MXFP4, 16 in BF16; 0 without one."""
    found = re.search("(?:Q|FP?)([0-9]{1,2})", file_type)
    return int(found[1]) if found else 0


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other)
