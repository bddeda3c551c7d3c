"""Plans in several files, for file systems and hubs that limit the size of one.

Source: llama.cpp, tools/gguf-split/gguf-split.cpp: all metadata is in the first file, the limit counts tensor data only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tinyedge.errors import TinyEdgeError
from tinyedge.gguf_split import COUNT_KEY, MAX_PARTS, NUMBER_KEY, TENSORS_KEY, split_path
from tinyedge_quantize.gguf_header import padded
from tinyedge_quantize.metadata import MetadataEntry
from tinyedge_quantize.plan import PlannedFile, QuantPlan, TensorPlan, planned_file

_UNITS = {"M": 10**6, "G": 10**9}


class SplitError(TinyEdgeError):
    """A maximum size that cannot be used."""

    exit_code = 2
    default_remedy = "give a size such as 500M or 2G"


def parse_size(text: str) -> int:
    """The bytes in 500M or 2G, units of a thousand as llama-gguf-split counts them; raises SplitError."""
    found = re.fullmatch(r"([1-9]\d{0,5})([MG])", text.strip().upper(), re.ASCII)
    if found is None:
        raise SplitError(f"{text[:40]} is not a maximum size of files, a number with M or G behind it")
    return int(found[1]) * _UNITS[found[2]]


def split_plan(plan: QuantPlan, max_bytes: int | None) -> tuple[PlannedFile, ...]:
    """The files of a plan, each with at most `max_bytes` of tensor data; the whole in one where that is None or enough.

    A tensor that is larger by itself gets a file of its own.
    """
    groups = _groups(plan.tensors, max_bytes) if max_bytes is not None else []
    if len(groups) < 2:
        return (plan.whole,)
    if len(groups) > MAX_PARTS:
        raise SplitError(f"that would make {len(groups)} files", "give a larger --split-max-size")
    return tuple(_part(plan, number, len(groups), group) for number, group in enumerate(groups))


def oversized(files: Sequence[PlannedFile], max_bytes: int | None) -> list[str]:
    """A sentence for each file whose one tensor alone is larger than asked for."""
    sizes = [(file, sum(padded(tensor.bytes) for tensor in file.tensors)) for file in files]
    return [
        f"part {number} has {size:,} bytes of tensors: {file.tensors[0].name} cannot be divided"
        for number, (file, size) in enumerate(sizes, 1)
        if max_bytes is not None and len(files) > 1 and size > max_bytes
    ]


def split_paths(path: Path, count: int) -> list[Path]:
    """Where the files of a plan go: `path` itself, or NAME-00001-of-0000N.gguf for each of several."""
    return [path] if count == 1 else [split_path(path, number, count) for number in range(count)]


def _groups(tensors: tuple[TensorPlan, ...], max_bytes: int) -> list[list[TensorPlan]]:
    groups: list[list[TensorPlan]] = [[]]
    size = 0
    for tensor in tensors:
        size += padded(tensor.bytes)
        if size > max_bytes and groups[-1]:
            groups.append([])
            size = padded(tensor.bytes)
        groups[-1].append(tensor)
    return groups


def _part(plan: QuantPlan, number: int, count: int, tensors: list[TensorPlan]) -> PlannedFile:
    keys = {
        NUMBER_KEY: MetadataEntry("uint16", number),
        TENSORS_KEY: MetadataEntry("int32", len(plan.tensors)),
        COUNT_KEY: MetadataEntry("uint16", count),
    }
    return planned_file({**plan.metadata, **keys} if number == 0 else keys, tuple(tensors))
