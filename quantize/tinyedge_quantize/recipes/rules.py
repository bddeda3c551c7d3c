"""What a quantization mix is made of: categories of tensors, and rules that give some of them another type.

Source: llama.cpp, src/llama-quant.cpp (`tensor_get_category`, `llama_tensor_get_type_impl`). The choice must be exactly
llama.cpp's, so the rules keep its integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

FLOATS = ("F32", "F16", "BF16")


class Category(Enum):
    """What a tensor is for, as llama.cpp's quantizer sorts them."""

    TOKEN_EMBEDDING = auto()
    OUTPUT = auto()
    ATTENTION_Q = auto()
    ATTENTION_K = auto()
    ATTENTION_V = auto()
    ATTENTION_OUTPUT = auto()
    FFN_UP = auto()
    FFN_GATE = auto()
    FFN_DOWN = auto()
    OTHER = auto()


_CATEGORY_BY_NAME = {
    "output.weight": Category.OUTPUT,
    "token_embd.weight": Category.TOKEN_EMBEDDING,
    "per_layer_token_embd.weight": Category.TOKEN_EMBEDDING,
}
# In llama.cpp's order, the first part found counting. Its rules for fused projections are out of reach: attn_qkv and attn_kv_b
# count as attn_v before they are looked at.
_CATEGORY_BY_PART = {
    "attn_qkv.weight": Category.ATTENTION_V,
    "attn_kv_b.weight": Category.ATTENTION_V,
    "attn_v.weight": Category.ATTENTION_V,
    "attn_k.weight": Category.ATTENTION_K,
    "attn_q.weight": Category.ATTENTION_Q,
    "attn_output.weight": Category.ATTENTION_OUTPUT,
    "ffn_up": Category.FFN_UP,
    "ffn_gate": Category.FFN_GATE,
    "ffn_down": Category.FFN_DOWN,
}


def category_of(name: str) -> Category:
    """The category of the tensor of that GGUF name."""
    if name in _CATEGORY_BY_NAME:
        return _CATEGORY_BY_NAME[name]
    return next((category for part, category in _CATEGORY_BY_PART.items() if part in name), Category.OTHER)


@dataclass(frozen=True)
class Position:
    """Where a tensor stands among those of its category, the `index`th of `count`, and what else the rules look at.

    `gqa` is the number of query heads that share a key/value head, `imatrix` whether there is an importance matrix.
    """

    index: int
    count: int
    gqa: int
    imatrix: bool = False


# The type for a tensor at that position, or None for the recipe's default.
Rule: TypeAlias = Callable[[Position], str | None]


def always(ggml_type: str) -> Rule:
    return lambda _at: ggml_type


def more_bits(ggml_type: str) -> Rule:
    """For the first and last eighth of the layers and every third between (llama.cpp's use_more_bits)."""

    def rule(at: Position) -> str | None:
        eighth = at.count // 8
        chosen = at.index < eighth or at.index >= 7 * at.count // 8 or (at.index - eighth) % 3 == 2
        return ggml_type if chosen else None

    return rule


def first(count: int, ggml_type: str, otherwise: str | None = None) -> Rule:
    return lambda at: ggml_type if at.index < count else otherwise


def first_fraction(divisor: int, ggml_type: str, otherwise: str | None = None) -> Rule:
    return lambda at: ggml_type if at.index < at.count // divisor else otherwise


def middle(ggml_type: str) -> Rule:
    """For all layers but the first and last eighth."""
    return lambda at: ggml_type if at.count // 8 <= at.index < 7 * at.count // 8 else None


def grouped(ggml_type: str, otherwise: str | Rule | None = None) -> Rule:
    """For models in which at least four query heads share a key/value head."""

    def rule(at: Position) -> str | None:
        if at.gqa >= 4:
            return ggml_type
        return otherwise(at) if callable(otherwise) else otherwise

    return rule


def with_imatrix(rule: Rule) -> Rule:
    return lambda at: rule(at) if at.imatrix else None


def without_imatrix(rule: Rule) -> Rule:
    return lambda at: None if at.imatrix else rule(at)


@dataclass(frozen=True)
class Recipe:
    """A quantization mix: the `default` type, `rules` for the categories that get another, and GGUF's file type number.

    `output` is the type of output.weight, and of the embedding where it serves as output too; `embedding` that of an embedding
    with an output beside it (None: the default). `boosts_70b`: the 70B models' attn_v gets more bits. `copies`: every tensor
    keeps the type it has, and the file its file type.
    """

    name: str
    file_type: int
    default: str
    rules: Mapping[Category, Rule] = field(default_factory=dict)
    output: str = "Q6_K"
    embedding: str | None = None
    boosts_70b: bool = True
    copies: bool = False
