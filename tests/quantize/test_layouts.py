"""One model written in every layout and container gives one and the same GGUF file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch_saves as ts

from tinyedge.errors import CheckpointError, TensorMismatchError
from tinyedge_bench.suite.random_checkpoint import LlamaShape, demo_tokenizer
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.convert import Wishes, convert
from tinyedge_quantize.described import interleaved_rotary_rows
from tinyedge_quantize.layouts.lit_gpt import NAMED_CONFIGS
from tinyedge_quantize.plan import make_plan
from tinyedge_quantize.recipes import find_recipe

Weights: TypeAlias = dict[str, npt.NDArray[np.float32]]
Save: TypeAlias = Callable[[Path, dict[str, Any]], None]

SHAPE = LlamaShape(layers=2, hidden=64, ffn=96, heads=8, kv_heads=2, vocabulary=4096, context=128)
HEAD_DIM = SHAPE.hidden // SHAPE.heads


@pytest.fixture(scope="module")
def weights() -> Weights:
    random = np.random.default_rng(1)
    return {name: random.standard_normal(shape, np.float32) for name, shape in SHAPE.tensors()}


def save_by_hand(path: Path, value: dict[str, Any]) -> None:
    """torch.save's bytes without torch."""
    storages: dict[str, bytes] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    ts.save(path, ts.program(_encode(value, storages)), storages)


def _encode(value: Any, storages: dict[str, bytes]) -> bytes:
    if isinstance(value, dict):
        return ts.dictionary({name: _encode(item, storages) for name, item in value.items()})
    if isinstance(value, int):
        return ts.integer(value)
    if isinstance(value, float):
        return b"G" + np.array(value, ">f8").tobytes()
    key = str(len(storages))
    storages[key] = value.tobytes()
    strides = tuple(step // 4 for step in value.strides)
    return ts.tensor(key, value.size, value.shape, strides, storage="FloatStorage")


def save_by_torch(path: Path, value: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    path.parent.mkdir(parents=True, exist_ok=True)

    def tensors(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: tensors(child) for name, child in item.items()}
        return torch.from_numpy(np.array(item)) if isinstance(item, np.ndarray) else item

    torch.save(tensors(value), path)


SAVERS = [pytest.param(save_by_hand, id="by-hand"), pytest.param(save_by_torch, id="torch", marks=pytest.mark.torch)]


def write_safetensors(path: Path, tensors: Weights) -> None:
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + values.nbytes]}
        data += values.tobytes()
    encoded = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def finish(folder: Path, **config: Any) -> Path:
    """Adds the tokenizer and, unless it is there by another name, config.json."""
    shutil.copyfile(demo_tokenizer(), folder / "tokenizer.model")
    if config:
        name = config.pop("file", "config.json")
        (folder / name).write_text(json.dumps(config))
    return folder


def hugging_face(folder: Path, weights: Weights) -> Path:
    write_safetensors(folder / "model.safetensors", weights)
    return finish(folder, **SHAPE.config())


def tensors_of(checkpoint: Path, tmp_path: Path, config_name: str | None = None) -> dict[str, bytes]:
    target = tmp_path / "out.gguf"
    convert(checkpoint, target, "F32", Wishes(config_name=config_name))
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(target).tensors}


