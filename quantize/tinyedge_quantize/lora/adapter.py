"""Opens a PEFT adapter: reads its configuration and where its tensors lie, never the weights.

Source of the rules: PEFT, tuners/lora (config.py, layer.py `update_layer`, model.py `_create_and_replace`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tinyedge.errors import AdapterError, CheckpointError
from tinyedge_quantize.config import read_json
from tinyedge_quantize.containers.safetensors_file import read_safetensors
from tinyedge_quantize.containers.torch_file import read_torch_file
from tinyedge_quantize.lora.names import part_of, require_known
from tinyedge_quantize.lora.option import require_adapter
from tinyedge_quantize.lora.patterns import MAX_NUMBER, read_patterns
from tinyedge_quantize.lora.rows import finite_tensor
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import FLOAT_BYTES, SourceTensor, WeightFile

CONFIG_NAME = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")

_DAMAGED = "copy or download the adapter again"
_MERGE_IN_PEFT = "merge it with PEFT (merge_and_unload, then save_pretrained) and give the merged folder"
# PEFT's LoraConfig: what makes an adapter more than pairs of matrices, and how we call it.
_VARIANTS = {
    "layer_replication": "repeats layers of the base",
    "target_parameters": "adapts parameters outside of linear layers",
    "trainable_token_indices": "trains single tokens of the embedding",
    "alora_invocation_tokens": "is an activated LoRA, which acts only behind its invocation",
    "use_qalora": "is a QA-LoRA",
    "use_bdlora": "is a block-diagonal LoRA",
    "arrow_config": "is routed between adapters (Arrow)",
    "kasa_config": "is a KaSA",
    "monteclora_config": "is a MonteCLoRA",
}
# Ways to begin the training that take something out of the base weights; PEFT notes them as done once it has converted them.
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga")
# What else of the configuration decides by true and false.
_FLAGS = ("use_dora", "use_rslora", "ensure_weight_tying")
# PEFT (peft_model.py) notes both for a classifier, whatever its model calls the layer.
_OF_CLASSIFIERS = ("classifier", "score")
_MAX_SAVED = 1000
_MAX_RANK = 8192
_MAX_NAME = 512


@dataclass(frozen=True)
class LowRank:
    """What an adapter does to one module: `down` is A (rank, in), `up` is B (out, rank); the change is scaling * B @ A.

    `scaling` is alpha / rank, or alpha / sqrt(rank) for rsLoRA. With a `magnitude` (out,) it is DoRA. `bias` (out,) is added to
    the module's bias times `scaling`. For an embedding, in is the vocabulary and out the width.
    """

    module: str
    down: SourceTensor
    up: SourceTensor
    scaling: float
    embedding: bool
    magnitude: SourceTensor | None = None
    bias: SourceTensor | None = None

    @property
    def rank(self) -> int:
        return self.down.rows


@dataclass(frozen=True)
class Adapter:
    """An open adapter; close it, or use it in a with statement.

    `scale` is the user's factor. `alpha` over a pair's rank is the scaling where no pattern says otherwise. `pairs` are by
    module name, `replaced` are tensors that stand in place of the base's, by tensor name, `copies` those among them that were
    not trained; names are those of the model that was trained.
    """

    path: Path
    folder: Path
    scale: float
    config: Mapping[str, Any]
    alpha: float
    pairs: Mapping[str, LowRank]
    replaced: Mapping[str, SourceTensor]
    copies: frozenset[str]
    file: WeightFile

    @property
    def keeps_tying(self) -> bool:
        """Whether input and output embedding were trained as one matrix."""
        return bool(self.config.get("ensure_weight_tying"))

    @property
    def kind(self) -> str:
        """LoRA, rsLoRA or DoRA."""
        if any(pair.magnitude is not None for pair in self.pairs.values()):
            return "DoRA"
        return "rsLoRA" if self.config.get("use_rslora") else "LoRA"

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_adapter(path: Path, scale: float = 1.0) -> Adapter:
    """The PEFT adapter in a folder, or in a weight file beside its adapter_config.json, to be applied `scale` times.

    Raises AdapterError when it is missing, damaged, of another kind than LoRA, rsLoRA and DoRA, or contradicts itself;
    UnsafePickleError for a weight file that asks for more than tensors.
    """
    folder = path if path.is_dir() else path.parent
    require_adapter(path)
    try:
        config = read_json(folder / CONFIG_NAME)
        _require_lora(path, config)
        with ExitStack() as opened:
            file = WeightFile(_weight_path(path))
            opened.callback(file.close)
            parts = _parts(file.path, _read_tensors(file), trains_biases=config.get("bias", "none") != "none")
            pairs, alpha = _pairs(file.path, config, parts.pairs)
            _require_saved(file.path, config, parts.replaced)
            opened.pop_all()
    except CheckpointError as error:
        remedy = _DAMAGED if error.remedy == CheckpointError.default_remedy else error.remedy
        raise AdapterError(error.problem, remedy) from error
    return Adapter(path, folder, scale, config, alpha, pairs, parts.replaced, frozenset(parts.copies), file)


def _weight_path(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in WEIGHT_NAMES:
        if (path / name).is_file():
            return path / name
    raise AdapterError(f"{path} holds no adapter weights", f"it should have {' or '.join(WEIGHT_NAMES)}")


def _require_lora(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(f"{path} is an adapter of type {show(kind)} where LoRA is supported", _MERGE_IN_PEFT)
    for key, what in _VARIANTS.items():
        if config.get(key):
            raise AdapterError(f"{path} {what} ({key}), which cannot be done here", _MERGE_IN_PEFT)
    for key in _FLAGS:
        if not isinstance(config.get(key, False), bool | None):
            raise AdapterError(f"{key} in {CONFIG_NAME} is {show(config[key])} where true or false is expected", _DAMAGED)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise AdapterError(
            f"{path} began as {show(start)}, which changes the base's weights too",
            "save it again with path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )


def _read_tensors(file: WeightFile) -> dict[str, SourceTensor]:
    if file.read(min(4, file.size), 0)[:2] == b"PK":
        value = read_torch_file(file)
        if not isinstance(value, dict):
            raise AdapterError(f"{file.path} holds a {type(value).__name__} where a dictionary of tensors is expected")
        tensors = {
            name: replace(tensor, name=name)
            for name, tensor in value.items()
            if isinstance(name, str) and isinstance(tensor, SourceTensor)
        }
    else:
        tensors = read_safetensors(file)
    if not tensors:
        raise AdapterError(f"{file.path} holds no tensors", _DAMAGED)
    return tensors


@dataclass(frozen=True)
class _Parts:
    """The tensors of a file: those of pairs by module and part, those that replace by name, names of the base's own."""

    pairs: dict[str, dict[str, SourceTensor]] = field(default_factory=dict)
    replaced: dict[str, SourceTensor] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)


