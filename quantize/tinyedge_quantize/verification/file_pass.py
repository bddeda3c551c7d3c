"""One pass over the files of a model: the SHA-256 of each and of every tensor, and the figures of `tensors`.

One thread reads front to back and computes the checksums, so that a slow disk is read once; others dequantize what it has read
and compare it with the source.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyedge.gguf_file import GGUFFile, GGUFTensor
from tinyedge.llama_check import MATRIX_TYPES
from tinyedge.native import quantize as native
from tinyedge_quantize.tensors import Bytes, SourceTensor, WeightFile, float_rows
from tinyedge_quantize.verification.tensors import ErrorSums, SlabObserver
from tinyedge_quantize.write import SLAB_ELEMENTS, Progress

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FilePass:
    """What one reading of a model gave: SHA-256 of its files and of each tensor's data, in hexadecimal digits, and the sums.

    `altered` are tensors whose data is not what the observer of the conversion saw, `differing` those that should have the
    bytes of their source and have others.
    """

    files: tuple[str, ...]
    tensors: Mapping[str, str]
    sums: Mapping[str, ErrorSums]
    altered: tuple[str, ...] = ()
    differing: frozenset[str] = frozenset()


def read_through(
    parts: Sequence[GGUFFile],
    sources: Mapping[str, SourceTensor],
    *,
    copied: frozenset[str] = frozenset(),
    observer: SlabObserver | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> FilePass:
    """Reads a model's files once; sums for every tensor of a type that can be dequantized, against its source if it has one.

    A source must have as many values as the tensor; those of the tensors `copied` are compared byte by byte too and must have
    their type. With an `observer` nothing is dequantized: its sums count, and its
    checksums are compared. Memory is that of a few slabs for each thread. Raises CheckpointError when a file cannot be read to
    the end that its header speaks of.
    """
    native.load_kernels()
    with _Pool(threads) as pool:
        reader = _Reader(sum(part.file_bytes for part in parts), sources, copied, observer, pool, progress)
        files = tuple(reader.read(part) for part in parts)
        pool.finish()
    return FilePass(files, reader.hashes, reader.sums, tuple(reader.altered), frozenset(reader.differing))


def hash_file(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file, whatever is in it."""
    file = WeightFile(path)
    try:
        digest = hashlib.sha256()
        for start in range(0, file.size, _READ_BYTES):
            digest.update(file.read(min(_READ_BYTES, file.size - start), start))
        return file.size, digest.hexdigest()
    finally:
        file.close()


