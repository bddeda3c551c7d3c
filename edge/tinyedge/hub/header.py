"""Reads the GGUF header of a file that is still on the hub, so that what cannot run here is never downloaded."""

from __future__ import annotations

import io
from pathlib import Path

from tinyedge.errors import HubError
from tinyedge.gguf_file import GGUFFile, read_header
from tinyedge.hub.session import BrokenConnectionError, Hub, RepoFile

# The first request: enough for the magic, the metadata and the vocabulary of most Llama models; then more at once.
_FIRST_BYTES = 1 << 20
_NEXT_BYTES = 8 << 20
# A vocabulary of 262144 tokens with its merges takes some 16 MB.
_MAX_BYTES = 96 << 20


def read_remote_header(hub: Hub, file: RepoFile) -> GGUFFile:
    """The checked header of a file on the hub, from its first megabytes.

    Raises GGUFError for what is no sound GGUF file of the length that the hub gives, and HubError.
    """
    remote = _RemoteFile(hub, file)
    return read_header(io.BufferedReader(remote, _FIRST_BYTES), Path(f"{file.repo}/{file.name}"), file.bytes)


class _RemoteFile(io.RawIOBase):
    """The beginning of a file on the hub, requested in pieces as it is read."""

    def __init__(self, hub: Hub, file: RepoFile) -> None:
        self._hub, self._file = hub, file
        self._position = 0  # of the next byte to request
        self._piece = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._piece and self._position < self._file.bytes:
            self._piece = self._hub.retried(self._request)
            self._position += len(self._piece)
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def _request(self) -> bytes:
        """The next piece of the file, never more than asked for."""
        start = self._position
        if start >= _MAX_BYTES:
            raise HubError(f"the header of {self._file.name} takes more than {_MAX_BYTES >> 20} MiB", "take another file")
        end = min(start + (_NEXT_BYTES if start else _FIRST_BYTES), self._file.bytes)
        received = bytearray()
        with self._hub.open(self._file, start, end) as reply:
            if reply.checksum not in (None, self._file.checksum) or reply.total not in (None, self._file.bytes):
                raise HubError(
                    f"the hub gives two lengths or checksums for {self._file.name}", "try again later, or check HF_ENDPOINT"
                )
            missing = end - reply.start
            for piece in reply.body:
                received += piece[:missing]
                missing -= len(piece)
                if missing <= 0:
                    break
        if missing > 0:
            raise BrokenConnectionError("the connection to the hub broke")
        return bytes(received[start - reply.start :])
