"""Which type each tensor gets: llama.cpp's quantization mixes as tables, and the choice by them."""

from tinyedge_quantize.recipes.choice import FALLBACK, ModelShape, TensorFacts, choose_types, gguf_order
from tinyedge_quantize.recipes.remarks import choice_warnings
from tinyedge_quantize.recipes.rules import Recipe
from tinyedge_quantize.recipes.table import ALIASES, RECIPES, UnknownTypeError, find_recipe
from tinyedge_quantize.recipes.weighting import importance_weights, needs_imatrix

__all__ = [
    "ALIASES",
    "FALLBACK",
    "RECIPES",
    "ModelShape",
    "Recipe",
    "TensorFacts",
    "UnknownTypeError",
    "choice_warnings",
    "choose_types",
    "find_recipe",
    "gguf_order",
    "importance_weights",
    "needs_imatrix",
]
