"""How the projects that write checkpoints name and arrange their tensors, each brought to Hugging Face's names.

The facts are each project's own: transformers (huggingface), TinyLlama's lit_gpt and LitGPT (lit_gpt), Meta's llama and
llama2.c (meta). A layout tells from the tensor names whether a checkpoint is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinyedge_quantize.layouts import huggingface, lit_gpt, meta
from tinyedge_quantize.layouts.arranged import Arranged, StateDict


@dataclass(frozen=True)
class Layout:
    """One project's way: `recognises` its tensor names, `arrange` gives them Hugging Face's; `files` are those it writes.

    `arrange` takes the state dict, the folder its configuration lies in, and a configuration name from the user or None.
    """

    project: str
    files: str
    recognises: Callable[[StateDict], bool]
    arrange: Callable[[StateDict, Path, str | None], Arranged]
    takes_config_name: bool = False


LAYOUTS = (
    Layout(
        "Lit-GPT, as TinyLlama's training writes it, and newer LitGPT",
        "`lit_model.pth`, `iter-*-ckpt.pth`; `lit_config.json`, `model_config.yaml`, `config.json` or `--config tiny_LLaMA_1b`",
        lit_gpt.recognises,
        lit_gpt.arrange,
        takes_config_name=True,
    ),
    Layout("Meta, llama2.c", "`consolidated.00.pth` and `params.json`; `*.pt`", meta.recognises, meta.arrange),
    Layout(
        "Hugging Face",
        "`model.safetensors`, `pytorch_model.bin`, either in shards with an index; `config.json`",
        huggingface.recognises,
        huggingface.arrange,
    ),
)
