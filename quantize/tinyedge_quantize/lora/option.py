"""The option `--lora DIR[:SCALE]`: which adapter is meant, and how much of it."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from tinyedge.errors import AdapterError
from tinyedge_quantize.strangers import show

MAX_SCALE = 1000.0
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_REMEDY = "give a folder with adapter_config.json and the adapter's weights, or DIR:SCALE"


def parse_adapter_option(value: str) -> tuple[Path, float]:
    """The path and scale in `DIR` or `DIR:SCALE`, the scale 1 by default; raises AdapterError for what is neither."""
    if not value:
        raise AdapterError("the adapter's name is empty", _REMEDY)
    path, scale = Path(value), 1.0
    name, colon, tail = value.rpartition(":")
    if colon and name and _mode(path) is None and _mode(Path(name)) is not None:
        path, scale = Path(name), _scale(name, tail)
    require_adapter(path)
    return path, scale


def require_adapter(path: Path) -> None:
    """Raises AdapterError unless a folder or a regular file is there."""
    mode = _mode(path)
    if mode is None:
        raise AdapterError(f"there is no adapter {path}", _REMEDY)
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise AdapterError(f"{path} is neither a folder nor a file", _REMEDY)


def _mode(path: Path) -> int | None:
    """The kind of what is at `path`, as `stat` has it; None when nothing is or can be there."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None


def _scale(name: str, text: str) -> float:
    scale = float(text) if _NUMBER.fullmatch(text) else None
    if scale is None or not abs(scale) <= MAX_SCALE:
        raise AdapterError(f"the scale of {name} is {show(text)}", f"give a number within {MAX_SCALE:g} of zero, as in DIR:0.5")
    return scale
