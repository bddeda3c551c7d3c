"""Numbers from a configuration file, checked: configurations come from strangers as the weights do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyedge.errors import CheckpointError
from tinyedge_quantize.strangers import read_limited, show

MAX_CONFIG_BYTES = 64 * 1024 * 1024
# The largest value GGUF's uint32 metadata can hold.
_MAX_INTEGER = 2**32 - 1


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CheckpointError when it is missing, too large, or not an object."""
    data = read_config(path, MAX_CONFIG_BYTES)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__} where a JSON object is expected")
    return value


def read_config(path: Path, limit: int) -> bytes:
    """The bytes of a configuration file; raises CheckpointError when it is missing, unreadable or larger than `limit`."""
    try:
        data = read_limited(path, limit)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", "copy it from where the checkpoint came from") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if data is None:
        raise CheckpointError(f"{path} has more than {limit} bytes, too many for a configuration")
    return data


def integer(config: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1) -> int:
    """config[key] as an integer from `least` to 2**32 - 1; a missing or null one is `default`."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= _MAX_INTEGER:
        found = "is missing" if value is None else f"is {show(value)}"
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
        found = "is missing" if value is None else f"is {show(value)}"
        raise CheckpointError(
            f"{key} in the model configuration {found} where a number is expected",
            "copy the configuration again from where the checkpoint came from",
        )
    return float(value)
