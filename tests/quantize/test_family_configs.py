"""What Llama-like families refuse or warn of, and that no configuration ends in anything but a sentence."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tinyedge.errors import CheckpointError, TinyEdgeError, UnsupportedArchitectureError
from tinyedge_quantize.architectures import architecture_of

_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "vocab_size": 600,
}
_CLASSES = {
    "LlamaForCausalLM": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}},
    "MistralForCausalLM": {"sliding_window": None},
    "SmolLM3ForCausalLM": {"no_rope_layers": [1, 1, 1, 0]},
    "Qwen2ForCausalLM": {"use_sliding_window": False, "sliding_window": 4096},
    "Qwen3ForCausalLM": {"head_dim": 32, "attention_bias": False},
    "GemmaForCausalLM": {"head_dim": 32, "hidden_act": "gelu"},
    "Gemma2ForCausalLM": {"head_dim": 32, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 32},
    "Gemma3ForCausalLM": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention"] * 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "Olmo2ForCausalLM": {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.0}},
    "Olmo3ForCausalLM": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "GraniteForCausalLM": {"embedding_multiplier": 12.0, "logits_scaling": 8.0},
}
_NASTY: tuple[Any, ...] = (
    None,
    True,
    "8",
    "\ud800",
    -1,
    0,
    1,
    3,
    2.5,
    10**30,
    1e300,
    float("inf"),
    float("nan"),
    [],
    [1, "x", None],
    {},
    {"full_attention": 3},
    {"full_attention": {"rope_type": []}, "sliding_attention": [1]},
    {"rope_type": "yarn"},
    {"rope_type": "yarn", "factor": -4, "attention_factor": "x"},
    {"type": "llama3", "factor": 0, "low_freq_factor": 1e300},
    {"rope_type": "dynamic", "rope_theta": -1},
)


def config(name: str, **changes: Any) -> dict[str, Any]:
    """A tiny configuration of the class as the layout hands it on: with the family's defaults, then `changes`."""
    given = {"architectures": [name], **_TINY, **_CLASSES[name]}
    return {**architecture_of(given).defaults, **given, **changes}


def warnings(name: str, **changes: Any) -> list[str]:
    changed = config(name, **changes)
    return list(architecture_of(changed).warnings(changed))


def use(changed: dict[str, Any]) -> None:
    """Everything a conversion asks of a configuration."""
    row = architecture_of(changed)
    sizes = row.sizes(changed)
    row.tied(changed)
    row.metadata(changed, sizes)
    list(row.generated(changed, sizes))
    list(row.warnings(changed))


@pytest.mark.parametrize("name", _CLASSES)
def test_a_damaged_configuration_ends_in_a_sentence(name: str) -> None:
    use(config(name))
    keys = sorted(config(name).keys() - {"architectures"} | {"layer_types", "rope_scaling", "sliding_window_pattern"})
    for key in keys:
        for value in _NASTY:
            try:
                use(config(name, **{key: value}))
            except TinyEdgeError as error:
                assert error.problem and "\n" not in str(error)


@pytest.mark.parametrize("name", _CLASSES)
def test_a_configuration_damaged_in_several_places_ends_in_a_sentence(name: str) -> None:
    chance = random.Random(name)
    keys = sorted(config(name).keys() - {"architectures"})
    for _ in range(300):
        try:
            use(config(name, **{key: chance.choice(_NASTY) for key in chance.sample(keys, 3)}))
        except TinyEdgeError as error:
            assert error.problem and "\n" not in str(error)


@pytest.mark.parametrize("name", _CLASSES)
@pytest.mark.parametrize(
    "lie", [{"num_hidden_layers": 513}, {"num_attention_heads": 5}, {"num_key_value_heads": 3}, {"num_key_value_heads": 8}]
)
def test_impossible_layers_and_heads_are_refused(name: str, lie: dict[str, int]) -> None:
    with pytest.raises((CheckpointError, UnsupportedArchitectureError)):
        use(config(name, **lie))


