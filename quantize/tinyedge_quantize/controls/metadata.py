"""What a person asks of a file's metadata: descriptions from `--metadata FILE`, `--override-kv`, and what pruning changes.

Sources: gguf-py/gguf/metadata.py (`Metadata.load`, `set_gguf_meta_model`: what convert_hf_to_gguf.py --metadata reads and where
it writes it; general.license it takes from the model card alone) and llama.cpp, src/llama-quant.cpp and
tools/quantize/quantize.cpp (the rest).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge.errors import CheckpointError
from tinyedge_quantize.controls.nearest import did_you_mean, nearest
from tinyedge_quantize.controls.values import ControlError, Controls
from tinyedge_quantize.controls.words import override_kind
from tinyedge_quantize.metadata import MetadataEntry, float32, int32, string, strings, uint32
from tinyedge_quantize.strangers import read_limited, show

if TYPE_CHECKING:
    from tinyedge_quantize.imatrix.importance import Imatrix

_MAX_BYTES = 8 * 1024 * 1024

_SAMPLING: Mapping[str, Callable[[Any, str], MetadataEntry]] = {
    "sequence": string,
    "top_k": int32,
    "top_p": float32,
    "min_p": float32,
    "xtc_probability": float32,
    "xtc_threshold": float32,
    "temp": float32,
    "penalty_last_n": int32,
    "penalty_repeat": float32,
    "mirostat": int32,
    "mirostat_tau": float32,
    "mirostat_eta": float32,
}
_TEXTS = (
    *("name", "author", "version", "organization", "finetune", "basename", "description", "quantized_by", "size_label"),
    *("license", "license.name", "license.link", "url", "doi", "uuid", "repo_url"),
    *("source.url", "source.doi", "source.uuid", "source.repo_url"),
)
# A list of objects under the key on the left: its length under the middle one, each item's texts under the right.
_LISTS = {
    "general.base_models": ("general.base_model.count", "general.base_model.{}.{}"),
    "general.datasets": ("general.dataset.count", "general.dataset.{}.{}"),
}
_LIST_TEXTS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")

_VALUES: Mapping[str, Callable[[Any, str], MetadataEntry]] = {
    **{f"general.sampling.{name}": make for name, make in _SAMPLING.items()},
    **{f"general.{name}": string for name in _TEXTS},
    "general.tags": strings,
    "general.languages": strings,
}

_FILE_KEYS = frozenset({"general.architecture", "general.alignment"})
_FIRST = ("general.architecture", "general.type")
_ORDER = (
    *(f"general.sampling.{name}" for name in _SAMPLING),
    *(f"general.{name}" for name in _TEXTS),
    "general.base_model.",
    "general.dataset.",
    "general.tags",
    "general.languages",
)


def final_metadata(
    metadata: Mapping[str, MetadataEntry], controls: Controls, *, architecture: str, layers: int
) -> dict[str, MetadataEntry]:
    """The metadata with what was asked for: descriptions replaced, keys overridden, the importance matrix named, pruned layers
    no longer counted.

    `layers` is the number of layers before pruning. What is set here is at the end, as llama-quantize writes it. Raises
    ControlError for keys whose meaning is the file's own, for values of another kind than the key's, and when layers are pruned
    that the metadata describes one by one.
    """
    entries = _described(metadata, controls.metadata)
    added = dict(controls.overrides)
    for key, entry in added.items():
        _check_override(key, entry, entries.get(key))
    if controls.imatrix is not None:
        added |= _about_imatrix(controls.imatrix)
    if controls.prune_layers:
        for key, entry in entries.items():
            if entry.type == "array" and key.startswith(f"{architecture}.") and len(entry.value) == layers:
                raise ControlError(
                    f"layers of this model cannot be pruned: {key} has a value for each of the {layers}",
                    "leave out --prune-layers",
                )
        added.pop(f"{architecture}.block_count", None)
        added[f"{architecture}.block_count"] = uint32(layers - len(controls.prune_layers))
    return {key: entry for key, entry in entries.items() if key not in added} | added


def _check_override(key: str, entry: MetadataEntry, present: MetadataEntry | None) -> None:
    if key in _FILE_KEYS or key.startswith("split."):
        raise ControlError(f"--override-kv: {key} says how the file is built and cannot be overridden", "leave it out")
    if present is None or present.type == "array":
        return
    kind, needed = override_kind(entry), override_kind(present)
    if kind != needed:
        raise ControlError(
            f"--override-kv: {show(key)} is of type {needed} in this model and not {kind}", "give a value of that type"
        )


def _about_imatrix(imatrix: Imatrix) -> dict[str, MetadataEntry]:
    """What llama-quantize writes about the importance matrix: its file, first data set, entries and chunks."""
    entries: dict[str, Any] = {"quantize.imatrix.file": string(_shortened(str(imatrix.path)))}
    if imatrix.datasets:
        entries["quantize.imatrix.dataset"] = string(_shortened(imatrix.datasets[0]))
    entries["quantize.imatrix.entries_count"] = uint32(len(imatrix.entries))
    if imatrix.chunks > 0:
        entries["quantize.imatrix.chunks_count"] = uint32(imatrix.chunks)
    return entries


def _shortened(text: str) -> str:
    """At most 127 bytes of it, as many as llama-quantize keeps, and no half character."""
    return text.encode("utf-8", "replace")[:127].decode("utf-8", "ignore")


def read_description(path: Path) -> dict[str, MetadataEntry]:
    """The entries the file asks for, in the order in which the converter writes them.

    Raises ControlError, one sentence, for a file that is no such object and for keys and values that cannot be written.
    """
    try:
        data = read_limited(path, _MAX_BYTES)
        found = json.loads(data.decode("utf-8")) if data is not None else None
    except OSError as error:
        raise ControlError(f"--metadata {path} cannot be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError):
        raise ControlError(f"--metadata {path} is not JSON", "correct the file") from None
    if not isinstance(found, dict):
        raise ControlError(f"--metadata {path} is not a JSON object", 'write for example {"general.author": "A. Name"}')
    unknown = [key for key in found if key not in _VALUES and key not in _LISTS]
    if unknown:
        raise ControlError(
            f"--metadata has the key {show(unknown[0])}, which describes no model",
            _remedy_for_key(unknown[0]),
        )
    entries: dict[str, MetadataEntry] = {}
    try:
        for key, make in _VALUES.items():
            if key in found:
                value = found[key]
                if make is strings and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                    raise CheckpointError(f"{key} is {show(value)} where a list of texts is needed")
                entries[key] = make(value, key)
        for key in _LISTS:
            if key in found:
                entries |= _listed(key, found[key])
    except CheckpointError as error:
        raise ControlError(f"--metadata: {error.problem}", "correct the file") from None
    return entries


def _remedy_for_key(unknown: str) -> str:
    """The keys it may have been meant for, compared without the `general.` that all have."""
    wanted = unknown.lower().removeprefix("general.")
    names = [key.removeprefix("general.") for key in (*_VALUES, *_LISTS)]
    near = nearest(wanted, names) or [name for name in names if name.endswith(f".{wanted}")]
    return did_you_mean([f"general.{name}" for name in near]) if near else "set it with --override-kv KEY=KIND:VALUE"


def _described(metadata: Mapping[str, MetadataEntry], replaced: Mapping[str, MetadataEntry]) -> dict[str, MetadataEntry]:
    """The metadata with some descriptions replaced, each where the converter writes it: after what is before every other."""
    if not replaced:
        return dict(metadata)
    lists = [key for key in _ORDER if key.endswith(".") and any(each.startswith(key) for each in replaced)]
    kept = {key: entry for key, entry in metadata.items() if not any(key.startswith(each) for each in lists)}
    merged = {**kept, **replaced}
    return {key: merged[key] for key in sorted(merged, key=_place)}


def _place(key: str) -> int:
    if key in _FIRST:
        return -1
    return next(
        (place for place, each in enumerate(_ORDER) if key == each or (each.endswith(".") and key.startswith(each))),
        len(_ORDER),
    )


def _listed(key: str, items: Any) -> dict[str, MetadataEntry]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise CheckpointError(f"{key} is {show(items)} where a list of objects is needed")
    count_key, item_key = _LISTS[key]
    entries = {count_key: uint32(len(items))}
    for index, item in enumerate(items):
        for name in _LIST_TEXTS:
            if name in item:
                entries[item_key.format(index, name)] = string(item[name], f"{key}[{index}].{name}")
    return entries
