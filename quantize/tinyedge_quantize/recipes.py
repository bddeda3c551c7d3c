"""Which type each tensor gets: llama.cpp's quantization mixes as tables.

Source: llama.cpp, src/llama-quant.cpp (`tensor_allows_quantization`, `llama_tensor_get_type_impl`, `tensor_type_fallback`) and
include/llama.h (LLAMA_FTYPE). The choice must be exactly llama.cpp's, so the rules keep its integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from tinyedge.errors import TinyEdgeError
from tinyedge.ggml_types import type_named


class Category(Enum):
    """What a tensor is for, as llama.cpp's quantizer sorts them."""

    TOKEN_EMBEDDING = auto()
    OUTPUT = auto()
    ATTENTION_QKV = auto()
    ATTENTION_V = auto()
    ATTENTION_OUTPUT = auto()
    FFN_DOWN = auto()
    OTHER = auto()


_CATEGORY_BY_PART = {
    "attn_qkv.weight": Category.ATTENTION_QKV,
    "attn_v.weight": Category.ATTENTION_V,
    "attn_output.weight": Category.ATTENTION_OUTPUT,
    "ffn_down": Category.FFN_DOWN,
}
_CATEGORY_BY_NAME = {"output.weight": Category.OUTPUT, "token_embd.weight": Category.TOKEN_EMBEDDING}


@dataclass(frozen=True)
class Position:
    """Where a tensor stands among those of its category: the `index`th of `count`; and the model's grouped-query ratio."""

    index: int
    count: int
    gqa: int


Rule: TypeAlias = Callable[[Position], str | None]


def _always(ggml_type: str) -> Rule:
    return lambda _position: ggml_type


def _more_bits(ggml_type: str) -> Rule:
    """For the first and last eighth of the layers and every third between (llama.cpp's use_more_bits)."""

    def rule(at: Position) -> str | None:
        eighth = at.count // 8
        chosen = at.index < eighth or at.index >= 7 * at.count // 8 or (at.index - eighth) % 3 == 2
        return ggml_type if chosen else None

    return rule


def _first(count: int, ggml_type: str, otherwise: str | None = None) -> Rule:
    return lambda at: ggml_type if at.index < count else otherwise


def _first_fraction(divisor: int, ggml_type: str, otherwise: str | None = None) -> Rule:
    return lambda at: ggml_type if at.index < at.count // divisor else otherwise


def _grouped(ggml_type: str, otherwise: str) -> Rule:
    """For models in which at least four query heads share a key/value head."""
    return lambda at: ggml_type if at.gqa >= 4 else otherwise


@dataclass(frozen=True)
class Recipe:
    """A quantization mix: the `default` type, `rules` for the categories that get another, and GGUF's file type number."""

    name: str
    file_type: int
    default: str
    rules: Mapping[Category, Rule] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("F32", 0, "F32"),
        Recipe("F16", 1, "F16"),
        Recipe("BF16", 32, "BF16"),
        Recipe("Q8_0", 7, "Q8_0"),
        Recipe("Q6_K", 18, "Q6_K"),
        Recipe(
            "Q5_K_M",
            17,
            "Q5_K",
            {
                Category.ATTENTION_V: _more_bits("Q6_K"),
                Category.FFN_DOWN: _more_bits("Q6_K"),
                Category.ATTENTION_QKV: _always("Q6_K"),
            },
        ),
        Recipe("Q5_K_S", 16, "Q5_K"),
        Recipe(
            "Q4_K_M",
            15,
            "Q4_K",
            {
                Category.ATTENTION_V: _more_bits("Q6_K"),
                Category.FFN_DOWN: _more_bits("Q6_K"),
                Category.ATTENTION_QKV: _always("Q5_K"),
            },
        ),
        Recipe("Q4_K_S", 14, "Q4_K", {Category.ATTENTION_V: _first(4, "Q5_K"), Category.FFN_DOWN: _first_fraction(8, "Q5_K")}),
        Recipe("Q4_0", 2, "Q4_0"),
        Recipe(
            "Q3_K_M",
            12,
            "Q3_K",
            {
                Category.ATTENTION_V: _first(2, "Q5_K", "Q4_K"),
                Category.FFN_DOWN: _first_fraction(16, "Q5_K", "Q4_K"),
                Category.ATTENTION_OUTPUT: _always("Q4_K"),
                Category.ATTENTION_QKV: _always("Q4_K"),
            },
        ),
        Recipe(
            "Q2_K",
            10,
            "Q2_K",
            {
                Category.ATTENTION_V: _grouped("Q4_K", "Q3_K"),
                Category.FFN_DOWN: _always("Q3_K"),
                Category.ATTENTION_OUTPUT: _always("Q3_K"),
            },
        ),
    )
}

