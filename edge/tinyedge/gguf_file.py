"""Reads and validates the header of a GGUF file before anything native sees it.

llama.cpp asserts, which ends the process, on some headers that a damaged file can hold, and its own messages go to a
log that the user does not see. So every rule of `gguf_init_from_reader` (ggml/src/gguf.cpp) is checked here first, in
plain Python. `tinyedge run` does so at every start, so arrays are passed by their lengths and decoded only on demand.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from tinyedge import ggml_types
from tinyedge.errors import GGUFError, ModelNotFoundError
from tinyedge.ggml_types import GGMLType
from tinyedge.gguf_values import MAGIC, HeaderReader, Value, shown

DEFAULT_ALIGNMENT = 32
MAX_NAME_BYTES = 64  # GGML_MAX_NAME, the closing NUL included
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
SUPPORTED_VERSIONS = (2, 3)
_MAX_KEY_BYTES = 65535  # the GGUF specification
_INT64_MAX = 2**63 - 1
_SMALLEST_PAIR = 8 + 1 + 4 + 1  # a key of one byte with a value of one byte
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # a name of one byte, one dimension


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One row of the tensor table. `shape` is in GGUF order, columns first; `offset` counts from the data's start."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class GGUFFile:
    """The validated header of a GGUF file.

    `metadata` holds int, float, bool, str or GGUFArray; `value_types` names the GGUF type (`u32`, `str`, `arr[f32]`).
    """

    path: Path
    version: int
    metadata: Mapping[str, Value]
    value_types: Mapping[str, str]
    tensors: tuple[GGUFTensor, ...]
    alignment: int
    data_offset: int
    file_bytes: int

    @cached_property
    def tensor(self) -> Mapping[str, GGUFTensor]:
        """The tensors by name."""
        return MappingProxyType({tensor.name: tensor for tensor in self.tensors})

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without the padding between them."""
        return sum(tensor.bytes for tensor in self.tensors)


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """True when `path` is a file that begins with the GGUF magic."""
    try:
        with _open_file(Path(path)) as file:
            return file.read(4) == MAGIC
    except (OSError, ModelNotFoundError):
        return False


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """The header of the GGUF file at `path`, with every count, type, name, shape and offset checked.

    Raises GGUFError, one sentence that names what is wrong, and ModelNotFoundError when there is no such file.
    """
    path = Path(path)
    try:
        with _open_file(path) as file:
            return _read(path, HeaderReader(file, path, os.fstat(file.fileno()).st_size))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path} is not there") from None
    except OSError as error:
        raise GGUFError(f"{path} cannot be read ({error.strerror})") from error


