"""The source that a GGUF file is compared with: a checkpoint, or the GGUF file it was quantized from."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyedge.gguf_file import GGUFFile, GGUFTensor
from tinyedge.gguf_values import GGUFArray
from tinyedge.llama_check import MATRIX_TYPES
from tinyedge_quantize.checkpoint import Checkpoint
from tinyedge_quantize.convert import Wishes, open_source
from tinyedge_quantize.gguf_source import entry_of
from tinyedge_quantize.metadata import MetadataEntry
from tinyedge_quantize.plan import make_plan
from tinyedge_quantize.provenance import SOURCE_FILES, SOURCE_HASHES
from tinyedge_quantize.recipes import find_recipe
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import SourceTensor, WeightFile

_SHOWN_PROBLEMS = 3


@dataclass(frozen=True)
class Reference:
    """What a file should hold: each tensor's source by GGUF name, and the metadata.

    `folder` is where the tokenizer of a checkpoint lies, None for a GGUF file; `files` are those the weights are read from.
    """

    path: Path
    folder: Path | None
    tensors: Mapping[str, SourceTensor]
    metadata: Mapping[str, MetadataEntry]
    files: tuple[WeightFile, ...]


@contextmanager
def open_reference(path: Path, wishes: Wishes | None = None) -> Iterator[Reference]:
    """The checkpoint or GGUF file at `path`, open for reading its weights, as a conversion with these wishes would see it.

    Raises what opening it and planning its conversion raise.
    """
    wishes = wishes or Wishes()
    controls = replace(wishes.controls, allow_requantize=True)
    with open_source(path, wishes) as source:
        plan = make_plan(source, find_recipe("F32"), wishes.pre_tokenizer, controls)
        tensors = {tensor.name: tensor.source for tensor in plan.tensors}
        folder = source.folder if isinstance(source, Checkpoint) else None
        yield Reference(path, folder, tensors, plan.metadata, source.files)


def tensor_problems(gguf: GGUFFile, reference: Reference) -> list[str]:
    """A sentence for each tensor that is missing, unknown to the source, or of another shape."""
    problems = [f"it lacks the tensor {show(name)}" for name in reference.tensors if name not in gguf.tensor]
    for tensor in gguf.tensors:
        source = reference.tensors.get(tensor.name)
        if source is None:
            problems.append(f"its tensor {show(tensor.name)} is not in the source")
        elif tensor.shape != source.shape[::-1]:
            problems.append(f"its tensor {show(tensor.name)} has shape {tensor.shape}; {source.shape[::-1]} was expected")
        elif not comparable(tensor, source):
            problems.append(f"its tensor {show(tensor.name)} is stored as {tensor.type}, in blocks that are no rows")
    return problems


def comparable(tensor: GGUFTensor, source: SourceTensor) -> bool:
    """Whether the tensor's values can be set against those of the source, row by row."""
    return tensor.shape == source.shape[::-1] and source.columns % tensor.type.block_elements == 0


def copied(gguf: GGUFFile, reference: Reference) -> frozenset[str]:
    """The tensors that must have the source's bytes: both sides are GGUF files and store them in the same type."""
    if reference.folder is not None:
        return frozenset()
    pairs = ((tensor, reference.tensors.get(tensor.name)) for tensor in gguf.tensors)
    return frozenset(
        tensor.name
        for tensor, source in pairs
        if source is not None and source.dtype == tensor.type.name in MATRIX_TYPES and comparable(tensor, source)
    )


def metadata_problems(gguf: GGUFFile, reference: Reference) -> list[str]:
    """A sentence for each key of the architecture or the tokenizer that is missing, unexpected, or has another value."""
    wanted, found = _wanted(reference), _found(gguf, reference)
    keys = dict.fromkeys([*wanted, *found])
    return [
        f"{show(key)} is {_shown(found.get(key), wanted.get(key))} where {_shown(wanted.get(key), found.get(key))} was expected"
        for key in keys
        if found.get(key) != wanted.get(key)
    ]


def compared_keys(reference: Reference) -> int:
    """How many keys `metadata_problems` compares."""
    return len(_wanted(reference))


def recorded_hashes(gguf: GGUFFile, reference: Reference) -> list[str] | None:
    """The SHA-256 that the file says the source's files had, in the order of `files`; None when it speaks of other files."""
    names, hashes = gguf.metadata.get(SOURCE_FILES), gguf.metadata.get(SOURCE_HASHES)
    files = [file.path.name for file in reference.files]
    for value in (names, hashes):
        if not isinstance(value, GGUFArray) or value.element_type != "str" or len(value) != len(files):
            return None
    return list(hashes) if list(names) == files else None  # type: ignore[arg-type]


def together(problems: list[str]) -> str:
    """The first of the problems in one sentence, and how many more there are."""
    rest = len(problems) - _SHOWN_PROBLEMS
    return "; ".join(problems[:_SHOWN_PROBLEMS]) + (f"; and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class _Value:
    """A value of the metadata in a form that compares; `items` is empty for an array that was not decoded."""

    type: str
    item_type: str | None
    count: int
    items: tuple[Any, ...]


def _makes_the_model(key: str, architecture: object) -> bool:
    """Whether a key belongs to what makes the model run as it does, and not to its description."""
    return key.startswith((f"{architecture}.", "tokenizer.")) or key == "general.architecture"


def _wanted(reference: Reference) -> dict[str, _Value]:
    metadata = reference.metadata
    name = metadata["general.architecture"].value if "general.architecture" in metadata else ""
    architecture = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return {key: _value(entry) for key, entry in metadata.items() if _makes_the_model(key, architecture)}


def _found(gguf: GGUFFile, reference: Reference) -> dict[str, _Value]:
    """What the file holds. An array of a length of its own, which may be any, is not decoded."""
    architecture = gguf.metadata.get("general.architecture")
    found = {}
    for key, value in gguf.metadata.items():
        if not _makes_the_model(key, architecture):
            continue
        if isinstance(value, GGUFArray):
            other = reference.metadata.get(key)
            if other is None or other.type != "array" or len(other.value) != len(value):
                found[key] = _Value("array", value.element_type, len(value), ())
                continue
        found[key] = _value(entry_of(value, gguf.value_types[key]))
    return found


def _value(entry: MetadataEntry) -> _Value:
    """The value as a file holds it: text as bytes, 32-bit floats rounded to such."""
    items = tuple(entry.value) if entry.type == "array" else (entry.value,)
    kind = entry.item_type or entry.type
    if kind == "float32":
        items = struct.unpack(f"<{len(items)}f", struct.pack(f"<{len(items)}f", *items))
    elif kind == "string":
        items = tuple(item if isinstance(item, bytes) else item.encode("utf-8", "replace") for item in items)
    return _Value(entry.type, entry.item_type, len(items), items)


def _shown(value: _Value | None, other: _Value | None) -> str:
    """A value in short; of an array the first element that differs from the other's."""
    if value is None:
        return "absent"
    place = 0
    if value.type == "array":
        if other is None or other.type != "array" or len(value.items) != len(other.items) or not value.items:
            return f"an array of {value.count}"
        place = next((place for place, pair in enumerate(zip(value.items, other.items, strict=True)) if pair[0] != pair[1]), 0)
    item = value.items[place]
    text = show(item.decode("utf-8", "replace") if isinstance(item, bytes) else item)
    return f"{text} (element {place})" if value.type == "array" else text
