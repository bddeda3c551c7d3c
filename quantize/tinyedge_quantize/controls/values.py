"""What a person may change about a quantization beside its type: llama-quantize's options, as values.

Source of their meaning: llama.cpp, tools/quantize/quantize.cpp and src/llama-quant.cpp. The texts of the command line become
these values in options.py. What chooses types is applied in recipes/, what changes metadata in metadata.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinyedge.errors import TinyEdgeError
from tinyedge_quantize.metadata import MetadataEntry

if TYPE_CHECKING:
    from tinyedge_quantize.imatrix.importance import Imatrix

_LAYER = re.compile(r"blk\.([0-9]{1,9})\.")


class ControlError(TinyEdgeError):
    """An option of a quantization that cannot be used: malformed, or not for this model."""

    exit_code = 2
    default_remedy = "`tinyedge quantize --help` shows its form"


@dataclass(frozen=True)
class TensorType:
    """The ggml type of the tensors in whose GGUF name `pattern` is found, a regular expression in lower case."""

    pattern: str
    type: str

    def matches(self, name: str) -> bool:
        return _compiled(self.pattern).search(name) is not None


@dataclass(frozen=True)
class Controls:
    """Everything that may be asked for; each field's default asks for nothing.

    `tensor_types` holds for the tensors whose name matches, the first that matches counting; `pure` gives all others the
    recipe's default type; `output_tensor_type` and `token_embedding_type` come before both. `leave_output` leaves
    output.weight as it is, `prune_layers` are the numbers of the layers to drop, in ascending order. `metadata` replaces what
    describes the model, `overrides` any key. With `allow_requantize` tensors that are quantized already are quantized again.
    """

    tensor_types: tuple[TensorType, ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    leave_output: bool = False
    prune_layers: tuple[int, ...] = ()
    overrides: Mapping[str, MetadataEntry] = field(default_factory=dict)
    metadata: Mapping[str, MetadataEntry] = field(default_factory=dict)
    imatrix: Imatrix | None = None
    allow_requantize: bool = False


def pruned(names: Iterable[str], controls: Controls) -> dict[str, str]:
    """Each tensor that stays once the layers to drop are gone, with its name then: the layers left are counted anew.

    Raises ControlError for a layer the model does not have, and when none would be left.
    """
    given = list(names)
    layers = sorted({number for name in given if (number := _layer(name)) is not None})
    if not controls.prune_layers:
        return {name: name for name in given}
    unknown = [number for number in controls.prune_layers if number not in layers]
    if unknown:
        last = f"its layers are 0 to {layers[-1]}" if layers else "it has none"
        raise ControlError(f"the model has no layer {unknown[0]} to prune: {last}", "give layers it has with --prune-layers")
    left = [number for number in layers if number not in controls.prune_layers]
    if not left:
        raise ControlError("--prune-layers would drop every layer", "leave at least one")
    renumbered = {number: str(index) for index, number in enumerate(left)}
    kept = {}
    for name in given:
        number = _layer(name)
        if number is None:
            kept[name] = name
        elif number in renumbered:
            kept[name] = _LAYER.sub(f"blk.{renumbered[number]}.", name, count=1)
    return kept


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)
