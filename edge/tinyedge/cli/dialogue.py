"""One chat: asks a conversation, shows the answers, keeps the figures. `chat` drives it, `chat_commands` steers it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge.cli.chat_files import read_system_prompt
from tinyedge.cli.output import late_progress, status
from tinyedge.cli.report import STOP_WORDS, Report
from tinyedge.cli.text import remark, text_writer

if TYPE_CHECKING:
    from tinyedge.chat.conversation import Conversation
    from tinyedge.chat.prompt_cache import PromptCache
    from tinyedge.generation import Chunk, Speed
    from tinyedge.machine.throttle_watch import RunConditions
    from tinyedge.model_facts import ModelFacts
    from tinyedge.sampling import Sampling

_SEEDS = 2**32 - 1  # llama.cpp takes the last one for a random seed


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whole or as far as it came, and what it took."""

    text: str
    speed: Speed
    seed: int
    conditions: RunConditions | None


@dataclass(slots=True, kw_only=True)
class Dialogue:
    """A conversation with how to sample and what to show.

    Every answer has a seed of its own, one more than the last: the same messages give the same chat, and another answer to
    the same message is another. `adapters` are the files whose scales the engine has. `show` puts the text on stdout as it
    comes, `quiet` leaves out the remark after each answer. `prompts` keeps the state of system prompts.
    """

    conversation: Conversation
    facts: ModelFacts
    sampling: Sampling
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()
    show: bool = True
    quiet: bool = False
    prompts: PromptCache | None = None
    last: Answer | None = None
    answers: int = 0
    generated_tokens: int = 0
    generated_s: float = 0.0

    def read_system_prompt(self) -> None:
        """Has the beginning of the conversation read before the first message, where a cache makes that worth while."""
        if self.prompts is not None:
            read_system_prompt(self.conversation, self.prompts)

    def ask(self, text: str) -> Answer:
        """The answer to `text`, shown as it comes; Ctrl-C ends it, and it is kept as far as it came.

        Raises what `Conversation.ask` does, and OutputError.
        """
        return self._answered(self.conversation.ask, text)

    def regenerate(self) -> Answer:
        """Another answer to the last message, in the place of the one it had."""
        return self._answered(self.conversation.regenerate)

    def _answered(self, ask: Callable[..., Generator[Chunk, None, None]], *message: str) -> Answer:
        from tinyedge.machine.throttle_watch import ThrottleWatch

        conversation = self.conversation
        before = conversation.forgotten, conversation.recomputed
        sampling = replace(self.sampling, seed=(self.sampling.seed + self.answers) % _SEEDS)
        parts: list[str] = []
        speed: Speed | None = None
        write = text_writer()
        watch = ThrottleWatch()
        try:
            with (
                watch,
                late_progress("reading the conversation", "tokens", quiet=not self.show) as bar,
                closing(ask(*message, sampling, self.max_tokens, stop=self.stops, progress=bar)) as stream,
            ):
                for chunk in stream:
                    parts.append(chunk.text)
                    if self.show:
                        write(chunk.text)
                    speed = chunk.speed
        except KeyboardInterrupt:
            speed = conversation.engine.speed("interrupted")
        finally:
            text = "".join(parts)
            if self.show and text and not text.endswith("\n"):
                write("\n")
        assert speed is not None
        if speed.stop_reason == "interrupted" and not text:
            status("stopped before the answer began: the conversation is as it was")
        self.answers += 1
        self.last = Answer(text, speed, sampling.seed, watch.seen)
        self.generated_tokens += speed.generated_tokens
        self.generated_s += speed.steps_s
        self._remark(*before)
        if sampling.grammar is not None and speed.stop_reason != "end":
            status("warning: the answer was cut before the grammar was complete, so it may not parse")
        return self.last

    def _remark(self, forgotten: int, recomputed: int) -> None:
        """Says what the last answer took, and what the conversation lost to it."""
        assert self.last is not None
        conversation, speed = self.conversation, self.last.speed
        gone = conversation.forgotten - forgotten
        if gone > 0:
            how = "" if conversation.recomputed == recomputed else ", and what is left had to be read again"
            status(f"the context is full: the oldest {_count(gone, 'turn')} of the conversation left it{how}")
        if self.quiet:
            return
        rate = "" if speed.generated_tokens_per_s is None else f"{speed.generated_tokens_per_s:.1f} tokens/s, "
        ended = "" if speed.stop_reason == "end" else f"; {STOP_WORDS[speed.stop_reason]}"
        remark(f"[{rate}{self._fill()}{ended}]")

    def _fill(self) -> str:
        used, size = len(self.conversation.engine.cached), self.conversation.engine.plan.context
        return f"context {used} of {size}"

    def statistics(self) -> list[str]:
        """All the figures, in plain words."""
        conversation = self.conversation
        turns = f"{_count(len(conversation.turns), 'turn')}"
        if conversation.forgotten:
            turns += f", {conversation.forgotten} of them no longer in the context"
        moved = (
            f"the KV cache was moved {_count(conversation.slides, 'time')}, read anew {_count(conversation.recomputed, 'time')}"
        )
        lines = [f"{self._fill()} tokens; {turns}; {moved}"]
        if self.last is None:
            return [*lines, "no answer yet"]
        rate = f" at {self.generated_tokens / self.generated_s:.1f} tokens/s" if self.generated_s else ""
        lines.append(f"in all {_count(self.answers, 'answer')}, {_count(self.generated_tokens, 'token')} generated{rate}")
        report = Report(
            facts=self.facts,
            plan=conversation.engine.plan,
            seed=self.last.seed,
            speed=self.last.speed,
            conditions=self.last.conditions,
        )
        return [*lines, *(f"last answer: {line}" if number == 0 else line for number, line in enumerate(report.lines()))]

    def as_object(self, answer: Answer) -> dict[str, Any]:
        """An answer as a value for --json."""
        speed = answer.speed
        return {
            "text": answer.text,
            "stop_reason": speed.stop_reason,
            "prompt_tokens": speed.prompt_tokens,
            "reused_tokens": speed.reused_tokens,
            "prompt_tokens_per_s": speed.prompt_tokens_per_s,
            "ttft_s": speed.ttft_s,
            "generated_tokens": speed.generated_tokens,
            "generated_tokens_per_s": speed.generated_tokens_per_s,
            "forgotten_turns": self.conversation.forgotten,
            "seed": answer.seed,
        }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
