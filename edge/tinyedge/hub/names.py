"""What a person may call a model of the hub, and which file of a repository a name means.

tinyllama  qwen2.5-0.5b:Q8_0  ORG/NAME  ORG/NAME:Q5_K_M  ORG/NAME:FILE.gguf  https://huggingface.co/ORG/NAME/...
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import unquote

from tinyedge.errors import HubError

DEFAULT_TYPE = "Q4_K_M"
# Where a repository has no Q4_K_M and no type was asked for: first what is nearest in size and quality, then smaller than
# 8 bits, then the rest. Q4 alone is what some publishers write.
PREFERENCE = (
    *(DEFAULT_TYPE, "Q4_K_S", "Q4_0", "Q4", "IQ4_NL", "IQ4_XS", "Q4_K_L", "Q4_K_XL", "Q4_1", "UD-Q4_K_XL", "MXFP4"),
    *("Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "Q2_K"),
    *("BF16", "F16", "F32"),
)

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://", re.IGNORECASE)
_TYPE = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))(?=$|[-._])", re.IGNORECASE
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
_SPELLINGS = {"FP16": "F16", "FP32": "F32"}
_NOT_MODELS = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix)(?:$|[-._])", re.IGNORECASE)
_MAX_NAME = 200
_SHOWN_NAMES = 12

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A row of known_models.toml; `parameters` in billions."""

    name: str
    repo: str
    parameters: float
    licence: str
    type: str = DEFAULT_TYPE
    file: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name taken apart. `file` and `type` are None where the name leaves them to us; `known` is its row in the table."""

    repo: str
    file: str | None = None
    type: str | None = None
    known: KnownModel | None = None

    @property
    def default_type(self) -> str:
        return self.known.type if self.known else DEFAULT_TYPE


@cache
def known_models() -> tuple[KnownModel, ...]:
    """The table of short names."""
    toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    rows: dict[str, dict[str, Any]] = toml.loads((files("tinyedge.hub") / "known_models.toml").read_text(encoding="utf-8"))
    return tuple(KnownModel(name=name, **row | {"aliases": tuple(row.get("aliases", ()))}) for name, row in rows.items())


def parse_name(text: str) -> ModelName | None:
    """The model that `text` names, None when it has neither the form of a repository nor is a short name."""
    if len(text) > _MAX_NAME:
        return None
    bare, colon, wanted = _without_address(text).partition(":")
    if colon and not wanted:
        return None
    file, kind = (wanted, None) if wanted.lower().endswith(".gguf") else (None, spelled(wanted) if wanted else None)
    known = _by_name().get(bare.lower())
    if known is not None:
        return ModelName(known.repo, file or (None if kind else known.file), kind, known)
    parts = bare.split("/")
    if len(parts) > 2 and not wanted and parts[-1].lower().endswith(".gguf"):
        bare, file = "/".join(parts[:2]), "/".join(parts[2:])
    if not _REPO.fullmatch(bare) or ".." in bare or "--" in bare or bare.lower().endswith((".gguf", ".git")):
        return None
    row = next((row for row in known_models() if row.repo.lower() == bare.lower()), None)
    return ModelName(bare if row is None else row.repo, file, kind, row)


def spelled(kind: str) -> str:
    """The usual spelling of a quantization type's name."""
    return _SPELLINGS.get(kind.upper(), kind.upper())


def close_names(text: str) -> list[str]:
    """Short names that look much like `text`, the best first."""
    return difflib.get_close_matches(text.lower()[:60], list(_by_name()), n=3, cutoff=0.7)


def nearest_names(text: str) -> list[str]:
    """Short names that look somewhat like `text`, the best first; all of them when none does."""
    return difflib.get_close_matches(text.lower()[:60], list(_by_name()), n=3, cutoff=0.5) or [
        row.name for row in known_models()
    ]


def type_in_name(file: str) -> str | None:
    """The quantization type that a file's name ends with or names last, None when it names none."""
    stem = _SPLIT.sub("", file.rsplit("/", 1)[-1].removesuffix(".gguf").removesuffix(".GGUF"))
    found = _TYPE.findall(stem)
    return spelled(found[-1]) if found else None


def is_safe_file(name: str) -> bool:
    """Whether a file name from the hub stays inside the folder it is put in, on every system, and is fit for a terminal."""
    parts = name.split("/")
    return (
        0 < len(name) <= 512
        and name.isprintable()
        and not any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
        and not set('\\:*?"<>|') & set(name)
    )


