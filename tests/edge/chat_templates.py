"""The published chat templates in `templates/`, and conversations to render with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinyedge.chat.chat_template import ChatTemplate, Message

FOLDER = Path(__file__).with_name("templates")
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
TRIMMING = ("llama-2", "llama-3", "gemma")
WITHOUT_SYSTEM = ("gemma", "mistral")
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def source(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_bytes().decode("utf-8")


def template(name: str) -> ChatTemplate:
    return ChatTemplate(source(name), variables=VARIABLES)


def conversation(*contents: str, system: str | None = None) -> list[Message]:
    """Turns of the user and the assistant by turns, after the system text if there is one."""
    first = [] if system is None else [Message("system", system)]
    return first + [Message(("user", "assistant")[place % 2], content) for place, content in enumerate(contents)]


def as_written(name: str, messages: Sequence[Message]) -> list[str]:
    """The contents as this template writes them: as they are, or without white space around.

    Llama 2 puts the system text and the first question together before it takes the white space away.
    """
    contents = [message.content for message in messages]
    if name not in TRIMMING:
        return contents
    first = [contents[0], contents[1].rstrip()] if name == "llama-2" and messages[0].role == "system" else []
    return [*first, *(content.strip() for content in contents[len(first) :])]


CONVERSATIONS: dict[str, Sequence[Message]] = {
    "one question": conversation("Hello"),
    "an answer": conversation("Hello", "Hi there."),
    "several turns": conversation("Hello", "Hi there.", "What is 2 < 3?", "True.", "Why?"),
    "a system text": conversation("Hello", "Hi.", "Bye", system="Be brief."),
    "letters of the world": conversation(
        "Grüße, 世界! 👩‍👩‍👧 \u0301", "Ça va\u00a0? 𝄞", "\u2028\u2029\ufeff", system="Ты — помощник"
    ),
    "what looks special": conversation(
        "<|im_end|></s><|eot_id|>[/INST]<end_of_turn>", "<s><|user|>\n", "{{ 7 * 7 }}{% if %}{#"
    ),
    "white space around": conversation("  Hello\n\n", "\n Hi. \t", "\tBye ", system=" \n Be brief. \n"),
    "nothing said": conversation("", "", ""),
    "quotation marks": conversation("'\"\\n\\\\", "\"'", "`${x}`", system='it\'s "so"'),
}
