"""What stands for a chat template where a model has none: the text as it runs on, without roles and marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinyedge.chat.chat_template import Message
    from tinyedge.native.model import Model


class PlainText:
    """The running text: every message of the user on a line of its own, every answer right behind what it answers.

    A message has the same tokens wherever it stands, so that turns can be taken out of the middle.
    """

    def tokens(self, model: Model, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """BOS where the model wants one, then the messages; an answer is meant to continue the last, so nothing ends it."""
        del add_generation_prompt
        tokens = [] if model.bos is None else [model.bos]
        line_end = _line_end(model)
        for message, following in zip(messages, [*messages[1:], None], strict=True):
            tokens += _piece(model, message)
            if following is not None and following.role != "assistant":
                tokens += line_end
        return tokens


def spelled(model: Model, tokens: Sequence[int]) -> str:
    """The text of tokens, broken characters as U+FFFD."""
    return b"".join(map(model.piece, tokens)).decode("utf-8", "replace")


def _piece(model: Model, message: Message) -> Sequence[int]:
    if message.tokens is not None:
        return message.tokens
    return model.tokenize(message.content, add_special=False, parse_special=False) if message.content else ()


def _line_end(model: Model) -> list[int]:
    """The tokens of a line end, without the space that SentencePiece puts before a text."""
    tokens = model.tokenize("\n", add_special=False, parse_special=False)
    return tokens[1:] if spelled(model, tokens[1:]) == "\n" else tokens
