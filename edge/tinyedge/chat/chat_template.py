"""Writes a conversation the way a model was trained to read it: by the chat template in its GGUF file.

The template is a jinja2 program. What it writes is the same text as transformers' `apply_chat_template` gives for it, but it
runs in a process with limits (`template_process`); how the text becomes tokens is the matter of `chat_tokens`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType

from tinyedge.chat import chat_tokens
from tinyedge.chat.chat_tokens import Template
from tinyedge.chat.special_tokens import Vocabulary
from tinyedge.chat.template_process import Limits, TemplateProcess, TemplateRefusal
from tinyedge.errors import PromptError, TemplateError
from tinyedge.gguf_file import GGUFFile
from tinyedge.gguf_values import GGUFArray

ROLES = ("system", "user", "assistant", "tool")
_CODE = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_QUOTED = re.compile(r"""'([^'\\]*(?:\\.[^'\\]*)*)'|"([^"\\]*(?:\\.[^"\\]*)*)\"""", re.DOTALL)
_KEY = "tokenizer.chat_template"
_MAX_SOURCE_BYTES = 1 << 20  # the longest published ones have some 50 kB
# What a template may call the vocabulary's own tokens, their key in the header, and the ids that llama-vocab.cpp takes for a
# SentencePiece and a byte-level vocabulary that names none.
_NAMED_TOKENS: tuple[tuple[str, str, dict[str, int]], ...] = (
    ("bos_token", "tokenizer.ggml.bos_token_id", {"llama": 1, "gpt2": 11}),
    ("eos_token", "tokenizer.ggml.eos_token_id", {"llama": 2, "gpt2": 11}),
    ("unk_token", "tokenizer.ggml.unknown_token_id", {"llama": 0}),
    ("pad_token", "tokenizer.ggml.padding_token_id", {}),
)
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # LLAMA_TOKEN_TYPE_


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `tokens` are those the model generated for an answer, without the token that ended it. They stand for `content` in the
    prompt that comes next, so that a KV cache which holds them stays valid; where they do not spell `content`, or the template
    changes it, the text counts. Raises ValueError for a role that is not one of ROLES.
    """

    role: str
    content: str
    tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"the role of a message must be one of {', '.join(ROLES)}, not {self.role!r}")


class ChatTemplate:
    """A template, the words it needs from a vocabulary, and the process that renders it. Close it with `with` or `close`.

    `variables` are texts the template may ask for by name (`bos_token`); `marks` are the special tokens of the vocabulary, id
    by text, that the template writes out. `origin` says in error messages whose template it is.
    """

    def __init__(
        self,
        source: str,
        *,
        variables: Mapping[str, str] | None = None,
        marks: Mapping[str, int] | None = None,
        origin: str = "",
        limits: Limits | None = None,
    ) -> None:
        self.source = source
        self.variables = MappingProxyType(dict(variables or {}))
        self.marks = MappingProxyType(dict(marks or {}))
        self._subject = "the chat template" + (f" of {origin}" if origin else "")
        if len(source.encode("utf-8", "surrogatepass")) > _MAX_SOURCE_BYTES:
            raise TemplateError(f"{self._subject} has more than {_MAX_SOURCE_BYTES >> 20} MiB")
        self._process = TemplateProcess(source, dict(self.variables), limits or Limits())

    @classmethod
    def of_model(cls, gguf: GGUFFile) -> ChatTemplate | None:
        """The template that the file has, or None when it has none. Raises TemplateError when that is not a text."""
        source = gguf.metadata.get(_KEY)
        if source is None or source == "":
            return None
        if not isinstance(source, str):
            raise TemplateError(f"{gguf.path} has {_KEY} of type {gguf.value_types[_KEY]}; str was expected")
        return cls(source, variables=_variables(gguf), marks=_marks(gguf, source), origin=str(gguf.path.name))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], gguf: GGUFFile) -> ChatTemplate:
        """The jinja2 template in the file at `path`, for the vocabulary of `gguf`. Raises TemplateError."""
        try:
            with Path(path).open("rb") as file:
                raw = file.read(_MAX_SOURCE_BYTES + 1)
            source = raw.decode("utf-8")
        except OSError as error:
            raise TemplateError(f"the template {os.fspath(path)} cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise TemplateError(f"the template {os.fspath(path)} is not UTF-8") from error
        return cls(source, variables=_variables(gguf), marks=_marks(gguf, source), origin=os.fspath(path))

    def start(self) -> None:
        """Starts the process that renders, so that it is ready when it is asked: call it before loading a model."""
        self._process.start()

    def close(self) -> None:
        """Ends that process. Closing twice is harmless."""
        self._process.close()

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of the conversation, up to where the model is to answer when `add_generation_prompt`.

        A template without a place for the system text (`takes_system`) gets it before the first message of the user, an empty
        line between. Raises TemplateError: what the template itself complains of, or what is wrong with it.
        """
        return self._rendered(self._placed(messages), add_generation_prompt)

    def tokens(self, model: Vocabulary, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """The tokens of that text. Special ones are only where the template put them, whatever the messages hold.

        BOS comes first when the model wants it or the template writes it, once. Raises TemplateError.
        """
        template = Template(
            render=lambda turns: self._rendered(turns, add_generation_prompt),
            quoted=self._quoted,
            marks=frozenset(self.marks.values()),
        )
        return chat_tokens.tokens(model, template, self._placed(messages))

    @cached_property
    def _quoted(self) -> frozenset[str]:
        """The words in quotation marks in the source: among them are those that it looks for in a message."""
        found = ("".join(groups) for code in _CODE.findall(self.source) for groups in _QUOTED.findall(code))
        return frozenset(words for words in found if len(words) > 1)

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template has a place for a system text: some refuse one (Gemma), some leave it out."""
        probe = "f3a9c1"
        try:
            return probe in self._rendered([Message("system", probe), Message("user", "x")], True)
        except TemplateRefusal:
            return False

    def _placed(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as this template takes them. Raises PromptError for one that is not text."""
        for message in messages:
            if not _encodable(message.content):
                raise PromptError(f"the message of the {message.role} is not UTF-8", "remove the bytes that are not text")
        if len(messages) == 0 or messages[0].role != "system" or self.takes_system:
            return list(messages)
        system, *others = messages
        if not others or others[0].role != "user":
            return [Message("user", system.content), *others]
        return [replace(others[0], content=f"{system.content}\n\n{others[0].content}"), *others[1:]]

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._process.render(turns, add_generation_prompt)
        except TemplateError as error:
            raise type(error)(f"{self._subject} {error.problem}") from None
        if not _encodable(text):
            raise TemplateError(f"{self._subject} writes half of a character (a lone surrogate)")
        return text


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _variables(gguf: GGUFFile) -> dict[str, str]:
    texts = gguf.metadata.get("tokenizer.ggml.tokens")
    kind = gguf.metadata.get("tokenizer.ggml.model")
    found: dict[str, str] = {}
    if isinstance(texts, GGUFArray) and texts.element_type == "str":
        for name, key, defaults in _NAMED_TOKENS:
            token = gguf.metadata.get(key, defaults.get(str(kind)))
            if isinstance(token, int) and 0 <= token < len(texts):
                found[name] = texts.raw_strings[token].decode("utf-8", "replace")
    return found


def _marks(gguf: GGUFFile, source: str) -> dict[str, int]:
    """The special tokens besides control tokens, which the model itself knows: ids by text.

    A user-defined token is one of them when the template's source writes it out (`<think>`, `<tool_call>`). Others of that kind
    are pieces of text like any other: Gemma's `<table>` and its runs of line ends.
    """
    texts, types = gguf.metadata.get("tokenizer.ggml.tokens"), gguf.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(texts, GGUFArray) or not isinstance(types, GGUFArray) or texts.element_type != "str":
        return {}
    marks: dict[str, int] = {}
    for token, kind in enumerate(types.values[: len(texts)]):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            text = texts.raw_strings[token].decode("utf-8", "replace")
            if kind == _UNKNOWN or (text.strip() and text in source):
                marks[text] = token
    return marks
