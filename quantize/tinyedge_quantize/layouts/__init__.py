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
    """One project's way: `recognises` its tensor names, `arrange` gives them Hugging Face's.

    `arrange` takes the state dict, the folder its configuration lies in, and a configuration name from the user or None.
    """

    recognises: Callable[[StateDict], bool]
    arrange: Callable[[StateDict, Path, str | None], Arranged]
    takes_config_name: bool = False


LAYOUTS = (
    Layout(lit_gpt.recognises, lit_gpt.arrange, takes_config_name=True),
    Layout(meta.recognises, meta.arrange),
    Layout(huggingface.recognises, huggingface.arrange),
)