def _parts(file: Path, tensors: Mapping[str, SourceTensor], *, trains_biases: bool) -> _Parts:
    found = _Parts()
    for name, tensor in tensors.items():
        part = part_of(name, trains_biases)
        if part is None:
            continue
        _require_usable(file, tensor)
        of_pair = part.part is not None
        place = found.pairs.setdefault(part.module, {}) if of_pair else found.replaced
        key = part.part or part.module
        if key in place:
            raise AdapterError(f"{file} holds {show(name)} twice, as for two adapters", "save each adapter in its own folder")
        place[key] = tensor if of_pair else finite_tensor(tensor)
        if part.is_base:
            found.copies.add(key)
    return found


def _pairs(
    file: Path, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, SourceTensor]]
) -> tuple[dict[str, LowRank], float]:
    """The pairs by module, checked against the configuration, and the adapter's alpha."""
    rank, alpha = _number(config, "r", 8), _number(config, "lora_alpha", 8)
    ranks = read_patterns(config, "rank_pattern").of(parts, rank)
    alphas = read_patterns(config, "alpha_pattern").of(parts, alpha)
    # rsLoRA divides by the root of the rank.
    power = 0.5 if config.get("use_rslora") else 1.0
    pairs = {
        module: _pair(file, module, found, ranks[module], alphas[module] / ranks[module] ** power)
        for module, found in parts.items()
    }
    _require_kind(file, config, pairs)
    return pairs, alpha * rank ** (1 - power)


