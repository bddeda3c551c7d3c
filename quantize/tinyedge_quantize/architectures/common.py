"""What the families share: the rules of a Llama-like model, its sizes, its RoPE, and the metadata all of them write.

Reference: llama.cpp's conversion/base.py (`TextModel.set_gguf_parameters`). The converter reads the configuration through
transformers, which fills in what it leaves out, so the defaults here are those of transformers' configuration classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tinyedge.errors import CheckpointError, UnsupportedArchitectureError
from tinyedge_quantize.architectures.table import Adapt, Config, Sizes, TensorRule
from tinyedge_quantize.config import integer, real
from tinyedge_quantize.metadata import MetadataEntry, float32, string, uint32
from tinyedge_quantize.strangers import show

# llama.cpp's LLAMA_MAX_LAYERS; more would make it abort.
MAX_LAYERS = 512

ATTENTION = (
    TensorRule("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", ("queries", "hidden")),
    TensorRule("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", ("keys", "hidden")),
    TensorRule("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", ("keys", "hidden")),
    TensorRule("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("hidden", "queries")),
)
ATTENTION_BIASES = (
    TensorRule("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", ("queries",), optional=True),
    TensorRule("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", ("keys",), optional=True),
    TensorRule("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", ("keys",), optional=True),
    TensorRule("model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", ("hidden",), optional=True),
)
HEAD_NORMS = (
    TensorRule("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", ("head_dim",)),
    TensorRule("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", ("head_dim",)),
)
GATED_FFN = (
    TensorRule("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", ("ffn", "hidden")),
    TensorRule("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", ("ffn", "hidden")),
    TensorRule("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("hidden", "ffn")),
)
GATED_FFN_BIASES = (
    TensorRule("model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", ("ffn",), optional=True),
    TensorRule("model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", ("ffn",), optional=True),
    TensorRule("model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", ("hidden",), optional=True),
)
EMBEDDING = TensorRule("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden"))
OUTPUT_NORM = TensorRule("model.norm.weight", "output_norm.weight", ("hidden",))
OUTPUT = TensorRule("lm_head.weight", "output.weight", ("vocabulary", "hidden"))
BLOCK_NORMS = (
    TensorRule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", ("hidden",)),
    TensorRule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", ("hidden",)),
)


def adapted(rules: Iterable[TensorRule], adapt: Adapt) -> tuple[TensorRule, ...]:
    """The same rules, each tensor changed by `adapt`."""
    return tuple(replace(rule, adapt=adapt) for rule in rules)


def decoder_sizes(config: Config, *, head_dim: int | None = None, context: int = 2048) -> dict[str, int]:
    """layers, hidden, ffn, heads, kv_heads, head_dim, queries, keys, vocabulary and context, from a Llama-like configuration.

    `head_dim` and `context` are the family's defaults for what the configuration leaves out; without a default a head is
    hidden / heads. Raises CheckpointError for sizes that no model has.
    """
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    kv_heads = integer(config, "num_key_value_heads", heads)
    head_dim = integer(config, "head_dim", head_dim or hidden // heads or None)
    layers = integer(config, "num_hidden_layers")
    check_heads(layers, heads, kv_heads, head_dim)
    return {
        "layers": layers,
        "hidden": hidden,
        "ffn": integer(config, "intermediate_size"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "queries": heads * head_dim,
        "keys": kv_heads * head_dim,
        "rope_pairs": head_dim // 2,
        "vocabulary": integer(config, "vocab_size"),
        "context": integer(config, "max_position_embeddings", context),
    }


def check_heads(layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
    """Raises CheckpointError for numbers of layers and heads that would make llama.cpp abort or that no attention can have."""
    if heads % kv_heads or head_dim % 2 or layers > MAX_LAYERS:
        raise CheckpointError(
            f"the configuration has {layers} layers of {heads} heads over {kv_heads} key/value heads of {head_dim}, "
            "which no model has",
            "check that config.json belongs to this checkpoint",
        )


def check_settings(config: Config, supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises UnsupportedArchitectureError for a setting that llama.cpp's graph of the family does not have.

    `supported` gives for each key the values that can be converted; a missing or null one is always right.
    """
    for key, values in supported.items():
        found = config.get(key)
        if found is not None and found not in values:
            wanted = f"with {key} = {' or '.join(map(show, values))}" if values else f"without {key}"
            raise UnsupportedArchitectureError(
                f"the model has {key} = {show(found)}, which llama.cpp does not compute for its family",
                f"only models {wanted} can be converted",
            )


