"""Phi, GPT-NeoX, GPT-2, StableLM, MPT beyond what llama.cpp's converter can be asked: spellings, refusals, hostile values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from family_checkpoint import FamilyCase, write_checkpoint
from gguf_comparison import assert_same_gguf
from gpt_like_families import BEYOND_THE_CONVERTER, GPT_LIKE
from test_families import log_probabilities
from test_layouts import Weights, finish, write_safetensors

from tinyedge.errors import CheckpointError, TensorMismatchError, TinyEdgeError, UnsupportedArchitectureError
from tinyedge_quantize.architectures import architecture_of
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.convert import convert
from tinyedge_quantize.described import map_tensors
from tinyedge_quantize.tensors import float_rows

# As the models' publishers wrote them, but for what has no effect here.
PUBLISHED: dict[str, dict[str, Any]] = {
    "phi-2": {
        "architectures": ["PhiForCausalLM"],
        "hidden_act": "gelu_new",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 51200,
    },
    "phi-4-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1.0, 8.5] * 24, "short_factor": [1.0, 1.5] * 24, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "vocab_size": 200064,
    },
    "pythia-70m": {
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_act": "gelu",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 8,
        "num_hidden_layers": 6,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    },
    "gpt-2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "layer_norm_epsilon": 1e-05,
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
    "stablelm-2-12b": {
        "architectures": ["StableLmForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.25,
        "qk_layernorm": True,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "use_qkv_bias": False,
        "vocab_size": 100352,
    },
    "mpt-7b": {
        "architectures": ["MPTForCausalLM"],
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": 8,
            "attn_type": "multihead_attention",
            "clip_qkv": None,
            "prefix_lm": False,
            "qk_ln": False,
            "softmax_scale": None,
        },
        "d_model": 4096,
        "expansion_ratio": 4,
        "learned_pos_emb": True,
        "logit_scale": None,
        "max_seq_len": 2048,
        "n_heads": 32,
        "n_layers": 32,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "vocab_size": 50432,
    },
}


def read(config: Mapping[str, Any]) -> tuple[Mapping[str, int], dict[str, Any]]:
    """The sizes and the metadata's values that a configuration gives; its computed tensors are asked for, too."""
    row = architecture_of(config)
    whole = {**row.defaults, **config}
    sizes = row.sizes(whole)
    assert all(tensor.rows for tensor in row.generated(whole, sizes))
    row.tied(whole)
    tuple(row.warnings(whole))
    return sizes, {key.partition(".")[2]: entry.value for key, entry in row.metadata(whole, sizes).items()}


def changed(model: str, **changes: Any) -> dict[str, Any]:
    """A published configuration with other values; those of MPT's attention are `attn_config__NAME`."""
    config = dict(PUBLISHED[model])
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        config[outer] = {**config[outer], inner: value} if inner else value
    return config


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("phi-2", {"rope.dimension_count": 32, "feed_forward_length": 10240, "context_length": 2048}),
        (
            "phi-4-mini",
            {
                "rope.dimension_count": 96,
                "rope.freq_base": 10000.0,
                "rope.scaling.original_context_length": 4096,
                "rope.scaling.attn_factor": math.sqrt(1 + 5 / 12),
                "attention.sliding_window": 262144,
                "attention.head_count_kv": 8,
            },
        ),
        ("pythia-70m", {"rope.dimension_count": 16, "use_parallel_residual": True, "context_length": 2048}),
        ("gpt-2", {"context_length": 1024, "feed_forward_length": 3072, "attention.head_count": 12}),
        ("stablelm-2-12b", {"rope.dimension_count": 40, "use_parallel_residual": True, "attention.head_count_kv": 8}),
        ("mpt-7b", {"attention.max_alibi_bias": 8.0, "feed_forward_length": 16384, "attention.layer_norm_epsilon": 1e-5}),
    ],
)
def test_published_configurations(model: str, expected: dict[str, Any]) -> None:
    _sizes, metadata = read(PUBLISHED[model])
    assert {key: metadata[key] for key in expected} == expected


