"""Lit-GPT as TinyLlama's training writes it, and newer LitGPT: q, k and v fused into one matrix.

Sources: jzhang38/TinyLlama lit_gpt/config.py and scripts/convert_lit_checkpoint.py; Lightning-AI/litgpt litgpt/model.py. The
head counts cannot be read off the fused matrix, so a configuration is needed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from tinyedge.errors import CheckpointError, TensorMismatchError, UnsupportedArchitectureError
from tinyedge_quantize.config import integer, read_config, read_json, real
from tinyedge_quantize.layouts.arranged import Arranged, StateDict
from tinyedge_quantize.plain_yaml import MAX_YAML_BYTES, load_plain_yaml
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import SourceTensor

_TINY_LLAMA_1B: dict[str, Any] = {
    "n_layer": 22,
    "n_head": 32,
    "n_query_groups": 4,
    "n_embd": 2048,
    "intermediate_size": 5632,
    "block_size": 2048,
    "norm_eps": 1e-5,
    "vocab_size": 32000,
}
# jzhang38/TinyLlama, lit_gpt/config.py.
NAMED_CONFIGS: dict[str, dict[str, Any]] = {
    "tiny_LLaMA_1b": _TINY_LLAMA_1B,
    "tiny_LLaMA_120M": _TINY_LLAMA_1B
    | {"n_layer": 12, "n_head": 12, "n_query_groups": 1, "n_embd": 768, "intermediate_size": 2048},
    "code_tiny_LLaMA_1b": _TINY_LLAMA_1B | {"block_size": 8192, "condense_ratio": 4},
}

_TOP_NAMES = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "lm_head.weight": "lm_head.weight",
    "transformer.ln_f.weight": "model.norm.weight",
}
_LAYER_NAMES = {
    "norm_1.weight": "input_layernorm.weight",
    "norm_2.weight": "post_attention_layernorm.weight",
    "attn.proj.weight": "self_attn.o_proj.weight",
    "mlp.swiglu.w1.weight": "mlp.gate_proj.weight",
    "mlp.swiglu.w2.weight": "mlp.up_proj.weight",
    "mlp.swiglu.w3.weight": "mlp.down_proj.weight",
    "mlp.fc_1.weight": "mlp.gate_proj.weight",
    "mlp.fc_2.weight": "mlp.up_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
}
_NUMBER = re.compile(r"\d+(\.\d*)?[eE][-+]?\d{1,3}")
_LAYER = re.compile(r"transformer\.h\.(\d{1,4})\.(.+)")


def recognises(state: StateDict) -> bool:
    # GPT-2 in Hugging Face's names has transformer.wte and transformer.h too, but calls its norms ln_1 and ln_2.
    blocks = [name for name in state.tensors if name.startswith("transformer.h.")]
    return "transformer.wte.weight" in state.tensors and bool(blocks) and not any(".ln_1." in name for name in blocks)


def arrange(state: StateDict, folder: Path, config_name: str | None) -> Arranged:
    config = _huggingface_config(_find_config(folder, config_name))
    tensors: dict[str, SourceTensor] = {}
    for name, tensor in state.tensors.items():
        if name in _TOP_NAMES:
            tensors[_TOP_NAMES[name]] = _without_padding(tensor, config)
            continue
        layer = _LAYER.fullmatch(name)
        if layer is None:
            tensors[name] = tensor
            continue
        prefix, rest = f"model.layers.{int(layer[1])}.", layer[2]
        if rest in ("attn.attn.weight", "attn.qkv.weight"):
            for part, rows in _fused_rows(tensor, config, interleaved=rest == "attn.attn.weight").items():
                tensors[f"{prefix}self_attn.{part}_proj.weight"] = tensor.select_rows(rows)
        else:
            tensors[prefix + _LAYER_NAMES.get(rest, rest)] = tensor
    return Arranged("lit-gpt", config, tensors, "half")


def _without_padding(tensor: SourceTensor, config: dict[str, Any]) -> SourceTensor:
    """Drops the rows that only pad the vocabulary to a round number."""
    if len(tensor.shape) == 2 and config["vocab_size"] < tensor.rows == config["padded_vocab_size"]:
        return tensor.select_rows(np.arange(config["vocab_size"]))
    return tensor


def _fused_rows(tensor: SourceTensor, config: dict[str, Any], *, interleaved: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Row numbers of q, k and v in the fused matrix of (heads + 2 groups) * head_dim rows.

    Interleaved: for each group its query heads, then its key, then its value; otherwise all q, all k, all v.
    """
    heads, groups, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    expected = (heads + 2 * groups) * head_dim
    if tensor.rows != expected:
        raise TensorMismatchError(
            f"the fused attention matrix has {tensor.rows} rows where {heads} heads in {groups} groups of {head_dim} "
            f"need {expected}",
            "check --config or the configuration file beside the checkpoint",
        )
    rows = np.arange(expected)
    if not interleaved:
        ends = (heads * head_dim, (heads + groups) * head_dim)
        q, k, v = np.split(rows, ends)
    else:
        by_group = rows.reshape(groups, heads // groups + 2, head_dim)
        q, k, v = by_group[:, :-2], by_group[:, -2], by_group[:, -1]
    return {"q": q.ravel(), "k": k.ravel(), "v": v.ravel()}


def _find_config(folder: Path, config_name: str | None) -> dict[str, Any]:
    if config_name is not None:
        if config_name not in NAMED_CONFIGS:
            raise CheckpointError(
                f"there is no configuration named {show(config_name)}", f"use one of {', '.join(NAMED_CONFIGS)}"
            )
        return NAMED_CONFIGS[config_name]
    if (folder / "lit_config.json").is_file():
        return read_json(folder / "lit_config.json")
    if (folder / "model_config.yaml").is_file():
        return _read_yaml(folder / "model_config.yaml")
    if (folder / "config.json").is_file():
        return _from_huggingface(read_json(folder / "config.json"))
    raise CheckpointError(
        f"{folder} has no lit_config.json, model_config.yaml or config.json, and the head counts cannot be read off "
        "the weights",
        f"name it with `tinyedge quantize --config NAME` ({', '.join(NAMED_CONFIGS)}) or put one of those files there",
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = load_plain_yaml(read_config(path, MAX_YAML_BYTES))
    except ValueError as error:
        raise CheckpointError(f"{path} is not a plain YAML file ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where a table is expected")
    # YAML 1.1 reads 1e-05 as text, since it lacks a point.
    return {key: float(item) if isinstance(item, str) and _NUMBER.fullmatch(item) else item for key, item in value.items()}


def _from_huggingface(config: dict[str, Any]) -> dict[str, Any]:
    """A Hugging Face config.json in Lit-GPT's spelling."""
    heads = integer(config, "num_attention_heads")
    return {
        "n_layer": config.get("num_hidden_layers"),
        "n_head": heads,
        "n_query_groups": config.get("num_key_value_heads", heads),
        "n_embd": config.get("hidden_size"),
        "intermediate_size": config.get("intermediate_size"),
        "block_size": config.get("max_position_embeddings", 2048),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_base": config.get("rope_theta", 10000),
        "vocab_size": config.get("vocab_size"),
    }


def _huggingface_config(lit: dict[str, Any]) -> dict[str, Any]:
    _require_llama(lit)
    hidden, heads = integer(lit, "n_embd"), integer(lit, "n_head")
    groups = integer(lit, "n_query_groups", heads)
    if heads % groups or hidden % heads:
        raise CheckpointError(
            f"the configuration has {heads} heads in {groups} query groups and {hidden} channels, which do not divide",
            "check the configuration file beside the checkpoint",
        )
    padded = lit.get("padded_vocab_size")
    vocabulary = integer(lit, "vocab_size", padded if isinstance(padded, int) else None)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": integer(lit, "n_layer"),
        "hidden_size": hidden,
        "intermediate_size": integer(lit, "intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": integer(lit, "head_size", hidden // heads),
        "max_position_embeddings": integer(lit, "block_size", 2048),
        "rms_norm_eps": real(lit, "norm_eps", 1e-5),
        "rope_theta": real(lit, "rope_base", 10000.0),
        "vocab_size": vocabulary,
        "padded_vocab_size": integer(lit, "padded_vocab_size", _padded(lit, vocabulary)),
    }
    condense = integer(lit, "condense_ratio", integer(lit, "rope_condense_ratio", 1))
    if condense > 1:
        config["rope_scaling"] = {"rope_type": "linear", "factor": float(condense)}
    return config


def _padded(lit: dict[str, Any], vocabulary: int) -> int:
    """The rows of the embedding: Lit-GPT rounds the vocabulary up to a multiple of `padding_multiple` (512 unless said)."""
    multiple = integer(lit, "padding_multiple", 512)
    return -(-vocabulary // multiple) * multiple


def _require_llama(lit: dict[str, Any]) -> None:
    """Lit-GPT also trains Pythia and Falcon; only the Llama form is arranged here."""
    wanted = {
        "parallel_residual": (False,),
        "bias": (False,),
        "rotary_percentage": (1.0,),
        "_norm_class": ("RMSNorm", "FusedRMSNorm"),
        "norm_class_name": ("RMSNorm",),
        "_mlp_class": ("LLaMAMLP",),
        "mlp_class_name": ("LLaMAMLP",),
    }
    for key, allowed in wanted.items():
        if not any(lit.get(key, allowed[0]) == value for value in allowed):
            raise UnsupportedArchitectureError(
                f"the Lit-GPT configuration has {key} = {show(lit[key])}, which is not a Llama",
                "only Llama-shaped Lit-GPT checkpoints can be converted",
            )
