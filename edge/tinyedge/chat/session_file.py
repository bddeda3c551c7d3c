"""Keeps a conversation in a file with the KV state of what the model has read of it, so that it goes on without reading again.

What is not kept: where a sampler stands in its random numbers (with the same seed they begin anew), and grammars.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge import __version__
from tinyedge.chat.state_file import StateFile, is_state_file, open_state_file, write_state_file
from tinyedge.chat.state_key import state_key
from tinyedge.errors import DiskSpaceError, OutputError, SessionError
from tinyedge.memory import free_memory_bytes, memory_needed
from tinyedge.model_identity import Identity, identity_of, model_facts_of
from tinyedge.sampling import Sampling

if TYPE_CHECKING:
    from tinyedge.engine import Engine

_READ_AGAIN = "the conversation is read again from its text"
_NO_STATE = "the session was saved as text only, to be read again when it is loaded"
_NOT_KEPT = "grammar"  # it belongs to one answer, and a stranger's is not wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSession:
    """What a session file holds. `conversation` is as `save_session` got it and still to be checked, `tokens` are in the
    vocabulary. `restored` tells whether the engine's KV cache holds them now; if not, `note` says why in one sentence, and
    they are computed when the conversation goes on.
    """

    conversation: dict[str, Any]
    tokens: tuple[int, ...]
    restored: bool
    note: str | None
    sampling: Sampling | None


def save_session(
    path: str | os.PathLike[str],
    engine: Engine,
    conversation: Mapping[str, Any],
    *,
    sampling: Sampling | None = None,
    with_state: bool = True,
) -> str | None:
    """Writes the conversation, which is anything JSON has, and the KV state of `engine` to a file that only this user may read.

    Without the state, where `with_state` is false, the file is small and soon written, and what it holds is read again when it
    is loaded. Gives a sentence when a wanted state could not be kept, which costs nothing but time. Raises SessionError when
    something else than a session is at `path`, OutputError and DiskSpaceError when it cannot be written; what was there is
    there still then.
    """
    path = Path(os.path.realpath(path))
    _check_replaceable(path)
    header: dict[str, Any] = {"tinyedge": __version__, "identity": identity_of(engine).to_json()}
    if sampling is not None:
        header["sampling"] = _sampling_json(sampling)
    key = state_key()
    note = _why_no_state(engine, key) if with_state else None
    state = engine.state() if with_state and engine.cached and note is None else None
    try:
        write_state_file(path, header=header, tokens=engine.cached, text=conversation, state=state, key=key)
    except ValueError:
        raise SessionError(f"the conversation is too long to be kept in {path}", "/clear it") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(f"there is no room on the disk for {path}", "free some space or name another file") from error
        raise OutputError(f"{path} cannot be written ({error.strerror})", "name another file") from error
    return note


def load_session(path: str | os.PathLike[str], engine: Engine) -> LoadedSession:
    """What is in the session file at `path`, its KV state put into `engine` where it fits.

    Raises SessionError when it is no session file, when its text is damaged, or when it belongs to another model, naming both.
    The engine is as it was then.
    """
    path = Path(path)
    with open_state_file(path) as file:
        then = identity_in(file)
        now = identity_of(engine)
        if then.model.fingerprint != now.model.fingerprint:
            theirs, ours = then.model.told_from(now.model)
            raise SessionError(f"{path} is a conversation with {theirs}, and the model is {ours}")
        if not isinstance(file.text, dict):
            raise SessionError(f"{path} holds no conversation")
        size = engine.model.vocabulary_size
        if not all(token < size for token in file.tokens):
            raise SessionError(f"{path} has a token outside the vocabulary of {size}")
        note = _put_into(engine, file, then, now)
        return LoadedSession(
            conversation=file.text,
            tokens=file.tokens,
            restored=note is None and bool(file.tokens),
            note=note,
            sampling=_sampling_in(file.header.get("sampling")),
        )


def _why_no_state(engine: Engine, key: bytes | None) -> str | None:
    """Why the KV state cannot be kept, in a sentence; None where it can."""
    if key is None:
        return f"there is no safe place for the key that KV states are sealed with: {_NO_STATE}"
    if not may_take_state(engine):
        return f"there is not memory enough for a copy of the KV state: {_NO_STATE}"
    return None


def _check_replaceable(path: Path) -> None:
    """Raises SessionError when something is at `path` that is neither a session nor empty, and be it /dev/null."""
    try:
        facts = path.stat()
    except OSError:
        return  # nothing there, or writing says what is wrong
    if not stat.S_ISREG(facts.st_mode) or (facts.st_size and not is_state_file(path)):
        raise SessionError(f"{path} is there already and is not a session file")


def identity_in(file: StateFile) -> Identity:
    """What the state in a file belongs to. Raises SessionError when the file does not say it."""
    try:
        return Identity.from_json(file.header.get("identity"))
    except ValueError as error:
        raise SessionError(f"{file.path} does not say what it belongs to: {error}") from None


def may_take_state(engine: Engine) -> bool:
    """Whether memory has room for a copy of the KV state of what the engine's cache holds."""
    need = memory_needed(model_facts_of(engine), len(engine.cached), kv_type=engine.plan.kv_type)
    return need.kv_bytes < free_memory_bytes() * 3 // 4


def _put_into(engine: Engine, file: StateFile, then: Identity, now: Identity) -> str | None:
    """Restores the state in the file; why not, in a sentence, when that is not possible."""
    name = file.path.name
    if not file.tokens:
        return None
    difference = then.state.difference(now.state)
    if difference:
        return f"{name} was made {difference}: {_READ_AGAIN}"
    if len(file.tokens) >= engine.plan.context:
        return f"{name} has {len(file.tokens)} tokens and the context holds {engine.plan.context}: {_READ_AGAIN}"
    if not file.state_bytes:
        return f"{name} was saved as text only: {_READ_AGAIN}"
    key = state_key()
    if not file.is_of(key):
        return f"{name} was made on another machine or by somebody else: {_READ_AGAIN}"
    with file.state(key) as state:
        if state is None:
            return f"the KV state in {name} is damaged: {_READ_AGAIN}"
        if not engine.restore(file.tokens, state):
            return f"llama.cpp does not take the KV state in {name}: {_READ_AGAIN}"
    return None


def _sampling_json(sampling: Sampling) -> dict[str, Any]:
    value = asdict(sampling)
    del value[_NOT_KEPT]
    # JSON has neither number keys nor infinity
    value["logit_bias"] = [[token, None if bias == -math.inf else bias] for token, bias in sampling.logit_bias.items()]
    return value


def _sampling_in(value: object) -> Sampling | None:
    """The sampling that `_sampling_json` wrote; None for anything else, for it is a comfort that nothing depends on."""
    if not isinstance(value, dict):
        return None
    usual = Sampling()
    kinds = {field.name: type(getattr(usual, field.name)) for field in fields(Sampling) if field.name != _NOT_KEPT}
    try:
        return Sampling(**{name: _field(kind, value[name]) for name, kind in kinds.items() if name in value})
    except (TypeError, ValueError):
        return None


def _field(kind: type[Any], value: Any) -> Any:
    """A field's value as JSON holds it. Raises TypeError or ValueError when it is of another kind."""
    if kind is dict:
        pairs: Sequence[Any] = value
        return {_field(int, token): -math.inf if bias is None else _field(float, bias) for token, bias in pairs}
    if kind is tuple:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise TypeError(f"{value!r} is no list of texts")
        return tuple(value)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return kind(value)