# A row that a type's blocks do not divide gets the type on the right, and F16 where that does not divide it either.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

_FLOATS = ("F32", "F16", "BF16")


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, in any case; raises TinyEdgeError listing those there are."""
    recipe = RECIPES.get(name.upper())
    if recipe is None:
        raise UnknownTypeError(f"there is no quantization type {name[:40]}", f"use one of {', '.join(RECIPES)}")
    return recipe


class UnknownTypeError(TinyEdgeError):
    """A quantization type that has no recipe."""

    exit_code = 2


@dataclass(frozen=True)
class ModelShape:
    """What the rules look at beside the tensor itself."""

    layers: int
    heads: int
    kv_heads: int

    @property
    def gqa(self) -> int:
        return self.heads // self.kv_heads

    @property
    def is_llama_70b(self) -> bool:
        """llama.cpp gives attn_v of the 70B Llama more bits, because eight heads share it."""
        return self.layers == 80 and self.heads != self.kv_heads


def choose_types(recipe: Recipe, tensors: Sequence[tuple[str, tuple[int, ...]]], model: ModelShape) -> list[str]:
    """The ggml type of each (GGUF name, shape), the tensors being in llama.cpp's order (see `gguf_order`).

    Tensors that are never quantized (1-D, norms) get F32, as llama.cpp's converter writes them.
    """
    tied = not any(name == "output.weight" for name, _ in tensors)
    attention_count = sum(_category(name) in (Category.ATTENTION_V, Category.ATTENTION_QKV) for name, _ in tensors)
    seen = {Category.ATTENTION_V: 0, Category.FFN_DOWN: 0}
    types = []
    for name, shape in tensors:
        if not _is_quantized(name, shape):
            types.append("F32")
            continue
        if recipe.default in _FLOATS:
            types.append(recipe.default)
            continue
        category = _category(name)
        if category is Category.OUTPUT or (tied and category is Category.TOKEN_EMBEDDING):
            types.append(_fallback(_output_type(recipe.default, shape[-1]), shape[-1]))
            continue
        counter = Category.ATTENTION_V if category is Category.ATTENTION_QKV else category
        count = model.layers if category is Category.FFN_DOWN else attention_count
        rule = recipe.rules.get(category)
        chosen = (rule and rule(Position(seen.get(counter, 0), count, model.gqa))) or recipe.default
        if category is Category.ATTENTION_V and model.is_llama_70b and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        if counter in seen:
            seen[counter] += 1
        types.append(_fallback(chosen, shape[-1]))
    return types


def gguf_order(name: str) -> tuple[int, str]:
    """The sort key of llama.cpp's quantizer: tensors outside the layers first, then layer by layer, by name."""
    parts = name.split(".")
    layer = int(parts[1]) if parts[0] == "blk" and len(parts) > 2 and parts[1].isdecimal() else -1
    return layer, name


def _category(name: str) -> Category:
    if name in _CATEGORY_BY_NAME:
        return _CATEGORY_BY_NAME[name]
    return next((category for part, category in _CATEGORY_BY_PART.items() if part in name), Category.OTHER)


def _is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and name.endswith("weight") and "_norm.weight" not in name


def _output_type(default: str, columns: int) -> str:
    if columns % type_named(default).block_elements != 0 or default == "Q8_0":
        return "Q8_0"
    return "Q6_K"


def _fallback(ggml_type: str, columns: int) -> str:
    if columns % type_named(ggml_type).block_elements == 0:
        return ggml_type
    smaller = FALLBACK.get(ggml_type, ggml_type)
    return smaller if columns % type_named(smaller).block_elements == 0 else "F16"