@pytest.fixture(scope="module")
def reference(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("reference")
    return tensors_of(hugging_face(folder / "hf", weights), folder)


def test_the_rotary_rows_are_those_of_llama_cpp(weights: Weights, reference: dict[str, bytes]) -> None:
    """conversion/llama.py, permute: reshape(heads, 2, head_dim / 2, columns).swapaxes(1, 2)."""
    for source, target, heads in (("q_proj", "attn_q", SHAPE.heads), ("k_proj", "attn_k", SHAPE.kv_heads)):
        matrix = weights[f"model.layers.1.self_attn.{source}.weight"]
        expected = matrix.reshape(heads, 2, HEAD_DIM // 2, SHAPE.hidden).swapaxes(1, 2).reshape(matrix.shape)
        assert reference[f"blk.1.{target}.weight"] == expected.tobytes()


def split(weights: Weights) -> tuple[Weights, Weights]:
    names = sorted(weights)
    return {n: weights[n] for n in names[::2]}, {n: weights[n] for n in names[1::2]}


def test_sharded_safetensors(weights: Weights, reference: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    parts = split(weights)
    for name, part in zip(names, parts, strict=True):
        write_safetensors(folder / name, part)
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert tensors_of(finish(folder, **SHAPE.config()), tmp_path) == reference


@pytest.mark.parametrize("save", SAVERS)
def test_pytorch_model_bin_whole_and_sharded(save: Save, weights: Weights, reference: dict[str, bytes], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    save(whole / "pytorch_model.bin", dict(weights))
    assert tensors_of(finish(whole, **SHAPE.config()), tmp_path) == reference
    sharded = tmp_path / "sharded"
    names = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    for name, part in zip(names, split(weights), strict=True):
        save(sharded / name, dict(part))
    weight_map = {tensor: name for name, part in zip(names, split(weights), strict=True) for tensor in part}
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert tensors_of(finish(sharded, **SHAPE.config()), tmp_path) == reference


LIT_CONFIG = {
    "n_layer": SHAPE.layers,
    "n_head": SHAPE.heads,
    "n_query_groups": SHAPE.kv_heads,
    "n_embd": SHAPE.hidden,
    "intermediate_size": SHAPE.ffn,
    "vocab_size": SHAPE.vocabulary,
    "padding_multiple": 64,
    "block_size": SHAPE.context,
    "norm_eps": 1e-5,
    "_norm_class": "FusedRMSNorm",
    "_mlp_class": "LLaMAMLP",
}


def lit_gpt(weights: Weights, *, newer: bool) -> Weights:
    """As TinyLlama's training fuses q, k and v, group by group; or as newer LitGPT does, one after the other."""
    mlp = {"gate": "mlp.fc_1", "up": "mlp.fc_2", "down": "mlp.proj"}
    if not newer:
        mlp = {"gate": "mlp.swiglu.w1", "up": "mlp.swiglu.w2", "down": "mlp.swiglu.w3"}
    lit = {
        "transformer.wte.weight": weights["model.embed_tokens.weight"],
        "lm_head.weight": weights["lm_head.weight"],
        "transformer.ln_f.weight": weights["model.norm.weight"],
    }
    for layer in range(SHAPE.layers):
        old, new = f"model.layers.{layer}.", f"transformer.h.{layer}."
        q, k, v = (weights[f"{old}self_attn.{part}_proj.weight"] for part in "qkv")
        if newer:
            lit[f"{new}attn.qkv.weight"] = np.concatenate([q, k, v])
        else:
            groups = []
            per_group = SHAPE.heads // SHAPE.kv_heads * HEAD_DIM
            for group in range(SHAPE.kv_heads):
                groups.append(q[group * per_group : (group + 1) * per_group])
                groups.append(k[group * HEAD_DIM : (group + 1) * HEAD_DIM])
                groups.append(v[group * HEAD_DIM : (group + 1) * HEAD_DIM])
            lit[f"{new}attn.attn.weight"] = np.concatenate(groups)
        lit[f"{new}attn.proj.weight"] = weights[f"{old}self_attn.o_proj.weight"]
        lit[f"{new}norm_1.weight"] = weights[f"{old}input_layernorm.weight"]
        lit[f"{new}norm_2.weight"] = weights[f"{old}post_attention_layernorm.weight"]
        for part, name in mlp.items():
            lit[f"{new}{name}.weight"] = weights[f"{old}mlp.{part}_proj.weight"]
    return lit


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("newer", [False, True])
def test_lit_gpt(save: Save, newer: bool, weights: Weights, reference: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "lit"
    save(folder / "lit_model.pth", lit_gpt(weights, newer=newer))
    assert tensors_of(finish(folder, file="lit_config.json", **LIT_CONFIG), tmp_path) == reference


@pytest.mark.parametrize("save", SAVERS)
def test_a_lit_gpt_training_checkpoint_with_padding_and_counters(
    save: Save, weights: Weights, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """iter-*-ckpt.pth wraps the state dict and pads the vocabulary to a round number of rows."""
    lit = lit_gpt(weights, newer=False)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        lit[name] = np.concatenate([lit[name], np.full((128, SHAPE.hidden), 9, np.float32)])
    folder = tmp_path / "lit"
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in lit.items()}
    optimizer = {"state": {"exp_avg": np.zeros(4, np.float32)}, "lr": 0.1}
    save(folder / "iter-480000-ckpt.pth", {"model": compiled, "iter_num": 480000, "optimizer": optimizer})
    config = LIT_CONFIG | {"padded_vocab_size": SHAPE.vocabulary + 128}
    assert tensors_of(finish(folder, file="lit_config.json", **config), tmp_path) == reference


def test_lit_gpt_takes_its_sizes_from_yaml_or_from_hugging_face(
    weights: Weights, reference: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "lit"
    save_by_hand(folder / "lit_model.pth", lit_gpt(weights, newer=True))
    finish(folder, **SHAPE.config())
    assert tensors_of(folder, tmp_path) == reference
    (folder / "config.json").unlink()
    (folder / "model_config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in LIT_CONFIG.items()))
    assert tensors_of(folder, tmp_path) == reference


def test_lit_gpt_without_a_configuration_says_what_to_give(weights: Weights, tmp_path: Path) -> None:
    folder = tmp_path / "lit"
    save_by_hand(folder / "lit_model.pth", lit_gpt(weights, newer=False))
    with pytest.raises(CheckpointError, match=r"head counts cannot be read.*`tinyedge quantize --config NAME` \(tiny_LLaMA_1b"):
        open_checkpoint(folder)
    with pytest.raises(TensorMismatchError, match="96 rows where 32 heads in 4 groups of 64 need 2560"):
        open_checkpoint(folder, "tiny_LLaMA_1b")
    with pytest.raises(CheckpointError, match="no configuration named 'tiny_LLaMA_7b'"):
        open_checkpoint(folder, "tiny_LLaMA_7b")


def test_the_code_model_gets_linear_rope_scaling_by_four(weights: Weights, tmp_path: Path) -> None:
    folder = tmp_path / "lit"
    save_by_hand(folder / "lit_model.pth", lit_gpt(weights, newer=False))
    finish(
        folder,
        file="lit_config.json",
        **(LIT_CONFIG | {"condense_ratio": NAMED_CONFIGS["code_tiny_LLaMA_1b"]["condense_ratio"]}),
    )
    with open_checkpoint(folder) as checkpoint:
        metadata = make_plan(checkpoint, find_recipe("F32")).metadata
    assert metadata["llama.rope.scaling.type"].value == "linear"
    assert metadata["llama.rope.scaling.factor"].value == 4.0


def meta(weights: Weights, *, tied: bool) -> Weights:
    """Meta's names, and q and k with the rotary pairs interleaved, as Meta trains them."""
    names = {"o_proj": "attention.wo", "v_proj": "attention.wv", "gate_proj": "feed_forward.w1", "up_proj": "feed_forward.w3"}
    names |= {"down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    state = {"tok_embeddings.weight": weights["model.embed_tokens.weight"], "norm.weight": weights["model.norm.weight"]}
    if not tied:
        state["output.weight"] = weights["lm_head.weight"]
    for name, values in weights.items():
        parts = name.split(".")
        if parts[1] != "layers":
            continue
        kind = parts[-2]
        if kind in ("q_proj", "k_proj"):
            heads = SHAPE.heads if kind == "q_proj" else SHAPE.kv_heads
            order = interleaved_rotary_rows(heads, len(values))
            state[f"layers.{parts[2]}.attention.w{kind[0]}.weight"] = values[order]
        else:
            state[f"layers.{parts[2]}.{names[kind]}.weight"] = values
    return state


@pytest.mark.parametrize("save", SAVERS)
def test_meta(save: Save, weights: Weights, reference: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "meta"
    save(folder / "consolidated.00.pth", {**meta(weights, tied=False), "rope.freqs": np.zeros(4, np.float32)})
    params = {"dim": SHAPE.hidden, "n_layers": SHAPE.layers, "n_heads": SHAPE.heads, "n_kv_heads": SHAPE.kv_heads}
    finish(folder, file="params.json", **params, vocab_size=-1, norm_eps=1e-5)
    assert tensors_of(folder, tmp_path) == reference
    (folder / "consolidated.01.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="model parallel"):
        open_checkpoint(folder)


@pytest.mark.parametrize("save", SAVERS)
def test_llama2c(save: Save, weights: Weights, reference: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "llama2c"
    arguments = {"dim": SHAPE.hidden, "n_layers": SHAPE.layers, "n_heads": SHAPE.heads, "n_kv_heads": SHAPE.kv_heads}
    arguments |= {"vocab_size": SHAPE.vocabulary, "max_seq_len": 256, "multiple_of": 32, "norm_eps": 1e-5}
    state = {f"_orig_mod.{name}": values for name, values in meta(weights, tied=True).items()}
    save(folder / "stories.pt", {"model_args": arguments, "model": state, "iter_num": 7, "best_val_loss": 1.5})
    finish(folder)
    expected = {name: data for name, data in reference.items() if name != "output.weight"}
    assert tensors_of(folder / "stories.pt", tmp_path) == expected
    assert tensors_of(folder, tmp_path) == expected


def test_tied_weights_that_share_a_storage_are_written_once(weights: Weights, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(values.copy()) for name, values in weights.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    folder = tmp_path / "tied"
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    written = tensors_of(finish(folder, **(SHAPE.config() | {"tie_word_embeddings": True})), tmp_path)
    assert "output.weight" not in written


@pytest.mark.torch
def test_views_of_shared_storages_give_the_values_torch_sees(
    weights: Weights, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """Transposed, sliced with a step, row slices of a larger matrix, an offset into a fused storage."""
    torch = pytest.importorskip("torch")
    tensors = {}
    for index, (name, values) in enumerate(weights.items()):
        tensor = torch.from_numpy(values.copy())
        if tensor.dim() == 2 and index % 4 == 0:
            tensor = tensor.t().contiguous().t()
        elif tensor.dim() == 2 and index % 4 == 1:
            wide = torch.zeros(tensor.shape[0], tensor.shape[1] * 3)
            wide[:, 1::3] = tensor
            tensor = wide[:, 1::3]
        elif tensor.dim() == 2 and index % 4 == 2:
            wide = torch.zeros(tensor.shape[0] + 5, tensor.shape[1] + 7)
            wide[3:-2, 7:] = tensor
            tensor = wide[3:-2, 7:]
        else:
            tensor = torch.cat([torch.zeros(11), tensor.flatten()])[11:].view(tensor.shape)
        tensors[name] = torch.nn.Parameter(tensor) if index % 3 == 0 else tensor
    folder = tmp_path / "views"
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert tensors_of(finish(folder, **SHAPE.config()), tmp_path) == reference


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_widens_as_torch_does(dtype: str, weights: Weights, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    halves = {name: torch.from_numpy(values).to(getattr(torch, dtype)) for name, values in weights.items()}
    halves["model.norm.weight"][:4] = torch.tensor([6e-8, -1e-5, 65000.0, -0.0])
    folder = tmp_path / "half"
    folder.mkdir()
    torch.save(halves, folder / "pytorch_model.bin")
    written = tensors_of(finish(folder, **SHAPE.config()), tmp_path)
    assert written["output_norm.weight"] == halves["model.norm.weight"].float().numpy().tobytes()
    assert written["output.weight"] == halves["lm_head.weight"].float().numpy().tobytes()


def test_the_named_configurations_are_tinyllamas() -> None:
    assert replace(SHAPE, layers=22, hidden=2048, ffn=5632, heads=32, kv_heads=4, vocabulary=32000, context=2048) == LlamaShape(
        *(
            NAMED_CONFIGS["tiny_LLaMA_1b"][key]
            for key in ("n_layer", "n_embd", "intermediate_size", "n_head", "n_query_groups")
        ),
        NAMED_CONFIGS["tiny_LLaMA_1b"]["vocab_size"],
        NAMED_CONFIGS["tiny_LLaMA_1b"]["block_size"],
    )
