"""A GGUF file as what is to be quantized: its tensors and metadata as they are, whatever made it.

Reference: llama.cpp, src/llama-quant.cpp, which copies all metadata but the split keys.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import GGUFError, UnsupportedArchitectureError
from tinyedge.ggml_types import NOT_WEIGHTS
from tinyedge.gguf_file import GGUFFile, GGUFTensor
from tinyedge.gguf_split import read_parts
from tinyedge.gguf_values import GGUFArray
from tinyedge_quantize.metadata import MetadataEntry
from tinyedge_quantize.model import Model
from tinyedge_quantize.open_files import OpenFiles
from tinyedge_quantize.recipes import ModelShape
from tinyedge_quantize.tensors import BlockRows, SourceTensor, WeightFile

_TYPE_NAMES = {
    "u8": "uint8",
    "i8": "int8",
    "u16": "uint16",
    "i16": "int16",
    "u32": "uint32",
    "i32": "int32",
    "f32": "float32",
    "u64": "uint64",
    "i64": "int64",
    "f64": "float64",
    "bool": "bool",
    "str": "string",
}


@dataclass(frozen=True)
class GGUFSource(OpenFiles):
    """An open GGUF model, in one file or in parts."""

    model: Model
    layout: str = "GGUF"

    @property
    def folder(self) -> Path:
        return self.path.parent


def open_gguf(path: Path) -> GGUFSource:
    """The model whose only or first file is `path`; raises GGUFError, ModelNotFoundError or UnsupportedArchitectureError."""
    parts = read_parts(path)
    with ExitStack() as opened:
        files: list[WeightFile] = []
        tensors: dict[str, SourceTensor] = {}
        for part in parts:
            file = WeightFile(part.path)
            opened.callback(file.close)
            if file.size != part.file_bytes:
                raise GGUFError(f"{part.path} changed while it was read", "try again when nothing writes it")
            files.append(file)
            tensors |= {tensor.name: _source(file, part, tensor) for tensor in part.tensors}
        if not tensors:
            raise GGUFError(f"{path} holds no tensors", "give a GGUF file with weights")
        metadata = {
            key: entry_of(value, parts[0].value_types[key])
            for key, value in parts[0].metadata.items()
            if not key.startswith("split.") and key != "general.alignment"
        }
        model = Model(tuple(tensors.items()), metadata, _shape(parts[0]), path.name, from_gguf=True)
        opened.pop_all()
    return GGUFSource(path, tuple(files), model)


def _source(file: WeightFile, gguf: GGUFFile, tensor: GGUFTensor) -> SourceTensor:
    shape = tensor.shape[::-1]
    if len(shape) > 2:
        raise UnsupportedArchitectureError(
            f"tensor {tensor.name} has {len(shape)} dimensions, as a mixture of experts has",
            "only dense models can be quantized",
        )
    if tensor.type.name in NOT_WEIGHTS or (len(shape) == 1 and tensor.type.block_elements > 1):
        what = "vector" if len(shape) == 1 else "matrix"
        raise GGUFError(f"{gguf.path} stores the {what} {tensor.name} as {tensor.type}", "give a file that llama.cpp made")
    reader = BlockRows(file, gguf.data_offset + tensor.offset, tensor.bytes // shape[0])
    return SourceTensor(tensor.name, shape, tensor.type.name, reader)


def entry_of(value: object, kind: str) -> MetadataEntry:
    """A header's value of the reader's type `kind` as an entry that is written with the same type and bytes."""
    if isinstance(value, GGUFArray):
        items = value.raw_strings if value.element_type == "str" else value.values
        return MetadataEntry("array", items, _TYPE_NAMES[value.element_type])
    return MetadataEntry(_TYPE_NAMES[kind], value)


def _shape(gguf: GGUFFile) -> ModelShape:
    architecture = gguf.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise GGUFError(f"{gguf.path} does not name its architecture", "give a GGUF file that llama.cpp's converter made")
    heads = _count(gguf, f"{architecture}.attention.head_count")
    kv_heads = _count(gguf, f"{architecture}.attention.head_count_kv", heads)
    return ModelShape(_count(gguf, f"{architecture}.block_count"), heads, kv_heads, architecture)


def _count(gguf: GGUFFile, key: str, default: int | None = None) -> int:
    """A size from the metadata: the first layer's where every layer has its own."""
    value: object = gguf.metadata.get(key, default)
    if isinstance(value, GGUFArray) and len(value):
        value = value[0]
    if type(value) is not int or not 0 < value < 2**31:
        raise GGUFError(f"{gguf.path} has no usable {key}", "give a GGUF file of a language model")
    return value
