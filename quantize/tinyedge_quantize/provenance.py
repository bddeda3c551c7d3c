"""What made a file, as metadata keys under `tinyedge.`: the source's hashes, the recipe, the versions.

The hashes are plain SHA-256 of the files, so `sha256sum` and the hub's listing can be compared with them. They are computed
beside the quantizing, from files that it reads anyway, and put into the header at the end.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tinyedge import __version__
from tinyedge.errors import CheckpointError
from tinyedge.native.library import versions
from tinyedge_quantize.metadata import MetadataEntry, string, strings
from tinyedge_quantize.strangers import read_limited
from tinyedge_quantize.tensors import WeightFile

SOURCE_FILES, SOURCE_HASHES = "tinyedge.source.files", "tinyedge.source.sha256"

_READ_BYTES = 1024 * 1024
_UNKNOWN = "0" * 64


def sha256_of(path: Path, limit: int) -> str:
    """The SHA-256 of a small file; raises CheckpointError when it cannot be read or is larger than `limit`."""
    try:
        data = read_limited(path, limit)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if data is None:
        raise CheckpointError(f"{path} is larger than {limit} bytes")
    return hashlib.sha256(data).hexdigest()


class SourceHashes:
    """The SHA-256 of every file of a source, computed in a thread of its own; use it in a with statement."""

    def __init__(self, files: Sequence[WeightFile]) -> None:
        self._files = files
        self._digests: list[str] = []
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="source-hash")

    def __enter__(self) -> SourceHashes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def wait(self) -> list[str]:
        """The digests in the order of the files; raises what reading them raised."""
        while self._thread.is_alive():
            # A join without a timeout would hold back Ctrl-C on some platforms.
            self._thread.join(0.2)
        if self._error is not None:
            raise self._error
        return self._digests

    def _work(self) -> None:
        try:
            buffer = np.empty(_READ_BYTES, np.uint8)
            for file in self._files:
                digest = hashlib.sha256()
                for offset in range(0, file.size, _READ_BYTES):
                    if self._stopped.is_set():
                        return
                    part = buffer[: min(_READ_BYTES, file.size - offset)]
                    file.read_into(part, offset)
                    digest.update(part.data)
                self._digests.append(digest.hexdigest())
        except BaseException as error:
            self._error = error


def provenance(
    files: Sequence[WeightFile],
    recipe: str,
    options: Iterable[str],
    *,
    digests: Sequence[str] | None = None,
    imatrix_sha256: str | None = None,
) -> dict[str, MetadataEntry]:
    """The keys; without `digests` the hashes are zeros of the same length, so that the header's size is known before.

    `options` are those given besides the type, as a person would type them.
    """
    entries = {
        "tinyedge.version": string(__version__),
        "tinyedge.ggml.version": string(versions().ggml),
        "tinyedge.recipe": string(" ".join((recipe, *options))),
        SOURCE_FILES: strings([file.path.name for file in files]),
        SOURCE_HASHES: strings(digests if digests is not None else [_UNKNOWN] * len(files)),
    }
    if imatrix_sha256 is not None:
        entries["tinyedge.imatrix.sha256"] = string(imatrix_sha256)
    return entries


def without_provenance(metadata: Mapping[str, MetadataEntry]) -> dict[str, MetadataEntry]:
    """The metadata without the keys of an earlier conversion."""
    return {key: entry for key, entry in metadata.items() if not key.startswith("tinyedge.")}
