"""The quantization mixes by name: llama-quantize's types as one table.

Source: llama.cpp, src/llama-quant.cpp (`llama_ftype_get_default_type`, `llama_tensor_get_type_impl`), include/llama.h
(LLAMA_FTYPE) and tools/quantize/quantize.cpp (QUANT_OPTIONS).
"""

from __future__ import annotations

from tinyedge.errors import TinyEdgeError
from tinyedge_quantize.controls.nearest import did_you_mean, nearest_type
from tinyedge_quantize.recipes.rules import (
    Category,
    Recipe,
    Rule,
    always,
    first,
    first_fraction,
    grouped,
    middle,
    more_bits,
    with_imatrix,
    without_imatrix,
)

_Q, _K, _V, _OUT = Category.ATTENTION_Q, Category.ATTENTION_K, Category.ATTENTION_V, Category.ATTENTION_OUTPUT
_UP, _GATE, _DOWN = Category.FFN_UP, Category.FFN_GATE, Category.FFN_DOWN


def _low_bit(name: str, file_type: int, default: str, more: str, attention_output: str | None) -> Recipe:
    """A mix of about two bits or less: `more` is what the tensors that matter most get."""
    rules: dict[Category, Rule] = {_V: grouped("Q4_K", more), _DOWN: first_fraction(8, more)}
    if attention_output:
        rules[_OUT] = always(attention_output)
    return Recipe(name, file_type, default, rules, output="Q5_K", embedding=more, boosts_70b=False)


_NON_LINEAR: dict[Category, Rule] = {_V: grouped("Q5_K"), _DOWN: without_imatrix(first_fraction(8, "Q5_K"))}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("F32", 0, "F32"),
        Recipe("F16", 1, "F16"),
        Recipe("BF16", 32, "BF16"),
        Recipe("Q8_0", 7, "Q8_0", output="Q8_0"),
        Recipe("Q6_K", 18, "Q6_K"),
        Recipe("Q5_K_M", 17, "Q5_K", {_V: more_bits("Q6_K"), _DOWN: more_bits("Q6_K")}),
        Recipe("Q5_K_S", 16, "Q5_K"),
        Recipe("Q5_1", 9, "Q5_1"),
        Recipe("Q5_0", 8, "Q5_0", {_DOWN: with_imatrix(first_fraction(8, "Q5_1"))}),
        Recipe("Q4_K_M", 15, "Q4_K", {_V: more_bits("Q6_K"), _DOWN: more_bits("Q6_K")}),
        Recipe("Q4_K_S", 14, "Q4_K", {_V: first(4, "Q5_K"), _DOWN: first_fraction(8, "Q5_K")}),
        Recipe("Q4_1", 3, "Q4_1"),
        Recipe("Q4_0", 2, "Q4_0", {_DOWN: with_imatrix(first_fraction(8, "Q4_1"))}),
        Recipe("IQ4_NL", 25, "IQ4_NL", _NON_LINEAR),
        Recipe("IQ4_XS", 30, "IQ4_XS", _NON_LINEAR),
        Recipe("Q3_K_L", 13, "Q3_K", {_V: always("Q5_K"), _DOWN: always("Q5_K"), _OUT: always("Q5_K")}),
        Recipe(
            "Q3_K_M",
            12,
            "Q3_K",
            {_V: first(2, "Q5_K", "Q4_K"), _DOWN: first_fraction(16, "Q5_K", "Q4_K"), _OUT: always("Q4_K")},
        ),
        Recipe("Q3_K_S", 11, "Q3_K"),
        Recipe("IQ3_M", 27, "IQ3_S", {_V: always("Q4_K"), _DOWN: first_fraction(8, "Q4_K"), _OUT: always("Q4_K")}),
        Recipe("IQ3_S", 26, "IQ3_S", {_V: grouped("Q4_K")}),
        Recipe(
            "IQ3_XS",
            22,
            "IQ3_S",
            {
                _V: grouped("Q4_K"),
                _Q: always("IQ3_XXS"),
                _K: always("IQ3_XXS"),
                _UP: middle("IQ3_XXS"),
                _GATE: middle("IQ3_XXS"),
            },
        ),
        Recipe(
            "IQ3_XXS",
            23,
            "IQ3_XXS",
            {
                _V: grouped("Q4_K", without_imatrix(always("IQ3_S"))),
                _Q: always("IQ2_S"),
                _K: always("IQ2_S"),
                _DOWN: without_imatrix(first_fraction(8, "Q4_K", "Q3_K")),
                _OUT: always("IQ3_S"),
            },
            output="Q5_K",
            embedding="IQ3_S",
        ),
        Recipe("Q2_K", 10, "Q2_K", {_V: grouped("Q4_K", "Q3_K"), _DOWN: always("Q3_K"), _OUT: always("Q3_K")}),
        Recipe("Q2_K_S", 21, "Q2_K", {_V: grouped("Q4_K"), _DOWN: first_fraction(8, "Q4_K")}),
        _low_bit("IQ2_M", 29, "IQ2_S", "IQ3_S", "IQ3_S"),
        _low_bit("IQ2_S", 28, "IQ2_XS", "IQ3_S", "IQ3_S"),
        _low_bit("IQ2_XS", 20, "IQ2_XS", "Q2_K", None),
        _low_bit("IQ2_XXS", 19, "IQ2_XXS", "Q2_K", None),
        _low_bit("IQ1_M", 31, "IQ1_M", "Q2_K", "IQ2_XXS"),
        _low_bit("IQ1_S", 24, "IQ1_S", "Q2_K", "IQ2_XXS"),
        Recipe("TQ2_0", 37, "TQ2_0", embedding="Q4_K"),
        Recipe("TQ1_0", 36, "TQ1_0", embedding="Q4_K"),
        Recipe("Q2_0", 41, "Q2_0", embedding="Q4_K"),
        Recipe("Q1_0", 40, "Q1_0"),
        Recipe("COPY", 0, "F32", copies=True),
    )
}

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_REFUSED = {"MXFP4_MOE": "is for the expert tensors of mixture-of-experts models, which are not converted here"}


class UnknownTypeError(TinyEdgeError):
    """A quantization type that has no recipe, or one that cannot hold a tensor."""

    exit_code = 2


def find_recipe(name: str) -> Recipe:
    """The recipe of that name or alias, in any case; raises UnknownTypeError naming those that may have been meant."""
    wanted = name.upper()
    recipe = RECIPES.get(ALIASES.get(wanted, wanted))
    if recipe is None:
        reason = _REFUSED.get(wanted)
        if reason:
            raise UnknownTypeError(f"the quantization type {wanted} {reason}", "`tinyedge quantize --types` lists the others")
        near = nearest_type(wanted, reversed(RECIPES))
        remedy = did_you_mean(near) if near else "`tinyedge quantize --types` lists them"
        raise UnknownTypeError(f"there is no quantization type {name[:40]}", remedy)
    return recipe
