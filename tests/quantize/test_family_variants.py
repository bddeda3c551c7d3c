"""Configurations and checkpoints beside the usual ones: windows no layer has, YaRN's options, other heads and class names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import packed_checkpoints as pc
import pytest
import test_packed_bitsandbytes as bnb
from family_checkpoint import GELU, FamilyCase, write_checkpoint
from lora_adapters import pair, write_adapter_folder
from test_families import log_probabilities
from test_gpt_like_families import GPT2_CONFIG, NEOX_CONFIG, mapped, weights_of
from test_layouts import Weights, write_safetensors
from test_lora_gguf import converted

from tinyedge.errors import CheckpointError, TensorMismatchError, UnsupportedArchitectureError
from tinyedge_quantize.architectures import ARCHITECTURES, architecture_of
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.convert import convert
from tinyedge_quantize.described import map_tensors
from tinyedge_quantize.tensors import float_rows

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GEMMA = _SMALL | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_FULL, _WINDOW = "full_attention", "sliding_attention"
_WITHOUT_WINDOWS = {"layer_types": [_FULL] * 3}

CASES = (
    FamilyCase(
        name="gemma2-without-windows",
        model="Gemma2ForCausalLM",
        config=_GEMMA | _WITHOUT_WINDOWS,
        tokenizer="gemma-spm",
        loosest=GELU,
    ),
    FamilyCase(
        name="gemma3-without-windows",
        model="Gemma3ForCausalLM",
        config=_GEMMA | _WITHOUT_WINDOWS,
        tokenizer="gemma3-spm",
        loosest=GELU,
    ),
    FamilyCase(
        name="gemma3-with-windows-beside-a-pattern-of-one",
        model="Gemma3ForCausalLM",
        config=_GEMMA | {"sliding_window_pattern": 1, "layer_types": [_WINDOW, _FULL, _FULL]},
        tokenizer="gemma3-spm",
        loosest=GELU,
    ),
    FamilyCase(
        name="olmo3-without-windows",
        model="Olmo3ForCausalLM",
        config=_SMALL | _WITHOUT_WINDOWS | {"sliding_window": 8},
        tokenizer="olmo2",
    ),
    FamilyCase(
        name="llama-by-yarn-with-mscale",
        model="LlamaForCausalLM",
        config=_SMALL | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.3}},
        tokenizer="llama3",
    ),
    FamilyCase(
        name="qwen2-by-yarn-with-one-mscale",
        model="Qwen2ForCausalLM",
        config=_SMALL | {"rope_parameters": _YARN | {"mscale": 0.7}},
        tokenizer="qwen2",
    ),
)
_TIED = (
    FamilyCase(name="llama", model="LlamaForCausalLM", config=_SMALL | {"tie_word_embeddings": True}, tokenizer="llama3"),
    FamilyCase(name="gemma3", model="Gemma3ForCausalLM", config=_GEMMA, tokenizer="gemma3-spm", loosest=GELU),
    FamilyCase(
        name="gpt2",
        model="GPT2LMHeadModel",
        config={"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
        tokenizer="gpt2",
        dtype="float32",
        loosest=GELU,
    ),
)
_BASES = (
    FamilyCase(name="qwen2", model="Qwen2ForCausalLM", config=_SMALL | {"tie_word_embeddings": True}, tokenizer="qwen2"),
    FamilyCase(name="gemma2", model="Gemma2ForCausalLM", config=_GEMMA, tokenizer="gemma-spm", loosest=GELU),
)
LLAMA_CONFIG: dict[str, Any] = {
    **_SMALL,
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 5000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


def written(case: FamilyCase, folder: Path) -> tuple[Path, Any, Any]:
    """The case's checkpoint, its tokens and transformers' log-probabilities."""
    folder.mkdir()
    return (folder, *write_checkpoint(case, folder))


@pytest.mark.torch
@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_runtime_computes_what_transformers_does(case: FamilyCase, tmp_path: Path) -> None:
    folder, tokens, expected = written(case, tmp_path / "model")
    convert(folder, tmp_path / "f32.gguf", "F32")
    assert np.abs(log_probabilities(tmp_path / "f32.gguf", tokens.tolist()) - expected).max() < case.loosest


def from_transformers(transformers: Any, case: FamilyCase, folder: Path, tokens: Any) -> Any:
    """Log-probabilities of the checkpoint as transformers reads it, tied or not."""
    import torch

    kind = getattr(transformers, case.model)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(tokens)[None]).logits[0].float()
    return torch.log_softmax(logits, -1).numpy()


@pytest.mark.torch
@pytest.mark.parametrize("case", _TIED, ids=lambda case: case.name)
def test_a_head_of_its_own_beside_a_tied_configuration_is_used(case: FamilyCase, transformers: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder, tokens, tied = written(case, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    embedding = weights[architecture_of(json.loads((folder / "config.json").read_text())).embedding]
    noise = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(5))
    weights["lm_head.weight"] = (noise * embedding.float().std()).to(embedding.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expected = from_transformers(transformers, case, folder, tokens)
    assert np.abs(expected - tied).max() > 0.5
    convert(folder, tmp_path / "f32.gguf", "F32")
    assert np.abs(log_probabilities(tmp_path / "f32.gguf", tokens.tolist()) - expected).max() < case.loosest


def test_a_head_that_differs_in_one_number_is_kept_and_a_copy_is_not(tmp_path: Path) -> None:
    weights = weights_of(LLAMA_CONFIG)
    embedding = weights["model.embed_tokens.weight"]
    assert "output.weight" not in mapped(tmp_path / "copy", LLAMA_CONFIG, weights | {"lm_head.weight": embedding})
    other = embedding.copy()
    other[-1, -1] += 1  # beyond the first slab that is compared
    found = mapped(tmp_path / "own", LLAMA_CONFIG, weights | {"lm_head.weight": other})
    assert np.array_equal(found["output.weight"], other)
    assert np.array_equal(found["token_embd.weight"], embedding)


@pytest.mark.parametrize("shape", [(), (0,), (5000,), (0, 64), (5000, 0), (2, 3, 4)], ids=str)
def test_an_embedding_and_a_head_of_no_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    empty = {name: np.zeros(shape, np.float32) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    with pytest.raises((TensorMismatchError, CheckpointError)):
        mapped(tmp_path / "model", LLAMA_CONFIG, weights_of(LLAMA_CONFIG) | empty)


def test_a_head_that_llama_cpp_has_no_place_for_is_refused(tmp_path: Path) -> None:
    config = LLAMA_CONFIG | {"architectures": ["Gemma2ForCausalLM"], "head_dim": 32, "num_key_value_heads": 2}
    weights = weights_of({**architecture_of(config).defaults, **config})
    embedding = weights["model.embed_tokens.weight"]
    assert mapped(tmp_path / "copy", config, weights | {"lm_head.weight": embedding})
    with pytest.raises(UnsupportedArchitectureError, match="output matrix of its own") as refusal:
        mapped(tmp_path / "own", config, weights | {"lm_head.weight": 2 * embedding})
    assert refusal.value.remedy


def merged(folder: Path, config: dict[str, Any], weights: Weights, matrices: Weights) -> Weights:
    """All tensors of a checkpoint with an adapter of these matrices merged, by Hugging Face's names."""
    write_safetensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config))
    with open_checkpoint(folder, adapters=[(write_adapter_folder(folder / "adapter", matrices), 1.0)]) as checkpoint:
        return {
            name: float_rows(tensor, 0, tensor.rows).reshape(tensor.shape)
            for name, tensor in checkpoint.arranged.tensors.items()
        }