def rotary_width(rope: Mapping[str, Any], head_dim: int) -> int:
    """How many of a head's dimensions are rotated, by partial_rotary_factor."""
    width = int(head_dim * min(max(real(rope, "partial_rotary_factor"), 0.0), 2.0))
    if not 0 < width <= head_dim or width % 2:
        raise CheckpointError(
            f"the configuration rotates {width} of the {head_dim} dimensions of a head where an even number of them is needed",
            "check partial_rotary_factor in config.json",
        )
    return width


def check_square_attention(sizes: Sizes) -> None:
    """Raises UnsupportedArchitectureError where heads * head_dim is not the hidden size; some families' graphs need that."""
    if sizes["queries"] != sizes["hidden"]:
        raise UnsupportedArchitectureError(
            f"the model has {sizes['heads']} heads of {sizes['head_dim']} in a hidden size of {sizes['hidden']}, "
            "which llama.cpp cannot load for its family",
            "only models whose heads share the hidden size can be converted",
        )


def check_activation(config: Config, accepted: Iterable[str], key: str = "hidden_act") -> None:
    """Raises UnsupportedArchitectureError unless the feed-forward network's activation is one that llama.cpp uses here."""
    found = config.get(key)
    if found is not None and found not in accepted:
        raise UnsupportedArchitectureError(
            f"the model's activation is {show(found)} where llama.cpp's model of this family has {next(iter(accepted))}",
            "only models with this activation can be converted",
        )


def check_absent(config: Config, *keys: str) -> None:
    """Raises UnsupportedArchitectureError when the configuration switches on what llama.cpp's model of the family lacks."""
    for key in keys:
        if config.get(key):
            raise UnsupportedArchitectureError(
                f"config.json sets {key}, which llama.cpp's model of this family does not have",
                "only models without it can be converted",
            )


# The scalings of RoPE that llama.cpp's Llama computes, by keys or by the tensor rope_freqs.
LLAMA_SCALINGS = ("default", "linear", "yarn", "llama3")


def check_scaling(rope: Mapping[str, Any], accepted: Iterable[str] = ("default", "linear", "yarn")) -> None:
    """Raises UnsupportedArchitectureError for a RoPE scaling that llama.cpp would leave out in this family."""
    if rope_type(rope) not in accepted:
        raise UnsupportedArchitectureError(
            f"the model scales RoPE by {show(rope['rope_type'])}, which llama.cpp does not do in this family",
            f"supported are {', '.join(accepted)}",
        )


def check_heads_fill(family: str, sizes: Sizes) -> None:
    """Raises UnsupportedArchitectureError where llama.cpp's `family` takes for granted that heads fill the hidden state."""
    if sizes["queries"] != sizes["hidden"]:
        raise UnsupportedArchitectureError(
            f"the model has {sizes['heads']} heads of {sizes['head_dim']} in a hidden state of {sizes['hidden']}",
            f"llama.cpp's {family} has heads that fill the hidden state",
        )


def some_layer_slides(config: Config, otherwise: bool) -> bool:
    """Whether `layer_types` gives a layer a sliding window; `otherwise` where the configuration has no such list."""
    kinds = config.get("layer_types")
    return "sliding_attention" in kinds if isinstance(kinds, list) else otherwise


def window_warning(config: Config) -> Iterable[str]:
    """A sentence for a model with a sliding window where llama.cpp attends to everything."""
    window = config.get("sliding_window")
    if isinstance(window, int) and 0 < window < integer(config, "max_position_embeddings"):
        yield (
            f"this model attends through a sliding window of {window} tokens, which llama.cpp does not do for it: "
            f"keep the context at {window} tokens or less"
        )