class _Pool:
    """Threads with at most two tasks each under way; the first error of a task is raised where the next one is handed in."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "verify")
        self._under_way: deque[Future[None]] = deque()
        self._limit = 2 * threads

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def submit(self, task: Callable[[], None]) -> None:
        if len(self._under_way) >= self._limit:
            self._under_way.popleft().result()
        self._under_way.append(self._executor.submit(task))

    def finish(self) -> None:
        while self._under_way:
            self._under_way.popleft().result()


class _Reader:
    """Reads file after file, each from its first byte to its last, and keeps what is known of every tensor."""

    def __init__(
        self,
        total: int,
        sources: Mapping[str, SourceTensor],
        copied: frozenset[str],
        observer: SlabObserver | None,
        pool: _Pool,
        progress: Progress | None,
    ) -> None:
        self._total, self._sources, self._copied = total, sources, copied
        self._observer, self._pool, self._progress = observer, pool, progress
        self.hashes: dict[str, str] = {}
        self.sums: dict[str, ErrorSums] = {}
        self.altered: list[str] = []
        self.differing: set[str] = set()

    def read(self, gguf: GGUFFile) -> str:
        """Reads one file; its hash."""
        file = WeightFile(gguf.path)
        try:
            taker = _Taker(file, self._total, self._progress)
            for tensor in gguf.tensors:
                taker.skip_to(gguf.data_offset + tensor.offset)
                measure = self._measure if self._observer is None else self._compare
                self.hashes[tensor.name] = measure(tensor, taker)
            taker.skip_to(file.size)
            return taker.digest.hexdigest()
        finally:
            self._pool.finish()
            file.close()

    def _measure(self, tensor: GGUFTensor, taker: _Taker) -> str:
        """Hands the slabs of a tensor to the pool; the hash of its data."""
        digest = hashlib.sha256()
        source = self._sources.get(tensor.name)
        sums = ErrorSums(tensor.type.name) if tensor.type.name in MATRIX_TYPES else None
        if sums is not None:
            self.sums[tensor.name] = sums
        differing = self.differing if tensor.name in self._copied else None
        for offset, size in _slabs(tensor, source):
            blocks = taker.take(size)
            digest.update(blocks.data)
            if sums is not None:
                self._pool.submit(_Task(sums, tensor, offset, blocks, source, differing))
        return digest.hexdigest()

    def _compare(self, tensor: GGUFTensor, taker: _Taker) -> str:
        """Notes whether a tensor's data is what the observer saw; the hash of its data."""
        assert self._observer is not None
        digest = hashlib.sha256()
        sums, slabs = self._observer.sums(tensor.name), self._observer.slabs(tensor.name)
        if sums is not None:
            self.sums[tensor.name] = sums
        same, position = True, 0
        for offset in sorted(slabs):
            size, checksum = slabs[offset]
            if offset != position or offset + size > tensor.bytes:
                break
            blocks = taker.take(size)
            digest.update(blocks.data)
            same = same and zlib.crc32(blocks.data) == checksum
            position += size
        if not same or position != tensor.bytes:
            self.altered.append(tensor.name)
        while position < tensor.bytes:
            blocks = taker.take(min(_READ_BYTES, tensor.bytes - position))
            digest.update(blocks.data)
            position += len(blocks)
        return digest.hexdigest()


class _Taker:
    """A cursor over a file; everything it passes counts for `digest`."""

    def __init__(self, file: WeightFile, total: int, progress: Progress | None) -> None:
        self._file, self._total, self._progress = file, total, progress
        self._position = 0
        self.digest = hashlib.sha256()

    def take(self, size: int) -> Bytes:
        """The next bytes."""
        data = np.empty(size, np.uint8)
        self._file.read_into(data, self._position)
        self.digest.update(data.data)
        self._position += size
        if self._progress is not None:
            self._progress(size, self._total)
        return data

    def skip_to(self, end: int) -> None:
        """Passes what lies before `end`."""
        while self._position < end:
            self.take(min(_READ_BYTES, end - self._position))


@dataclass(frozen=True)
class _Task:
    """The sums of one slab; where it should be a copy of its source and is none, the tensor's name goes into `differing`."""

    sums: ErrorSums
    tensor: GGUFTensor
    offset: int
    blocks: Bytes
    source: SourceTensor | None
    differing: set[str] | None

    def __call__(self) -> None:
        floats = None
        if self.source is not None:
            row_bytes = self.tensor.type.row_bytes(self.source.columns)
            first, count = self.offset // row_bytes, len(self.blocks) // row_bytes
            if self.differing is None or not self._is_copy(self.source, first, count):
                floats = float_rows(self.source, first, count)
                if self.differing is not None:
                    self.differing.add(self.tensor.name)
        self.sums.add(self.offset, self.blocks, floats)

    def _is_copy(self, source: SourceTensor, first: int, count: int) -> bool:
        raw, scratch = np.empty((2, len(self.blocks)), np.uint8)
        source.read_rows(first, count, raw, scratch)
        return np.array_equal(raw, self.blocks)


def _slabs(tensor: GGUFTensor, source: SourceTensor | None) -> Iterator[tuple[int, int]]:
    """Byte offset and size of each slab: whole rows of the source, divided as `write` does, so that the same sums come out.

    Without a source the rows are those of the tensor, and one that is longer than a slab is divided too.
    """
    columns = tensor.type.block_elements
    if source is not None:
        columns = source.columns
    elif len(tensor.shape) > 1 and tensor.shape[0] <= SLAB_ELEMENTS:
        columns = tensor.shape[0]
    step = tensor.type.row_bytes(columns) * max(1, SLAB_ELEMENTS // columns)
    for offset in range(0, tensor.bytes, step):
        yield offset, min(step, tensor.bytes - offset)
