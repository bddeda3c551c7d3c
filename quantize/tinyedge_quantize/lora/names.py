"""What PEFT calls the tensors of an adapter, and which tensor of the base each belongs to.

Source: PEFT, utils/save_and_load.py (`get_peft_model_state_dict`), which removes the adapter's own name from the keys; a state
dict that a trainer saved by itself still has it, as in `lora_A.default.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import AdapterError
from tinyedge_quantize.strangers import show

_PREFIX = "base_model.model."
_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
# What stands before the layers and differs between a model with a head, without one, within a vision model, and as wrapped
# for training.
_OUTER = frozenset(
    {"base_model", "model", "language_model", "transformer", "gpt_neox", "text_model", "module", "_orig_mod"}
    | {"_fsdp_wrapped_module", "_forward_module"}
)


@dataclass(frozen=True)
class Part:
    """One tensor of an adapter: `part` of the pair for `module`, or, where `part` is None, what replaces tensor `module`.

    `is_base` says that it is the base's own weight or bias, saved beside a pair because the tokenizer might have changed.
    """

    module: str
    part: str | None
    is_base: bool = False


def part_of(name: str, trains_biases: bool = False) -> Part | None:
    """What the tensor `name` of an adapter file is; None for the frozen copy of a module that the adapter replaces.

    `trains_biases` says that the base's biases were trained with the pairs; their names are then those of a copy.
    """
    bare = name.removeprefix(_PREFIX)
    steps = bare.split(".")
    for place, step in enumerate(steps):
        if step in _PARTS:
            part = f"{step}.bias" if steps[-1] == "bias" else step
            return Part(".".join(each for each in steps[:place] if each != "base_layer"), part)
    if "original_module" in steps:
        return None
    if "modules_to_save" in steps:
        place = steps.index("modules_to_save")
        # The adapter's name may follow; the parameter's own name is the last step.
        return Part(".".join([*steps[:place], steps[-1]]), None)
    is_base = "base_layer" in steps and (steps[-1] == "weight" or (steps[-1] == "bias" and not trains_biases))
    return Part(".".join(step for step in steps if step != "base_layer"), None, is_base)


class BaseNames:
    """Finds the tensors of a base by the names an adapter has for them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._inner: dict[str, str | None] = {}
        for name in self._names:
            inner = _inner(name)
            self._inner[inner] = None if inner in self._inner else name

    def find(self, name: str) -> str | None:
        """The base's name for the tensor `name`, whatever wraps its layers; None when it has none."""
        return name if name in self._names else self._inner.get(_inner(name))


def _inner(name: str) -> str:
    steps = name.split(".")
    while len(steps) > 1 and steps[0] in _OUTER:
        del steps[0]
    return ".".join(steps)


def require_known(parts: Mapping[str, object], file: Path, module: str) -> None:
    """Raises AdapterError unless a pair's parts are those of one LoRA module."""
    linear, embedding = {"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}
    pair = set(parts) - {"lora_magnitude_vector", "lora_B.bias"}
    if pair not in (linear, embedding):
        raise AdapterError(
            f"{file} holds {', '.join(sorted(parts))} for module {show(module)}, where LoRA has one A and one B",
            "save the adapter again with PEFT's save_pretrained",
        )
