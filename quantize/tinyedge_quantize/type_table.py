"""Every type beside every other: what a model of a given shape becomes, how wrong its weights are, what it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyedge.ggml_types import row_bytes
from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.imatrix.importance import Imatrix
from tinyedge_quantize.recipes import RECIPES, ModelShape, Recipe, TensorFacts, choose_types, needs_imatrix
from tinyedge_quantize.selfcheck import STOCK_ERRORS, STOCK_WEIGHTED_ERRORS

# Its presence alone changes which types are chosen.
_SOME_IMATRIX = Controls(imatrix=Imatrix(Path("imatrix.gguf"), {}, (), 0, 0))


_TERNARY = "for ternary models only"
_TRAINED_SO = "for models trained so"
# Types whose few values cannot stand for any other weights; llama.cpp, tools/quantize/quantize.cpp, and ggml-common.h.
_NOTES = {"TQ1_0": _TERNARY, "TQ2_0": _TERNARY, "Q1_0": _TRAINED_SO, "Q2_0": _TRAINED_SO}


@dataclass(frozen=True)
class TypeRow:
    """A type: the ggml type of most tensors, its bytes for the model, that type's relative RMS error on normal weights.

    `bits` is bits per weight, of all the model's weights. Where it `needs_imatrix` both are those with one. `note` says for
    which models alone the type is, and is empty otherwise.
    """

    name: str
    mostly: str
    bytes: int
    error: float
    needs_imatrix: bool
    bits: float
    note: str


def type_table(tensors: Sequence[tuple[str, tuple[int, ...]]], model: ModelShape) -> list[TypeRow]:
    """All types, the largest first; `tensors` are GGUF names and shapes in llama.cpp's order."""
    facts = [TensorFacts(name, shape) for name, shape in tensors]
    rows = [_row(recipe, facts, model) for recipe in RECIPES.values() if not recipe.copies]
    return sorted(rows, key=lambda row: -row.bytes)


def _row(recipe: Recipe, facts: Sequence[TensorFacts], model: ModelShape) -> TypeRow:
    chosen = choose_types(recipe, facts, model)
    needs = any(needs_imatrix(recipe, fact.name, kind) for fact, kind in zip(facts, chosen, strict=True))
    if needs:
        chosen = choose_types(recipe, facts, model, _SOME_IMATRIX)
    size = sum(_bytes(fact.shape, kind) for fact, kind in zip(facts, chosen, strict=True))
    elements = sum(math.prod(fact.shape) for fact in facts)
    return TypeRow(
        recipe.name, recipe.default, size, _error(recipe.default), needs, 8 * size / elements, _NOTES.get(recipe.name, "")
    )


def _error(kind: str) -> float:
    """Without an importance matrix where the type can do so; F32 has none."""
    return STOCK_ERRORS.get(kind, STOCK_WEIGHTED_ERRORS.get(kind, 0.0))


def _bytes(shape: tuple[int, ...], kind: str) -> int:
    rows, columns = shape if len(shape) == 2 else (1, shape[0])
    return rows * row_bytes(kind, columns)
