"""llama.cpp's own quantizer as a reference: small GGUF files of any family, and llama_model_quantize with every option."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt

from tinyedge.ggml_types import type_named
from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.metadata import MetadataEntry
from tinyedge_quantize.recipes import ModelShape, TensorFacts, gguf_order

_TAGS = {"uint32": (0, "val_i64"), "float32": (1, "val_f64"), "bool": (2, "val_bool"), "string": (3, "val_str")}


def llama_quantize(source: Path, target: Path, file_type: int, controls: Controls | None = None, *, copy: bool = False) -> int:
    """llama_model_quantize with what llama-quantize would set for `controls`; its return value, 0 when it succeeded."""
    controls = controls or Controls()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.only_copy = file_type, 2, copy
    parameters.pure, parameters.allow_requantize = controls.pure, controls.allow_requantize
    parameters.quantize_output_tensor = not controls.leave_output
    if controls.output_tensor_type:
        parameters.output_tensor_type = type_named(controls.output_tensor_type).id
    if controls.token_embedding_type:
        parameters.token_embedding_type = type_named(controls.token_embedding_type).id
    keep: list[object] = []
    if controls.tensor_types:
        patterns = [(wish.pattern.encode(), type_named(wish.type).id) for wish in controls.tensor_types]
        overrides = (llama_cpp.llama_model_tensor_override * (len(patterns) + 1))(*patterns, (None, 0))
        parameters.tt_overrides = _address(overrides, keep)
    if controls.prune_layers:
        parameters.prune_layers = _address(
            (ctypes.c_int32 * (len(controls.prune_layers) + 1))(*controls.prune_layers, -1), keep
        )
    if controls.overrides:
        parameters.kv_overrides = _address(_overrides(controls.overrides), keep)
    if controls.imatrix is not None:
        parameters.imatrix = _address(_importance(controls.imatrix.entries, keep), keep)
    return int(llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters))


def _address(array: Any, keep: list[object]) -> object:
    keep.append(array)
    return ctypes.cast(array, ctypes.POINTER(array._type_))


def _overrides(entries: Mapping[str, MetadataEntry]) -> Any:
    array: Any = (llama_cpp.llama_model_kv_override * (len(entries) + 1))()
    for each, (key, entry) in zip(array, entries.items(), strict=False):
        each.tag, field = _TAGS[entry.type]
        each.key = key.encode()
        setattr(each.value, field, entry.value.encode() if isinstance(entry.value, str) else entry.value)
    return array


def _importance(entries: Mapping[str, npt.NDArray[np.float32]], keep: list[object]) -> Any:
    array: Any = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
    for each, (name, weights) in zip(array, entries.items(), strict=False):
        weights = np.ascontiguousarray(weights, np.float32)
        keep.append(weights)
        each.name, each.size = name.encode(), len(weights)
        each.data = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array


@dataclass(frozen=True)
class Family:
    """A small model of a family: which matrices a layer has, and what its metadata must say for llama.cpp to read it."""

    architecture: str = "llama"
    layers: int = 3
    heads: int = 8
    kv_heads: int = 2
    columns: int = 256
    ffn_columns: int = 256
    rows: int = 2
    tied: bool = False
    layer: Sequence[str] = (
        *("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
        *("attn_norm", "ffn_norm"),
    )
    outside: Sequence[str] = ("token_embd", "output_norm")
    keys: Mapping[str, float] | None = None

    @property
    def shape(self) -> ModelShape:
        return ModelShape(self.layers, self.heads, self.kv_heads, self.architecture)

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Seeded weights by GGUF name, in llama.cpp's order."""
        random = np.random.Generator(np.random.PCG64(5))
        names = [*self.outside, *(() if self.tied else ("output",))]
        names += [f"blk.{layer}.{name}" for layer in range(self.layers) for name in self.layer]
        found = {}
        for name in sorted((f"{name}.weight" for name in names), key=gguf_order):
            columns = self.ffn_columns if "ffn_down" in name else self.columns
            shape = (columns,) if "_norm." in name else (self.rows, columns)
            found[name] = random.standard_normal(shape).astype(np.float32)
        return found

    def facts(self, source_type: str | None = "F32") -> list[TensorFacts]:
        """What the choice of types looks at, the source being the GGUF file that `write` makes."""
        return [TensorFacts(name, weights.shape, source_type) for name, weights in self.tensors().items()]

    def importance(self) -> dict[str, npt.NDArray[np.float32]]:
        """Seeded weights for the columns of every matrix, unequal as measured ones are."""
        random = np.random.Generator(np.random.PCG64(6))
        return {
            name: np.exp(random.standard_normal(weights.shape[-1]) * 2).astype(np.float32)
            for name, weights in self.tensors().items()
            if weights.ndim > 1
        }

    def write(self, path: Path) -> Path:
        """An F32 GGUF file with these weights and what llama.cpp needs to read its hyperparameters."""
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_context_length(512)
        writer.add_embedding_length(64 * self.heads)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(512)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_layer_norm_eps(1e-5)
        writer.add_rope_dimension_count(64)
        for key, value in (self.keys or {}).items():
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{self.architecture}.{key}", value)
        writer.add_file_type(0)
        for name, weights in self.tensors().items():
            writer.add_tensor(name, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path
