"""Meta's own checkpoints (consolidated.00.pth + params.json) and llama2.c's, which share their names.

Sources: meta-llama/llama llama/model.py, karpathy/llama2.c model.py and export.py. Rotary pairs are interleaved already.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tinyedge.errors import CheckpointError, TensorMismatchError
from tinyedge_quantize.config import integer, read_json, real
from tinyedge_quantize.layouts.arranged import Arranged, StateDict
from tinyedge_quantize.tensors import SourceTensor

_TOP_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
}
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)")
_BUFFERS = ("rope.freqs", "freqs_cos", "freqs_sin")


def recognises(state: StateDict) -> bool:
    return "tok_embeddings.weight" in state.tensors


def arrange(state: StateDict, folder: Path, _config_name: str | None) -> Arranged:
    from_llama2c = isinstance(state.extras.get("model_args"), dict)
    params = state.extras["model_args"] if from_llama2c else _read_params(folder)
    config = _huggingface_config(params, state, tied=from_llama2c)
    tensors: dict[str, SourceTensor] = {}
    for name, tensor in state.tensors.items():
        layer = _LAYER.fullmatch(name)
        if name in _TOP_NAMES:
            tensors[_TOP_NAMES[name]] = tensor
        elif layer is not None:
            tensors[f"model.layers.{int(layer[1])}.{_LAYER_NAMES.get(layer[2], layer[2])}"] = tensor
        elif name not in _BUFFERS:
            tensors[name] = tensor
    return Arranged("llama2.c" if from_llama2c else "meta", config, tensors, "interleaved")


def _read_params(folder: Path) -> dict[str, Any]:
    if (folder / "consolidated.01.pth").exists():
        raise CheckpointError(
            f"{folder} is split over several consolidated.NN.pth files (model parallel), which are not joined here",
            "use the Hugging Face form of this model, or join the parts with Meta's or transformers' own script",
        )
    return read_json(folder / "params.json")


def _huggingface_config(params: dict[str, Any], state: StateDict, *, tied: bool) -> dict[str, Any]:
    hidden, heads = integer(params, "dim"), integer(params, "n_heads")
    if hidden % heads:
        raise CheckpointError(f"dim {hidden} is not a multiple of n_heads {heads}", "check params.json")
    gate = state.tensors.get("layers.0.feed_forward.w1.weight")
    if gate is None:
        raise TensorMismatchError("tensor layers.0.feed_forward.w1.weight is missing")
    theta = real(params, "rope_theta", 10000.0)
    scaled = params.get("use_scaled_rope") is True
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": integer(params, "n_layers"),
        "hidden_size": hidden,
        "intermediate_size": gate.rows,
        "num_attention_heads": heads,
        "num_key_value_heads": integer(params, "n_kv_heads", heads),
        "head_dim": hidden // heads,
        "rms_norm_eps": real(params, "norm_eps", 1e-5),
        "rope_theta": theta,
        "vocab_size": _vocabulary(params, state),
        "tie_word_embeddings": tied,
    }
    config["max_position_embeddings"] = integer(params, "max_seq_len", _context(theta, config["rms_norm_eps"], scaled))
    if scaled:
        # Meta's llama-models, models/llama3/reference_impl/model.py, apply_scaling.
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": real(params, "rope_scaling_factor", 8.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return config


def _vocabulary(params: dict[str, Any], state: StateDict) -> int:
    """params.json of Llama 2 says -1: the tokenizer decides, so the embedding does."""
    return state.tensors["tok_embeddings.weight"].rows if params.get("vocab_size", -1) == -1 else integer(params, "vocab_size")


def _context(theta: float, eps: float, scaled: bool) -> int:
    """params.json does not name the trained context; it follows from what distinguishes the generations.

    Llama 3.1 and later 131072 (scaled RoPE), Llama 3 8192 (theta 500000), Code Llama 16384 (theta 1e6), Llama 2 4096 (eps
    1e-5), Llama 1 2048. The same marks llama.cpp's first converter used.
    """
    if scaled:
        return 131072
    by_theta = {500000.0: 8192, 1000000.0: 16384}
    return by_theta.get(theta, 4096 if eps == 1e-5 else 2048)
