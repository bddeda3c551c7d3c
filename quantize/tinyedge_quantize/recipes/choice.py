"""Which type each tensor gets: a recipe's rules and a person's own wishes, in llama.cpp's order of precedence.

Source: llama.cpp, src/llama-quant.cpp (`tensor_allows_quantization`, `llama_tensor_get_type`, `tensor_type_fallback`) and, for
the types of what stays unquantized, conversion/base.py (`prepare_tensors`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tinyedge.errors import UnsupportedArchitectureError
from tinyedge.ggml_types import type_named
from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.metadata import MetadataEntry
from tinyedge_quantize.recipes.rules import FLOATS, Category, Position, Recipe, category_of
from tinyedge_quantize.recipes.table import UnknownTypeError

# A row that a type's blocks do not divide gets the type on the right, and F16 where that does not divide it either.
FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_SMALLEST_BLOCK = 32

# Never quantized, whatever the architecture: these names, and names with one of these parts.
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_RWKV_PARTS = (
    *("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2"),
    *("decay_w1", "decay_w2", "lerp_fused"),
)
_KEPT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(f"time_mix_{part}.weight" for part in _RWKV_PARTS),
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)

# Layers by which llama.cpp recognises a 70B model (src/models/*.cpp, LLM_TYPE_70B).
_LAYERS_70B = {"llama": 80, "deci": 80, "qwen2": 80, "olmo": 80, "jais2": 68}
_SHAPE_KEYS = {"layers": "block_count", "heads": "attention.head_count", "kv_heads": "attention.head_count_kv"}
# Families whose types llama.cpp chooses by rules of their own, which are not in the table.
_OTHER_RULES = frozenset({"falcon", "glm5-next"})


@dataclass(frozen=True)
class TensorFacts:
    """What the choice looks at: the GGUF name and the shape as (rows, columns).

    `source_type` is the ggml type the tensor has in a GGUF source, None in a checkpoint, where `dtype` is its dtype there.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str | None = None
    dtype: str = "F32"


@dataclass(frozen=True)
class ModelShape:
    """What the rules look at beside the tensor itself; `layers` counts those of the source, before any is pruned."""

    layers: int
    heads: int
    kv_heads: int
    architecture: str = "llama"
    experts: int = 0

    @property
    def gqa(self) -> int:
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for a 70B model, whose attn_v gets more bits because eight heads share it."""
        grouped = self.architecture != "llama" or self.heads != self.kv_heads
        return self.layers == _LAYERS_70B.get(self.architecture) and grouped

    def overridden(self, overrides: Mapping[str, MetadataEntry]) -> ModelShape:
        """The shape as llama.cpp sees it when these keys of the metadata are overridden: it chooses types by the new values."""
        keys = {name: f"{self.architecture}.{key}" for name, key in _SHAPE_KEYS.items()}
        return replace(self, **{name: overrides[key].value for name, key in keys.items() if key in overrides})


def choose_types(
    recipe: Recipe,
    tensors: Sequence[TensorFacts | tuple[str, tuple[int, ...]]],
    model: ModelShape,
    controls: Controls | None = None,
) -> list[str]:
    """The ggml type of each tensor, the tensors being in llama.cpp's order (see `gguf_order`) and without pruned layers.

    A bare (name, shape) is a checkpoint's. Tensors that are never quantized keep a GGUF source's type; from a checkpoint they
    are F32, as llama.cpp's converter writes them, except output.weight with `leave_output`, which keeps its dtype. Where the
    controls override what `model` says, the rules go by the new values, as llama.cpp's do.

    Raises UnknownTypeError where no type fits a row, and UnsupportedArchitectureError for families with other rules.
    """
    controls = controls or Controls()
    model = model.overridden(controls.overrides)
    quantizes = recipe.default not in FLOATS and not recipe.copies
    if quantizes and (model.architecture in _OTHER_RULES or model.experts > 1):
        kind = "mixtures of experts" if model.experts > 1 else f"architecture {model.architecture}"
        raise UnsupportedArchitectureError(f"the rules by which llama.cpp quantizes {kind} are not implemented")
    facts = [tensor if isinstance(tensor, TensorFacts) else TensorFacts(*tensor) for tensor in tensors]
    choice = _Choice(recipe, facts, model, controls)
    return [choice.type_of(tensor) for tensor in facts]


def gguf_order(name: str) -> tuple[int, str]:
    """The sort key of llama.cpp's quantizer: tensors outside the layers first, then layer by layer, by name."""
    parts = name.split(".")
    layer = int(parts[1]) if parts[0] == "blk" and len(parts) > 2 and parts[1].isdecimal() else -1
    return layer, name


