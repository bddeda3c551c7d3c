"""The exact tensors of a llama model: what models/llama.cpp of llama.cpp loads, in which shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tinyedge.gguf_file import GGUFTensor
from tinyedge.gguf_values import shown
from tinyedge.hyperparameters import MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, Hyperparameters

# Types with a dot product in type_traits_cpu and a case in ggml_compute_forward_get_rows; in a matrix the others abort.
_DOT_TYPES = """
F32 F16 BF16 Q1_0 Q2_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S
IQ2_S IQ4_XS IQ1_M TQ1_0 TQ2_0 MXFP4 NVFP4
"""
MATRIX_TYPES = frozenset(_DOT_TYPES.split())


@dataclass(frozen=True, slots=True)
class _Expected:
    """A tensor of the llama graph. `shape` in GGUF order."""

    name: str
    shape: tuple[int, ...]
    required: bool = True


def check_llama(model: Hyperparameters) -> None:
    """Every tensor of the file is one that models/llama.cpp loads, in its shape, and none that it needs is missing."""
    layers = model.integer("block_count", 1, MAX_LAYERS)
    model.number("attention.layer_norm_rms_epsilon", kind="f32")
    model.number("rope.freq_base", 10000.0, kind="f32")
    model.integer("nextn_predict_layers", 0, 0, 0)
    model.integer("embedding_length_out", *(model.integer("embedding_length", 1, MAX_WIDTH),) * 3)
    if model.gguf.metadata.get("llama.attention.causal", True) is not True:
        raise model.error("is an encoder (llama.attention.causal is false), which cannot generate text")
    expected = {entry.name: entry for entry in _llama_tensors(model, layers)}
    for name, tensor in model.gguf.tensor.items():
        if name not in expected:
            raise model.error(f"has the tensor {shown(name)}, which a llama model does not use")
        _check_shape_and_type(model, tensor, expected[name].shape)
    for entry in expected.values():
        if entry.required and entry.name not in model.gguf.tensor:
            raise model.error(f"lacks the tensor {entry.name!r}")


def _check_shape_and_type(model: Hyperparameters, tensor: GGUFTensor, shape: tuple[int, ...]) -> None:
    found = tensor.shape + (1,) * (4 - len(tensor.shape))
    if found != shape + (1,) * (4 - len(shape)):
        raise model.error(f"has tensor {tensor.name!r} of shape {tensor.shape}; {shape} was expected")
    if tensor.type.name not in (MATRIX_TYPES if len(shape) > 1 else ("F32",)):
        raise model.error(f"stores {tensor.name!r} as {tensor.type}, which llama.cpp cannot use there")


def _llama_tensors(model: Hyperparameters, layers: int) -> Iterator[_Expected]:
    hidden = model.integer("embedding_length", 1, MAX_WIDTH)
    heads = model.per_layer("attention.head_count", layers)
    kv_heads = model.per_layer("attention.head_count_kv", layers, heads[0])
    ffn = model.per_layer("feed_forward_length", layers)
    experts = model.integer("expert_count", 0, MAX_EXPERTS, 0)
    if min(heads) < 1 or min(kv_heads) < 1 or any(head % kv for head, kv in zip(heads, kv_heads, strict=True)):
        raise model.error("has attention heads that its KV heads do not divide")
    head_dim = model.integer("attention.key_length", 2, MAX_WIDTH, hidden // heads[0])
    model.integer("attention.value_length", head_dim, head_dim, hidden // heads[0])
    model.integer("rope.dimension_count", head_dim, head_dim, head_dim)
    if head_dim % 2:
        raise model.error(f"has attention heads of {head_dim} values; RoPE rotates pairs")
    vocabulary = model.gguf.tensor["token_embd.weight"].shape[1]
    untied = "output.weight" in model.gguf.tensor
    yield _Expected("token_embd.weight", (hidden, vocabulary))
    yield _Expected("output_norm.weight", (hidden,))
    yield _Expected("output.weight", (hidden, vocabulary), required=False)
    if untied and model.gguf.tensor["output.weight"].type.name == "NVFP4":
        yield from (_Expected(f"output.{suffix}", (1,), required=False) for suffix in ("scale", "input_scale"))
    if model.gguf.metadata.get("llama.rope.scaling.type") == "longrope":
        yield from (_Expected(f"rope_factors_{size}.weight", (head_dim // 2,), required=False) for size in ("long", "short"))
    else:
        yield _Expected("rope_freqs.weight", (head_dim // 2,), required=False)
    for layer in range(layers):
        yield from _llama_attention(model, layer, hidden, heads[layer] * head_dim, kv_heads[layer] * head_dim)
        yield from _llama_ffn(model, f"blk.{layer}.", hidden, ffn[layer], experts)


def _llama_attention(model: Hyperparameters, layer: int, hidden: int, query: int, key: int) -> Iterator[_Expected]:
    block = f"blk.{layer}."
    yield _Expected(block + "attn_norm.weight", (hidden,))
    fused = block + "attn_qkv.weight" in model.gguf.tensor
    parts = (("attn_q", query), ("attn_k", key), ("attn_v", key))
    if fused:
        yield from _linear(model, block + "attn_qkv", hidden, query + 2 * key)
        if block + "attn_qkv.bias" not in model.gguf.tensor:
            yield from (_Expected(f"{block}{name}.bias", (rows,), required=False) for name, rows in parts)
    else:
        for name, rows in parts:
            yield from _linear(model, block + name, hidden, rows)
    yield from _linear(model, block + "attn_output", query, hidden)


def _llama_ffn(model: Hyperparameters, block: str, hidden: int, ffn: int, experts: int) -> Iterator[_Expected]:
    yield _Expected(block + "ffn_norm.weight", (hidden,))
    projections = (("ffn_gate", hidden, ffn), ("ffn_up", hidden, ffn), ("ffn_down", ffn, hidden))
    if not experts:
        for name, columns, rows in projections:
            yield from _linear(model, block + name, columns, rows)
        return
    yield _Expected(block + "ffn_gate_inp.weight", (hidden, experts))
    for name, columns, rows in projections:
        yield _Expected(f"{block}{name}_exps.weight", (columns, rows, experts))
        yield from (
            _Expected(f"{block}{name}_exps.{suffix}", (experts,), required=False) for suffix in ("scale", "input_scale")
        )


def _linear(model: Hyperparameters, name: str, columns: int, rows: int) -> Iterator[_Expected]:
    """A matrix with the optional vectors that llama.cpp loads beside it."""
    yield _Expected(name + ".weight", (columns, rows))
    weight = model.gguf.tensor.get(name + ".weight")
    if weight is None or weight.type.name != "NVFP4":  # llama-graph.cpp asserts that scaled NVFP4 has no bias
        yield _Expected(name + ".bias", (rows,), required=False)
    yield from (_Expected(f"{name}.{suffix}", (1,), required=False) for suffix in ("scale", "input_scale"))