def test_what_the_runtime_assumes_is_not_written() -> None:
    assert "rope.freq_base" not in read(PUBLISHED["pythia-70m"])[1]
    assert read(changed("pythia-70m", rotary_emb_base=500000))[1]["rope.freq_base"] == 500000.0
    assert "attention.clamp_kqv" not in read(PUBLISHED["mpt-7b"])[1]
    assert read(changed("mpt-7b", attn_config__clip_qkv=6))[1]["attention.clamp_kqv"] == 6.0


def test_the_older_class_of_stablelm() -> None:
    config = changed("stablelm-2-12b", architectures=["StableLMEpochForCausalLM"], rope_pct=0.5, norm_eps=1e-6)
    del config["partial_rotary_factor"], config["layer_norm_eps"]
    _sizes, metadata = read(config)
    assert (metadata["rope.dimension_count"], metadata["attention.layer_norm_epsilon"]) == (80, 1e-6)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("phi-2", {"qk_layernorm": True}),
    ("phi-2", {"hidden_act": "relu"}),
    ("phi-2", {"head_dim": 64}),
    ("phi-2", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    ("phi-2", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}),
    ("phi-4-mini", {"hidden_act": "gelu"}),
    ("phi-4-mini", {"head_dim": 64}),
    ("phi-4-mini", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("pythia-70m", {"attention_bias": False}),
    ("pythia-70m", {"hidden_act": "quick_gelu"}),
    ("pythia-70m", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    ("gpt-2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt-2", {"scale_attn_weights": False}),
    ("gpt-2", {"add_cross_attention": True}),
    ("gpt-2", {"activation_function": "relu"}),
    ("stablelm-2-12b", {"hidden_act": "gelu"}),
    ("stablelm-2-12b", {"rope_scaling": {"type": "longrope"}}),
    ("mpt-7b", {"attn_config__alibi": False}),
    ("mpt-7b", {"attn_config__prefix_lm": True}),
    ("mpt-7b", {"attn_config__qk_ln": True}),
    ("mpt-7b", {"attn_config__rope": True}),
    ("mpt-7b", {"attn_config__attn_type": "grouped_query_attention"}),
    ("mpt-7b", {"attn_config__softmax_scale": 0.5}),
    ("mpt-7b", {"attn_config__sliding_window_size": 512}),
    ("mpt-7b", {"no_bias": False}),
    ("mpt-7b", {"logit_scale": "inv_sqrt_d_model"}),
    ("mpt-7b", {"expansion_ratio": 2}),
    ("mpt-7b", {"norm_type": "rmsnorm"}),
]


@pytest.mark.parametrize(("model", "changes"), REFUSED, ids=[f"{model}-{next(iter(change))}" for model, change in REFUSED])
def test_variants_the_runtime_lacks_are_refused_with_a_remedy(model: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedArchitectureError) as refusal:
        read(changed(model, **changes))
    assert refusal.value.remedy
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_every_kind_of_gelu_is_taken(act: str) -> None:
    read(changed("pythia-70m", hidden_act=act))
    read(changed("gpt-2", activation_function=act))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("phi-2", {"num_attention_heads": 31}),
        ("phi-2", {"num_hidden_layers": 513}),
        ("phi-2", {"partial_rotary_factor": 0.39}),
        ("phi-2", {"partial_rotary_factor": 0.0}),
        ("pythia-70m", {"rotary_pct": 1.5}),
        ("pythia-70m", {"num_attention_heads": 7}),
        ("pythia-70m", {"num_attention_heads": 1024}),
        ("gpt-2", {"n_head": 11}),
        ("gpt-2", {"n_layer": 10**6}),
        ("stablelm-2-12b", {"num_key_value_heads": 5}),
        ("stablelm-2-12b", {"use_parallel_residual": "no"}),
        ("mpt-7b", {"n_heads": 33}),
        ("mpt-7b", {"attn_config": "alibi"}),
        ("phi-4-mini", {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 48}}),
        ("phi-4-mini", {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 47, "short_factor": [1.0] * 48}}),
        ("phi-4-mini", {"rope_scaling": {"type": "longrope", "long_factor": [0.0] * 48, "short_factor": [1.0] * 48}}),
        ("phi-4-mini", {"rope_scaling": {"type": "longrope", "long_factor": ["1"] * 48, "short_factor": [1.0] * 48}}),
        ("phi-4-mini", {"original_max_position_embeddings": 1}),
    ],
)
def test_configurations_of_no_model(model: str, changes: dict[str, Any]) -> None:
    with pytest.raises((CheckpointError, UnsupportedArchitectureError)) as refusal:
        read(changed(model, **changes))
    assert "\n" not in str(refusal.value)


