"""The tensors a packed weight is kept in: which of them are there, and reading a slab of each.

A slab of a weight's rows is often a slab of columns of its parts, because GPTQ and AWQ keep weights as (in, out). Such columns
are picked from reads of a bounded size, never from the whole part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tinyedge.errors import CheckpointError, WeightValueError
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import DTYPE_BYTES, FLOAT_BYTES, Bytes, RowReader, SourceTensor, StridedRows

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, SourceTensor]
Settings: TypeAlias = Mapping[str, Any]

# numpy's type for each integer dtype; those numpy lacks (FP8, BF16) are read as their bits.
_NUMPY = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.uint8,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "F8_E8M0": np.uint8,
}
# Rows of a part closer together than this cost less to read with what lies between them: a call costs as much as copying it.
_DENSE_STRIDE_BYTES = 8192
_DENSE_READ_BYTES = 512 * 1024
_MAX_JSON_BYTES = 64 * 1024


@dataclass(frozen=True)
class FiniteRows:
    """Reads the rows of an unpacked weight; WeightValueError where its parts give NaN or infinity."""

    name: str
    reader: RowReader

    def __call__(self, first: int, count: int, out: Bytes) -> None:
        self.reader(first, count, out)
        if not np.isfinite(out.view(np.float32)).all():
            raise WeightValueError(
                f"the packed weight {show(self.name)} has scales or codes that give NaN or infinite weights",
                "copy the packed checkpoint again, or take the original in F16 or BF16",
            )


def float_weight(name: str, rows: int, columns: int, reader: RowReader) -> SourceTensor:
    """The weight that takes the place of its parts: F32, which holds every product of a small integer and a 16-bit scale."""
    return SourceTensor(name, (rows, columns), "F32", FiniteRows(name, reader))


def part(tensors: Tensors, name: str, *dtypes: str, dimensions: tuple[int, ...] = (1, 2)) -> SourceTensor:
    """The part of this name, of one of `dtypes` (any when none is given) and of as many dimensions as `dimensions` allows."""
    tensor = tensors.get(name)
    if tensor is None:
        raise CheckpointError(
            f"the packed checkpoint lacks tensor {show(name)}", "check that all weight files are there, or take the original"
        )
    if dtypes and tensor.dtype not in dtypes:
        raise CheckpointError(f"tensor {show(name)} has dtype {tensor.dtype} where {' or '.join(dtypes)} is expected")
    if len(tensor.shape) not in dimensions or not isinstance(tensor.reader, StridedRows):
        raise CheckpointError(f"tensor {show(name)} has {len(tensor.shape)} dimensions, which no packed part has")
    if 0 in tensor.shape:
        raise CheckpointError(f"tensor {show(name)} is empty")
    return tensor


def scale_part(tensors: Tensors, name: str, *, dimensions: tuple[int, ...] = (1, 2)) -> SourceTensor:
    """A part that holds floating-point scales."""
    return part(tensors, name, *FLOAT_BYTES, "F8_E8M0", dimensions=dimensions)


def misfit(name: str, what: str) -> CheckpointError:
    """The error for parts whose shapes contradict each other or the configuration."""
    return CheckpointError(
        f"the packed weight {show(name)} does not fit together: {what}", "check that the configuration belongs to these weights"
    )


def duplicate(base: str, first: str, second: str) -> CheckpointError:
    """The error for a layer with parts of both suffixes, where either would be all there is."""
    return CheckpointError(
        f"the packed checkpoint has both {first} and {second} for {show(base)}, where one of them is expected",
        "take the wrong one out of its file, or take the original in F16 or BF16",
    )


def flag(settings: Settings, key: str) -> bool:
    """settings[key], which must be true or false; false when it is null or missing."""
    return _typed(settings, key, bool, "true or false") or False


def table(settings: Settings, key: str) -> Settings:
    """settings[key], which must be a table; an empty one when it is null or missing."""
    return _typed(settings, key, dict, "a table") or {}


def _typed(settings: Settings, key: str, kind: type, expected: str) -> Any:
    value = settings.get(key)
    if value is not None and not isinstance(value, kind):
        raise CheckpointError(
            f"{key} in the quantization configuration is {show(value)} where {expected} is expected",
            "copy the configuration again from where the checkpoint came from",
        )
    return value


def choice(settings: Settings, key: str, allowed: Sequence[int], name: str = "the quantization configuration") -> int:
    """settings[key], which must be one of `allowed`."""
    value = settings.get(key)
    if type(value) is not int or value not in allowed:
        found = "is missing" if value is None else f"is {show(value)}"
        read = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
        raise CheckpointError(
            f"{key} in {name} {found} where {read} is read",
            "copy the configuration again from where the checkpoint came from",
        )
    return value


def read_rows(tensor: SourceTensor, first: int, count: int) -> Array:
    """Rows of a part as (count, columns), in numpy's type for its dtype; BF16 and FP8 as their bits."""
    raw = np.empty(count * tensor.columns * DTYPE_BYTES[tensor.dtype], np.uint8)
    tensor.reader(first, count, raw)
    return raw.view(_NUMPY[tensor.dtype]).reshape(count, tensor.columns)


