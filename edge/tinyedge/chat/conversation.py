"""A conversation with a model: turns in, answers out, nothing computed twice, and the oldest turns go when it grows too long.

What the model sees is always the rendering of messages by a template; the engine keeps the KV state of what it has seen, and
answers go back into the next prompt as the very tokens that the model gave, so the state of all that went before stays good.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from tinyedge.chat.chat_template import Message
from tinyedge.chat.plain_text import PlainText, spelled
from tinyedge.chat.sliding import Window
from tinyedge.errors import PromptError, SessionError
from tinyedge.generation import Chunk
from tinyedge.tokens import common_length

if TYPE_CHECKING:
    from tinyedge.engine import Engine, Progress
    from tinyedge.native.model import Model
    from tinyedge.sampling import Sampling
    from tinyedge.speculation import Drafter


class Template(Protocol):
    """What turns messages into the tokens of a prompt: a ChatTemplate, or PlainText where a model has none."""

    def tokens(self, model: Model, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user said and what the model answered."""

    user: Message
    answer: Message


@dataclass(slots=True)
class Conversation:
    """The turns so far and the engine that answers the next. Not for two threads at once.

    Without a template the model continues the running text. `forgotten` is how many of the first turns are no longer in the
    prompt because the context is full; `slides` how often the KV cache was moved for that, `recomputed` how often that was
    not possible and what was left had to be read again. An answer that was stopped counts as far as it came; a message that
    failed, or was stopped before the answer began, is as if it had not been said.

    >>> conversation = Conversation(engine, engine.template, "You answer in rhymes.")
    >>> for chunk in conversation.ask("Who are you?"):
    ...     print(chunk.text, end="")
    """

    engine: Engine
    template: Template | None = None
    system: str | None = None
    turns: tuple[Turn, ...] = ()
    forgotten: int = 0
    slides: int = 0
    recomputed: int = 0
    _plain: PlainText = field(default_factory=PlainText)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Everything that was said, the system prompt first, the forgotten turns too."""
        return (*self._head(), *_flat(self.turns))

    def ask(
        self,
        text: str,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        *,
        stop: Sequence[str] = (),
        logprobs: int = 0,
        drafter: Drafter | None = None,
        progress: Progress | None = None,
    ) -> Generator[Chunk, None, None]:
        """Yields the answer to `text`; see `Engine.stream`. Closing the iterator keeps what has come as the answer.

        Raises PromptError for a message that does not fit the context with the system prompt alone, saying by how much, and
        TemplateError where the template refuses.
        """
        options = _Options(sampling, max_tokens, tuple(stop), logprobs, drafter, progress)
        yield from self._answer(self.turns, Message("user", text), options)

    def regenerate(
        self,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        *,
        stop: Sequence[str] = (),
        logprobs: int = 0,
        drafter: Drafter | None = None,
        progress: Progress | None = None,
    ) -> Generator[Chunk, None, None]:
        """Yields another answer to the last message, which takes the place of the one it had; give another seed."""
        if not self.turns:
            raise PromptError("there is no answer yet to give anew", "ask something first")
        options = _Options(sampling, max_tokens, tuple(stop), logprobs, drafter, progress)
        yield from self._answer(self.turns[:-1], self.turns[-1].user, options)

    def clear(self) -> None:
        """Takes back all that was said but the system prompt."""
        self.turns, self.forgotten = (), 0

    def set_system(self, text: str | None) -> None:
        """Puts another system prompt, or none, before the turns; all of it is read anew with the next message.

        Raises TemplateError where the template has no place for one, PromptError where it leaves no room for a message. Then
        nothing is changed.
        """
        before, self.system = self.system, text or None
        try:
            self._check_size("the system prompt", text or "")
            self._check_fits(self._render((), Message("user", "")), "the system prompt", "")
        except BaseException:
            self.system = before
            raise

    def prefix(self) -> list[int]:
        """The tokens with which every prompt of this conversation begins, whatever is asked: those of the system prompt."""
        one, other = (self._render((), Message("user", text)) for text in ("a", "Z"))
        return one[: common_length(one, other)]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes: messages with role, content and, for answers, the tokens that the model gave."""
        return {
            "messages": [
                {"role": each.role, "content": each.content} | ({} if each.tokens is None else {"tokens": list(each.tokens)})
                for each in self.messages
            ],
            "forgotten": self.forgotten,
        }

    @classmethod
    def from_json(cls, engine: Engine, template: Template | None, value: object) -> Conversation:
        """The conversation in `value`. Raises SessionError, saying what is wrong, when there is none in it.

        The tokens of an answer count only if they are this model's for this text; otherwise it is tokenized anew.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("messages"), list):
            raise SessionError("there is no conversation in it: no list of messages")
        messages = [_message(engine.model, number, each) for number, each in enumerate(value["messages"], 1)]
        system = messages.pop(0).content if messages and messages[0].role == "system" else None
        roles = [each.role for each in messages]
        if roles != ["user", "assistant"] * (len(messages) // 2):
            raise SessionError("its messages are not a system prompt and then user and assistant by turns")
        turns = tuple(Turn(user, answer) for user, answer in zip(messages[::2], messages[1::2], strict=True))
        forgotten = value.get("forgotten", 0)
        if type(forgotten) is not int or not 0 <= forgotten <= len(turns):
            raise SessionError(f"it has {len(turns)} turns and does not say right how many of them are forgotten")
        return cls(engine, template, system or None, turns, forgotten)

    def _head(self) -> tuple[Message, ...]:
        return () if self.system is None else (Message("system", self.system),)

    def _render(self, turns: Sequence[Turn], user: Message) -> list[int]:
        template = self.template or self._plain
        return template.tokens(self.engine.model, [*self._head(), *_flat(turns), user], add_generation_prompt=True)

    def _answer(self, turns: tuple[Turn, ...], user: Message, options: _Options) -> Generator[Chunk, None, None]:
        """Yields the answer to `user` after `turns`, and makes both the last turn as soon as the answer has begun."""
        self._check_size("the message", user.content)
        window = Window(
            self.engine,
            lambda forgotten: self._render(turns[forgotten:], user),
            len(turns),
            forgotten=self.forgotten,
            can_restart=options.sampling is None or options.sampling.grammar is None,
        )
        if not window.fits:
            self._check_fits(window.shortest, "the message", " with the system prompt" if self.system else "")
            window.slide()
        content: list[str] = []
        tokens: list[int] = []
        ended = False
        try:
            while not ended:
                ended = yield from self._continue(window, content, tokens, options)
        finally:
            self.slides += window.slides
            self.recomputed += window.recomputed
            if ended or tokens:
                answer = _answer_message(self.engine.model, "".join(content), tokens)
                self.turns, self.forgotten = (*turns, Turn(user, answer)), window.forgotten

    def _continue(
        self, window: Window, content: list[str], tokens: list[int], options: _Options
    ) -> Generator[Chunk, None, bool]:
        """Streams on after the answer so far, adding to `content` and `tokens`; whether it is whole."""
        before, taken, whole = len(tokens), 0, True
        sampling = options.sampling
        if before and sampling is not None:  # the sampler begins anew, and must not draw the same numbers again
            sampling = replace(sampling, seed=(sampling.seed + before) % 0xFFFFFFFF)
        stream = self.engine.stream(
            [*window.prompt, *tokens],
            sampling,
            None if options.max_tokens is None else options.max_tokens - before,
            stop=options.stop,
            logprobs=options.logprobs,
            drafter=options.drafter,
            reuse=True,
            make_room=window.make_room,
            progress=options.progress,
        )
        try:
            with closing(stream):
                for chunk in stream:
                    speed = chunk.speed
                    if speed is not None and speed.stop_reason == "context" and window.restart(before + speed.generated_tokens):
                        whole = False
                        if chunk.text == "\ufffd":  # half of a character, which comes again, whole
                            break
                        chunk = replace(chunk, speed=None)
                    elif speed is not None:
                        chunk = replace(chunk, speed=replace(speed, generated_tokens=before + speed.generated_tokens))
                    taken += chunk.tokens
                    content.append(chunk.text)
                    yield chunk
        finally:
            tokens += self.engine.generated[:taken]
        return whole

    def _check_size(self, what: str, text: str) -> None:
        """Refuses a text that cannot fit before it is tokenized, which takes memory and time for each byte."""
        try:
            count = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise PromptError(
                f"{what} has half of a surrogate pair at {error.start}, which is no text", "correct it"
            ) from error
        context = self.engine.plan.context
        if count > 8 * context and count > context * self.engine.model.longest_token_bytes:
            longest = self.engine.model.longest_token_bytes
            raise PromptError(
                f"{what} has {count} bytes, too many for a context of {context} tokens of at most {longest} bytes",
                "shorten it or raise --ctx",
            )

    def _check_fits(self, prompt: Sequence[int], what: str, beside: str) -> None:
        context = self.engine.plan.context
        excess = len(prompt) + 1 - context
        if excess > 0:
            raise PromptError(
                f"{what} takes {len(prompt)} tokens{beside} and the context holds {context}, one of them for an answer: "
                f"{excess} too many",
                "shorten it or raise --ctx",
            )


@dataclass(frozen=True, slots=True)
class _Options:
    sampling: Sampling | None
    max_tokens: int | None
    stop: tuple[str, ...]
    logprobs: int
    drafter: Drafter | None
    progress: Progress | None


def _flat(turns: Sequence[Turn]) -> Iterator[Message]:
    for turn in turns:
        yield turn.user
        yield turn.answer


def _answer_message(model: Model, content: str, tokens: Sequence[int]) -> Message:
    """The answer with its tokens, unless a stop string cut the text within one."""
    return Message("assistant", content, tokens=tuple(tokens) if spelled(model, tokens) == content else None)


def _message(model: Model, number: int, value: object) -> Message:
    if not isinstance(value, Mapping):
        raise SessionError(f"its message {number} is no message")
    role, content, tokens = value.get("role"), value.get("content"), value.get("tokens")
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise SessionError(f"its message {number} has no role of system, user or assistant with a text")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in content):
        raise SessionError(f"its message {number} has half of a surrogate pair, which is no text")
    if role != "assistant" or not isinstance(tokens, list):
        return Message(role, content)
    size = model.vocabulary_size
    if not all(type(each) is int and 0 <= each < size and not model.is_control(each) for each in tokens):
        return Message(role, content)
    return _answer_message(model, content, tokens)
