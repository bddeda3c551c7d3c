"""Controls as the words that ask for them, for a file's record of how it was made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.metadata import MetadataEntry

_LONGEST = 200


def recipe_words(controls: Controls) -> list[str]:
    """One `--option value` each, quoted for a shell; files of tensor types and of metadata by what they say, not by name.

    A description is `--metadata KEY=VALUE` under the key it is written to, its value cut where it is long: the file has all of
    it there. The importance matrix is named by its file's name alone.
    """
    return [f"{option} {shlex.quote(value)}" if value else option for option, value in _words(controls)]


def _words(controls: Controls) -> Iterator[tuple[str, str]]:
    if controls.imatrix is not None:
        yield "--imatrix", controls.imatrix.path.name.encode("utf-8", "replace").decode()
    for wish in controls.tensor_types:
        yield "--tensor-type", f"{wish.pattern}={wish.type}"
    if controls.output_tensor_type:
        yield "--output-tensor-type", controls.output_tensor_type
    if controls.token_embedding_type:
        yield "--token-embedding-type", controls.token_embedding_type
    if controls.pure:
        yield "--pure", ""
    if controls.leave_output:
        yield "--leave-output", ""
    if controls.prune_layers:
        yield "--prune-layers", ",".join(map(str, controls.prune_layers))
    for key, entry in controls.overrides.items():
        yield "--override-kv", f"{key}={override_kind(entry)}:{_text(entry)}"
    for key, entry in controls.metadata.items():
        yield "--metadata", f"{key}={_shown(entry)}"
    if controls.allow_requantize:
        yield "--allow-requantize", ""


def override_kind(entry: MetadataEntry) -> str:
    """The entry's type as --override-kv calls it: int, float, bool or str; `array` for what it cannot set."""
    return {"string": "str"}.get(entry.type, entry.type.strip("u0123456789"))


def _shown(entry: MetadataEntry) -> str:
    """The value in one short line; texts of several lines as JSON."""
    text = _text(entry)
    line = text if text.isprintable() else json.dumps(text)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def _text(entry: MetadataEntry) -> str:
    """Texts and numbers as --override-kv takes them, lists as JSON."""
    return entry.value if isinstance(entry.value, str) else json.dumps(entry.value, ensure_ascii=False)