HOSTILE = (
    None,
    True,
    "x",
    "1" * 100,
    -1,
    0,
    1,
    3,
    2**40,
    10**400,
    0.5,
    -0.0,
    1e300,
    math.inf,
    math.nan,
    [],
    [[]],
    {},
    {"a": 1},
)


@pytest.mark.parametrize("model", PUBLISHED)
def test_no_value_of_any_setting_escapes_as_another_error(model: str) -> None:
    settings = [key for key in PUBLISHED[model] if key != "architectures"] + [
        "head_dim",
        "rope_parameters",
        "n_inner",
        "factor",
    ]
    for inner in ("attn_config", "rope_scaling"):
        settings += [f"{inner}__{key}" for key in PUBLISHED[model].get(inner) or {}]
    for setting in settings:
        for value in HOSTILE:
            try:
                read(changed(model, **{setting: value}))
            except TinyEdgeError as error:
                assert "\n" not in str(error)


GPT2_CONFIG = changed("gpt-2", n_embd=32, n_head=2, n_layer=2, n_positions=16, n_ctx=16, vocab_size=4096)
NEOX_CONFIG = changed(
    "pythia-70m", hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=64
)
STABLELM_CONFIG = changed(
    "stablelm-2-12b",
    hidden_size=64,
    intermediate_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    vocab_size=4096,
    partial_rotary_factor=0.5,
)


def weights_of(config: Mapping[str, Any]) -> Weights:
    """Seeded weights for everything that the configuration's family has."""
    row = architecture_of(config)
    sizes = row.sizes({**row.defaults, **config})
    random = np.random.default_rng(3)
    weights: Weights = {}
    for rule in row.tensors:
        shape = tuple(sizes[name] for name in rule.shape)
        if 0 in shape or (rule.optional and "bias" in rule.target) or (rule.source == row.head and row.tied(config)):
            continue
        for layer in range(sizes["layers"] if rule.per_layer else 1):
            for part in range(sizes[rule.stack] if rule.stack else 1):
                name = rule.source.format(layer, part=part)
                weights[name] = random.standard_normal(shape[1:] if rule.stack else shape, np.float32)
    return weights


def mapped(folder: Path, config: Mapping[str, Any], weights: Weights) -> Weights:
    """The tensors of the GGUF file that a checkpoint would become."""
    write_safetensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config))
    with open_checkpoint(folder) as checkpoint:
        row = architecture_of(checkpoint.config)
        tensors = map_tensors(row, checkpoint.arranged, row.sizes(checkpoint.config))
        return {name: float_rows(tensor, 0, tensor.rows).reshape(tensor.shape) for name, tensor in tensors}


def test_gpt2_as_it_was_first_published_is_the_same_model(tmp_path: Path) -> None:
    """No prefix, the causal masks among the weights, and a copy of the embedding as output."""
    weights = weights_of(GPT2_CONFIG)
    expected = mapped(tmp_path / "new", GPT2_CONFIG, weights)
    old = {name.removeprefix("transformer."): values for name, values in weights.items()}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = np.ones((16, 16), np.float32)
        old[f"h.{layer}.attn.masked_bias"] = np.array([-1e4], np.float32)
    old["lm_head.weight"] = weights["transformer.wte.weight"]
    found = mapped(tmp_path / "old", GPT2_CONFIG, old)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], values) for name, values in expected.items())


def test_gpt2s_matrices_are_turned_and_its_biases_kept(tmp_path: Path) -> None:
    weights = weights_of(GPT2_CONFIG)
    found = mapped(tmp_path / "gpt2", GPT2_CONFIG, weights)
    for ours, theirs in (("attn_qkv", "attn.c_attn"), ("ffn_down", "mlp.c_proj"), ("attn_output", "attn.c_proj")):
        assert np.array_equal(found[f"blk.1.{ours}.weight"], weights[f"transformer.h.1.{theirs}.weight"].T)
        assert np.array_equal(found[f"blk.1.{ours}.bias"], weights[f"transformer.h.1.{theirs}.bias"])
    assert "output.weight" not in found


