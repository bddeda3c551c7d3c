"""Importance matrices as files: llama.cpp's GGUF form, read and written, and the .dat form that came before it, read.

The GGUF form (tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp) holds for each weight the sums of its inputs' squares
and how many rows they go over. Files come from strangers as models do: everything is checked before a number of theirs reaches
a quantizer, and nothing is allocated that the file does not hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tinyedge.errors import GGUFError, ImatrixError, ModelNotFoundError
from tinyedge.gguf_file import MAX_NAME_BYTES, GGUFFile, GGUFTensor, read_gguf
from tinyedge.gguf_values import MAGIC, GGUFArray
from tinyedge.native.interrupt import Interruptible
from tinyedge_quantize.gguf_header import TensorInfo, encode_header, padded
from tinyedge_quantize.imatrix.dat_file import read_dat
from tinyedge_quantize.imatrix.importance import (
    DEFAULT_CHUNK,
    Floats,
    Imatrix,
    SquareSums,
    check_against,
    check_names,
    damaged,
    merge,
)
from tinyedge_quantize.metadata import MetadataEntry, string, strings, uint32
from tinyedge_quantize.output_file import check_room, new_file
from tinyedge_quantize.strangers import open_regular, show

__all__ = [
    "DEFAULT_CHUNK",
    "NOTE_PREFIX",
    "Imatrix",
    "SquareSums",
    "check_against",
    "check_names",
    "merge",
    "read_imatrix",
    "write_imatrix",
]

NOTE_PREFIX = "tinyedge.imatrix."

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_F32 = 0  # GGML_TYPE_F32
_MOST_ROWS = float(2**62)
_MOST_BYTES = 2 << 30  # that of a model with 256 experts in each of 60 layers takes 1 GiB
# No working model comes near. From about 1e38 on, kernels of ggml-quants.c overflow float32 and write blocks of NaN.
_LARGEST_SUM = 1e30


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """The importance matrix at `path`, in llama.cpp's GGUF format or the old .dat format.

    Raises ImatrixError, one sentence, for a file that is none, is truncated, or holds what no quantizer can use: no count, a
    sum that is negative, infinite or NaN, sizes that do not go together.
    """
    path = Path(path)
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_BYTES:
                raise damaged(path, f"has {size:,} bytes, more than any importance matrix")
            found = _read_gguf(path, file) if file.peek(4)[:4] == MAGIC else read_dat(path, file)
    except FileNotFoundError:
        raise ImatrixError(f"there is no file {path}", "check the path") from None
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from error
    except MemoryError:
        raise ImatrixError(f"there is no memory for the {size:,} bytes of {path}", "use a machine with more") from None
    for name, tensor in found.tensors.items():
        _check(path, name, tensor)
    return found


def _read_gguf(path: Path, file: BufferedReader) -> Imatrix:
    try:
        gguf = read_gguf(path)
    except (GGUFError, ModelNotFoundError) as error:
        raise ImatrixError(error.problem, damaged(path, "").remedy) from None
    pairs: dict[str, dict[str, GGUFTensor]] = {}
    for tensor in gguf.tensors:
        for suffix in (_SUMS, _COUNTS):
            if tensor.name.endswith(suffix):
                pairs.setdefault(tensor.name.removesuffix(suffix), {})[suffix] = tensor
    if not pairs:
        raise damaged(path, "is a GGUF file without an importance matrix in it")
    datasets, chunks, chunk_size = _facts(gguf)
    tensors = {name: _pair(gguf, file, name, pairs[name]) for name in sorted(pairs)}
    notes = {
        key.removeprefix(NOTE_PREFIX): value
        for key, value in gguf.metadata.items()
        if key.startswith(NOTE_PREFIX) and isinstance(value, str)
    }
    return Imatrix(path, MappingProxyType(tensors), datasets, chunks, chunk_size, MappingProxyType(notes))


def _facts(gguf: GGUFFile) -> tuple[tuple[str, ...], int, int]:
    """Datasets, chunks and chunk size, without which llama-quantize refuses a file."""
    datasets = gguf.metadata.get(_DATASETS)
    if not isinstance(datasets, GGUFArray) or datasets.element_type != "str":
        raise damaged(gguf.path, f"does not name its texts ({_DATASETS})")
    numbers = []
    for key in (_CHUNK_COUNT, _CHUNK_SIZE):
        value = gguf.metadata.get(key)
        if gguf.value_types.get(key) != "u32" or not isinstance(value, int):
            raise damaged(gguf.path, f"does not give its {key.partition('.')[2].replace('_', ' ')} ({key})")
        numbers.append(value)
    if not numbers[1]:
        raise damaged(gguf.path, "claims chunks of 0 tokens")
    return datasets.values, numbers[0], numbers[1]


def _pair(gguf: GGUFFile, file: BufferedReader, name: str, pair: Mapping[str, GGUFTensor]) -> SquareSums:
    for suffix in (_SUMS, _COUNTS):
        tensor = pair.get(suffix)
        if tensor is None:
            raise damaged(gguf.path, f"has no {show(name + suffix)}, which belongs to what it has of that tensor")
        if tensor.type.id != _F32:
            raise damaged(gguf.path, f"stores {show(tensor.name)} as {tensor.type}; F32 was expected")
    sums, counts = (_values(gguf, file, pair[suffix]) for suffix in (_SUMS, _COUNTS))
    if len(sums) % len(counts):
        raise damaged(gguf.path, f"has {len(counts)} counts for the {len(sums)} sums of {show(name)}")
    if not np.isfinite(counts).all() or counts.min() < 0 or counts.max() > _MOST_ROWS:
        raise damaged(gguf.path, f"has counts for {show(name)} that are no numbers of rows")
    return SquareSums(sums, np.floor(counts.astype(np.float64) + 0.5).astype(np.int64))  # C's lround, of what is not negative


def _values(gguf: GGUFFile, file: BufferedReader, tensor: GGUFTensor) -> Floats:
    values = np.empty(tensor.elements, dtype="<f4")
    file.seek(gguf.data_offset + tensor.offset)
    if file.readinto(values.view(np.uint8).data) != values.nbytes:
        raise damaged(gguf.path, f"is truncated: it ends inside {show(tensor.name)}")
    return values.astype(np.float32, copy=False)


def _check(path: Path, name: str, tensor: SquareSums) -> None:
    """Raises ImatrixError unless a quantizer can use the numbers."""
    if not tensor.counts.any():
        raise damaged(path, f"has zero counts for {show(name)}: nothing was collected for it")
    if not np.isfinite(tensor.sums).all():
        raise damaged(path, f"holds NaN or infinite sums for {show(name)}")
    if tensor.sums.min() < 0:
        raise damaged(path, f"holds negative sums of squares for {show(name)}")
    if tensor.sums.max() > _LARGEST_SUM:
        raise damaged(path, f"holds sums of squares up to {tensor.sums.max():.0e} for {show(name)}, which no model gives")


def write_imatrix(imatrix: Imatrix, path: Path) -> None:
    """Writes llama.cpp's GGUF format to `path`, which appears whole or keeps what it had.

    The tensors are those that llama-imatrix would write, in its order; counts beyond 2**24 are rounded to float32 as its are.
    Raises OutputError and DiskSpaceError, and ImatrixError for a tensor whose name is too long for a GGUF file.
    """
    infos: list[TensorInfo] = []
    data: list[Floats] = []
    offset = 0
    for name in sorted(imatrix.tensors):
        tensor = imatrix.tensors[name]
        if len((name + _SUMS).encode()) >= MAX_NAME_BYTES:
            raise ImatrixError(f"the name {show(name)} is too long for an imatrix in GGUF", "leave that file out")
        experts = len(tensor.counts)
        for suffix, values, columns in (
            (_SUMS, tensor.sums, len(tensor.sums) // experts),
            (_COUNTS, tensor.counts.astype(np.float32), 1),
        ):
            shape = (columns,) if experts == 1 else (experts, columns)
            infos.append(TensorInfo(name + suffix, shape, _F32, offset))
            data.append(values)
            offset += padded(values.nbytes)
    header = encode_header(_metadata(imatrix), infos)
    check_room(path, len(header) + offset)
    # A signal waits until the file is there, however often a collection is saved: it takes milliseconds.
    with Interruptible(), new_file(path) as output:
        output.write_at(header, 0)
        for info, values in zip(infos, data, strict=True):
            raw = values.astype("<f4").tobytes()
            output.write_at(raw.ljust(padded(len(raw)), b"\0"), len(header) + info.offset)


def _metadata(imatrix: Imatrix) -> dict[str, MetadataEntry]:
    return {
        "general.type": string("imatrix"),
        _DATASETS: strings(imatrix.datasets),
        _CHUNK_COUNT: uint32(imatrix.chunks, "the number of chunks"),
        _CHUNK_SIZE: uint32(imatrix.chunk_size or DEFAULT_CHUNK, "the chunk size"),
        **{NOTE_PREFIX + key: string(value, key) for key, value in imatrix.notes.items()},
    }
