"""Adapter folders as PEFT saves them, made without PEFT, and what the runtime computes with an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from packed_checkpoints import write_safetensors

from tinyedge.adapter_check import check_adapter
from tinyedge.gguf_file import read_gguf
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Adapter, Model

Matrices = dict[str, npt.NDArray[np.float32]]

PREFIX = "base_model.model."
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}


def pair(module: str, outputs: int, inputs: int, rank: int = 4, seed: int = 0, size: float = 0.1) -> Matrices:
    """A and B of a linear layer, values with the standard deviation `size`."""
    generator = np.random.default_rng([seed, *module.encode()])
    shapes = {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}
    return {
        f"{PREFIX}{module}.{part}.weight": (size * generator.standard_normal(shape)).astype(np.float32)
        for part, shape in shapes.items()
    }


def write_adapter_folder(folder: Path, matrices: Mapping[str, npt.NDArray[np.float32]], **config: Any) -> Path:
    """A folder with these tensors in F32 and CONFIG with changes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", {name: ("F32", value) for name, value in matrices.items()})
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def log_probabilities(model_path: Path, tokens: list[int], adapter_path: Path | None = None) -> Any:
    """float64 (tokens, vocabulary) of the model, with the adapter applied at run time if there is one."""
    settings = ContextSettings(context=256, threads=2, kv_type="F32", flash="off", outputs=len(tokens))
    with Model(model_path) as model, Context(model, settings) as context, ExitStack() as opened:
        if adapter_path is not None:
            check_adapter(read_gguf(adapter_path), read_gguf(model_path))
            context.set_adapters([(opened.enter_context(Adapter(model, adapter_path)), 1.0)])
        context.decode_rows(tokens)
        logits = np.array([np.ctypeslib.as_array(context.logits(row)) for row in range(len(tokens))], np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
