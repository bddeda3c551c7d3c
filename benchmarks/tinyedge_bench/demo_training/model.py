"""A Llama as a dict of tensors and one function."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as nnf
from torch import Tensor

from tinyedge_bench.demo_training.settings import INIT_STD, Shape

Weights: TypeAlias = dict[str, Tensor]


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every matrix inside the layers, by Hugging Face name."""
    kv = shape.kv_heads * shape.head_dim
    per_layer = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (kv, shape.hidden),
        "self_attn.v_proj": (kv, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.ffn, shape.hidden),
        "mlp.up_proj": (shape.ffn, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.ffn),
    }
    return {f"model.layers.{i}.{name}.weight": size for i in range(shape.layers) for name, size in per_layer.items()}


def initial_weights(shape: Shape) -> Weights:
    """Float32 leaves; the output matrix is the embedding (tied), and what writes to the residual stream starts at zero."""
    weights = {"model.embed_tokens.weight": torch.randn(shape.vocabulary, shape.hidden) * INIT_STD}
    for name, (rows, columns) in matrices(shape).items():
        std = 0.0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1 / math.sqrt(3 * columns)
        weights[name] = torch.randn(rows, columns) * std
    for layer in range(shape.layers):
        weights[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(shape.hidden)
        weights[f"model.layers.{layer}.post_attention_layernorm.weight"] = torch.ones(shape.hidden)
    weights["model.norm.weight"] = torch.ones(shape.hidden)
    return {name: weight.requires_grad_() for name, weight in weights.items()}


def rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (length, head_dim), in Hugging Face's half-rotation order."""
    half = torch.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = torch.outer(torch.arange(length).float(), shape.rope_theta**-half).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x turned by its position; keeps the dtype."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def attention(weights: Weights, prefix: str, x: Tensor, shape: Shape, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Causal grouped-query attention, (batch, length, hidden).

    The query heads of a group are stacked as extra rows of one product with their shared key head. Plain products: torch
    2.13's fused attention was slower here, its backward pass alone taking 28% of a training step on two AVX-512 cores.
    """
    batch, length, _ = x.shape
    group = shape.heads // shape.kv_heads

    def project(name: str, heads: int) -> Tensor:
        y = nnf.linear(x, weights[f"{prefix}{name}_proj.weight"])
        return y.view(batch, length, heads, shape.head_dim).transpose(1, 2)

    query, key, value = project("q", shape.heads), project("k", shape.kv_heads), project("v", shape.kv_heads)
    query = rotate(query, *turn).reshape(batch, shape.kv_heads, group * length, shape.head_dim)
    scores = query @ rotate(key, *turn).transpose(2, 3) * shape.head_dim**-0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1).repeat(group, 1)
    mixed = scores.masked_fill(future, -math.inf).softmax(dim=-1).to(value.dtype) @ value
    mixed = mixed.view(batch, shape.heads, length, shape.head_dim).transpose(1, 2).reshape(batch, length, shape.hidden)
    return nnf.linear(mixed, weights[f"{prefix}o_proj.weight"])


def forward(weights: Weights, tokens: Tensor, shape: Shape) -> Tensor:
    """Logits (batch, length, vocabulary) of the next token at each position of `tokens` (batch, length)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return nnf.rms_norm(x, (shape.hidden,), weights[name], shape.norm_eps)

    turn = rotary(shape, tokens.shape[1])
    x = nnf.embedding(tokens, weights["model.embed_tokens.weight"])
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, f"{prefix}input_layernorm.weight")
        x = x + attention(weights, f"{prefix}self_attn.", h, shape, turn)
        h = norm(x, f"{prefix}post_attention_layernorm.weight")
        gate = nnf.silu(nnf.linear(h, weights[f"{prefix}mlp.gate_proj.weight"]))
        up = nnf.linear(h, weights[f"{prefix}mlp.up_proj.weight"])
        x = x + nnf.linear(gate * up, weights[f"{prefix}mlp.down_proj.weight"])
    return nnf.linear(norm(x, "model.norm.weight"), weights["model.embed_tokens.weight"])


def bf16_rounded(weights: Weights) -> Weights:
    """What the file will hold, as float32: the weights that every reported number is measured on."""
    return {name: weight.detach().bfloat16().float() for name, weight in weights.items()}
