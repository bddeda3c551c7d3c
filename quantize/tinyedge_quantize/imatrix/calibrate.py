"""Collects an importance matrix: runs a model over a text, chunk by chunk, as llama-imatrix does (tools/imatrix/imatrix.cpp).

What is collected is whole after every chunk and holds how to go on, so that it can be written at any time and taken up later;
the result is the same, bit for bit, as if it had not been interrupted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tinyedge.errors import ImatrixError
from tinyedge.native.activations import FEWEST_ROWS, CalibrationContext
from tinyedge.native.context import BATCH_TOKENS, ContextSettings
from tinyedge.native.interrupt import Interruptible
from tinyedge.native.model import Model
from tinyedge_quantize.imatrix.file import write_imatrix
from tinyedge_quantize.imatrix.importance import DEFAULT_CHUNK, Counts, Floats, Imatrix, SquareSums

_LOGIT_BYTES = 64 << 20  # of one decode: the rows of a vocabulary of 32000 for BATCH_TOKENS tokens
_ROWS_AT_ONCE = 16  # of logits, when their softmax is taken
_NOTES = ("model", "tokens", "chunks", "nll", "nll2", "predicted", "output", "merged")


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """How far a collection is: `chunk` of `chunks` are done; `perplexity` of the second halves of all of them."""

    chunk: int
    chunks: int
    perplexity: float


@dataclass(slots=True)
class Collection:
    """What was collected so far: sums and counts by tensor name, and what is needed to go on with the next chunk.

    `model` tells the model from every other, `merged` are the SHA-256 of the files whose sums were put in at the beginning.
    `digest` is over the tokens that were read; `nll` and `nll2` are the sums of the negative log-likelihoods of `predicted`
    tokens and of their squares.
    """

    model: str
    chunk_size: int = DEFAULT_CHUNK
    process_output: bool = False
    merged: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    sums: dict[str, Floats] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    chunks: int = 0
    nll: float = 0.0
    nll2: float = 0.0
    predicted: int = 0
    digest: str = field(default_factory=lambda: hashlib.sha256().hexdigest())

    @staticmethod
    def chunks_in(imatrix: Imatrix) -> int:
        """How many chunks a collection read to which `imatrix` belongs; 0 for an importance matrix of another kind."""
        noted = imatrix.notes.get("chunks", "")
        return int(noted) if noted.isdecimal() and len(noted) < 10 else 0

    @property
    def perplexity(self) -> float:
        """The perplexity over the second half of each chunk; NaN before the first."""
        return math.exp(min(self.nll / self.predicted, 700.0)) if self.predicted else math.nan

    @property
    def perplexity_error(self) -> float:
        """The standard error of `perplexity`, as llama-imatrix gives it; NaN where it cannot be told."""
        if self.predicted < 2:
            return math.nan
        variance = self.nll2 / self.predicted - (self.nll / self.predicted) ** 2
        return math.sqrt(max(variance, 0.0) / (self.predicted - 1)) * self.perplexity

    def begin_with(self, imatrix: Imatrix, merged: Sequence[str]) -> None:
        """Puts the sums of `imatrix` under those to come; `merged` are the SHA-256 of the files it was read from."""
        assert not self.chunks, "what goes beneath must be there first"
        for name, tensor in imatrix.in_rows(self.chunk_size).items():
            self._add(name, tensor.sums, tensor.counts)
        self.datasets, self.merged = imatrix.datasets, tuple(merged)

    def add_chunk(self, collected: Mapping[str, tuple[Floats, Counts]]) -> None:
        """Adds what one chunk gave."""
        for name, (sums, counts) in collected.items():
            self._add(name, sums, counts)
        self.chunks += 1

    def _add(self, name: str, sums: Floats, counts: Counts) -> None:
        if name not in self.sums:
            self.sums[name], self.counts[name] = sums.copy(), counts.copy()
            return
        if len(self.sums[name]) != len(sums) or 1 != len(self.counts[name]) != len(counts) != 1:
            raise ImatrixError(
                f"{name} has {len(self.sums[name])} values in the file to begin with and {len(sums)} in this model",
                "merge only files made from the same model",
            )
        self.sums[name] += sums
        self.counts[name] = self.counts[name] + counts

    def imatrix(self, path: Path, text: str) -> Imatrix:
        """What was collected from the text of this name, to be written to `path`, with the notes that `resumed` reads."""
        rows = max((int(counts.max()) for counts in self.counts.values()), default=0)
        notes = (
            self.model,
            self.digest,
            self.chunks,
            self.nll,
            self.nll2,
            self.predicted,
            int(self.process_output),
            " ".join(self.merged),
        )
        return Imatrix(
            path=path,
            tensors={name: SquareSums(self.sums[name], self.counts[name]) for name in sorted(self.sums)},
            datasets=(*self.datasets, text),
            chunks=min(rows // self.chunk_size, 2**32 - 1),
            chunk_size=self.chunk_size,
            notes={key: str(value) for key, value in zip(_NOTES, notes, strict=True)},
        )

    def resumed(self, imatrix: Imatrix, tokens: Sequence[int]) -> Collection:
        """This collection as far as `imatrix`, written by `imatrix()`, has it.

        Raises ImatrixError unless that was collected from the same model, the beginning of the same tokens and the same files
        to begin with, in chunks of the same size.
        """
        notes = imatrix.notes
        try:
            chunks, predicted = int(notes["chunks"]), int(notes["predicted"])
            nll, nll2 = float(notes["nll"]), float(notes["nll2"])
            same = (notes["model"], notes["output"], notes["merged"], imatrix.chunk_size)
        except (KeyError, ValueError):
            raise _another(imatrix.path, "was not collected by this command") from None
        ours = (self.model, str(int(self.process_output)), " ".join(self.merged), self.chunk_size)
        for theirs, wanted, what in zip(same, ours, _DIFFERENCES, strict=True):
            if theirs != wanted:
                raise _another(imatrix.path, f"was collected {what}")
        digest = _token_digest(tokens[: chunks * self.chunk_size])
        plain = 0 <= chunks <= len(tokens) // self.chunk_size and math.isfinite(nll) and math.isfinite(nll2)
        if digest != notes["tokens"] or not plain:
            raise _another(imatrix.path, "was collected from another text")
        return replace(
            self,
            sums={name: tensor.sums.copy() for name, tensor in imatrix.tensors.items()},
            counts={name: tensor.counts.copy() for name, tensor in imatrix.tensors.items()},
            chunks=chunks,
            nll=nll,
            nll2=nll2,
            predicted=predicted,
            digest=digest,
        )


_DIFFERENCES = (
    "from another model",
    "with another choice of --process-output",
    "upon other files to begin with",
    "in chunks of another size",
)


def _another(path: Path, what: str) -> ImatrixError:
    return ImatrixError(
        f"{path} holds an importance matrix that {what}, which would be lost",
        "name another file with -o, or give --overwrite to replace it",
    )


def collect(
    model: Model, tokens: Sequence[int], collection: Collection, settings: ContextSettings, chunks: int | None = None
) -> Iterator[ChunkDone]:
    """Reads the chunks of `tokens` that `collection` has not, and adds to it; yields after each.

    `chunks` is how many to have at the end, all that there are when None. Of `settings` the context, the batch and the outputs
    are replaced. Each chunk begins with BOS where the model wants one, in place of its first token. A chunk that is interrupted
    leaves no trace. Raises ImatrixError when the model computes NaN or infinity.
    """
    size = collection.chunk_size
    total = min(len(tokens) // size, chunks if chunks is not None else len(tokens) // size)
    bounds = _decode_bounds(model.vocabulary_size, size)
    rows = max(end - start for start, end in pairwise(bounds))
    settings = replace(settings, context=size, batch=rows, outputs=rows)
    digest = hashlib.sha256(_token_bytes(tokens[: collection.chunks * size]))
    with CalibrationContext(model, settings, process_output=collection.process_output) as context:
        for index in range(collection.chunks, total):
            chunk = list(tokens[index * size : (index + 1) * size])
            context.clear()
            context.squares.take()
            nll, nll2, predicted = _read_chunk(context, chunk, model.bos, bounds)
            with Interruptible():  # a signal in between would leave what cannot be gone on with
                collection.add_chunk(context.squares.take())
                collection.nll += nll
                collection.nll2 += nll2
                collection.predicted += predicted
                digest.update(_token_bytes(chunk))
                collection.digest = digest.hexdigest()
            yield ChunkDone(index + 1, total, collection.perplexity)


def collect_into(
    path: Path,
    text: str,
    model: Model,
    tokens: Sequence[int],
    collection: Collection,
    settings: ContextSettings,
    chunks: int | None = None,
    save_every: int = 10,
) -> Generator[ChunkDone, None, None]:
    """As `collect`, and writes what is there to `path` after every `save_every` chunks, at the end and when interrupted.

    `text` is the name of the text. Close the iterator when it is not read to its end.
    """
    written = collection.chunks
    try:
        for done in collect(model, tokens, collection, settings, chunks):
            if done.chunk % save_every == 0:
                write_imatrix(collection.imatrix(path, text), path)
                written = done.chunk
            yield done
    finally:
        if collection.chunks > written:
            write_imatrix(collection.imatrix(path, text), path)


def _decode_bounds(vocabulary: int, chunk_size: int) -> list[int]:
    """Where a chunk is cut for decoding: equal parts, each of FEWEST_ROWS at least and with its logits within _LOGIT_BYTES."""
    most = max(2 * FEWEST_ROWS, min(BATCH_TOKENS, _LOGIT_BYTES // (4 * vocabulary)))
    parts = -(-chunk_size // most)
    return [part * chunk_size // parts for part in range(parts + 1)]


def _read_chunk(
    context: CalibrationContext, chunk: list[int], bos: int | None, bounds: Sequence[int]
) -> tuple[float, float, int]:
    """Reads a chunk; the negative log-likelihoods of its second half: their sum, the sum of their squares, their number."""
    first = len(chunk) // 2
    nll = nll2 = 0.0
    for start, end in pairwise(bounds):
        part = chunk[start:end]
        if bos is not None and not start:
            part[0] = bos
        logits = context.read(part)
        for row in range(max(first, start), min(end, len(chunk) - 1), _ROWS_AT_ONCE):
            last = min(row + _ROWS_AT_ONCE, end, len(chunk) - 1)
            losses = _losses(logits[row - start : last - start], chunk[row + 1 : last + 1])
            nll += float(losses.sum())
            nll2 += float((losses * losses).sum())
    return nll, nll2, len(chunk) - 1 - first


def _losses(logits: Floats, targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """The negative log-likelihood of each target under its row of logits."""
    highest = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - highest).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets] - highest[:, 0]
    losses: npt.NDArray[np.float64] = np.log(sums) - chosen
    return losses


def _token_bytes(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, dtype="<i4").tobytes()


def _token_digest(tokens: Sequence[int]) -> str:
    return hashlib.sha256(_token_bytes(tokens)).hexdigest()
