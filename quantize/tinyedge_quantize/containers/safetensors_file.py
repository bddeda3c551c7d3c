"""safetensors: an 8-byte length, a JSON table of names, shapes and offsets, then the raw tensors.

Source: https://github.com/huggingface/safetensors (format section of its README). Read here rather than by the library because
the library maps the file, and mapped pages count against the memory of a small board.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

from tinyedge.errors import CheckpointError
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import DTYPE_BYTES, SourceTensor, WeightFile, file_tensor

# The library's own limit on the header.
MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 8


def read_safetensors(file: WeightFile) -> dict[str, SourceTensor]:
    """The tensors of a safetensors file by name; raises CheckpointError for a damaged or truncated one."""
    length = int.from_bytes(file.read(_LENGTH_BYTES, 0), "little")
    if length > MAX_HEADER_BYTES or _LENGTH_BYTES + length > file.size:
        raise CheckpointError(f"{file.path} is not a safetensors file or is truncated: its header claims {length} bytes")
    try:
        header = json.loads(file.read(length, _LENGTH_BYTES), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {file.path} is not a JSON table ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {file.path} is not a table of tensors")
    start = _LENGTH_BYTES + length
    tensors = {name: _tensor(file, name, entry, start) for name, entry in header.items() if name != "__metadata__"}
    _require_separate(file, header)
    return tensors


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; ValueError when a name stands in it twice, of which JSON would keep the last."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands in it twice")
    return table


def _require_separate(file: WeightFile, header: dict[str, Any]) -> None:
    """The format allows no tensor to share bytes with another."""
    places = sorted((*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    for (_, end, first), (begin, _, second) in pairwise(places):
        if begin < end:
            raise CheckpointError(f"tensors {show(first)} and {show(second)} in {file.path} overlap")


def _tensor(file: WeightFile, name: str, entry: Any, start: int) -> SourceTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"tensor {name} in {file.path} lacks dtype, shape or data_offsets") from error
    numbers = [*shape, begin, end]
    if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) > _MAX_DIMENSIONS or not isinstance(dtype, str):
        raise CheckpointError(f"tensor {name} in {file.path} has an impossible shape or place")
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(f"tensor {name} in {file.path} has the unknown dtype {show(dtype)}", "convert it to BF16 first")
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise CheckpointError(f"tensor {name} in {file.path} has a shape that does not match its {end - begin} bytes")
    if start + end > file.size:
        raise CheckpointError(f"{file.path} is truncated: {start + end - file.size} bytes of tensor {name} are missing")
    return file_tensor(file, name, shape or (1,), dtype, start + begin)
