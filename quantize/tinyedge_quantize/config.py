"""Numbers from a configuration file, checked: configurations come from strangers as the weights do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyedge.errors import CheckpointError

MAX_CONFIG_BYTES = 64 * 1024 * 1024
# The largest value GGUF's uint32 metadata can hold.
_MAX_INTEGER = 2**32 - 1


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CheckpointError when it is missing, too large, or not an object."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_CONFIG_BYTES} bytes, too many for a configuration")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", "copy it from where the checkpoint came from") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where a JSON object is expected")
    return value


def integer(config: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1) -> int:
    """config[key] as an integer from `least` to 2**32 - 1; a missing or null one is `default`."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= _MAX_INTEGER:
        found = "is missing" if value is None else f"is {_short(value)}"
        raise CheckpointError(
            f"{key} in the model configuration {found} where a whole number from {least} is expected",
            "copy the configuration again from where the checkpoint came from",
        )
    return value


def real(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """config[key] as a finite number; a missing or null one is `default`."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e30 or not math.isfinite(value):
        found = "is missing" if value is None else f"is {_short(value)}"
        raise CheckpointError(
            f"{key} in the model configuration {found} where a number is expected",
            "copy the configuration again from where the checkpoint came from",
        )
    return float(value)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    return text if len(text) <= 60 else text[:59] + "…"
