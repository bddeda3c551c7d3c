"""What a GGUF header says about the model inside: its shape, its tensor types, its size.

`describe_model` takes headers as they come and reports zero for what they do not say; whether llama.cpp can run the
model is `check_runnable`'s question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tinyedge import ggml_types
from tinyedge.ggml_types import GGMLType
from tinyedge.gguf_file import GGUFFile
from tinyedge.gguf_values import GGUFArray
from tinyedge.model_check import check_runnable

__all__ = ["FILE_TYPES", "ModelFacts", "TypeCount", "check_runnable", "describe_model"]

# general.file_type, enum llama_ftype of llama.h; a dash is a number without a type
_FTYPES = """
F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S
IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4_MOE NVFP4 Q1_0 Q2_0
"""
FILE_TYPES: Mapping[int, str] = MappingProxyType({i: name for i, name in enumerate(_FTYPES.split()) if name != "-"})


@dataclass(frozen=True, slots=True)
class TypeCount:
    """How much of a model is stored as one tensor type."""

    type: GGMLType
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model's shape and size; a number is 0 where the header does not give it.

    `key_width` and `value_width` are the K and V values that one position adds to the cache, summed over all layers;
    `expert_bytes` are the weights that are split among experts; `tied_bytes` is the size of an embedding that also serves as
    the output matrix, 0 when there is a separate one.
    """

    architecture: str
    name: str
    file_type: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim_k: int
    head_dim_v: int
    ffn: int
    experts: int
    experts_used: int
    vocabulary: int
    context: int
    tokenizer: str
    chat_template: bool
    key_width: int
    value_width: int
    embedding_type: str
    tied_bytes: int
    tensor_types: tuple[TypeCount, ...]
    weight_bytes: int
    file_bytes: int
    expert_bytes: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a parameter over all tensors."""
        return 8 * self.weight_bytes / self.parameters if self.parameters else 0.0


def describe_model(gguf: GGUFFile) -> ModelFacts:
    """The facts of the model in `gguf`, from its header alone."""
    architecture = _text(gguf, "general.architecture")
    layers = _integer(gguf, f"{architecture}.block_count")
    hidden = _integer(gguf, f"{architecture}.embedding_length")
    heads = _per_layer(gguf, f"{architecture}.attention.head_count", layers, 0)
    kv_heads = _per_layer(gguf, f"{architecture}.attention.head_count_kv", layers, 0) or heads
    head_dim = hidden // heads[0] if heads and heads[0] else 0
    head_dim_k = _integer(gguf, f"{architecture}.attention.key_length", head_dim)
    head_dim_v = _integer(gguf, f"{architecture}.attention.value_length", head_dim)
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    embedding = gguf.tensor.get("token_embd.weight")
    return ModelFacts(
        architecture=architecture,
        name=_text(gguf, "general.name"),
        file_type=_file_type(gguf),
        parameters=sum(tensor.elements for tensor in gguf.tensors),
        layers=layers,
        hidden=hidden,
        heads=max(heads, default=0),
        kv_heads=max(kv_heads, default=0),
        head_dim_k=head_dim_k,
        head_dim_v=head_dim_v,
        ffn=max(_per_layer(gguf, f"{architecture}.feed_forward_length", layers, 0), default=0),
        experts=_integer(gguf, f"{architecture}.expert_count"),
        experts_used=max(_per_layer(gguf, f"{architecture}.expert_used_count", layers, 0), default=0),
        vocabulary=len(tokens) if isinstance(tokens, GGUFArray) else _integer(gguf, f"{architecture}.vocab_size"),
        context=_integer(gguf, f"{architecture}.context_length"),
        tokenizer=_text(gguf, "tokenizer.ggml.model"),
        chat_template=bool(_text(gguf, "tokenizer.chat_template")),
        key_width=head_dim_k * sum(kv_heads),
        value_width=head_dim_v * sum(kv_heads),
        embedding_type=embedding.type.name if embedding else "",
        tied_bytes=embedding.bytes if embedding and "output.weight" not in gguf.tensor else 0,
        tensor_types=_count_types(gguf),
        weight_bytes=gguf.tensor_bytes,
        file_bytes=gguf.file_bytes,
        expert_bytes=sum(tensor.bytes for tensor in gguf.tensors if "_exps." in tensor.name),
    )


def _count_types(gguf: GGUFFile) -> tuple[TypeCount, ...]:
    """One row per tensor type in use, the one with the most bytes first."""
    totals: dict[GGMLType, list[int]] = {}
    for tensor in gguf.tensors:
        total = totals.setdefault(tensor.type, [0, 0, 0])
        total[0] += 1
        total[1] += tensor.elements
        total[2] += tensor.bytes
    rows = [TypeCount(kind, *total) for kind, total in totals.items()]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.type.id)))


def _file_type(gguf: GGUFFile) -> str:
    """The name of the recipe as written in the file, else the type that holds most of the bytes."""
    known = FILE_TYPES.get(_integer(gguf, "general.file_type", -1))
    if known is not None:
        return known
    counts = _count_types(gguf)
    return counts[0].type.name if counts else ggml_types.BY_ID[0].name


def _integer(gguf: GGUFFile, key: str, default: int = 0) -> int:
    value = gguf.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _text(gguf: GGUFFile, key: str) -> str:
    value = gguf.metadata.get(key)
    return value if isinstance(value, str) else ""


def _per_layer(gguf: GGUFFile, key: str, layers: int, default: int) -> tuple[int, ...]:
    """The value of each layer, from one number for all or an array; empty when the key is missing."""
    value = gguf.metadata.get(key)
    if isinstance(value, GGUFArray):
        numbers = value.values if value.element_type in ("u32", "i32") else ()
        return tuple(int(number) for number in numbers)
    if key not in gguf.metadata:
        return ()
    return (_integer(gguf, key, default),) * min(layers, 512)
