"""The files of a sweep: what they will be, how large, where they can be, and the one that all others are compared with."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import DiskSpaceError, OutputError, RequantizeError, TinyEdgeError
from tinyedge.gguf_file import is_gguf
from tinyedge_bench.result_files import Missing
from tinyedge_quantize.convert import Wishes, plan_conversion
from tinyedge_quantize.plan import QuantPlan, Source
from tinyedge_quantize.recipes import find_recipe

BASE_TYPES = ("F16", "BF16", "F32")
_EXACT = {"F16": "F16", "BF16": "BF16"}  # a dtype of weights and the type that holds it unchanged; F32 holds all others
_SPARE_BYTES = 64 << 20  # left free on the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """A file that can be made: its type, and its size before a weight is read."""

    type: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The model that the others are compared with: a file that is there, or a type to be made. `why` is one sentence."""

    path: Path | None
    type: str
    bytes: int
    why: str


def plan_files(source: Source, types: Sequence[str], wishes: Wishes) -> tuple[list[PlannedFile], list[Missing]]:
    """The files of these types, each once, and those that cannot be made of this model, with the reason."""
    files: dict[str, PlannedFile] = {}
    missing: list[Missing] = []
    for name in types:
        try:
            recipe = find_recipe(name)
            if recipe.name not in files:
                files[recipe.name] = PlannedFile(type=recipe.name, bytes=plan_conversion(source, recipe, wishes).total_bytes)
        except TinyEdgeError as error:
            if isinstance(error, RequantizeError):
                error.remedy = "sweep the checkpoint, or its F16 file"
            missing.append(Missing(what=name.upper()[:40], reason=str(error)))
    return list(files.values()), missing


def choose_base(checkpoint: Path, source: Source, wish: str | None, wishes: Wishes) -> Base:
    """The base that `wish` names (a type or a file), by default the unquantized model without a change of any weight.

    That is a GGUF file itself, and of a checkpoint the type of its weights. Raises OutputError for a wish that is neither.
    """
    if wish is not None and wish.upper() not in BASE_TYPES:
        path = Path(wish)
        if not path.is_file():
            raise OutputError(f"the base {wish} is not a file", f"give a GGUF file, or one of {', '.join(BASE_TYPES)}")
        return Base(path=path, type=path.name, bytes=0, why=f"the base is {path.name}, as asked")
    if wish is None and is_gguf(checkpoint):
        return Base(path=checkpoint, type=checkpoint.name, bytes=0, why=f"the base is {checkpoint.name} itself")
    plan = plan_conversion(source, find_recipe(wish or "F16"), wishes)
    if wish is not None:
        return Base(path=None, type=wish.upper(), bytes=plan.total_bytes, why=f"the base is {wish.upper()}, as asked")
    kind = exact_type(plan)
    size = plan_conversion(source, find_recipe(kind), wishes).total_bytes
    return Base(path=None, type=kind, bytes=size, why=f"the base is {kind}, which holds the checkpoint's weights unchanged")


def exact_type(plan: QuantPlan) -> str:
    """The smallest of F16, BF16 and F32 that holds the matrices of the plan's source unchanged; of packed ones, F32."""
    kinds = {_EXACT.get(tensor.source.dtype, "F32") for tensor in plan.tensors if len(tensor.shape) > 1}
    return kinds.pop() if len(kinds) == 1 else "F32"


@contextmanager
def folder_for(keep: Path | None, files: Sequence[int], base: int) -> Iterator[tuple[Path, bool]]:
    """A folder for files of these sizes beside a base, and whether all of them have room in it at once.

    `keep` as it is, made when it is not there; else a new one that vanishes in the end: under TMPDIR, here, or the system's
    folder for such, the first where all have room, else the first where one at a time has. Raises DiskSpaceError.
    """
    all_at_once, one_by_one = base + sum(files), base + max(files, default=0)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        _require_room(keep, all_at_once)
        yield keep, True
        return
    places = list(dict.fromkeys([*filter(None, [os.environ.get("TMPDIR")]), os.curdir, tempfile.gettempdir()]))
    usable = [place for place in places if os.access(place, os.W_OK | os.X_OK)]
    chosen = next((place for need in (all_at_once, one_by_one) for place in usable if _free(place) >= need), None)
    if chosen is None:
        _require_room(Path(usable[0] if usable else os.curdir), one_by_one)
        raise OutputError("there is no folder where files can be made for a while", "name one with --keep-files DIR")
    with tempfile.TemporaryDirectory(prefix=".tinyedge-sweep-", dir=chosen) as folder:
        yield Path(folder), _free(chosen) >= all_at_once


def _free(folder: str | Path) -> int:
    return shutil.disk_usage(folder).free - _SPARE_BYTES


def _require_room(folder: Path, needed: int) -> None:
    free = _free(folder)
    if free < needed:
        raise DiskSpaceError(
            f"the sweep needs {needed:,} bytes and {folder} has {max(0, free):,} to spare",
            "name a folder on another disk with TMPDIR or --keep-files, or give fewer or smaller --types",
        )
