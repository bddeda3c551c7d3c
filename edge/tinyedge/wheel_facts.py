"""What a wheel made by `tinyedge wheel` says about itself: `tinyedge_build.json` beside the llama_cpp package's code."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyedge.errors import WheelError

FILE_NAME = "tinyedge_build.json"
MOST_BYTES = 1 << 16  # a real one has less than one kilobyte
_FORMAT = 1
_MOST = 200  # entries of a list

_WORD = re.compile(r"[\w.+-]{0,64}", re.ASCII)
_LINE = re.compile(r"[ -~]{0,500}")
_TEXTS = {
    "llama_cpp_python": _WORD,
    "triple": _WORD,
    "glibc": re.compile(r"(?:\d{1,3}\.\d{1,3})?", re.ASCII),
    "cpu": _WORD,
    "layout": re.compile("variants|single"),
    "compiler": _LINE,
}
_LISTS = {"variants": _WORD, "flags": _LINE, "boards": _WORD}


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFacts:
    """How a wheel was built. `cpu` is the compiler's word for the oldest CPU it runs on; `layout` is "variants" (kernels for
    several CPUs, named in `variants`, chosen when loaded) or "single"; `glibc` is the version it asks for at most, "" for a
    native build; `boards` are those it was made for.
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

    def to_json(self) -> bytes:
        """The content of the file."""
        return (json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n").encode()


def read_wheel_facts(package: Path) -> WheelFacts | None:
    """The facts of the package in this folder; None when it was not made by `tinyedge wheel`.

    Raises WheelError when the file is there but damaged or of a format of the future.
    """
    path = package / FILE_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WheelError(f"{path} cannot be read ({error.strerror})") from error
    return parse_wheel_facts(data, str(path))


def parse_wheel_facts(data: bytes, name: str) -> WheelFacts:
    """The facts in the content of a file called `name`. Raises WheelError as `read_wheel_facts` does."""
    try:
        value = json.loads(data.decode("utf-8")) if len(data) <= MOST_BYTES else None
    except (ValueError, RecursionError) as error:
        raise WheelError(f"{name} is not JSON") from error
    if not isinstance(value, dict):
        raise WheelError(f"{name} is damaged")
    if value.get("format") != _FORMAT or isinstance(value.get("format"), bool):
        raise WheelError(f"{name} has a format that this tinyedge does not know", "upgrade tinyedge")
    facts: dict[str, Any] = {}
    for key, pattern in _TEXTS.items():
        facts[key] = value.get(key)
        if not _matches(facts[key], pattern):
            raise WheelError(f"{name} has no usable {key!r}")
    for key, pattern in _LISTS.items():
        entries = value.get(key)
        if not isinstance(entries, list) or len(entries) > _MOST or not all(_matches(each, pattern) for each in entries):
            raise WheelError(f"{name} has no usable {key!r}")
        facts[key] = tuple(entries)
    return WheelFacts(**facts)


def _matches(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
