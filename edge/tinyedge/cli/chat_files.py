"""What a chat keeps in files: sessions with their KV state, conversations as JSON, the state of system prompts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge.cli.output import late_progress, printable, status
from tinyedge.errors import OutputError, PromptError, SessionError, TinyEdgeError

if TYPE_CHECKING:
    from tinyedge.chat.conversation import Conversation, Template
    from tinyedge.chat.prompt_cache import Computed, PromptCache
    from tinyedge.engine import Engine
    from tinyedge.sampling import Sampling

_MAX_FILE_BYTES = 64 << 20  # of a conversation as JSON
_TEMPLATE_KEY = "template"  # of a session: a digest of the chat template's source, null without one


def opened_session(path: Path, engine: Engine, template: Template | None, *, quiet: bool = False) -> Conversation:
    """The conversation in the session file at `path`, its KV state in the engine; a new one when there is no such file.

    Raises SessionError for a file that is none or of another model, and OutputError where none could be written later.
    """
    from tinyedge.chat.conversation import Conversation

    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise OutputError(f"no session can be kept in {path.parent}", "name a file in a folder that can be written")
        return Conversation(engine, template)
    if path.is_file() and _holds_conversation(path):
        raise SessionError(f"{path} is what /save wrote and not a session file", "name another file, and /load this one")
    conversation = _session(path, engine, template)
    if not quiet:
        status(f"going on with {_turns(conversation)} of {path}")
    return conversation


def keep_session(path: Path, conversation: Conversation, sampling: Sampling, *, quiet: bool = False) -> None:
    """Writes the session file with the KV state. Raises as `save_session` does."""
    from tinyedge.chat.session_file import save_session

    note = save_session(path, conversation.engine, _session_value(conversation), sampling=sampling)
    if not quiet:
        status(f"kept {_turns(conversation)} in {path}")
    if note:
        status(printable(note, 400))


def keep_text(path: Path, conversation: Conversation, sampling: Sampling) -> str | None:
    """Writes the session file without the KV state, which a later start computes; why not, where that is not possible."""
    from tinyedge.chat.session_file import save_session

    try:
        save_session(path, conversation.engine, _session_value(conversation), sampling=sampling, with_state=False)
    except TinyEdgeError as error:
        return printable(str(error), 400)
    return None


def read_system_prompt(conversation: Conversation, cache: PromptCache) -> Computed:
    """Brings the beginning of the conversation into the KV cache, from the cache on disk where that has it.

    Gives what had to be computed. Ctrl-C leaves the rest for the first message.
    """
    try:
        with late_progress("reading the system prompt", "tokens") as bar:
            cache.load(conversation.engine, conversation.prefix(), bar)
    except KeyboardInterrupt:
        status("interrupted: the first message reads the system prompt")
    return cache.computed


def save_conversation(path: Path, conversation: Conversation) -> None:
    """Writes the conversation as JSON, over nothing but another conversation. Raises OutputError."""
    from tinyedge.cache import write_atomically

    if path.exists() and not _holds_conversation(path):
        raise OutputError(f"{path} is there and is no conversation that was saved", "choose another name")
    try:
        write_atomically(path, json.dumps(conversation.to_json(), ensure_ascii=False, indent=1).encode() + b"\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise OutputError(f"{path} cannot be written ({reason})", "choose another name") from error
    status(f"saved {_turns(conversation)} to {path}")


def loaded_conversation(path: Path, engine: Engine, template: Template | None) -> Conversation:
    """The conversation in a file that `save_conversation` or `keep_session` wrote. Raises SessionError."""
    from tinyedge.chat.conversation import Conversation
    from tinyedge.chat.state_file import is_state_file

    remedy = "name a file that /save wrote, or a session"
    if not path.is_file():
        raise SessionError(f"{path} is no file", remedy)
    if is_state_file(path):
        conversation = _session(path, engine, template)
    else:
        try:
            conversation = Conversation.from_json(engine, template, _json(path))
        except SessionError as error:
            raise SessionError(f"{path} cannot be used: {error.problem}", remedy) from error
    status(f"loaded {_turns(conversation)} from {path}")
    return conversation


def named_file(name: str, command: str) -> Path:
    """The path behind a command. Raises PromptError when there is none."""
    if not name or "\0" in name:
        raise PromptError(f"{command} needs the name of a file", f"as in {command} talk.json")
    return Path(os.path.expanduser(name))  # noqa: PTH111  (Path's raises for ~name of nobody)


def prompt_cache(wanted: bool) -> PromptCache | None:
    """The cache of system prompts, which says on stderr what it must do without."""
    if not wanted:
        return None
    from tinyedge.chat.prompt_cache import PromptCache

    note: Callable[[str], None] = lambda text: status(printable(text, 400))  # noqa: E731
    return PromptCache(on_note=note)


def _session(path: Path, engine: Engine, template: Template | None) -> Conversation:
    from tinyedge.chat.conversation import Conversation
    from tinyedge.chat.session_file import load_session

    loaded = load_session(path, engine)
    try:
        conversation = Conversation.from_json(engine, template, loaded.conversation)
    except SessionError as error:
        raise SessionError(f"{path} cannot be used: {error.problem}") from error
    if loaded.note:
        status(printable(loaded.note, 400))
    if loaded.conversation.get(_TEMPLATE_KEY, _template_digest(template)) != _template_digest(template):
        status(f"the chat in {path} was held with another chat template: it is read again with the one of now")
    return conversation


def _session_value(conversation: Conversation) -> dict[str, Any]:
    return {**conversation.to_json(), _TEMPLATE_KEY: _template_digest(conversation.template)}


def _template_digest(template: Template | None) -> str | None:
    from tinyedge.chat.chat_template import ChatTemplate

    if not isinstance(template, ChatTemplate):
        return None
    return hashlib.blake2b(template.source.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _json(path: Path) -> object:
    """The JSON value in the file. Raises SessionError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
        if len(raw) > _MAX_FILE_BYTES:
            raise SessionError(f"it has more than {_MAX_FILE_BYTES >> 20} MiB")
        value: object = json.loads(raw.decode("utf-8"))
    except OSError as error:
        raise SessionError(f"it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise SessionError("it is not JSON") from error
    return value


def _holds_conversation(path: Path) -> bool:
    try:
        value = _json(path) if path.is_file() else None
    except SessionError:
        return False
    return isinstance(value, dict) and {"messages", "forgotten"} <= value.keys()


def _turns(conversation: Conversation) -> str:
    number = len(conversation.turns)
    return f"{number} turn" + ("s" if number != 1 else "")
