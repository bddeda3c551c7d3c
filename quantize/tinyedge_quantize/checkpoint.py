"""Opens a checkpoint: finds its files, reads names, shapes and places, never weights.

Whatever the container (safetensors, a torch.save file, either in shards) and the layout (Hugging Face, Lit-GPT, Meta,
llama2.c), what comes out is the same: tensors under Hugging Face's names and a configuration in Hugging Face's spelling.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyedge.errors import CheckpointError, ModelNotFoundError
from tinyedge_quantize.config import read_json
from tinyedge_quantize.containers.safetensors_file import read_safetensors
from tinyedge_quantize.containers.torch_file import is_legacy_torch_file, read_torch_file
from tinyedge_quantize.layouts import LAYOUTS
from tinyedge_quantize.layouts.arranged import Arranged, StateDict
from tinyedge_quantize.lora import merge_into, open_adapter
from tinyedge_quantize.open_files import OpenFiles
from tinyedge_quantize.quantized import dequantized
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import SourceTensor, WeightFile

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin", "consolidated.00.pth", "lit_model.pth")
_PATTERNS = ("iter-*-ckpt.pth", "*.safetensors", "*.pth", "*.pt", "*.bin")
_NOT_WEIGHTS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth"}
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
_PREFIXES = ("_orig_mod.", "module.", "_forward_module.")
_MAX_SHARDS = 1000


@dataclass(frozen=True)
class Checkpoint(OpenFiles):
    """An open checkpoint; `folder` is where the configuration and tokenizer lie."""

    folder: Path
    arranged: Arranged

    @property
    def layout(self) -> str:
        return self.arranged.layout

    @property
    def config(self) -> dict[str, Any]:
        return self.arranged.config


def open_checkpoint(path: Path, config_name: str | None = None, adapters: Sequence[tuple[Path, float]] = ()) -> Checkpoint:
    """The checkpoint in a folder or file, packed weights unpacked and `adapters` merged when their rows are read.

    `config_name` names a built-in configuration for checkpoints that carry none (see layouts/lit_gpt.py), `adapters` are LoRA
    folders with their scales. Raises ModelNotFoundError, CheckpointError, AdapterError or UnsafePickleError.
    """
    try:
        path.stat()
    except OSError as error:
        problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error.strerror})"
        raise ModelNotFoundError(f"{path} {problem}", "give the folder or file of a checkpoint") from None
    folder = path if path.is_dir() else path.parent
    with ExitStack() as opened:
        files = [_open(file_path, opened) for file_path in weight_paths(path)]
        config_path = folder / "config.json"
        state = dequantized(_state_dict(files), read_json(config_path) if config_path.is_file() else None, folder)
        arranged = _arrange(state, folder, config_name, path)
        merging = [opened.enter_context(open_adapter(*adapter)) for adapter in adapters]
        arranged = merge_into(arranged, merging)
        opened.pop_all()
    return Checkpoint(path, (*files, *(adapter.file for adapter in merging)), folder, arranged)


def weight_paths(path: Path) -> list[Path]:
    """The weight files of a checkpoint folder (its shards in order) or the file itself."""
    if not path.is_dir():
        return [path]
    if not os.access(path, os.R_OK | os.X_OK):
        raise CheckpointError(f"the folder {path} cannot be read", "check its permissions")
    for name in _INDEXES:
        if (path / name).is_file():
            return _shards(path / name)
    for name in _SINGLE_FILES:
        if (path / name).is_file():
            return [path / name]
    for pattern in _PATTERNS:
        found = sorted(p for p in path.glob(pattern) if p.is_file() and p.name not in _NOT_WEIGHTS)
        if len(found) == 1:
            return found
        if found:
            raise CheckpointError(
                f"{path} holds {len(found)} weight files and no index: {', '.join(p.name for p in found[:4])}",
                "give one of them as the checkpoint, or put the index file beside them",
            )
    raise CheckpointError(
        f"{path} holds no checkpoint",
        f"it should have {', '.join(_SINGLE_FILES)}, shards with an index, or iter-*-ckpt.pth",
    )


def _shards(index_path: Path) -> list[Path]:
    """The files an index names; each must be a plain name beside the index."""
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path} has no weight_map")
    names: set[str] = set()
    for name in weight_map.values():
        if not isinstance(name, str) or name in ("", ".", "..") or len(name) > 255 or re.search(r"[/\\\0]", name):
            raise CheckpointError(
                f"{index_path} points outside its folder: {show(name)}", "do not use this checkpoint unless you trust it"
            )
        names.add(name)
    if len(names) > _MAX_SHARDS:
        raise CheckpointError(f"{index_path} names {len(names)} files, more than any checkpoint has")
    missing = sorted(name for name in names if not (index_path.parent / name).is_file())
    if missing:
        raise CheckpointError(
            f"{index_path.name} names {missing[0]}, which is not there"
            + (f", and {len(missing) - 1} more" * (len(missing) > 1)),
            "copy or download the missing files",
        )
    return [index_path.parent / name for name in sorted(names)]


def _open(path: Path, opened: ExitStack) -> WeightFile:
    file = WeightFile(path)
    opened.callback(file.close)
    return file


def _state_dict(files: Iterable[WeightFile]) -> StateDict:
    """The tensors of all files together; no name may stand in two of them."""
    tensors: dict[str, SourceTensor] = {}
    extras: dict[str, Any] = {}
    for file in files:
        part = _read_container(file)
        twice = part.tensors.keys() & tensors.keys()
        if twice:
            raise CheckpointError(f"tensor {min(twice)} stands in two files, the second being {file.path.name}")
        tensors |= part.tensors
        extras |= part.extras
    return StateDict({name: replace(tensor, name=name) for name, tensor in tensors.items()}, extras)


def _read_container(file: WeightFile) -> StateDict:
    start = file.read(min(8, file.size), 0)
    if start[:4] == b"GGUF":
        raise CheckpointError(
            f"{file.path} is a GGUF file among the weights of a checkpoint", "give the GGUF file itself, or the checkpoint"
        )
    if start[:2] == b"PK" or is_legacy_torch_file(file):
        return _unwrap(read_torch_file(file), file)
    if start[7:8] == b"\0":  # a safetensors header length below 2**56
        return StateDict(read_safetensors(file))
    raise CheckpointError(f"{file.path} is neither safetensors nor a torch.save file")


def _unwrap(value: Any, file: WeightFile) -> StateDict:
    """The state dict in a saved object: bare, or under `model`, `state_dict` and the like, with training prefixes removed."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{file.path} holds a {type(value).__name__} where a dictionary of tensors is expected")
    wrapped = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), dict)), value)
    tensors = {name: tensor for name, tensor in wrapped.items() if isinstance(name, str) and isinstance(tensor, SourceTensor)}
    if not tensors:
        raise CheckpointError(f"{file.path} holds no tensors")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return StateDict(tensors, {key: extra for key, extra in value.items() if isinstance(key, str) and key not in _WRAPPERS})


def _arrange(state: StateDict, folder: Path, config_name: str | None, path: Path) -> Arranged:
    for layout in LAYOUTS:
        if layout.recognises(state):
            if config_name is not None and not layout.takes_config_name:
                raise CheckpointError(f"--config is for Lit-GPT checkpoints, and {path} has another layout", "leave it out")
            return layout.arrange(state, folder, config_name)
    if any("lora_" in name for name in state.tensors):
        raise CheckpointError(
            f"{path} is a LoRA adapter",
            f"give its base with --lora {path}, or make a GGUF adapter with `tinyedge lora {path} --base CHECKPOINT`",
        )
    raise CheckpointError(
        f"{path} has tensors of no layout we know, such as {', '.join(sorted(state.tensors)[:3])}",
        "give a Hugging Face, Lit-GPT, Meta or llama2.c checkpoint of a language model",
    )
