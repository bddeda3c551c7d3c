"""One chat: asks a conversation, shows the answers, keeps the figures. `chat` drives it, `chat_commands` steers it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge.cli.chat_files import keep_text, read_system_prompt
from tinyedge.cli.generation_report import STOP_WORDS, Report
from tinyedge.cli.output import late_progress, status
from tinyedge.cli.text import remark, text_writer

if TYPE_CHECKING:
    from tinyedge.chat.conversation import Conversation
    from tinyedge.chat.prompt_cache import Computed, PromptCache
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
    comes, `quiet` leaves out the remark after each answer. `prompts` keeps the state of system prompts, `session` is the file
    where the text of the conversation is put after each answer.
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
    session: Path | None = None
    last: Answer | None = None
    answers: int = 0
    generated_tokens: int = 0
    generated_s: float = 0.0
    _ahead: Computed | None = None  # what was read for the next answer before it was asked for
    _told_unkept: bool = False

    def read_system_prompt(self) -> None:
        """Has the beginning of the conversation read before the first message, where a cache makes that worth while."""
        if self.prompts is not None:
            self._ahead = read_system_prompt(self.conversation, self.prompts)

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
        speed, self._ahead = _with_ahead(speed, self._ahead), None
        if speed.stop_reason == "interrupted" and not text:
            status("stopped before the answer began: the conversation is as it was")
        self.answers += 1
        self.last = Answer(text, speed, sampling.seed, watch.seen)
        self.generated_tokens += speed.generated_tokens
        self.generated_s += speed.steps_s
        self._keep_text()
        self._remark(*before)
        if sampling.grammar is not None and speed.stop_reason != "end":
            status("warning: the answer was cut before the grammar was complete, so it may not parse")
        return self.last

    def _keep_text(self) -> None:
        """Puts the text on disk, so that a power cut takes no answer away; says once where that is not possible."""
        if self.session is None:
            return
        problem = keep_text(self.session, self.conversation, self.sampling)
        if problem and not self._told_unkept:
            self._told_unkept = True
            status(f"the session is not kept so far: {problem}")

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
        lines.append(f"{_count(self.answers, 'answer')} so far, {_count(self.generated_tokens, 'token')} generated{rate}")
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
            **self.setting(),
        }

    def setting(self) -> dict[str, Any]:
        """What answered, for --json."""
        engine = self.conversation.engine
        return {"model": str(engine.path), "threads": engine.plan.threads, "context": engine.plan.context}


def _with_ahead(speed: Speed, ahead: Computed | None) -> Speed:
    """`speed` with what was read ahead of the question for this answer: not reused, and its time part of the answer's."""
    if ahead is None or not ahead.tokens:
        return speed
    read, rate = speed.prompt_tokens - speed.reused_tokens, speed.prompt_tokens_per_s
    tokens = min(ahead.tokens, speed.reused_tokens)
    seconds = ahead.seconds + (read / rate if rate else 0.0)
    return replace(
        speed,
        reused_tokens=speed.reused_tokens - tokens,
        prompt_tokens_per_s=(read + tokens) / seconds if seconds else None,
        ttft_s=None if speed.ttft_s is None else speed.ttft_s + ahead.seconds,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