def may_quantize(recipe: Recipe, tensor: TensorFacts, controls: Controls) -> bool:
    """Whether the tensor may get another type at all."""
    rows = [size for size in tensor.shape[:-1] if size > 1]
    return (
        not recipe.copies
        and bool(rows)
        and tensor.name.endswith("weight")
        and tensor.name not in _KEPT_NAMES
        and not any(part in tensor.name for part in _KEPT_PARTS)
        and not (controls.leave_output and tensor.name == "output.weight")
    )


class _Choice:
    """One pass over the tensors: how many of each category there are, and how many have been seen."""

    def __init__(self, recipe: Recipe, tensors: Sequence[TensorFacts], model: ModelShape, controls: Controls) -> None:
        categories = [category_of(tensor.name) for tensor in tensors]
        self._recipe, self._model, self._controls = recipe, model, controls
        self._tied = Category.OUTPUT not in categories
        self._attention_count = categories.count(Category.ATTENTION_V)
        self._seen: Counter[Category] = Counter()

    def type_of(self, tensor: TensorFacts) -> str:
        if not may_quantize(self._recipe, tensor, self._controls):
            return self._unquantized(tensor)
        category, columns = category_of(tensor.name), tensor.shape[-1]
        named = next((wish.type for wish in self._controls.tensor_types if wish.matches(tensor.name)), None)
        wished = self._wished(tensor.name, category, named)
        if wished is not None:
            # llama.cpp takes these as they are, without a fallback, and fails on rows they cannot hold.
            return _fitting(wished, columns, tensor.name)
        if self._recipe.default in FLOATS:
            return self._recipe.default
        if named is None:
            named = self._recipe.default if self._controls.pure else self._mixed(category, columns)
        return _fallback(named, columns, tensor.name)

    def _unquantized(self, tensor: TensorFacts) -> str:
        if tensor.source_type is not None:
            return tensor.source_type
        if self._recipe.copies:
            raise UnknownTypeError("COPY copies the tensors of a GGUF file, and this is a checkpoint", "use F16 or BF16")
        left = tensor.name == "output.weight" and tensor.dtype in FLOATS
        return tensor.dtype if left else "F32"

    def _wished(self, name: str, category: Category, named: str | None) -> str | None:
        if category is Category.OUTPUT:
            return self._controls.output_tensor_type
        if category is Category.TOKEN_EMBEDDING and (named is None or name == "token_embd.weight"):
            return self._controls.token_embedding_type
        return None

    def _mixed(self, category: Category, columns: int) -> str:
        """The type by the recipe's rules."""
        recipe = self._recipe
        if category is Category.OUTPUT or (self._tied and category is Category.TOKEN_EMBEDDING):
            divides = columns % type_named(recipe.default).block_elements == 0
            return self._controls.output_tensor_type or (recipe.output if divides else "Q8_0")
        if category is Category.TOKEN_EMBEDDING:
            return recipe.embedding or recipe.default
        count = self._attention_count if category is Category.ATTENTION_V else self._model.layers
        rule = recipe.rules.get(category)
        at = Position(self._seen[category], count, self._model.gqa, self._controls.imatrix is not None)
        chosen = (rule and rule(at)) or recipe.default
        self._seen[category] += 1
        if category is Category.ATTENTION_V and recipe.boosts_70b and self._model.is_70b and chosen in ("Q3_K", "Q4_K"):
            return "Q5_K"
        return chosen


def _fallback(ggml_type: str, columns: int, name: str) -> str:
    block = type_named(ggml_type).block_elements
    if columns % block == 0:
        return ggml_type
    if ggml_type not in FALLBACK and block > _SMALLEST_BLOCK:
        return _fitting(ggml_type, columns, name)
    smaller = FALLBACK.get(ggml_type, ggml_type)
    return smaller if columns % type_named(smaller).block_elements == 0 else "F16"


def _fitting(ggml_type: str, columns: int, name: str) -> str:
    """The type itself; raises UnknownTypeError when its blocks do not divide the row."""
    block = type_named(ggml_type).block_elements
    if columns % block:
        raise UnknownTypeError(
            f"tensor {name} has rows of {columns} weights, which {ggml_type} cannot hold: its blocks are of {block}",
            "choose another type for it",
        )
    return ggml_type
