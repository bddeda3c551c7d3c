"""What a person should hear about a choice of types: wishes without an effect, and what the types cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.recipes.choice import TensorFacts, may_quantize
from tinyedge_quantize.recipes.rules import FLOATS, Recipe

if TYPE_CHECKING:
    from tinyedge_quantize.imatrix.importance import Floats

_TERNARY = ("TQ1_0", "TQ2_0")


def choice_warnings(
    recipe: Recipe,
    tensors: Sequence[TensorFacts],
    types: Sequence[str],
    weights: Sequence[Floats | None],
    controls: Controls,
) -> list[str]:
    """One sentence each; `types` and `weights` are what `choose_types` and `importance_weights` gave."""
    return [
        *_about_patterns(recipe, tensors, controls),
        *_about_the_output(recipe, tensors, controls),
        *_about_ternary_types(types),
        *_about_importance(tensors, types, weights, controls),
    ]


def _about_patterns(recipe: Recipe, tensors: Sequence[TensorFacts], controls: Controls) -> list[str]:
    if controls.tensor_types and not _quantizes(recipe):
        return [f"--tensor-type has no effect on {recipe.name}, which quantizes nothing"]
    warnings = []
    left = [tensor.name for tensor in tensors if may_quantize(recipe, tensor, controls)]
    for wish in controls.tensor_types:
        rest = [name for name in left if not wish.matches(name)]
        if len(rest) == len(left):
            found = any(wish.matches(tensor.name) for tensor in tensors)
            reason = "only tensors that are not quantized or that one before it matches" if found else "no tensor"
            warnings.append(f"--tensor-type {wish.pattern}={wish.type} matches {reason}")
        left = rest
    return warnings


def _about_the_output(recipe: Recipe, tensors: Sequence[TensorFacts], controls: Controls) -> list[str]:
    if any(tensor.name == "output.weight" for tensor in tensors):
        both = controls.leave_output and controls.output_tensor_type
        return ["--output-tensor-type has no effect beside --leave-output"] if both else []
    warnings = []
    if controls.leave_output:
        warnings.append("--leave-output has no effect: the token embedding is this model's output too")
    if controls.output_tensor_type and (not _quantizes(recipe) or controls.pure or controls.token_embedding_type):
        warnings.append("--output-tensor-type has no effect: the token embedding is this model's output too")
    return warnings


def _about_ternary_types(types: Sequence[str]) -> list[str]:
    return [
        f"{name} keeps only -1, 0 and 1 times one scale per 256 weights: models that were not trained so are useless in it"
        for name in _TERNARY
        if name in types
    ]


def _about_importance(
    tensors: Sequence[TensorFacts], types: Sequence[str], weights: Sequence[Floats | None], controls: Controls
) -> list[str]:
    if controls.imatrix is None:
        return []
    without = [
        tensor.name
        for tensor, ggml_type, found in zip(tensors, types, weights, strict=True)
        if found is None and ggml_type not in (*FLOATS, tensor.source_type) and tensor.name.startswith("blk.")
    ]
    if not without:
        return []
    tensors_are = f"tensor {without[0]} is" if len(without) == 1 else f"{len(without)} tensors such as {without[0]} are"
    return [f"the importance matrix has no weights for all of the model: {tensors_are} quantized without"]


def _quantizes(recipe: Recipe) -> bool:
    return recipe.default not in FLOATS and not recipe.copies
