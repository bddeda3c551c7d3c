"""torch.save files: a ZIP of raw storages and one pickle that says which tensor is which view of which storage.

Source of the layout: torch/serialization.py (`_save`) and torch/_utils.py (`_rebuild_tensor_v2`). Nothing here needs torch.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyedge.errors import CheckpointError
from tinyedge_quantize.containers.pickle_vm import Global, PickleMachine
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import DTYPE_BYTES, SourceTensor, WeightFile, file_tensor

MAX_PICKLE_BYTES = 32 * 1024 * 1024
_LOCAL_HEADER_BYTES = 30
_MAX_DIMENSIONS = 16
# The first pickle of a file written before torch 1.6 (torch/serialization.py, MAGIC_NUMBER), protocol 2.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_STORAGE_DTYPES = {
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.DoubleStorage": "F64",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.UntypedStorage": "U8",
    "torch.storage.UntypedStorage": "U8",
}
_DTYPES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float64": "F64",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint64": "U64",
    "torch.uint32": "U32",
    "torch.uint16": "U16",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}
# Objects that training scripts save beside the weights. They are never imported; they become Inert values.
_INERT = frozenset(
    {"argparse.Namespace", "builtins.set", "builtins.frozenset", "builtins.slice", "builtins.complex", "builtins.range"}
    | {"__builtin__.set", "__builtin__.frozenset", "collections.Counter", "collections.deque", "collections.defaultdict"}
    | {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.ndarray", "_codecs.encode"}
    | {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
    | {"pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath"}
    | {"pathlib._local.PosixPath", "pathlib._local.WindowsPath", "datetime.datetime", "datetime.timedelta"}
    | {"torch.device", "torch.nn.parameter.Parameter", "torch.Tensor", "torch._C.Generator", "torch.serialization._get_layout"}
    | {"torch.Generator", "torch.strided"}
    | set(_STORAGE_DTYPES)
    | set(_DTYPES)
)


@dataclass(frozen=True)
class _Storage:
    dtype: str
    offset: int
    bytes: int


def is_legacy_torch_file(file: WeightFile) -> bool:
    """Whether the file has the format torch wrote before 1.6."""
    return file.size >= len(_LEGACY_MAGIC) and file.read(len(_LEGACY_MAGIC), 0) == _LEGACY_MAGIC


def read_torch_file(file: WeightFile) -> Any:
    """The object in a torch.save file, every tensor in it as an unnamed SourceTensor.

    Raises CheckpointError when the file is damaged, UnsafePickleError when it asks for more than tensors and plain containers.
    """
    if is_legacy_torch_file(file):
        raise CheckpointError(
            f"{file.path} has the format of torch before 1.6",
            "save it again with a current torch: torch.save(torch.load(old, weights_only=True), new)",
        )
    members = _members(file)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{file.path} is a ZIP file but not one torch.save wrote: it has {len(pickles)} data.pkl in it")
    folder = pickles[0].removesuffix("data.pkl")
    _require_little_endian(file, members.get(folder + "byteorder"))
    offset, size = members[pickles[0]]
    if size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"the pickle in {file.path} has {size} bytes, more than any model needs")
    machine = PickleMachine(
        functions=_FUNCTIONS | _Rebuild(file).functions(),
        inert=_INERT,
        load_persistent=lambda key: _storage(file, members, folder, key),
    )
    return machine.load(file.read(size, offset), str(file.path))


def _members(file: WeightFile) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of each member's data; members must be stored, as torch stores them, and inside the file."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
        raise CheckpointError(f"{file.path} is not a torch.save file or is truncated ({error})") from error
    members: dict[str, tuple[int, int]] = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(
                f"{file.path} has compressed members, which torch.save never writes",
                "unpack it and pack it again with `zip -0`, or save it again with torch",
            )
        header = file.read(_LOCAL_HEADER_BYTES, entry.header_offset)
        if header[:4] != b"PK\x03\x04":
            raise CheckpointError(f"{file.path} is damaged at member {show(entry.filename)}")
        name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        offset = entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        if offset + entry.file_size > file.size:
            raise CheckpointError(f"{file.path} is truncated in member {show(entry.filename)}")
        if entry.filename in members:
            raise CheckpointError(f"{file.path} has the member {show(entry.filename)} twice")
        members[entry.filename] = (offset, entry.file_size)
    return members


def _require_little_endian(file: WeightFile, member: tuple[int, int] | None) -> None:
    if member is None:
        return
    offset, size = member
    if file.read(min(size, 16), offset).strip() != b"little":
        raise CheckpointError(f"{file.path} was saved on a big-endian machine", "save it again on a little-endian one")


def _storage(file: WeightFile, members: Mapping[str, tuple[int, int]], folder: str, key: Any) -> _Storage:
    """The storage a persistent id names: ('storage', storage class, key, device, number of elements)."""
    if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage" or not isinstance(key[1], Global):
        raise CheckpointError(f"{file.path} names a storage in an unknown way")
    _, kind, name, _device, count = key[:5]
    dtype = _STORAGE_DTYPES.get(kind.name)
    if dtype is None or not isinstance(name, str) or type(count) is not int or count < 0:
        raise CheckpointError(f"{file.path} has a storage of the unknown kind {kind.name}")
    member = members.get(f"{folder}data/{name}")
    if member is None:
        raise CheckpointError(f"{file.path} lacks storage {name}")
    offset, size = member
    if count * DTYPE_BYTES[dtype] > size:
        raise CheckpointError(f"storage {name} in {file.path} claims {count} elements but holds {size} bytes")
    return _Storage(dtype, offset, size)


class _Rebuild:
    """The functions of torch._utils that a state dict calls, answered with SourceTensors over one file."""

    def __init__(self, file: WeightFile) -> None:
        self._file = file

    def functions(self) -> dict[str, Any]:
        return {
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor_v3": self.tensor_v3,
            "torch._utils._rebuild_parameter": self.parameter,
            "torch._utils._rebuild_parameter_with_state": self.parameter,
            "torch._tensor._rebuild_from_type_v2": self.from_type,
        }

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_unused: Any) -> SourceTensor:
        if not isinstance(storage, _Storage):
            raise CheckpointError(f"{self._file.path} builds a tensor from something that is not a storage")
        return self._view(storage, storage.dtype, offset, size, stride)

    def tensor_v3(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> SourceTensor:
        dtype = _DTYPES.get(rest[2].name) if len(rest) > 2 and isinstance(rest[2], Global) else None
        if not isinstance(storage, _Storage) or dtype is None:
            raise CheckpointError(f"{self._file.path} builds a tensor of an unknown dtype")
        return self._view(storage, dtype, offset, size, stride)

    def parameter(self, data: Any, *_unused: Any) -> Any:
        return data

    def from_type(self, function: Any, _kind: Any, arguments: Any, *_unused: Any) -> Any:
        known = self.functions().get(function.name) if isinstance(function, Global) else None
        if known is None or not isinstance(arguments, tuple):
            raise CheckpointError(f"{self._file.path} rebuilds a tensor in an unknown way")
        return known(*arguments)

    def _view(self, storage: _Storage, dtype: str, offset: Any, size: Any, stride: Any) -> SourceTensor:
        shape, strides = _integers(size), _integers(stride)
        (first,) = _integers((offset,))
        if len(shape) != len(strides):
            raise CheckpointError(f"{self._file.path} has a tensor of {len(shape)} sizes and {len(strides)} strides")
        itemsize = DTYPE_BYTES[dtype]
        count = math.prod(shape)
        last = first + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if count else first - 1
        if (last + 1) * itemsize > storage.bytes or count * itemsize > storage.bytes:
            raise CheckpointError(
                f"{self._file.path} has a tensor of shape {shape} that reaches beyond its storage of {storage.bytes} bytes"
            )
        if not shape:
            shape, strides = (1,), (1,)
        return file_tensor(self._file, "", shape, dtype, storage.offset + first * itemsize, strides)


def _integers(values: Any) -> tuple[int, ...]:
    plain = isinstance(values, tuple | list) and len(values) <= _MAX_DIMENSIONS
    if not plain or not all(type(n) is int and 0 <= n < 2**62 for n in values):
        raise CheckpointError("a tensor in the pickle has sizes or strides that are not a few plain numbers")
    return tuple(values)


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
    """collections.OrderedDict(), which pickles fill item by item; a call that copies could be repeated without end."""
    if arguments:
        raise CheckpointError(
            "the pickle makes an OrderedDict from a list, as Python 2 did", "save it again with a current torch"
        )
    return {}


_FUNCTIONS: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": lambda sizes=(): _integers(sizes),
}
