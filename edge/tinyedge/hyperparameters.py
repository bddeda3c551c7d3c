"""Typed access to the hyperparameters of a GGUF header."""

from __future__ import annotations

from tinyedge.errors import GGUFError
from tinyedge.gguf_file import GGUFFile
from tinyedge.gguf_values import GGUFArray

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS, llama-hparams.h
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MAX_WIDTH = 1 << 24  # no model is wider; keeps products of two far from overflow


class Hyperparameters:
    """Typed access to a header's hyperparameters; a wrong type raises, as llama.cpp would."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf
        value = gguf.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise self.error("does not name its model architecture (general.architecture)")
        self.architecture = value

    def error(self, problem: str) -> GGUFError:
        return GGUFError(f"{self.gguf.path} {problem}")

    def number(self, name: str, default: float | None = None, *, kind: str = "u32") -> float:
        """The scalar under `ARCHITECTURE.name`; without a default it must be there."""
        key = f"{self.architecture}.{name}"
        value = self.gguf.metadata.get(key, default)
        if value is None:
            raise self.error(f"lacks {key}")
        if key in self.gguf.value_types and self.gguf.value_types[key] != kind:
            raise self.error(f"has {key} of type {self.gguf.value_types[key]}; it must be {kind}")
        assert isinstance(value, int | float)
        return value

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """The u32 under `ARCHITECTURE.name`, which must lie between `low` and `high`."""
        value = int(self.number(name, default))
        if not low <= value <= high:
            raise self.error(f"has {self.architecture}.{name} {value}; {low} to {high} are possible")
        return value

    def per_layer(self, name: str, layers: int, default: int | None = None) -> tuple[int, ...]:
        """The value of each layer, from one u32 for all or an array with one element for each."""
        key = f"{self.architecture}.{name}"
        value = self.gguf.metadata.get(key)
        if not isinstance(value, GGUFArray):
            return (self.integer(name, 0, MAX_WIDTH, default),) * layers
        if value.element_type not in ("u32", "i32") or len(value) != layers:
            raise self.error(f"has {len(value)} {value.element_type} values in {key}; {layers} u32 were expected")
        if not all(0 <= number <= MAX_WIDTH for number in value.values):
            raise self.error(f"has an impossible number in {key}")
        return value.values