def choose_file(name: ModelName, there: Sequence[_Item], file_of: Callable[[_Item], str]) -> _Item:
    """The one of `there` that `name` means; `file_of` gives its file name.

    Raises HubError that lists what there is when there is no such file, only one in pieces, or more than one.
    """
    models = [item for item in there if is_model_file(file_of(item))]
    if name.file is not None:
        return _named(name, models, file_of)
    whole = [item for item in models if not _SPLIT.search(_stem(file_of(item)))]
    if not models:
        raise HubError(
            f"{name.repo} has no GGUF file",
            "look for a repository of that name with GGUF at its end, or quantize it yourself: tinyedge quantize",
        )
    kinds = list(dict.fromkeys(kind for item in whole if (kind := type_in_name(file_of(item)))))
    wanted = (name.type,) if name.type else tuple(dict.fromkeys((name.default_type, *PREFERENCE)))
    for kind in wanted:
        found = [item for item in whole if type_in_name(file_of(item)) == kind]
        if found:
            return _only(name, found, file_of, f"{name.repo} has {len(found)} files of type {kind}")
    if name.type is None and len(whole) == 1:
        return whole[0]
    split = len(models) - len(whole)
    if split and (name.type is None or any(type_in_name(file_of(item)) == name.type for item in models)):
        raise HubError(
            f"{_kind(name)}{name.repo} is split into several files, which tinyedge does not read", _others(kinds, whole)
        )
    if name.type is not None:
        raise HubError(f"{name.repo} has no file of type {name.type}", _others(kinds, whole))
    raise HubError(f"{name.repo} has {len(whole)} GGUF files whose names give no type that we know", _list(whole, file_of))


def is_model_file(file: str) -> bool:
    """Whether `file` is a GGUF file with a language model in it, by its name."""
    return file.lower().endswith(".gguf") and is_safe_file(file) and not _NOT_MODELS.search(file)


@cache
def _by_name() -> Mapping[str, KnownModel]:
    return {name: row for row in known_models() for name in (row.name, *row.aliases)}


def _without_address(text: str) -> str:
    """ORG/NAME or ORG/NAME/FILE of an address of the hub; other text as it is."""
    match = _ADDRESS.match(text)
    if match is None:
        return text
    parts = unquote(text[match.end() :].partition("?")[0].partition("#")[0]).rstrip("/").split("/")
    if len(parts) >= 4 and parts[2] in ("resolve", "blob", "tree", "raw"):
        parts = parts[:2] + parts[4:]
    return "/".join(parts)


def _named(name: ModelName, models: Sequence[_Item], file_of: Callable[[_Item], str]) -> _Item:
    """The file called `name.file`, in whatever case and folder, unless that is ambiguous."""
    wanted = str(name.file)
    found = [item for item in models if file_of(item) == wanted] or [
        item for item in models if f"/{file_of(item)}".lower().endswith(f"/{wanted}".lower())
    ]
    if not found:
        near = difflib.get_close_matches(wanted, [file_of(item) for item in models], n=3, cutoff=0.4)
        shown = "take " + " or ".join(near) if near else _list(models, file_of)
        raise HubError(f"{name.repo} has no file {wanted}", shown)
    item = _only(name, found, file_of, f"{name.repo} has {len(found)} files called {wanted}")
    if _SPLIT.search(_stem(file_of(item))):
        whole = [other for other in models if not _SPLIT.search(_stem(file_of(other)))]
        kinds = [kind for other in whole if (kind := type_in_name(file_of(other)))]
        raise HubError(f"{file_of(item)} is a piece of a split model, which tinyedge does not read", _others(kinds, whole))
    return item


def _only(name: ModelName, found: Sequence[_Item], file_of: Callable[[_Item], str], problem: str) -> _Item:
    if len(found) > 1:
        raise HubError(problem, f"name one: {name.repo}:FILE with {_list(found, file_of)}")
    return found[0]


def _kind(name: ModelName) -> str:
    return f"{name.type} of " if name.type else ""


def _others(kinds: Sequence[str], whole: Sequence[Any]) -> str:
    if not whole:
        return "choose another repository of this model, or a smaller model"
    shown = ", ".join(dict.fromkeys(kinds)) or "no type in their names"
    return f"there are whole files of {shown}; name one behind a colon"


def _list(items: Sequence[_Item], file_of: Callable[[_Item], str]) -> str:
    shown = ", ".join(file_of(item) for item in items[:_SHOWN_NAMES])
    return f"there are {shown}" + (f" and {len(items) - _SHOWN_NAMES} more" if len(items) > _SHOWN_NAMES else "")


def _stem(file: str) -> str:
    return file[:-5]
