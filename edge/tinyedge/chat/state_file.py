"""The file that keeps a KV state: with a conversation (`session_file`), or of a system prompt (`prompt_cache`).

    preamble    magic, format version, the sizes of the sections; a checksum and two authentication codes
    header      JSON: what the state belongs to
    tokens      those whose state it is, u32 each
    text        JSON: the conversation; nothing in the prompt cache
    state       as llama.cpp gave it

Numbers are little-endian. llama.cpp trusts the numbers in a state, and a session file may come from a stranger. So the state
is only handed out when the codes are right: the first is a keyed BLAKE2b over all but the state, the second over the first
and the state, and no one but this user on this machine has their key (`state_key`). Two, so that nobody else can make us read
gigabytes before they are found strange. BLAKE2b because it is the quicker one where no instruction helps SHA-256, as on a
Raspberry Pi 4. Without the codes the file is still good for its text, whose damage the plain checksum tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import mmap
import os
import stat
import struct
import sys
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tinyedge.errors import SessionError

MAGIC = b"TEDGE-KV"
VERSION = 1
MAX_HEADER_BYTES = 1 << 16  # a real one has under one kilobyte
MAX_TOKENS = 1 << 20
MAX_TEXT_BYTES = 16 << 20

_PREAMBLE = struct.Struct("<8sIIIIQ")
_DIGEST_BYTES = 32
_SUMS = _PREAMBLE.size  # checksum, code of the text, code of the state
_BODY = _SUMS + 3 * _DIGEST_BYTES
_TEXT, _STATE = b"text", b"state"  # what a code is for
_LONGEST_NUMBER = 40  # digits; Python takes quadratic time to read thousands


@dataclass(frozen=True, slots=True)
class StateFile:
    """An open state file whose text is undamaged. `state` gives the rest."""

    path: Path
    header: Mapping[str, Any]
    tokens: tuple[int, ...]
    text: Any
    state_bytes: int
    _file: BinaryIO
    _code: bytes
    _sealed: bytes  # what the codes cover besides the state
    _state_code: bytes

    def is_of(self, key: bytes | None) -> bool:
        """Whether the holder of `key` wrote this file's text."""
        return key is not None and hmac.compare_digest(self._code, _code(key, _TEXT, self._sealed))

    @contextlib.contextmanager
    def state(self, key: bytes | None) -> Iterator[memoryview | None]:
        """The KV state, mapped into memory; None unless every byte of the file is as the holder of `key` wrote it.

        It may be used within the `with` only. A program that overwrites the file in place meanwhile could change it again:
        tinyedge itself only ever puts another file in its place.
        """
        start = _BODY + len(self._sealed) - _PREAMBLE.size - _DIGEST_BYTES
        size = start + self.state_bytes
        if not self.state_bytes or os.fstat(self._file.fileno()).st_size != size or key is None or not self.is_of(key):
            yield None
            return
        # A private copy, for ctypes takes no memory that is read-only; nothing is written, so nothing is copied.
        mapped = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY)
        try:
            with memoryview(mapped) as whole, whole[start:] as state:
                yield state if hmac.compare_digest(self._state_code, _code(key, _STATE, self._code, state)) else None
        finally:
            with contextlib.suppress(BufferError):  # an error on its way out still holds the view
                mapped.close()


@contextlib.contextmanager
def open_state_file(path: Path) -> Iterator[StateFile]:
    """The state file at `path`. Raises SessionError when it is none, of another format, or its text is damaged.

    Nothing is read before the sizes are known to fit the file, and nothing larger than a conversation at all.
    """
    with _opened(path) as file:
        yield _read(path, file)


