"""Models in several GGUF files: their names, and one header made of all of theirs.

Source: llama.cpp, tools/gguf-split and src/llama.cpp (llama_split_path). The first file has the metadata and, often, tensors;
every file says which of how many it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from tinyedge.errors import GGUFError
from tinyedge.gguf_file import GGUFFile, read_gguf

NUMBER_KEY, COUNT_KEY, TENSORS_KEY = "split.no", "split.count", "split.tensors.count"
# More parts than any model has; the number in the names has five digits.
MAX_PARTS = 10_000

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def split_path(path: Path, number: int, count: int) -> Path:
    """The path of part `number`, counted from 0, of `count`: NAME-00001-of-00003.gguf for NAME.gguf."""
    return path.with_name(f"{path.name.removesuffix('.gguf')}-{number + 1:05d}-of-{count:05d}.gguf")


def part_count(gguf: GGUFFile) -> int:
    """Of how many files this one is a part: 1 for a model in one file."""
    count = gguf.metadata.get(COUNT_KEY, 0)
    return count if isinstance(count, int) and count > 1 else 1


def read_parts(path: Path) -> list[GGUFFile]:
    """The headers of all parts of the model whose first part, or only file, is `path`, in order.

    Raises GGUFError when it is not the first part or a part is missing or belongs elsewhere.
    """
    first = read_gguf(path)
    count = part_count(first)
    if count == 1:
        return [first]
    named = _NAME.fullmatch(path.name)
    if named is None or int(named[3]) != count or count > MAX_PARTS:
        raise GGUFError(
            f"{path} says that it is one of {count} parts, which its name does not",
            "give the parts the names they came with, NAME-00001-of-00003.gguf",
        )
    if first.metadata.get(NUMBER_KEY) != 0 or int(named[2]) != 1:
        beginning = split_path(path.with_name(named[1] + ".gguf"), 0, count)
        raise GGUFError(f"{path} is not the first of {count} parts", f"give {beginning}")
    parts = [first, *(_read_part(path.with_name(named[1] + ".gguf"), number, count) for number in range(1, count))]
    names = [tensor.name for part in parts for tensor in part.tensors]
    if len(set(names)) != len(names):
        raise GGUFError(f"the parts of {path} hold a tensor twice", "download the parts again")
    said = first.metadata.get(TENSORS_KEY)
    if said is not None and said != len(names):
        raise GGUFError(f"the parts of {path} hold {len(names)} tensors where {said} belong", "download the parts again")
    return parts


def _read_part(path: Path, number: int, count: int) -> GGUFFile:
    part_path = split_path(path, number, count)
    if not part_path.is_file():
        raise GGUFError(f"part {number + 1} of {count}, {part_path}, is missing", "put all parts into one folder")
    part = read_gguf(part_path)
    if part.metadata.get(NUMBER_KEY) != number or part_count(part) != count:
        raise GGUFError(f"{part_path} is not part {number + 1} of {count} as its name says", "download the parts again")
    return part


def read_model(path: Path) -> GGUFFile:
    """One header for the whole model: the first part's metadata without the split keys, the tensors and bytes of all parts.

    Offsets of tensors are those in their own files.
    """
    return as_one(read_parts(path))


def as_one(parts: Sequence[GGUFFile]) -> GGUFFile:
    """The headers of all parts as one; see `read_model`."""
    if len(parts) == 1:
        return parts[0]
    kept = {key: value for key, value in parts[0].metadata.items() if not key.startswith("split.")}
    return replace(
        parts[0],
        metadata=MappingProxyType(kept),
        tensors=tuple(tensor for part in parts for tensor in part.tensors),
        file_bytes=sum(part.file_bytes for part in parts),
    )