def rope_parameters(config: Config, *, theta: float | None = 10000.0) -> dict[str, Any]:
    """theta, scaling and partial rotation, from `rope_parameters` (transformers 5) or the separate keys of transformers 4.

    The older keys win, as in transformers. Parameters for each kind of layer (`full_attention`, `sliding_attention`) give
    those of full attention.
    """
    value = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if isinstance(value, dict) and "full_attention" in value:
        value = value["full_attention"] or {}
    if not isinstance(value, dict):
        raise CheckpointError("rope_scaling in config.json is not a table", "check that config.json is undamaged")
    parameters = dict(value)
    parameters.setdefault("rope_type", parameters.get("type", "default"))
    if parameters.get("rope_theta") is None:
        parameters["rope_theta"] = config.get("rope_theta") or theta
    for key in ("original_max_position_embeddings", "partial_rotary_factor"):
        if parameters.get(key) is None:
            parameters[key] = config.get(key)
    return parameters


def sliding_rope(config: Config) -> dict[str, Any]:
    """The parameters of layers with a sliding window, of a configuration whose other layers may have different ones.

    transformers 4 wrote their theta as `rope_local_base_freq` and let other keys be those of full attention.
    """
    value = config.get("rope_parameters")
    sliding = value.get("sliding_attention") if isinstance(value, dict) else None
    if sliding is not None and not isinstance(sliding, dict):
        raise CheckpointError("rope_parameters in config.json are not tables", "check that config.json is undamaged")
    return {"rope_type": "default", "rope_theta": config.get("rope_local_base_freq"), **(sliding or {})}


def layer_pattern(config: Config, layers: int, every: int) -> list[bool]:
    """For each layer whether it has a sliding window: as `layer_types` says, otherwise all but every `every`-th."""
    kinds = config.get("layer_types")
    if kinds is None:
        return [(layer + 1) % every != 0 for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in _LAYER_TYPES for kind in kinds):
        raise CheckpointError(
            f"layer_types in config.json does not name full_attention or sliding_attention for each of {layers} layers",
            "check that config.json is undamaged",
        )
    return [kind == "sliding_attention" for kind in kinds]


_LAYER_TYPES = ("full_attention", "sliding_attention")


def rope_type(rope: Mapping[str, Any]) -> str:
    """The kind of scaling in lower case; CheckpointError when it is no name."""
    kind = rope["rope_type"]
    if not isinstance(kind, str):
        raise CheckpointError(
            f"the rope_type in config.json is {show(kind)} where a name is expected", "check that it is undamaged"
        )
    return kind.lower()


def rope_metadata(name: str, config: Config, rope: Mapping[str, Any]) -> dict[str, MetadataEntry]:
    """`name.rope.scaling.*` and `name.rope.freq_base`; raises UnsupportedArchitectureError for scalings llama.cpp lacks."""
    check_scaling(rope, LLAMA_SCALINGS)
    kind = rope_type(rope)
    entries: dict[str, MetadataEntry] = {}
    if kind in ("linear", "yarn"):
        entries[f"{name}.rope.scaling.type"] = string(kind)
        entries[f"{name}.rope.scaling.factor"] = float32(real(rope, "factor"))
    if kind == "yarn":
        _check_yarn(rope)
        original = integer(rope, "original_max_position_embeddings", integer(config, "max_position_embeddings", 2048))
        entries[f"{name}.rope.scaling.original_context_length"] = uint32(original)
        for key, names in _YARN_FACTORS.items():
            given = next((factor for factor in names if rope.get(factor) is not None), None)
            if given is not None:
                entries[f"{name}.rope.scaling.{key}"] = float32(real(rope, given))
        entries |= _attention_factor(name, rope)
    if rope.get("rope_theta") is not None:
        entries[f"{name}.rope.freq_base"] = float32(real(rope, "rope_theta"))
    return entries


