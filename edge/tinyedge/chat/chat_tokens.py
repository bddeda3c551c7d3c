"""Turns a rendered conversation into tokens of which only those that the template wrote are special.

llama.cpp finds special tokens in a text by their spelling. When a user, a system text or an earlier answer holds `<|im_end|>`,
it finds that too, and the text would end its own turn. So the conversation is rendered a second time with such characters of
the messages masked: what is still special then was written by the template, and everything else is tokenized as text.

Answers whose tokens are known take their place as they are. Written as text and tokenized again, an answer may fall into
other tokens than those the model generated (`▁the` `re` for `▁there`), and the KV cache would have to be computed anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from tinyedge.chat.special_tokens import SpecialTokens, Vocabulary
from tinyedge.errors import TemplateError

if TYPE_CHECKING:
    from tinyedge.chat.chat_template import Message

_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # characters that mean nothing, in no vocabulary


@dataclass(frozen=True, slots=True)
class Template:
    """How to render, the words that the template's source has in quotation marks, and the tokens it holds as special.

    `marks` are special tokens besides the control tokens.
    """

    render: Callable[[Sequence[Message]], str]
    quoted: frozenset[str]
    marks: frozenset[int]


def tokens(model: Vocabulary, template: Template, messages: Sequence[Message]) -> list[int]:
    """The tokens of the rendered messages, BOS first where the model wants it.

    Raises TemplateError when the special tokens of the template cannot be told from the text of the messages.
    """
    special = SpecialTokens(model, template.marks)
    text = template.render(messages)
    found = special.tokenize(text)
    spellings = special.spellings(found + special.tokenize("\n".join(message.content for message in messages)))
    suspicious = any(_shared_characters(message.content, spellings) for message in messages)
    places = ((place, _answer(model, message)) for place, message in enumerate(messages))
    answers = {place: answer for place, answer in places if answer is not None}
    if suspicious or answers:
        masking = _Masking(text, messages)
        if suspicious:
            messages, text = _masked(special, masking, spellings, template, messages, text)
        found = _joined(special, masking, _answers_in_place(masking, template, messages, text, answers))
    return found if model.bos is None or found[:1] == [model.bos] else [model.bos, *found]


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer as the message has it, and the tokens that the model generated for it, with the text they spell.

    `spellings` are all of the tokens, and those without the last ones when these are nothing but white space.
    """

    content: str
    spellings: tuple[tuple[str, tuple[int, ...]], ...]

    def spelling(self, content: str, before: str) -> tuple[str, tuple[int, ...]] | None:
        """The tokens that spell `content`, and the white space that they begin with; both stand behind the text `before`.

        Of `[/INST] Yes` a template writes the space and the model has generated it: then it is the answer's.
        """
        for text, tokens in self.spellings:
            space = text[: -len(content)]
            if text.endswith(content) and not space.strip() and before.endswith(space):
                return space, tokens
        return None


def _answer(model: Vocabulary, message: Message) -> _Answer | None:
    """The answer of a message whose generated tokens are known, spell its content, and hold no control token."""
    ids, content = message.tokens, message.content
    if message.role != "assistant" or not ids or not 0 <= min(ids) <= max(ids) < model.vocabulary_size:
        return None
    if any(map(model.is_control, set(ids))):
        return None
    pieces = list(map(model.piece, ids))
    length = len(pieces)
    while length and pieces[length - 1].isspace():
        length -= 1
    spellings = tuple(
        (b"".join(pieces[:end]).decode("utf-8", "replace"), ids[:end]) for end in dict.fromkeys((len(ids), length))
    )
    return _Answer(content, spellings) if spellings[0][0].strip() == content.strip() != "" else None


