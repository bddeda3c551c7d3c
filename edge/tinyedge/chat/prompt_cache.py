"""Keeps the KV states of system prompts on disk, so that a chat begins without reading its system prompt again.

An entry's name says what it holds, so that looking for one opens no file:

    FINGERPRINT-SETTINGS-COUNT-DIGEST.kv     the model, the rest of the identity, how many tokens, and a digest of them

Any number of processes may use one cache: entries come by renaming and go by deletion, which harms nobody who reads one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from tinyedge import __version__
from tinyedge.cache import cache_folder
from tinyedge.chat.session_file import identity_in, may_take_state
from tinyedge.chat.state_file import open_state_file, write_state_file
from tinyedge.chat.state_key import state_key
from tinyedge.errors import SessionError
from tinyedge.model_identity import Identity, identity_of
from tinyedge.tokens import common_length

if TYPE_CHECKING:
    from tinyedge.engine import Engine, Progress

MOST_BYTES = 512 << 20
DISK_SHARE = 0.05  # of what is free, entries of the cache counted as free
# Reading fewer tokens in less time is over before anybody notices.
PAYS_TOKENS = 64
PAYS_SECONDS = 0.3

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-([1-9][0-9]{0,6})-([0-9a-f]{32})\.kv", re.ASCII)
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}-.*", re.ASCII)
_HEAD_BYTES = 2048  # the rest of an entry, in round numbers
_ABANDONED_S = 3600.0  # an unfinished file older than that is of a process that was killed


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    model: str
    settings: str
    tokens: int
    digest: str


@dataclass(frozen=True, slots=True)
class Computed:
    """How many tokens were read, and in how many seconds."""

    tokens: int = 0
    seconds: float = 0.0


class PromptCache:
    """The KV states of system prompts in a folder, the least recently used ones deleted beyond `limit_bytes`.

    The folder is `prompts` in the cache folder unless it is given; the limit the lesser of 512 MiB and a twentieth of the free
    disk, 0 for no cache. Whatever goes wrong with the cache is told to `on_note` in one sentence and costs nothing but time.
    """

    def __init__(
        self,
        folder: Path | None = None,
        limit_bytes: int | None = None,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        place = cache_folder(needed=False) if folder is None else None
        self.folder = folder if place is None else place / "prompts"
        self._limit = limit_bytes
        self._note = on_note
        self.computed = Computed()

    def load(self, engine: Engine, tokens: Sequence[int], progress: Progress | None = None) -> int:
        """Brings the engine's KV cache to begin with `tokens`: from disk what is there, computed and kept what is not.

        Gives how many came from disk; `computed` is then what the others took, also where that was interrupted. Raises what
        `Engine.read` raises.
        """
        self.computed = Computed()
        restored = self.restore(engine, tokens)
        held = common_length(engine.cached, tokens)
        if held < len(tokens):
            started = perf_counter()
            try:
                engine.read(tokens, progress)
            finally:
                seconds = perf_counter() - started
                self.computed = Computed(max(0, common_length(engine.cached, tokens) - held), seconds)
            if _pays(len(tokens) - held, seconds):
                self.keep(engine, tokens, seconds)
        return restored

    def restore(self, engine: Engine, tokens: Sequence[int]) -> int:
        """Puts the longest stored beginning of `tokens` into the engine's KV cache, and says how many tokens that are.

        0, with the engine's cache as it was, when there is none or the cache holds as many of them already.
        """
        if self._off or not tokens:
            return 0
        held = common_length(engine.cached, tokens)
        room = engine.plan.context
        found = [entry for entry in self._beginnings(tokens) if held < entry.tokens < room]
        if not found:
            return 0
        identity = identity_of(engine)
        stale: _Entry | None = None
        for entry in found:
            if entry.model != identity.model.fingerprint[:16]:
                continue
            if entry.settings != identity.state.key:
                stale = stale or entry
            elif self._restored(entry, engine, identity, tokens[: entry.tokens]):
                return entry.tokens
        if stale is not None:
            self._tell_stale(stale, identity)
        return 0

    def keep(self, engine: Engine, tokens: Sequence[int], seconds: float = 0.0) -> bool:
        """Stores the state of `tokens`, which must be exactly what the engine's KV cache holds; whether it did.

        Nothing is stored that is read in no time: under 64 tokens, unless reading them took more than 0.3 `seconds`.
        """
        if list(tokens) != engine.cached:
            raise ValueError("the KV cache holds other tokens than those to keep")
        if self._off or not _pays(len(tokens), seconds):
            return False
        key = state_key()
        if key is None or self.folder is None:
            self._note("the prompt cache is off: there is no safe place for the key that KV states are sealed with")
            return False
        if not may_take_state(engine):
            self._note("the system prompt is not kept: there is not memory enough for a copy of its KV state")
            return False
        identity = identity_of(engine)
        path = self.folder / _name(identity, tokens)
        header = {"tinyedge": __version__, "identity": identity.to_json()}
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            state = engine.state()
            if not self._make_room(len(state) + 4 * len(tokens) + _HEAD_BYTES):
                self._note(f"the system prompt is not kept: its KV state of {len(state) >> 20} MiB is too large for the cache")
                return False
            write_state_file(path, header=header, tokens=tokens, state=state, key=key, durable=False)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._note(f"the system prompt is not kept: {'the disk is full' if full else error.strerror or error}")
            return False
        return True

    @property
    def _off(self) -> bool:
        return self.folder is None or self._limit == 0

    def _entries(self) -> Iterator[_Entry]:
        assert self.folder is not None
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                match = _NAME.fullmatch(path.name)
                if match:
                    model, settings, count, digest = match.groups()
                    yield _Entry(path, model, settings, int(count), digest)

    def _beginnings(self, tokens: Sequence[int]) -> list[_Entry]:
        """The entries, of whatever model, whose tokens `tokens` begin with, the longest first."""
        entries = sorted(self._entries(), key=lambda entry: -entry.tokens)
        counts = {entry.tokens for entry in entries if entry.tokens <= len(tokens)}
        digests = {count: _digest(tokens[:count]) for count in counts}
        return [entry for entry in entries if entry.digest == digests.get(entry.tokens)]

    def _restored(self, entry: _Entry, engine: Engine, identity: Identity, tokens: Sequence[int]) -> bool:
        """Whether the entry could be restored; one that is damaged or fits nothing is deleted."""
        try:
            with open_state_file(entry.path) as file:
                if file.tokens == tuple(tokens) and identity_in(file) == identity:
                    with file.state(state_key()) as state:
                        if state is not None and engine.restore(tokens, state):
                            with contextlib.suppress(OSError):
                                os.utime(entry.path)
                            return True
        except SessionError:
            if not entry.path.exists():  # another process made room
                return False
        self._note("a damaged entry of the prompt cache is ignored: the system prompt is read again")
        with contextlib.suppress(OSError):
            entry.path.unlink()
        return False

    def _tell_stale(self, entry: _Entry, identity: Identity) -> None:
        with contextlib.suppress(SessionError), open_state_file(entry.path) as file:
            then = identity_in(file)
            if then.model == identity.model and file.is_of(state_key()):
                difference = then.state.difference(identity.state)
                self._note(f"the prompt cache has this system prompt {difference}: it is read again")

    def _make_room(self, wanted: int) -> bool:
        """Deletes what was used longest ago until `wanted` bytes are within the limit; False when they cannot be."""
        assert self.folder is not None
        held: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                facts = path.lstat()
                if _NAME.fullmatch(path.name):
                    held.append((facts.st_mtime, facts.st_size, path))
                elif _UNFINISHED.fullmatch(path.name) and time.time() - facts.st_mtime > _ABANDONED_S:
                    path.unlink()
        total = sum(size for _, size, _ in held)
        limit = self._limit
        if limit is None:
            limit = min(MOST_BYTES, int((shutil.disk_usage(self.folder).free + total) * DISK_SHARE))
        if wanted > limit:
            return False
        for _, size, path in sorted(held):
            if total + wanted <= limit:
                break
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            total -= size
        return True


def _name(identity: Identity, tokens: Sequence[int]) -> str:
    return f"{identity.model.fingerprint[:16]}-{identity.state.key}-{len(tokens)}-{_digest(tokens)}.kv"


def _digest(tokens: Sequence[int]) -> str:
    return hashlib.blake2b(array("I", tokens).tobytes(), digest_size=16).hexdigest()


def _pays(tokens: int, seconds: float) -> bool:
    return tokens >= PAYS_TOKENS or seconds > PAYS_SECONDS