def _open_file(path: Path) -> BinaryIO:
    """`path` for reading. Raises ModelNotFoundError for a pipe or device, which would wait for bytes that never come."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelNotFoundError(f"{path} is not a file")
    return os.fdopen(descriptor, "rb")


def parse_header(header: bytes, path: Path, file_bytes: int) -> GGUFFile:
    """The same for a header in memory, of a file of `file_bytes` that need not exist yet."""
    return read_header(io.BytesIO(header), path, file_bytes)


def read_header(file: BinaryIO, path: Path, file_bytes: int) -> GGUFFile:
    """The same for what `file` reads from its beginning, no more of it than the header; `path` stands for it in errors."""
    return _read(path, HeaderReader(file, path, file_bytes))


def _read(path: Path, header: HeaderReader) -> GGUFFile:
    version = _read_version(header)
    tensor_count, pair_count = header.number("u64"), header.number("u64")
    for count, smallest, what in (
        (pair_count, _SMALLEST_PAIR, "metadata entries"),
        (tensor_count, _SMALLEST_TENSOR, "tensors"),
    ):
        if count * smallest > header.remaining:
            raise header.error(f"claims {count} {what}, more than its {header.file_bytes} bytes can hold")
    metadata, value_types = _read_metadata(header, pair_count)
    alignment = _alignment(header, metadata, value_types)
    table = [_read_tensor(header) for _ in range(tensor_count)]
    data_offset = _padded(header.position, alignment) if table else header.position
    _check_layout(header, table, alignment, data_offset)
    header.finish()
    return GGUFFile(
        path=path,
        version=version,
        metadata=MappingProxyType(metadata),
        value_types=MappingProxyType(value_types),
        tensors=tuple(table),
        alignment=alignment,
        data_offset=data_offset,
        file_bytes=header.file_bytes,
    )


def _read_version(header: HeaderReader) -> int:
    magic = header.take(4) if header.file_bytes >= 4 else b""
    if magic != MAGIC:
        raise header.error("is not a GGUF file")
    version: int = header.number("u32")
    if version == 1:
        raise header.error("is GGUF version 1, which llama.cpp no longer reads")
    if version & 0xFFFF == 0 and version:
        raise header.error("is a big-endian GGUF file; this machine needs a little-endian one")
    if version not in SUPPORTED_VERSIONS:
        raise header.error(f"is GGUF version {version}; versions {SUPPORTED_VERSIONS[0]} and {SUPPORTED_VERSIONS[1]} are read")
    return version


def _read_metadata(header: HeaderReader, count: int) -> tuple[dict[str, Value], dict[str, str]]:
    metadata: dict[str, Value] = {}
    value_types: dict[str, str] = {}
    for index in range(count):
        key = header.name(f"metadata key {index}", _MAX_KEY_BYTES)
        if key in metadata:
            raise header.error(f"has the metadata key {shown(key)} twice")
        value_types[key], metadata[key] = header.value(key)
    return metadata, value_types


def _alignment(header: HeaderReader, metadata: Mapping[str, Value], value_types: Mapping[str, str]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    kind = value_types.get("general.alignment", "u32")
    if kind != "u32" or not isinstance(alignment, int):
        raise header.error(f"has general.alignment of type {kind}; it must be u32")
    if alignment <= 0 or alignment & (alignment - 1):
        raise header.error(f"has general.alignment {alignment}, which is not a power of two")
    return alignment


def _read_tensor(header: HeaderReader) -> GGUFTensor:
    name = header.name("a tensor name", MAX_NAME_BYTES - 1)
    dimensions = header.number("u32")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise header.error(f"gives tensor {shown(name)} {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible")
    shape = tuple(header.number("u64") for _ in range(dimensions))
    elements = 1
    for size in shape:
        elements *= size
    if not 0 < elements <= _INT64_MAX:
        raise header.error(f"gives tensor {shown(name)} the impossible shape {shape}")
    type_id = header.number("u32")
    if type_id in ggml_types.REMOVED:
        raise header.error(f"stores tensor {shown(name)} as {ggml_types.REMOVED[type_id]}, a type that llama.cpp has removed")
    kind = ggml_types.BY_ID.get(type_id)
    if kind is None:
        raise header.error(f"stores tensor {shown(name)} as ggml type {type_id}, which does not exist")
    if shape[0] % kind.block_elements:
        raise header.error(
            f"gives {kind} tensor {shown(name)} rows of {shape[0]} values, not a multiple of {kind.block_elements}"
        )
    size_bytes = elements // kind.block_elements * kind.block_bytes
    if size_bytes > _INT64_MAX:
        raise header.error(f"gives tensor {shown(name)} the impossible shape {shape}")
    return GGUFTensor(name, shape, kind, header.number("u64"), size_bytes)


def _check_layout(header: HeaderReader, table: list[GGUFTensor], alignment: int, data_offset: int) -> None:
    """Raises GGUFError unless tensors follow each other in order, padded to the alignment, inside the file."""
    names: set[str] = set()
    expected = 0
    for tensor in table:
        if tensor.name in names:
            raise header.error(f"has the tensor {shown(tensor.name)} twice")
        names.add(tensor.name)
        if tensor.offset != expected:
            raise header.error(f"puts tensor {shown(tensor.name)} at offset {tensor.offset}; {expected} was expected")
        missing = data_offset + tensor.offset + tensor.bytes - header.file_bytes
        if missing > 0:
            end = data_offset + table[-1].offset + table[-1].bytes
            missing = max(missing, end - header.file_bytes)
            raise header.error(f"is truncated: it ends inside tensor {shown(tensor.name)}, {missing} bytes are missing")
        expected = _padded(tensor.offset + tensor.bytes, alignment)


def _padded(position: int, alignment: int) -> int:
    return (position + alignment - 1) // alignment * alignment