def read_columns(tensor: SourceTensor, first: int, count: int) -> Array:
    """Columns of a part as (rows, count), in numpy's type for its dtype; BF16 and FP8 as their bits."""
    reader = tensor.reader
    assert isinstance(reader, StridedRows)
    kind, size = _NUMPY[tensor.dtype], reader.itemsize
    step = reader.row_stride * size
    if reader.column_stride != 1 or not count * size < step <= _DENSE_STRIDE_BYTES:
        narrow = replace(reader, offset=reader.offset + first * reader.column_stride * size, columns=count)
        raw = np.empty(tensor.rows * count * size, np.uint8)
        narrow(0, tensor.rows, raw)
        return raw.view(kind).reshape(tensor.rows, count)
    found = np.empty((tensor.rows, count), kind)
    at_once = max(1, _DENSE_READ_BYTES // step)
    span = np.empty(at_once * step, np.uint8)
    start = reader.offset + first * size
    for row in range(0, tensor.rows, at_once):
        rows = min(at_once, tensor.rows - row)
        reader.file.read_into(span[: (rows - 1) * step + count * size], start + row * step)
        values = span[: count * size].view(kind)
        found[row : row + rows] = np.lib.stride_tricks.as_strided(values, (rows, count), (step, size))
    return found


def read_flat(tensor: SourceTensor, begin: int, end: int) -> npt.NDArray[np.uint8]:
    """Bytes `begin` to `end` of a part that lies in one piece."""
    out = np.empty(end - begin, np.uint8)
    reader = tensor.reader
    assert isinstance(reader, StridedRows)
    reader.file.read_into(out, reader.offset + begin)
    return out


def flat_bytes(tensor: SourceTensor) -> int:
    """The size of a part in bytes, which must lie in one piece for `read_flat`."""
    reader = tensor.reader
    assert isinstance(reader, StridedRows)
    whole_rows = tensor.rows == 1 or reader.row_stride == tensor.columns
    if not whole_rows or (tensor.columns > 1 and reader.column_stride != 1):
        raise CheckpointError(f"tensor {show(tensor.name)} does not lie in one piece", "save it again as safetensors")
    return tensor.rows * tensor.columns * reader.itemsize


def read_json_part(tensor: SourceTensor) -> dict[str, Any]:
    """The JSON object a U8 tensor holds the text of."""
    size = flat_bytes(tensor)
    if size > _MAX_JSON_BYTES:
        raise CheckpointError(f"tensor {show(tensor.name)} has {size} bytes, too many for a quantization state")
    try:
        value = json.loads(read_flat(tensor, 0, size).tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"tensor {show(tensor.name)} holds no JSON ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"tensor {show(tensor.name)} holds no JSON object")
    return value


def widened(values: Array, dtype: str) -> Floats:
    """Values from `read_rows`, `read_columns` or the bits of an FP8 weight as float32, each exactly."""
    floats: Floats
    if dtype in _FP8:
        floats = _FP8[dtype][values]
    elif dtype == "BF16":
        floats = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        floats = values.astype(np.float32, copy=False)
    return floats


def _fp8_tables() -> dict[str, Floats]:
    """The 256 values of each 8-bit float (arXiv:2209.05433; E8M0 from the OCP microscaling formats, version 1.0)."""
    bits = np.arange(256)
    sign = np.where(bits & 0x80, -1.0, 1.0)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    e4m3 = sign * np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    e4m3[bits & 0x7F == 0x7F] = np.nan
    e5m2 = (bits.astype(np.uint16) << 8).astype(np.uint16).view(np.float16)
    e8m0 = np.exp2(bits - 127.0)
    e8m0[255] = np.nan
    return {"F8_E4M3": e4m3.astype(np.float32), "F8_E5M2": e5m2.astype(np.float32), "F8_E8M0": e8m0.astype(np.float32)}


_FP8 = _fp8_tables()
