"""What a plan starts from, whether it came from a checkpoint or from a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinyedge_quantize.metadata import MetadataEntry
from tinyedge_quantize.recipes import ModelShape
from tinyedge_quantize.tensors import SourceTensor


@dataclass(frozen=True)
class Model:
    """A language model under GGUF's names.

    `tensors` are (GGUF name, source) pairs, `metadata` all keys but those that a quantization adds. `from_gguf` says that a
    tensor which is not to be quantized keeps its type, as llama.cpp's quantizer leaves it; from a checkpoint it becomes F32, as
    its converter writes it. `warnings` are sentences about what the model loses on the way.
    """

    tensors: tuple[tuple[str, SourceTensor], ...]
    metadata: Mapping[str, MetadataEntry]
    shape: ModelShape
    name: str
    from_gguf: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(tensor.rows * tensor.columns for _, tensor in self.tensors)
