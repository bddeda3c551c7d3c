"""The model families that can be converted: one row or small file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyedge.errors import CheckpointError, UnsupportedArchitectureError
from tinyedge_quantize.architectures.gemma import GEMMA, GEMMA2, GEMMA3
from tinyedge_quantize.architectures.gpt2 import GPT2
from tinyedge_quantize.architectures.gpt_neox import GPT_NEOX
from tinyedge_quantize.architectures.granite import GRANITE
from tinyedge_quantize.architectures.llama import LLAMA, MISTRAL
from tinyedge_quantize.architectures.mpt import MPT
from tinyedge_quantize.architectures.olmo import OLMO2, OLMO3
from tinyedge_quantize.architectures.phi2 import PHI2
from tinyedge_quantize.architectures.phi3 import PHI3
from tinyedge_quantize.architectures.qwen import QWEN2, QWEN3
from tinyedge_quantize.architectures.smollm3 import SMOLLM3
from tinyedge_quantize.architectures.stablelm import STABLELM
from tinyedge_quantize.architectures.table import Architecture, Sizes, TensorRule
from tinyedge_quantize.strangers import show

__all__ = ["ARCHITECTURES", "Architecture", "Sizes", "TensorRule", "architecture_of"]

ARCHITECTURES = (
    LLAMA,
    MISTRAL,
    SMOLLM3,
    QWEN2,
    QWEN3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    OLMO2,
    OLMO3,
    GRANITE,
    GPT2,
    GPT_NEOX,
    MPT,
    PHI2,
    PHI3,
    STABLELM,
)

# Classes people bring that cannot be converted, and why.
_NO_OPT = ("the model is an OPT, which llama.cpp does not have", "take a model of another family, such as Pythia or SmolLM")
_EXPERTS = ("the model is a mixture of experts", "only dense models can be converted")
_IMPOSSIBLE = {
    "OPTForCausalLM": _NO_OPT,
    "OPTModel": _NO_OPT,
    "opt": _NO_OPT,
    "MixtralForCausalLM": _EXPERTS,
    "mixtral": _EXPERTS,
}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The row that a Hugging Face configuration belongs to; raises UnsupportedArchitectureError naming those there are.

    `architectures` decides; where it is missing, `model_type` does.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    model_type = config.get("model_type")
    if name is None and model_type is None:
        raise CheckpointError(
            "config.json names neither `architectures` nor `model_type`", "copy the config.json that belongs to this checkpoint"
        )
    for row in ARCHITECTURES:
        if row.describes(config):
            return row
    found = name or model_type
    why = _IMPOSSIBLE.get(found) if isinstance(found, str) else None
    if why is not None:
        raise UnsupportedArchitectureError(*why)
    supported = ", ".join(sorted(name for row in ARCHITECTURES for name in row.classes))
    raise UnsupportedArchitectureError(f"the model is a {show(found)}", f"supported are {supported}")
