"""What a wheel made by `tinyedge wheel` says about itself: `tinyedge_build.json` beside the llama_cpp package's code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyedge.errors import WheelError

FILE_NAME = "tinyedge_build.json"
_FORMAT = 1
_MOST_BYTES = 1 << 16  # a real one has less than one kilobyte


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFacts:
    """How the installed wheel was built. `cpu` is the compiler's word for the oldest CPU it runs on; `layout` is "variants"
    (kernels for several CPUs, named in `variants`, chosen when loaded) or "single"; `boards` are those it was made for.
    """

    llama_cpp_python: str
    triple: str
    glibc: str
    cpu: str
    layout: str
    variants: tuple[str, ...]
    compiler: str
    flags: tuple[str, ...]
    boards: tuple[str, ...]


def read_wheel_facts(package: Path) -> WheelFacts | None:
    """The facts of the package in this folder; None when it was not made by `tinyedge wheel`.

    Raises WheelError when the file is there but damaged or of a format of the future.
    """
    path = package / FILE_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WheelError(f"{path} cannot be read ({error.strerror})") from error
    try:
        found = json.loads(data) if len(data) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WheelError(f"{path} is damaged")
    if found.get("format") != _FORMAT:
        raise WheelError(f"{path} has a format that this tinyedge does not know", "upgrade tinyedge-llm")
    try:
        return WheelFacts(
            **{name: _text(found[name]) for name in ("llama_cpp_python", "triple", "glibc", "cpu", "layout", "compiler")},
            **{name: _texts(found[name]) for name in ("variants", "flags", "boards")},
        )
    except (KeyError, TypeError) as error:
        raise WheelError(f"{path} is damaged") from error


def _text(value: Any) -> Any:
    """`value` when it is a text. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _texts(value: Any) -> Any:
    """The texts of a list. Raises TypeError."""
    if not isinstance(value, list):
        raise TypeError(value)
    return tuple(map(_text, value))
