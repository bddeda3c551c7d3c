"""Hugging Face transformers: config.json beside the weights, names that start with `model.`."""

from __future__ import annotations

from pathlib import Path

from tinyedge_quantize.config import read_json
from tinyedge_quantize.layouts.arranged import Arranged, StateDict

# Buffers older transformers saved with the weights; the runtime computes them.
_BUFFERS = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")


def recognises(state: StateDict) -> bool:
    return any(name.endswith("embed_tokens.weight") for name in state.tensors)


def arrange(state: StateDict, folder: Path, _config_name: str | None) -> Arranged:
    config = read_json(folder / "config.json")
    bare = "embed_tokens.weight" in state.tensors
    tensors = {
        (f"model.{name}" if bare and name != "lm_head.weight" else name): tensor
        for name, tensor in state.tensors.items()
        if not name.endswith(_BUFFERS)
    }
    return Arranged("huggingface", config, tensors, "half")
