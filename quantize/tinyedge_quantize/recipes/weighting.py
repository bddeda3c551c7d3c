"""What an importance matrix gives each tensor, and which types need one.

Source: llama.cpp, src/llama-quant.cpp (`tensor_requires_imatrix` and the two loops of `llama_model_quantize_impl`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from tinyedge.errors import ImatrixError
from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.recipes.choice import TensorFacts, may_quantize
from tinyedge_quantize.recipes.rules import FLOATS, Recipe

if TYPE_CHECKING:
    from tinyedge_quantize.imatrix.importance import Floats

NEEDS_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
_NEEDS_NONE = frozenset({"output.weight", "token_embd.weight", "per_layer_token_embd.weight"})


def importance_weights(
    recipe: Recipe,
    tensors: Sequence[TensorFacts],
    types: Sequence[str],
    controls: Controls,
    originals: Mapping[str, str] | None = None,
    source_names: Collection[str] | None = None,
) -> list[Floats | None]:
    """For each tensor the weights that its quantizer takes, one for each column, float32; or None.

    `originals` maps the names of a pruned model's tensors to those in the source, by which the importance matrix knows them.
    `source_names` are all names in the source, those of pruned layers too; with them an importance matrix that has more layers
    or other tensors is told to be of another model.

    Raises ImatrixError, naming type and tensor, for the first whose type needs weights that are not there, and when the
    importance matrix belongs to another model (see `check_against` and `check_names`).
    """
    quantized = [
        may_quantize(recipe, tensor, controls) and ggml_type not in (*FLOATS, tensor.source_type)
        for tensor, ggml_type in zip(tensors, types, strict=True)
    ]
    weights: list[Floats | None] = [None] * len(tensors)
    if controls.imatrix is not None:
        from tinyedge_quantize.imatrix.importance import check_against, check_names

        if source_names is not None:
            check_names(controls.imatrix, source_names)
        names = [(originals or {}).get(tensor.name, tensor.name) for tensor in tensors]
        needed = [tensor.shape[-1] * math.prod(tensor.shape[:-2]) for tensor in tensors]
        check_against(
            controls.imatrix, {name: count for name, count, used in zip(names, needed, quantized, strict=True) if used}
        )
        found = [controls.imatrix.entries.get(name) if used else None for name, used in zip(names, quantized, strict=True)]
        # The token embedding's weights may be of another model's size; llama.cpp goes without them then.
        weights = [each if each is not None and len(each) == count else None for each, count in zip(found, needed, strict=True)]
    for tensor, ggml_type, used, each in zip(tensors, types, quantized, weights, strict=True):
        # Without an importance matrix llama.cpp refuses these types also for tensors that have them already.
        used = used or (controls.imatrix is None and may_quantize(recipe, tensor, controls))
        if used and each is None and needs_imatrix(recipe, tensor.name, ggml_type):
            missing = "has no weights for it" if controls.imatrix is not None else "is missing"
            raise ImatrixError(f"tensor {tensor.name} cannot be {ggml_type} without an importance matrix, which {missing}")
    return weights


def needs_imatrix(recipe: Recipe, name: str, ggml_type: str) -> bool:
    """Whether llama.cpp refuses to give the tensor of that name that type without an importance matrix."""
    if name in _NEEDS_NONE:
        return False
    return ggml_type in NEEDS_IMATRIX or (ggml_type == "Q2_K" and recipe.name == "Q2_K_S")