class _Masking:
    """Characters that stand for others while a template is rendered, and for whole answers."""

    def __init__(self, text: str, messages: Sequence[Message]) -> None:
        used = set(text).union(*(message.content for message in messages))
        self._free = (chr(code) for code in chain(*_PRIVATE_USE) if chr(code) not in used)
        self._masks: dict[str, str] = {}
        self._places: dict[str, int] = {}

    def _mask(self, character: str) -> str:
        if character not in self._masks:
            self._masks[character] = self._next()
        return self._masks[character]

    def _next(self) -> str:
        mask = next(self._free, "")
        if not mask:
            raise TemplateError("the messages use every private character of Unicode")
        return mask

    def masked(self, message: Message, special: Iterable[str], kept: Sequence[str] = ()) -> Message:
        """The message without characters that may belong to a special text, except in the words `kept`."""
        content = message.content
        characters = _shared_characters(content, special)
        table = str.maketrans({character: self._mask(character) for character in characters})
        longest_first = sorted(kept, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", content) if kept else [content]
        return replace(
            message, content="".join(part if index % 2 else part.translate(table) for index, part in enumerate(parts))
        )

    def hidden(self, message: Message, mark: str) -> Message:
        """The message with this special text masked wherever it has it, and nothing else."""
        return replace(message, content=message.content.replace(mark, self._mask(mark[0]) + mark[1:]))

    def unmasked(self, text: str) -> str:
        return text.translate({ord(mask): character for character, mask in self._masks.items()})

    def mark_of(self, place: int) -> str:
        """The character that stands for the answer at this place of the conversation."""
        mark = next((mark for mark, marked in self._places.items() if marked == place), "") or self._next()
        self._places[mark] = place
        return mark

    def split(self, text: str) -> tuple[list[str], list[int]]:
        """The stretches of `text` between the marks of answers, and the places of those answers."""
        parts = re.split(f"([{''.join(self._places)}])", text)
        return parts[::2], [self._places[mark] for mark in parts[1::2]]


def _shared_characters(content: str, special: Iterable[str]) -> set[str]:
    """The characters of a message without which no special text can begin in it, end in it, or hold the whole of it."""
    edges = {text[end] for text in special for end in (0, -1) if text}
    shared = edges.intersection(content)
    stripped = content.strip()
    if stripped and any(stripped in text for text in special):
        shared.update(stripped)
    return {character for character in shared if not character.isspace()}


def _masked(
    special: SpecialTokens,
    masking: _Masking,
    spellings: Mapping[str, int],
    template: Template,
    messages: Sequence[Message],
    text: str,
) -> tuple[Sequence[Message], str]:
    """The messages with masks, and their rendering, which without the masks is `text` unless the template minds them.

    When it does mind, what its source has in quotation marks stays readable in the messages, and in answers those special
    tokens too that a model writes and this template looks for (`</think>`). These count as written by the template.
    """

    masked = [masking.masked(message, spellings) for message in messages]
    masked_text = template.render(masked)
    if masking.unmasked(masked_text) == text:
        return masked, masked_text
    quoted = [words for words in template.quoted if _holds_no_beginning(words, spellings)]
    read = [
        mark
        for mark, token in spellings.items()
        if mark in template.quoted and special.is_text_too(token) and _reads(template, masking, mark, messages, text)
    ]
    masked = [
        masking.masked(message, spellings, quoted + read if message.role == "assistant" else quoted) for message in messages
    ]
    return masked, template.render(masked)


def _reads(template: Template, masking: _Masking, mark: str, messages: Sequence[Message], text: str) -> bool:
    """Whether the rendering is another when the answers have this special text masked."""
    hidden = [masking.hidden(message, mark) if message.role == "assistant" else message for message in messages]
    return masking.unmasked(template.render(hidden)) != text


def _holds_no_beginning(words: str, spellings: Iterable[str]) -> bool:
    """Whether no special text can begin in `words`."""
    return not any(text in words or any(words.endswith(text[:end]) for end in range(1, len(text))) for text in spellings)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A part of the rendering, and the generated tokens of the answer that follows it."""

    text: str
    answer: tuple[int, ...] = ()


def _answers_in_place(
    masking: _Masking, template: Template, messages: Sequence[Message], text: str, answers: Mapping[int, _Answer]
) -> list[_Stretch]:
    """`text`, the rendering of `messages`, with the text of answers replaced by their tokens.

    An answer that the template changes by more than the white space around it stays text.
    """
    while answers:
        marked = [
            replace(message, content=masking.mark_of(place)) if place in answers else message
            for place, message in enumerate(messages)
        ]
        between, places = masking.split(template.render(marked))
        misfits = {place for place in answers if places.count(place) != 1}
        if not misfits:
            stretches, misfits = _aligned(masking, text, between, [(place, answers[place]) for place in places])
            if not misfits:
                return stretches
        answers = {place: answer for place, answer in answers.items() if place not in misfits}
    return [_Stretch(text)]


def _aligned(
    masking: _Masking, text: str, between: Sequence[str], answers: Sequence[tuple[int, _Answer]]
) -> tuple[list[_Stretch], set[int]]:
    """The stretches of `text`, when it is `between` with the answers in the gaps, and the places of those that do not fit."""
    plain, between = masking.unmasked(text), [masking.unmasked(part) for part in between]
    if not plain.startswith(between[0]):
        return [], {answers[0][0]}
    stretches: list[_Stretch] = []
    misfits: set[int] = set()
    begun, position = 0, len(between[0])
    for (place, answer), following in zip(answers, between[1:], strict=True):
        contents = (answer.content, answer.content.strip())
        content = next((content for content in contents if plain.startswith(content + following, position)), None)
        spelling = answer.spelling(content, plain[begun:position]) if content is not None else None
        if content is not None and spelling is not None:
            space, tokens = spelling
            stretches.append(_Stretch(text[begun : position - len(space)], tokens))
            begun = position + len(content)
            position = begun + len(following)
            continue
        misfits.add(place)
        begun = plain.find(following, position)
        if begun < 0:
            return [], misfits
        position = begun + len(following)
    if position != len(plain) and not misfits:
        return [], {answers[-1][0]}
    return [*stretches, _Stretch(text[begun:])], misfits


def _joined(special: SpecialTokens, masking: _Masking, stretches: Sequence[_Stretch]) -> list[int]:
    """The tokens of the stretches and of the answers between them."""
    found: list[int] = []
    for index, stretch in enumerate(stretches):
        found += _stretch_tokens(special, masking, stretch.text, after_text=index > 0)
        found += stretch.answer
    return found


def _stretch_tokens(special: SpecialTokens, masking: _Masking, masked: str, *, after_text: bool) -> list[int]:
    """The tokens of a stretch without its masks. Raises TemplateError unless the special ones are those of the masked one."""
    text = masking.unmasked(masked)
    by_template = special.tokenize(masked, after_text=after_text)
    if text == masked:
        return by_template
    found = special.tokenize(text, after_text=after_text)
    if special.of(found) == special.of(by_template):
        return found
    found = []
    for index, part in enumerate(special.split(masked, special.spellings(by_template))):
        if isinstance(part, int):
            found.append(part)
        else:
            found += special.as_text(masking.unmasked(part), after_text=after_text and index == 0)
    if special.of(found) != special.of(by_template):
        raise TemplateError("the special tokens of the chat template cannot be told from the text of the messages")
    return found