def test_neoxs_heads_are_taken_apart(tmp_path: Path) -> None:
    """Rows of one head after the other, each with its query, key and value; llama.cpp wants all queries first."""
    weights = weights_of(NEOX_CONFIG)
    found = mapped(tmp_path / "neox", NEOX_CONFIG, weights)
    fused = weights["gpt_neox.layers.1.attention.query_key_value.weight"]
    queries, keys, values = (
        np.concatenate([fused[start + part * 8 : start + part * 8 + 8] for start in (0, 24, 48, 72)]) for part in range(3)
    )
    assert np.array_equal(found["blk.1.attn_qkv.weight"], np.concatenate([queries, keys, values]))
    bias = weights["gpt_neox.layers.1.attention.query_key_value.bias"]
    assert np.array_equal(found["blk.1.attn_qkv.bias"][8:16], bias[24:32])


@pytest.mark.parametrize("type_name", ["F16", "Q8_0", "Q4_K_M"])
def test_learned_positions_are_never_quantized(type_name: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", weights_of(GPT2_CONFIG))
    convert(finish(tmp_path, **GPT2_CONFIG), tmp_path / "out.gguf", type_name)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert types["position_embd.weight"] == "F32"
    assert types["token_embd.weight"] != "F32"


def test_stablelms_norms_become_rows(tmp_path: Path) -> None:
    weights = weights_of(STABLELM_CONFIG)
    found = mapped(tmp_path / "norms", STABLELM_CONFIG, weights)
    rows = [weights[f"model.layers.1.self_attn.q_layernorm.norms.{head}.weight"] for head in range(4)]
    assert np.array_equal(found["blk.1.attn_q_norm.weight"], np.stack(rows))
    assert found["blk.1.attn_k_norm.weight"].shape == (2, 16)
    assert "blk.0.ffn_norm.weight" not in found


def test_a_checkpoint_that_contradicts_its_configuration_is_refused(tmp_path: Path) -> None:
    weights = weights_of(STABLELM_CONFIG)
    without = {**weights}
    del without["model.layers.1.self_attn.k_layernorm.norms.1.weight"]
    with pytest.raises(TensorMismatchError, match=r"k_layernorm\.norms\.1\.weight is missing"):
        mapped(tmp_path / "missing", STABLELM_CONFIG, without)
    with pytest.raises(TensorMismatchError, match="does not know"):
        mapped(tmp_path / "unsaid", {**STABLELM_CONFIG, "qk_layernorm": False}, weights)
    second_norm = {"model.layers.0.post_attention_layernorm.weight": np.ones(64, np.float32)}
    with pytest.raises(TensorMismatchError, match="post_attention_layernorm"):
        mapped(tmp_path / "parallel", STABLELM_CONFIG, {**weights, **second_norm})
    with pytest.raises(TensorMismatchError, match="has 1 layers"):
        mapped(tmp_path / "layers", {**STABLELM_CONFIG, "num_hidden_layers": 1}, weights)
    with pytest.raises(TensorMismatchError, match="shape"):
        mapped(tmp_path / "heads", {**STABLELM_CONFIG, "num_key_value_heads": 4}, weights)


@pytest.mark.torch
@pytest.mark.parametrize("case", [case for case in GPT_LIKE if case.edit], ids=lambda case: case.name)
def test_transformers_4_and_5_spell_the_same_model(case: FamilyCase, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(replace(case, edit=None), folder)
    convert(folder, tmp_path / "5.gguf", "F32")
    config = json.loads((folder / "config.json").read_text())
    assert case.edit is not None
    case.edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "4.gguf", "F32")
    assert_same_gguf(tmp_path / "5.gguf", tmp_path / "4.gguf")


@pytest.mark.torch
@pytest.mark.parametrize("case", BEYOND_THE_CONVERTER, ids=lambda case: case.name)
def test_what_the_converter_gets_wrong_computes_what_transformers_does(case: FamilyCase, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "model"
    folder.mkdir()
    tokens, expected = write_checkpoint(case, folder)
    convert(folder, tmp_path / "f32.gguf", "F32")
    assert np.abs(log_probabilities(tmp_path / "f32.gguf", tokens.tolist()) - expected).max() < case.loosest
