"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyedge.cli.chat_files import loaded_conversation, named_file, save_conversation
from tinyedge.cli.dialogue import Dialogue
from tinyedge.cli.output import printable, status
from tinyedge.errors import PromptError


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the table below. `run` gets the dialogue and what stands behind the command's name."""

    argument: str
    help: str
    run: Callable[[Dialogue, str], None]


class UnknownCommandError(PromptError):
    """A line that begins with a slash and is none of the commands."""


def run_command(dialogue: Dialogue, line: str) -> None:
    """Does what `line`, which begins with a slash, says. Raises EOFError for /quit, TinyEdgeError where it cannot be done."""
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(name.strip())
    if command is None:
        raise UnknownCommandError(*_unknown(name.strip()))
    command.run(dialogue, argument.strip())


def _unknown(name: str) -> tuple[str, str]:
    import difflib

    nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
    shown = printable(name, 40)
    return f"there is no command /{shown}", f"the nearest is /{nearest[0] if nearest else 'help'}; // begins a message with /"


def _help(_: Dialogue, _argument: str) -> None:
    rows = [(f"/{name} {command.argument}".rstrip(), command.help) for name, command in COMMANDS.items()]
    width = max(len(left) for left, _ in rows)
    for left, right in rows:
        status(f"{left:<{width}}  {right}")
    status('A line that ends with \\ goes on in the next; """ begins and ends a block of lines; // begins a message with /.')
    status("Ctrl-C stops an answer, Ctrl-D leaves.")


def _regen(dialogue: Dialogue, _: str) -> None:
    dialogue.regenerate()


def _clear(dialogue: Dialogue, _: str) -> None:
    dialogue.conversation.clear()
    status("all but the system prompt is forgotten" if dialogue.conversation.system else "all is forgotten")


def _system(dialogue: Dialogue, text: str) -> None:
    conversation = dialogue.conversation
    if not text:
        status("there is no system prompt" if conversation.system is None else f"system: {conversation.system}")
        return
    conversation.set_system(None if text == "-" else text)
    dialogue.read_system_prompt()
    status("the system prompt is removed" if text == "-" else "the system prompt is set")


def _save(dialogue: Dialogue, name: str) -> None:
    save_conversation(named_file(name, "/save"), dialogue.conversation)


def _load(dialogue: Dialogue, name: str) -> None:
    old = dialogue.conversation
    dialogue.conversation = loaded_conversation(named_file(name, "/load"), old.engine, old.template)


def _stats(dialogue: Dialogue, _: str) -> None:
    for line in dialogue.statistics():
        status(line)


def _lora(dialogue: Dialogue, argument: str) -> None:
    engine = dialogue.conversation.engine
    scales = list(engine.adapter_scales)
    if not scales:
        raise PromptError("there is no adapter", "start the chat with --lora FILE")
    if argument:
        which, _, scale = argument.partition(" ")
        try:
            scales[_adapter(dialogue, which)] = _scale(scale)
        except ValueError:
            raise PromptError(
                f"/lora takes the number of an adapter, 1 to {len(scales)}, and a scale, 0 for off", "as in /lora 1 0.5"
            ) from None
        engine.set_adapter_scales(scales)
    for number, (path, value) in enumerate(zip(dialogue.adapters, engine.adapter_scales, strict=True), 1):
        status(f"{number}  {printable(path.name, 100)}  {f'scale {value:g}' if value else 'off'}")


def _adapter(dialogue: Dialogue, number: str) -> int:
    index = int(number) - 1
    if not 0 <= index < len(dialogue.adapters):
        raise ValueError
    return index


def _scale(text: str) -> float:
    value = float(text)
    if not abs(value) <= 1000:
        raise ValueError
    return value


def _quit(_: Dialogue, _argument: str) -> None:
    raise EOFError


COMMANDS = {
    "help": Command("", "show this", _help),
    "regen": Command("", "answer the last message again, otherwise", _regen),
    "clear": Command("", "forget the conversation, but not the system prompt", _clear),
    "save": Command("FILE", "write the conversation to a file", _save),
    "load": Command("FILE", "go on with a conversation that was saved", _load),
    "system": Command("[TEXT|-]", "show the system prompt, set another, or remove it (/system -)", _system),
    "stats": Command("", "show speed, memory and how full the context is", _stats),
    "lora": Command("[NUMBER SCALE]", "show the adapters, or change the scale of one", _lora),
    "quit": Command("", "leave", _quit),
}