def product(matrices: Weights) -> Any:
    """2 * B @ A, as CONFIG of lora_adapters scales it."""
    a, b = (next(value for name, value in matrices.items() if f"lora_{side}" in name) for side in "AB")
    return 2 * b @ a


def test_an_adapter_goes_into_the_head_that_differs_from_the_embedding(tmp_path: Path) -> None:
    weights = weights_of(LLAMA_CONFIG)
    head = 0.5 * weights["model.embed_tokens.weight"]
    matrices = pair("lm_head", *head.shape)
    found = merged(tmp_path, LLAMA_CONFIG, weights | {"lm_head.weight": head}, matrices)
    assert np.allclose(found["lm_head.weight"], head + product(matrices), atol=1e-5)
    assert np.array_equal(found["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])


def as_in_memory(weights: Weights) -> Weights:
    """A GPT-NeoX's weights under the names of transformers 5's modules, as its state_dict has them."""
    return {name.replace("embed_out.", "lm_head."): values for name, values in weights.items()}


def test_neoxs_head_may_have_the_name_of_transformers_5(tmp_path: Path) -> None:
    weights = weights_of(NEOX_CONFIG)
    expected = mapped(tmp_path / "saved", NEOX_CONFIG, weights)
    found = mapped(tmp_path / "memory", NEOX_CONFIG, as_in_memory(weights))
    assert found.keys() == expected.keys()
    assert np.array_equal(found["output.weight"], weights["embed_out.weight"])
    with pytest.raises(TensorMismatchError, match=r"does not know, such as lm_head\.weight"):
        mapped(tmp_path / "both", NEOX_CONFIG, as_in_memory(weights) | weights)


@pytest.mark.parametrize("named", [dict, as_in_memory], ids=["saved", "in-memory"])
@pytest.mark.parametrize("module", ["embed_out", "lm_head"])
def test_an_adapter_finds_neoxs_head_by_both_names(module: str, named: Callable[[Weights], Weights], tmp_path: Path) -> None:
    weights = weights_of(NEOX_CONFIG)
    head = weights["embed_out.weight"]
    matrices = pair(module, *head.shape)
    found = merged(tmp_path, NEOX_CONFIG, named(weights), matrices)
    assert np.allclose(found["embed_out.weight"], head + product(matrices), atol=1e-5)
    adapter = converted(tmp_path / "adapter", tmp_path, tmp_path / "adapter.gguf")
    names = {tensor.name for tensor in gguf.GGUFReader(adapter).tensors}
    assert names == {"output.weight.lora_a", "output.weight.lora_b"}


def _four_bits(shape: tuple[int, int], _random: np.random.Generator) -> tuple[pc.Parts, Any]:
    parts, values = bnb.four_bits(shape)
    return {name.removeprefix("x."): value for name, value in parts.items()}, values


def _eight_bits(shape: tuple[int, int], _random: np.random.Generator) -> tuple[pc.Parts, Any]:
    parts, values = bnb.int8(shape)
    return {name.removeprefix("x."): value for name, value in parts.items()}, values


_PACKERS: dict[str, tuple[pc.Packer, dict[str, Any]]] = {
    "gptq": (pc.Gptq(), pc.Gptq().settings()),
    "gptq-act-order": (pc.Gptq(bits=8, act_order=True), pc.Gptq(bits=8, act_order=True).settings()),
    "awq": (pc.Awq(), pc.Awq().settings()),
    "nf4": (_four_bits, bnb.SETTINGS),
    "int8": (_eight_bits, bnb.SETTINGS),
}
_GPT2_LAYERS = {
    "attn.c_attn": ("attn_qkv", (96, 32)),
    "attn.c_proj": ("attn_output", (32, 32)),  # square: its shape does not tell
    "mlp.c_fc": ("ffn_up", (128, 32)),
    "mlp.c_proj": ("ffn_down", (32, 128)),
}


def packed_gpt2(folder: Path, name: str) -> Weights:
    """Writes a GPT-2 packed so; what comes out are the weights of its Conv1D layers as (out, in), by GGUF's names."""
    packer, settings = _PACKERS[name]
    random = np.random.default_rng(4)
    parts: pc.Parts = {}
    expected: Weights = {}
    for source, values in weights_of(GPT2_CONFIG).items():
        layer = source.removesuffix(".weight")
        number, _, kind = layer.removeprefix("transformer.h.").partition(".")
        if kind in _GPT2_LAYERS and layer != source:
            target, shape = _GPT2_LAYERS[kind]
            packed, expected[f"blk.{number}.{target}.weight"] = packer(shape, random)
            parts |= pc.layer(packed, layer)
        else:
            parts[source] = ("F32", values)
    folder.mkdir(exist_ok=True)
    pc.write_safetensors(folder / "model.safetensors", parts)
    (folder / "config.json").write_text(json.dumps(GPT2_CONFIG | {"quantization_config": settings}))
    return expected


@pytest.mark.parametrize("name", _PACKERS)
def test_a_packed_gpt2_is_turned_as_its_float_weights_are(name: str, tmp_path: Path) -> None:
    expected = packed_gpt2(tmp_path, name)
    with open_checkpoint(tmp_path) as checkpoint:
        row = architecture_of(checkpoint.config)
        found = dict(map_tensors(row, checkpoint.arranged, row.sizes(checkpoint.config)))
        assert len(expected) == 8
        for target, values in expected.items():
            assert np.array_equal(float_rows(found[target], 0, found[target].rows), values), target


def test_an_adapter_merges_into_a_packed_gpt2(tmp_path: Path) -> None:
    expected = packed_gpt2(tmp_path, "gptq")
    matrices = pair("transformer.h.1.attn.c_proj", 32, 32)
    adapter = write_adapter_folder(tmp_path / "adapter", matrices)
    with open_checkpoint(tmp_path, adapters=[(adapter, 1.0)]) as checkpoint:
        tensor = checkpoint.arranged.tensors["transformer.h.1.attn.c_proj.weight"]
        wanted = expected["blk.1.attn_output.weight"] + product(matrices)
        assert np.allclose(float_rows(tensor, 0, 32), wanted.T, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("case", _BASES, ids=lambda case: case.name)
def test_a_model_without_its_head_is_whole_where_the_output_is_tied(
    case: FamilyCase, transformers: Any, tmp_path: Path
) -> None:
    folder, tokens, expected = written(case, tmp_path / "model")
    getattr(transformers, case.model).from_pretrained(folder).base_model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [case.model.replace("ForCausalLM", "Model")]
    convert(folder, tmp_path / "f32.gguf", "F32")
    assert np.abs(log_probabilities(tmp_path / "f32.gguf", tokens.tolist()) - expected).max() < case.loosest


def test_every_family_knows_its_class_without_a_head() -> None:
    for row in ARCHITECTURES:
        assert row.base_classes
        for name in (*row.classes, *row.base_classes):
            assert architecture_of({"architectures": [name]}) is row


def test_a_model_without_its_head_that_needs_one_is_refused(tmp_path: Path) -> None:
    config = LLAMA_CONFIG | {"architectures": ["LlamaModel"], "tie_word_embeddings": False}
    weights = weights_of(config)
    without = {name.removeprefix("model."): values for name, values in weights.items() if name != "lm_head.weight"}
    with pytest.raises(TensorMismatchError, match="has no output matrix") as refusal:
        mapped(tmp_path / "base", config, without)
    assert "LlamaForCausalLM" in (refusal.value.remedy or "")
