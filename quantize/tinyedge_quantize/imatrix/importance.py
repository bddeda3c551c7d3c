"""Importance matrices: for each weight matrix the mean square of every column's input, which tells a quantizer what matters.

`file` reads and writes them, `calibrate` collects them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tinyedge.errors import ImatrixError
from tinyedge_quantize.strangers import show

Floats: TypeAlias = npt.NDArray[np.float32]
Counts: TypeAlias = npt.NDArray[np.int64]

DEFAULT_CHUNK = 512  # tokens, llama-imatrix's own

_REMEDY = "copy or download it again, or make one with `tinyedge imatrix MODEL --text FILE`"
_OTHER_MODEL = "give the one that was made from this model"
_NOT_MERGED = "merge files of one model"
_IN_EVERY_FILE = re.compile(r"blk\.(?!.*_exps)")  # whatever the text, as the inputs of experts are not
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")  # llama-quant.cpp, tensor_name_match_token_embd


@dataclass(frozen=True, slots=True)
class SquareSums:
    """What was collected for one weight tensor: the sums of its inputs' squares, and over how many rows they go.

    `sums` is float32 (matrices * columns,), one matrix after the other; `counts` is int64 (matrices,) for the experts of a
    mixture, which see different rows, and (1,) otherwise.
    """

    sums: Floats
    counts: Counts

    @property
    def means(self) -> Floats:
        """The mean squares in the shape of `sums`, 1 for an expert that saw no row: quantize.cpp, `load_imatrix`."""
        table = self.sums.reshape(len(self.counts), -1)
        counts = self.counts.astype(np.float32)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(counts > 0, table / counts, np.float32(1)).reshape(-1)

    def scaled(self, factor: int) -> SquareSums:
        """Sums and counts `factor` times as large, which stand for the same means."""
        return SquareSums(self.sums * np.float32(factor), self.counts * factor)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix: `tensors` by the name of the weight, in alphabetical order.

    `datasets` are the names of the texts, `chunks` how many pieces of `chunk_size` tokens of them were read. A .dat file
    knows no chunk size, so it has 0 there, and counts chunks in place of rows. `notes` are the texts under `tinyedge.imatrix.`
    that tell how to go on with a collection.
    """

    path: Path
    tensors: Mapping[str, SquareSums]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    notes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def entries(self) -> Mapping[str, Floats]:
        """The weights that llama-quantize hands to the quantizer, float32 and one for each column, by tensor."""
        return MappingProxyType({name: tensor.means for name, tensor in self.tensors.items()})

    def in_rows(self, chunk_size: int) -> Mapping[str, SquareSums]:
        """The tensors with rows for counts; those of a .dat file as if its chunks had `chunk_size` tokens (llama-imatrix)."""
        if self.chunk_size:
            return self.tensors
        return {name: tensor.scaled(chunk_size) for name, tensor in self.tensors.items()}


def damaged(path: Path, problem: str) -> ImatrixError:
    """The error to raise for a file that cannot be used: `problem` continues a sentence that begins with its path."""
    return ImatrixError(f"{path} {problem}", _REMEDY)


def merge(imatrices: Sequence[Imatrix], path: Path, chunk_size: int = DEFAULT_CHUNK) -> Imatrix:
    """All of them as one, to be written to `path`: sums and counts added up as llama-imatrix does for several --in-file.

    `chunk_size` is what the result counts its chunks in, and what the chunks of .dat files are taken for.
    Raises ImatrixError when two of them are of different models: one has another number of values for a tensor, or none for a
    tensor of a block. Only experts may be missing, which no token may have chosen.
    """
    sums: dict[str, Floats] = {}
    counts: dict[str, Counts] = {}
    for imatrix in imatrices:
        for name, tensor in imatrix.in_rows(chunk_size).items():
            if name not in sums:
                sums[name], counts[name] = tensor.sums.copy(), tensor.counts.copy()
                continue
            if len(sums[name]) != len(tensor.sums):
                raise ImatrixError(
                    f"{imatrix.path} has {len(tensor.sums)} values for {show(name)} and what it is to be merged with "
                    f"{len(sums[name])}",
                    _NOT_MERGED,
                )
            if 1 not in (len(counts[name]), len(tensor.counts)) and len(counts[name]) != len(tensor.counts):
                raise ImatrixError(
                    f"{imatrix.path} has {len(tensor.counts)} counts for {show(name)} and what it is to be merged with "
                    f"{len(counts[name])}",
                    _NOT_MERGED,
                )
            sums[name] += tensor.sums
            counts[name] = counts[name] + tensor.counts
    _check_same_tensors(imatrices)
    rows = max((int(count.max()) for count in counts.values()), default=0)
    return Imatrix(
        path=path,
        tensors={name: SquareSums(sums[name], counts[name]) for name in sorted(sums)},
        datasets=tuple(dataset for imatrix in imatrices for dataset in imatrix.datasets),
        chunks=min(rows // chunk_size, 2**32 - 1),
        chunk_size=chunk_size,
    )


def _check_same_tensors(imatrices: Sequence[Imatrix]) -> None:
    """Raises ImatrixError unless all of them have entries for the same tensors of the blocks, experts aside."""
    always = [{name for name in imatrix.tensors if _IN_EVERY_FILE.match(name)} for imatrix in imatrices]
    for here, names in zip(imatrices, always, strict=True):
        for other, others in zip(imatrices, always, strict=True):
            missing = sorted(others - names)
            if missing:
                raise ImatrixError(
                    f"{here.path} is of another model than {other.path}: it has no values for {show(missing[0])}", _NOT_MERGED
                )


def check_names(imatrix: Imatrix, names: Collection[str]) -> None:
    """Raises ImatrixError when `imatrix` has an entry for a tensor of a block that is not among `names`, those of the model.

    Entries outside the blocks may be without their tensor, as that of `output.weight` is in a model with tied embeddings.
    """
    foreign = [name for name in imatrix.tensors if name.startswith("blk.") and name not in names]
    if foreign:
        raise ImatrixError(
            f"{imatrix.path} is for another model: it has values for {show(foreign[0])}, which this model does not have",
            _OTHER_MODEL,
        )


def check_against(imatrix: Imatrix, tensors: Mapping[str, int]) -> None:
    """Raises ImatrixError when `imatrix` was made from another model.

    `tensors` are those to be quantized with the number of weights each needs: its columns, times its matrices when it has
    several. As in llama.cpp a tensor without an entry is quantized without one, and the token embedding's entry is ignored
    where it does not fit; but at least half of the blocks' tensors must be there.
    """
    for name, needed in tensors.items():
        entry = imatrix.tensors.get(name)
        if entry is not None and len(entry.sums) != needed and name not in _EMBEDDINGS:
            raise ImatrixError(
                f"{imatrix.path} is for another model: it has {len(entry.sums)} values for {show(name)}, which needs {needed}",
                _OTHER_MODEL,
            )
    blocks = [name for name in tensors if name.startswith("blk.")]
    missing = [name for name in blocks if name not in imatrix.tensors]
    if 2 * len(missing) > len(blocks):
        raise ImatrixError(
            f"{imatrix.path} is for another model: {len(missing)} of {len(blocks)} matrices have no entry in it, "
            f"{show(missing[0])} for one",
            _OTHER_MODEL,
        )