def _attention_factor(name: str, rope: Mapping[str, Any]) -> dict[str, MetadataEntry]:
    """`name.rope.scaling.attn_factor` where YaRN's attention factor is not the usual one for its stretch.

    llama.cpp multiplies the usual one by this key; it does not use the `yarn_attn_factor` that its converter writes
    (llama-context.cpp).
    """
    stretch = real(rope, "factor")
    usual = _yarn_attention(stretch)
    if rope.get("attention_factor") is not None:
        given = real(rope, "attention_factor")
    elif rope.get("mscale") and rope.get("mscale_all_dim"):
        numerator, denominator = real(rope, "mscale"), real(rope, "mscale_all_dim")
        if min(numerator, denominator) < 0:
            raise CheckpointError("rope_scaling in config.json has a negative mscale", "check that config.json is undamaged")
        given = _yarn_attention(stretch, numerator) / _yarn_attention(stretch, denominator)
    else:
        return {}
    return {} if math.isclose(given, usual, rel_tol=1e-6) else {f"{name}.rope.scaling.attn_factor": float32(given / usual)}


def _yarn_attention(stretch: float, mscale: float = 1.0) -> float:
    """YaRN's attention factor (transformers, modeling_rope_utils.py, `get_mscale`)."""
    return 0.1 * mscale * math.log(stretch) + 1.0 if stretch > 1 else 1.0


def _check_yarn(rope: Mapping[str, Any]) -> None:
    """Raises UnsupportedArchitectureError for options of YaRN that llama.cpp does not read for any family here.

    The converter writes the two betas, but only Grok and Mistral 3 read them (llama.cpp, src/models); the others have those of
    the paper (llama-hparams.h). The bounds are always whole numbers (ggml.c, ggml_rope_yarn_corr_dims).
    """
    for key, fixed in _YARN_BETAS.items():
        if rope.get(key) and real(rope, key) != fixed:
            raise UnsupportedArchitectureError(
                f"the model scales RoPE by YaRN with {key} = {show(rope[key])} where llama.cpp always has {fixed:g}",
                f"only models with a {key} of {fixed:g} can be converted",
            )
    if not rope.get("truncate", True):
        raise UnsupportedArchitectureError(
            "the model scales RoPE by YaRN with truncate = false where llama.cpp always truncates",
            "only models without this option can be converted",
        )


_YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
_YARN_FACTORS = {
    "yarn_ext_factor": ("extrapolation_factor",),
    "yarn_attn_factor": ("attention_factor", "attn_factor"),
    "yarn_beta_fast": ("beta_fast",),
    "yarn_beta_slow": ("beta_slow",),
}


def decoder_metadata(name: str, config: Config, sizes: Sizes, *, epsilon: float = 1e-6) -> dict[str, MetadataEntry]:
    """What llama.cpp's converter writes for every Llama-like model, `epsilon` being the family's default of rms_norm_eps.

    A head's width is written where the configuration has `head_dim` or its class in transformers computes it; families
    whose class does not, pass this through `head_width_if_said`.
    """
    return {
        f"{name}.block_count": uint32(sizes["layers"]),
        f"{name}.context_length": uint32(sizes["context"]),
        f"{name}.embedding_length": uint32(sizes["hidden"]),
        f"{name}.feed_forward_length": uint32(sizes["ffn"]),
        f"{name}.attention.head_count": uint32(sizes["heads"]),
        f"{name}.attention.head_count_kv": uint32(sizes["kv_heads"]),
        **rope_metadata(name, config, rope_parameters(config)),
        f"{name}.attention.layer_norm_rms_epsilon": float32(real(config, "rms_norm_eps", epsilon)),
        f"{name}.attention.key_length": uint32(sizes["head_dim"]),
        f"{name}.attention.value_length": uint32(sizes["head_dim"]),
    }


def head_width_if_said(name: str, config: Config, entries: Mapping[str, MetadataEntry]) -> dict[str, MetadataEntry]:
    """`entries` without a head's width, unless the configuration gives it."""
    if config.get("head_dim") is not None:
        return dict(entries)
    widths = (f"{name}.attention.key_length", f"{name}.attention.value_length")
    return {key: entry for key, entry in entries.items() if key not in widths}