def _require_kind(file: Path, config: Mapping[str, Any], pairs: Mapping[str, LowRank]) -> None:
    """Raises AdapterError when the configuration says DoRA and not all pairs have magnitudes, or LoRA and some have."""
    dora = config.get("use_dora")
    other = next((module for module, pair in pairs.items() if (pair.magnitude is None) == dora), None)
    if dora is not None and other is not None:
        problem = f"has {'no' if dora else 'a'} lora_magnitude_vector for {show(other)}"
        raise AdapterError(
            f"{file} {problem} where {CONFIG_NAME} says that it is {'a' if dora else 'no'} DoRA (use_dora)",
            "save the adapter again with PEFT's save_pretrained",
        )


def _require_saved(file: Path, config: Mapping[str, Any], replaced: Mapping[str, SourceTensor]) -> None:
    """Raises AdapterError when a module that was trained as a whole is not in the file, where PEFT fails too."""
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or len(names) > _MAX_SAVED or not all(isinstance(name, str) for name in names):
        raise AdapterError(f"modules_to_save in {CONFIG_NAME} is {show(names)} where names are expected", _DAMAGED)
    # PEFT takes every module whose name ends so.
    present = "\n".join(replaced)
    for name in names:
        if f"{name}." not in present and name not in _OF_CLASSIFIERS:
            raise AdapterError(
                f"{file} lacks the weights of {show(name)}, which {CONFIG_NAME} says were trained (modules_to_save)",
                "save the adapter again, or take the name out of modules_to_save if the base has no such module",
            )


def _pair(file: Path, module: str, parts: Mapping[str, SourceTensor], rank: float, scaling: float) -> LowRank:
    require_known(parts, file, module)
    embedding = "lora_embedding_A" in parts
    down, up = (parts[("lora_embedding_" if embedding else "lora_") + side] for side in "AB")
    if len(down.shape) != 2 or len(up.shape) != 2:
        raise AdapterError(f"{file} adapts {show(module)}, which is no linear layer or embedding", _MERGE_IN_PEFT)
    if not down.rows == up.columns == rank or rank > _MAX_RANK:
        raise AdapterError(
            f"{file} has A {down.shape} and B {up.shape} for {show(module)} where {CONFIG_NAME} says rank {rank:g}",
            "give the configuration that was saved with these weights",
        )
    vectors = {key: parts.get(key) for key in ("lora_magnitude_vector", "lora_B.bias")}
    for key, vector in vectors.items():
        if vector is not None and (math.prod(vector.shape) != up.rows or len(vector.shape) > 2):
            raise AdapterError(f"{file} has {key} {vector.shape} for {show(module)}, which has {up.rows} outputs", _DAMAGED)
    return LowRank(module, down, up, scaling, embedding, *vectors.values())


def _require_usable(file: Path, tensor: SourceTensor) -> None:
    if tensor.dtype not in FLOAT_BYTES or len(tensor.name) > _MAX_NAME or 0 in tensor.shape:
        raise AdapterError(
            f"{file} holds {show(tensor.name)} of shape {tensor.shape} as {tensor.dtype}, which is no weight of an adapter",
            f"save the adapter again as {', '.join(FLOAT_BYTES)}",
        )


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 < value < MAX_NUMBER:
        raise AdapterError(f"{key} in {CONFIG_NAME} is {show(value)} where a positive number is expected", _DAMAGED)
    return float(value)
