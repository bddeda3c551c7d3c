"""Whether a GGUF file is a LoRA adapter for a model, before llama.cpp reads it.

The rules are those of llama_adapter_lora_init (llama-adapter.cpp), which checks the same by exceptions and asserts.
"""

from __future__ import annotations

import math

from tinyedge.errors import AdapterError
from tinyedge.gguf_file import GGUFFile

_SUFFIXES = (".lora_a", ".lora_b")
_TYPES = ("F32", "F16", "BF16")
_INVOCATION = "adapter.alora.invocation_tokens"
_EMBEDDING = "token_embd.weight"


def check_adapter(adapter: GGUFFile, model: GGUFFile) -> None:
    """Raises AdapterError, which names the first mismatch, unless `adapter` holds LoRA matrices for tensors of `model`."""
    facts = adapter.metadata
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if facts.get(key) != wanted:
            raise AdapterError(f"{adapter.path} is not a LoRA adapter ({key} is {facts.get(key, 'absent')!s})")
    if _INVOCATION in facts:  # llama.cpp leaves it to us to apply it behind these tokens only
        raise AdapterError(f"{adapter.path} is an activated LoRA, which acts only behind its invocation", "take a plain LoRA")
    theirs, ours = facts.get("general.architecture"), model.metadata.get("general.architecture")
    if theirs != ours:
        raise AdapterError(f"{adapter.path} adapts a {theirs} model, and {model.path.name} is a {ours} model")
    alpha = facts.get("adapter.lora.alpha")
    if not (isinstance(alpha, float) and math.isfinite(alpha)):
        told = "" if alpha is None else f", which is {alpha}"
        raise AdapterError(f"{adapter.path} lacks its scale (adapter.lora.alpha{told})")
    pairs: dict[str, set[str]] = {}
    for tensor in adapter.tensors:
        name, suffix = tensor.name[:-7], tensor.name[-7:]
        if suffix not in _SUFFIXES:
            raise AdapterError(f"{adapter.path} holds {tensor.name!r}, which is no matrix of a LoRA adapter")
        if tensor.type.name not in _TYPES:
            raise AdapterError(f"{adapter.path} stores {tensor.name!r} as {tensor.type}; it must be one of {', '.join(_TYPES)}")
        pairs.setdefault(name, set()).add(suffix)
    if not pairs:
        raise AdapterError(f"{adapter.path} holds no matrices")
    for name, found in pairs.items():
        if found != set(_SUFFIXES):
            raise AdapterError(f"{adapter.path} holds only one of the two matrices of {name!r}")
        _check_shapes(adapter, model, name)


def _check_shapes(adapter: GGUFFile, model: GGUFFile, name: str) -> None:
    weight = model.tensor.get(name)
    if weight is None:
        raise AdapterError(f"{adapter.path} adapts {name!r}, which {model.path.name} does not have")
    a, b = (adapter.tensor[name + suffix].shape for suffix in _SUFFIXES)
    if len(a) != 2 or len(b) != 2 or len(weight.shape) != 2:
        raise AdapterError(f"{adapter.path} holds {name!r} in another number of dimensions than two")
    if name == _EMBEDDING:  # its matrices are stored the other way around (llm_build_inp_embd)
        fits = a[0] == b[0] and (b[1], a[1]) == weight.shape
        if "output.weight" not in model.tensor:  # llama.cpp would multiply with them as if they were not, and abort
            raise AdapterError(f"{adapter.path} adapts the embedding, which {model.path.name} also uses as its output")
    else:
        fits = a[1] == b[0] and (a[0], b[1]) == weight.shape
    if not fits:
        raise AdapterError(f"{adapter.path} has {a} and {b} for {name!r}, whose shape in {model.path.name} is {weight.shape}")
