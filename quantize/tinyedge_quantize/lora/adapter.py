"""Opens a PEFT adapter: reads its configuration and where its tensors lie, never the weights.

Source of the rules: PEFT, tuners/lora (config.py, layer.py `update_layer`, model.py `_create_and_replace`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tinyedge.errors import AdapterError, CheckpointError
from tinyedge_quantize.config import read_json
from tinyedge_quantize.containers.safetensors_file import read_safetensors
from tinyedge_quantize.containers.torch_file import read_torch_file
from tinyedge_quantize.lora.names import part_of, require_known
from tinyedge_quantize.lora.patterns import MAX_NUMBER, read_patterns
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import FLOAT_BYTES, SourceTensor, WeightFile

CONFIG_NAME = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
MAX_SCALE = 1000.0

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


def parse_adapter_option(value: str) -> tuple[Path, float]:
    """The path and scale in `DIR` or `DIR:SCALE`, the scale 1 by default; raises AdapterError for what is neither."""
    name, colon, tail = value.rpartition(":")
    path, scale = Path(value), 1.0
    if colon and name and not path.exists():
        with suppress(ValueError):
            path, scale = Path(name), float(tail)
    if not path.exists():
        raise AdapterError(f"there is no adapter {path}", f"give a folder with {CONFIG_NAME}, or DIR:SCALE")
    if not abs(scale) <= MAX_SCALE:
        raise AdapterError(f"the scale of {path} is {scale:g}", f"give one within {MAX_SCALE:g} of zero")
    return path, scale


def open_adapter(path: Path, scale: float = 1.0) -> Adapter:
    """The PEFT adapter in a folder, or in a weight file beside its adapter_config.json, to be applied `scale` times.

    Raises AdapterError when it is missing, damaged, of another kind than LoRA, rsLoRA and DoRA, or contradicts itself;
    UnsafePickleError for a weight file that asks for more than tensors.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise AdapterError(f"there is no adapter {path}", f"give a folder with {CONFIG_NAME}")
    try:
        config = read_json(folder / CONFIG_NAME)
        _require_lora(path, config)
        with ExitStack() as opened:
            file = WeightFile(_weight_path(path))
            opened.callback(file.close)
            parts = _parts(file.path, _read_tensors(file), trains_biases=config.get("bias", "none") != "none")
            pairs, alpha = _pairs(file.path, config, parts.pairs)
            opened.pop_all()
    except CheckpointError as error:
        raise AdapterError(error.problem, _DAMAGED) from error
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
        place[key] = tensor
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
    return pairs, alpha * rank ** (1 - power)


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
