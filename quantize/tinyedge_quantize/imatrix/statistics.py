"""What an importance matrix says about a model, per tensor and per layer, in the terms of `llama-imatrix --show-statistics`.

The formulas are those of tools/imatrix/imatrix.cpp (`compute_statistics`, `compute_cossim`, `show_statistics`), computed in
float64 where it adds up in float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyedge.errors import ImatrixError
from tinyedge_quantize.imatrix.importance import DEFAULT_CHUNK, Imatrix, SquareSums

_INACTIVE = 1e-5
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """The mean squared inputs of one tensor: `values` of them, their sum, range, mean and standard deviation.

    `active` is the share above 1e-5, `entropy` that of the values as a distribution, in bits, and `evenness` its share of the
    largest possible. `outliers` is the share that lies more than one standard deviation above the mean (ZD). `similarity` is
    the cosine of the angle to the same tensor's values in the layer before, None where there is none. `layer` is None outside
    the blocks.
    """

    name: str
    layer: int | None
    total: float
    minimum: float
    maximum: float
    mean: float
    deviation: float
    active: float
    values: int
    entropy: float
    evenness: float
    outliers: float
    similarity: float | None

    @property
    def short_name(self) -> str:
        """The part before `weight`: `attn_q`."""
        parts = self.name.split(".")
        return parts[parts.index("weight") - 1] if "weight" in parts[1:] else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatistics:
    """Means over the tensors of a layer, each with the weight of its number of values.

    `similarity` is None for a layer of which no tensor has one.
    """

    layer: int
    total: float
    outliers: float
    similarity: float | None


def tensor_statistics(imatrix: Imatrix) -> list[TensorStatistics]:
    """The statistics of every tensor, those of one kind together, the largest sum first."""
    tensors = imatrix.in_rows(imatrix.chunk_size or DEFAULT_CHUNK)
    found = []
    for name, tensor in tensors.items():
        block = _BLOCK.search(name)
        before = None
        if block:
            before = tensors.get(f"{name[: block.start(1)]}{int(block[1]) - 1}{name[block.end(1) :]}")
        found.append(_statistics(name, int(block[1]) if block else None, tensor, before))
    if not found:
        raise ImatrixError(f"{imatrix.path} has no tensors", "check the path")
    return sorted(found, key=lambda each: (each.short_name, -each.total))


def _statistics(name: str, layer: int | None, tensor: SquareSums, before: SquareSums | None) -> TensorStatistics:
    seen = tensor.counts > 0
    table = tensor.sums.astype(np.float64).reshape(len(tensor.counts), -1)
    values = (table[seen] / tensor.counts[seen, None]).reshape(-1)
    total, mean = float(values.sum()), float(values.mean())
    deviation = float(values.std())
    shares = values[values > 0] / total if total > 0 else values[:0]
    entropy = float(-(shares * np.log2(shares)).sum())
    return TensorStatistics(
        name=name,
        layer=layer,
        total=total,
        minimum=float(values.min()),
        maximum=float(values.max()),
        mean=mean,
        deviation=deviation,
        active=float((np.abs(values) > _INACTIVE).mean()),
        values=len(values),
        entropy=entropy,
        evenness=entropy / math.log2(len(values)) if len(values) > 1 else 0.0,
        outliers=float((values - mean > deviation).mean()) if deviation > 0 else 0.0,
        similarity=_similarity(tensor, before),
    )


def _similarity(tensor: SquareSums, before: SquareSums | None) -> float | None:
    if before is None or len(before.sums) != len(tensor.sums):
        return None
    ours, theirs = tensor.sums.astype(np.float64), before.sums.astype(np.float64)
    length = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / length if length else 0.0


def layer_statistics(tensors: Sequence[TensorStatistics]) -> list[LayerStatistics]:
    """The statistics of every layer, in order."""
    layers = []
    for layer in sorted({tensor.layer for tensor in tensors if tensor.layer is not None}):
        own = [tensor for tensor in tensors if tensor.layer == layer]
        values = sum(tensor.values for tensor in own)
        compared = [(tensor.values, tensor.similarity) for tensor in own if tensor.similarity is not None]
        weight = sum(count for count, _ in compared)
        layers.append(
            LayerStatistics(
                layer=layer,
                total=sum(tensor.values * tensor.total for tensor in own) / values,
                outliers=sum(tensor.values * tensor.outliers for tensor in own) / values,
                similarity=sum(count * similarity for count, similarity in compared) / weight if compared else None,
            )
        )
    return layers