_FULL, _WINDOW = "full_attention", "sliding_attention"
_GRANITE_SCALES = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
_LONGROPE = {"rope_type": "longrope", "factor": 4.0, "long_factor": [2.0] * 8, "short_factor": [1.0] * 8}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_YARN_FAMILIES = ("LlamaForCausalLM", "SmolLM3ForCausalLM", "Qwen2ForCausalLM", "Olmo2ForCausalLM", "GraniteForCausalLM")

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("LlamaForCausalLM", {"hidden_act": "gelu"}, "activation"),
    ("LlamaForCausalLM", {"num_local_experts": 8}, "experts"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ("Qwen2ForCausalLM", {"head_dim": 32}, "4 heads of 32"),
    ("Qwen2ForCausalLM", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
    ("Qwen3ForCausalLM", {"attention_bias": True}, "attention_bias"),
    ("GemmaForCausalLM", {"tie_word_embeddings": False}, "output matrix"),
    ("GemmaForCausalLM", {"hidden_act": "relu"}, "activation"),
    ("Gemma2ForCausalLM", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
    ("Gemma2ForCausalLM", {"final_logit_softcapping": None}, "final_logit_softcapping"),
    ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    (
        "Gemma3ForCausalLM",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}},
        "linear",
    ),
    ("Olmo2ForCausalLM", {"head_dim": 32}, "4 heads of 32"),
    ("Olmo2ForCausalLM", {"attention_bias": True}, "attention_bias"),
    ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 1, 0]}, "every fourth"),
    ("SmolLM3ForCausalLM", {"no_rope_layers": None, "no_rope_layer_interval": 2}, "every fourth"),
    ("SmolLM3ForCausalLM", {"mlp_bias": True}, "mlp_bias"),
    ("GraniteForCausalLM", {"head_dim": 32}, "4 heads of 32"),
    *(("GraniteForCausalLM", {scale: 0.0}, f"{scale} in config.json is 0") for scale in _GRANITE_SCALES),
    *((name, {"rope_scaling": _LONGROPE}, "longrope") for name in ("LlamaForCausalLM", "MistralForCausalLM")),
    ("GraniteForCausalLM", {"rope_scaling": _LONGROPE | {"rope_type": "su"}}, "su"),
    *((name, {"rope_scaling": _YARN | {"beta_fast": 8}}, "beta_fast = 8") for name in _YARN_FAMILIES),
    *((name, {"rope_scaling": _YARN | {"beta_slow": 2.0}}, "beta_slow = 2.0") for name in _YARN_FAMILIES),
    *((name, {"rope_scaling": _YARN | {"truncate": False}}, "truncate") for name in _YARN_FAMILIES),
]


@pytest.mark.parametrize(("name", "changes", "word"), REFUSED)
def test_what_llama_cpp_cannot_express_is_refused(name: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=word):
        use(config(name, **changes))


WARNED: list[tuple[str, dict[str, Any], str]] = [
    ("MistralForCausalLM", {"sliding_window": 4096}, "window of 4096 tokens"),
    ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 3}, "window of 4096 tokens"),
    ("Qwen3ForCausalLM", {"use_sliding_window": True, "max_window_layers": 0}, "window of 4096 tokens"),
    ("Qwen2ForCausalLM", {"use_sliding_window": True, "layer_types": [_FULL, _WINDOW, _FULL, _FULL]}, "window of 4096 tokens"),
    ("SmolLM3ForCausalLM", {"use_sliding_window": True, "sliding_window": 512}, "window of 512 tokens"),
    ("SmolLM3ForCausalLM", {"layer_types": [_WINDOW, *[_FULL] * 3], "sliding_window": 512}, "window of 512 tokens"),
    ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 224}, "root of 224, llama.cpp by that of 32"),
    ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 168}, "root of 168, llama.cpp by that of 32"),
]


@pytest.mark.parametrize(("name", "changes", "words"), WARNED)
def test_what_llama_cpp_computes_differently_is_said(name: str, changes: dict[str, Any], words: str) -> None:
    assert warnings(name) == []
    (sentence,) = warnings(name, **changes)
    assert words in sentence


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Qwen2ForCausalLM", {"use_sliding_window": True}),  # from layer 28 on, of 4
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "max_window_layers": 0, "layer_types": [_FULL] * 4}),
        ("SmolLM3ForCausalLM", {"use_sliding_window": True, "sliding_window": 512, "layer_types": [_FULL] * 4}),
        ("SmolLM3ForCausalLM", {"sliding_window": 512}),
    ],
)
def test_a_window_that_no_layer_has_is_not_warned_of(name: str, changes: dict[str, Any]) -> None:
    assert warnings(name, **changes) == []


@pytest.mark.parametrize("name", _YARN_FAMILIES)
def test_the_usual_options_of_yarn_are_taken(name: str) -> None:
    use(config(name, rope_scaling=_YARN | {"beta_fast": 32, "beta_slow": 1.0, "truncate": True}))


def test_a_negative_mscale_of_yarn_is_refused() -> None:
    with pytest.raises(CheckpointError, match="mscale"):
        use(config("LlamaForCausalLM", rope_scaling=_YARN | {"mscale": 1.0, "mscale_all_dim": -7.3}))


def test_scalings_that_are_refused_are_not_recommended() -> None:
    with pytest.raises(UnsupportedArchitectureError) as refusal:
        use(config("LlamaForCausalLM", rope_scaling=_LONGROPE))
    assert refusal.value.remedy == "supported are default, linear, yarn, llama3"


def test_a_missing_sliding_window_is_the_one_transformers_fills_in() -> None:
    """MistralConfig's default is 4096, and a configuration that transformers writes sparsely leaves it out."""
    given = config("MistralForCausalLM")
    del given["sliding_window"]
    row = architecture_of(given)
    (sentence,) = row.warnings({**row.defaults, **given})
    assert "4096" in sentence