def is_state_file(path: Path) -> bool:
    """Whether the file at `path` is there and begins like a state file. Raises SessionError when it cannot be read."""
    with _opened(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def write_state_file(
    path: Path,
    *,
    header: Mapping[str, Any],
    tokens: Sequence[int],
    text: object = None,
    state: memoryview | None = None,
    key: bytes | None = None,
    durable: bool = True,
) -> int:
    """Puts a state file at `path`, whole or not at all, and says how many bytes it has. Raises OSError.

    Without a `key` the state is left out: nobody could trust it. The state goes from memory to the disk without a copy. When
    not `durable` the call does not wait for the disk: after a power cut the file may be damaged, which its code tells.
    """
    raw_header, raw_text = _json(header), b"" if text is None else _json(text)
    raw_tokens = _little_endian(array("I", tokens))
    kept = state if key is not None and state is not None else memoryview(b"")
    if len(raw_header) > MAX_HEADER_BYTES or len(tokens) > MAX_TOKENS or len(raw_text) > MAX_TEXT_BYTES:
        raise ValueError("a header, tokens or a text that `open_state_file` would refuse")
    preamble = _PREAMBLE.pack(MAGIC, VERSION, len(raw_header), len(tokens), len(raw_text), len(kept))
    sections = raw_header + raw_tokens + raw_text
    checksum = _checksum(preamble + sections)
    codes = bytes(2 * _DIGEST_BYTES)
    if key is not None:
        code = _code(key, _TEXT, preamble + checksum + sections)
        codes = code + _code(key, _STATE, code, kept)
    head = preamble + checksum + codes + sections
    _replace(path, (head, kept), durable=durable)
    return len(head) + len(kept)


def _read(path: Path, file: BinaryIO) -> StateFile:
    file_bytes = os.fstat(file.fileno()).st_size
    start = file.read(_BODY)
    if start[: len(MAGIC)] != MAGIC:
        raise SessionError(f"{path} is not a session file")
    if len(start) < _BODY:
        raise _damaged(path)
    _, version, header_bytes, token_count, text_bytes, state_bytes = _PREAMBLE.unpack_from(start)
    if version != VERSION:
        raise SessionError(f"{path} is a session file of format {version}, and this tinyedge reads format {VERSION}")
    if header_bytes > MAX_HEADER_BYTES or token_count > MAX_TOKENS or text_bytes > MAX_TEXT_BYTES:
        raise _damaged(path)
    size = header_bytes + 4 * token_count + text_bytes
    sections = file.read(size) if _BODY + size <= file_bytes else b""
    preamble = start[:_SUMS]
    checksum, code, state_code = (start[place : place + _DIGEST_BYTES] for place in range(_SUMS, _BODY, _DIGEST_BYTES))
    if len(sections) != size or not hmac.compare_digest(checksum, _checksum(preamble + sections)):
        raise _damaged(path)
    tokens = array("I", _native(sections[header_bytes : header_bytes + 4 * token_count]))
    try:
        header = _parsed(sections[:header_bytes])
        text = _parsed(sections[-text_bytes:]) if text_bytes else None
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not isinstance(header, dict):
        raise _damaged(path)
    return StateFile(path, header, tuple(tokens), text, state_bytes, file, code, preamble + checksum + sections, state_code)


def _opened(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SessionError(f"{path} is not there") from None
    except (OSError, ValueError) as error:
        raise SessionError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe would wait for bytes that never come
        os.close(descriptor)
        raise SessionError(f"{path} is not a file")
    return os.fdopen(descriptor, "rb")


def _damaged(path: Path) -> SessionError:
    return SessionError(f"{path} is a damaged session file", "delete it, or name another file with --session")


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _code(key: bytes, purpose: bytes, *parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=key, person=purpose)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _parsed(raw: bytes) -> Any:
    return json.loads(raw.decode("utf-8"), parse_int=_whole_number)


def _whole_number(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError("a number of too many digits")
    return int(digits)


def _little_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _native(raw: bytes) -> bytes:
    if sys.byteorder == "big":
        swapped = array("I", raw)
        swapped.byteswap()
        return swapped.tobytes()
    return raw


def _replace(path: Path, parts: Sequence[bytes | memoryview], *, durable: bool) -> None:
    """Puts the parts, one after the other, at `path` by way of a temporary file that only this user may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
