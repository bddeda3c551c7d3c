"""Turns a prompt into a stream of text, and measures itself while doing so."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import TracebackType

from tinyedge.backends import LoadPlan
from tinyedge.errors import PromptError
from tinyedge.native import log
from tinyedge.native.runtime import Context, Model, Sampler

_INT32_MAX = 2**31 - 1  # what the C functions take


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; llama.cpp's own defaults. Temperature 0 takes the likeliest token.

    Raises ValueError, one sentence, for a value that has no meaning.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            (0.0 <= self.temperature <= 100.0, "the temperature must be from 0 to 100", self.temperature),
            (0 <= self.top_k <= _INT32_MAX, f"top-k must be 0 (no limit) or more, at most {_INT32_MAX}", self.top_k),
            (0.0 < self.top_p <= 1.0, "top-p must be above 0 and at most 1", self.top_p),
            (0.0 <= self.min_p <= 1.0, "min-p must be from 0 to 1", self.min_p),
            (0.0 < self.repeat_penalty <= 10.0, "the repeat penalty must be above 0 and at most 10", self.repeat_penalty),
            (0 <= self.repeat_last <= _INT32_MAX, f"the repeat window must be from 0 to {_INT32_MAX}", self.repeat_last),
            (0 <= self.seed < 2**32 - 1, f"the seed must be from 0 to {2**32 - 2}", self.seed),
        )
        for holds, rule, value in rules:
            if not holds:
                raise ValueError(f"{rule}, not {_shown(value)}")


def _shown(value: float) -> str:
    """A number for an error message, one of hundreds of digits cut."""
    text = str(value) if isinstance(value, int) else f"{value:g}"
    return text if len(text) <= 24 else f"{text[:24]}..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What one generation took. Rates are tokens per second, None where nothing was measured.

    `ttft_s` runs from the call of `stream` to the first token; `generated_tokens_per_s` counts the decodes after it and
    leaves out the time that the reader of the stream took. `stop_reason` is one of end (the model ended the text),
    length (max_tokens), context (the context is full), interrupted. `prompt_tokens` are those that were read: after an
    interruption perhaps not the whole prompt.
    """

    load_s: float
    prompt_tokens: int
    prompt_tokens_per_s: float | None
    ttft_s: float | None
    generated_tokens: int
    generated_tokens_per_s: float | None
    peak_rss_bytes: int
    stop_reason: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text as it comes, always whole characters, with the number of tokens it took. The last one carries the speed."""

    text: str
    tokens: int
    speed: Speed | None = None


@dataclass(slots=True)
class _Meter:
    """The counters of the generation that runs now."""

    prompt_tokens: int = 0
    prompt_s: float = 0.0
    ttft_s: float | None = None
    generated: int = 0
    decodes: int = 0
    decode_s: float = 0.0


@dataclass(slots=True)
class Engine:
    """A loaded model that generates one text at a time. Make it with `open`, close it with `with` or `close`."""

    plan: LoadPlan
    model: Model
    context: Context
    load_s: float
    _meter: _Meter = field(default_factory=_Meter)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        plan: LoadPlan,
        verbose: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Engine:
        """An engine on the GGUF file at `path`, which must have passed `check_runnable`: llama.cpp may abort on others.

        `verbose` shows llama.cpp's own log on stderr, `progress` is told the share of the weights that is loaded, 0 to 1.
        Raises NativeError when llama.cpp refuses.
        """
        log.set_verbose(verbose)
        begun = perf_counter()
        on_gpu = plan.backend != "cpu"
        model = Model(path, device=plan.device.name if on_gpu else None, gpu_layers=plan.gpu_layers, progress=progress)
        try:
            context = Context(
                model,
                context=plan.context,
                threads=plan.threads,
                kv_type=plan.kv_type,
                gpu=on_gpu and plan.gpu_layers > 0,
            )
        except BaseException:
            model.close()
            raise
        return cls(plan, model, context, perf_counter() - begun)

    def close(self) -> None:
        self.context.close()
        self.model.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def stream(
        self,
        prompt: str,
        sampling: Sampling,
        max_tokens: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Chunk]:
        """Yields the text that follows `prompt`, from an empty context.

        Stops when the model ends the text, after `max_tokens`, or when the context is full. While the prompt is read,
        `progress` is told many times how many of its tokens are done and how many there are. Raises PromptError when the
        prompt is empty and the model has no token to begin with, or when it does not fit the context.
        """
        begun = perf_counter()
        meter = self._meter = _Meter()
        tokens = self._prompt_tokens(prompt)

        def read(done: int) -> None:
            meter.prompt_tokens = done
            if progress is not None:
                progress(done, len(tokens))

        self.context.clear()
        with _sampler(self.model, sampling) as sampler:
            if sampling.repeat_penalty != 1.0:
                for token in tokens:
                    sampler.accept(token)
            started = perf_counter()
            self.context.decode_all(tokens, read)
            self.context.wait()
            now = perf_counter()
            meter.prompt_s = now - started
            token = sampler.sample(self.context)
            meter.ttft_s = perf_counter() - begun
            yield from self._generate(token, sampler, max_tokens)

    def _generate(self, token: int, sampler: Sampler, max_tokens: int | None) -> Iterator[Chunk]:
        meter, model, context = self._meter, self.model, self.context
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        room = self.plan.context - meter.prompt_tokens
        limit = room if max_tokens is None else min(max_tokens, room)
        pending = 0
        while not (ended := model.ends_generation(token)) and meter.generated < limit:
            meter.generated += 1
            pending += 1
            text = decoder.decode(model.piece(token))
            if text:
                yield Chunk(text, pending)
                pending = 0
            if meter.generated == limit:
                break
            started = perf_counter()
            context.decode(token)
            token = sampler.sample(context)
            meter.decode_s += perf_counter() - started
            meter.decodes += 1
        reason = "end" if ended else "length" if limit == max_tokens else "context"
        yield Chunk(decoder.decode(b"", final=True), pending, self.speed(reason))

    def speed(self, stop_reason: str) -> Speed:
        """The speed of the generation so far, for one that was stopped from outside."""
        meter = self._meter
        return Speed(
            load_s=self.load_s,
            prompt_tokens=meter.prompt_tokens,
            prompt_tokens_per_s=meter.prompt_tokens / meter.prompt_s if meter.prompt_s else None,
            ttft_s=meter.ttft_s,
            generated_tokens=meter.generated,
            generated_tokens_per_s=meter.decodes / meter.decode_s if meter.decode_s else None,
            peak_rss_bytes=peak_rss_bytes(),
            stop_reason=stop_reason,
        )

    def _prompt_tokens(self, prompt: str) -> list[int]:
        self._check_length(len(prompt.encode("utf-8")))
        tokens = self.model.tokenize(prompt)
        if not tokens:
            raise PromptError("the prompt is empty, and this model has no token that begins a text", "give some words with -p")
        excess = len(tokens) + 1 - self.plan.context
        if excess > 0:
            raise PromptError(
                f"the prompt has {len(tokens)} tokens and the context holds {self.plan.context}, one of them for an answer: "
                f"{excess} too many"
            )
        return tokens

    def _check_length(self, prompt_bytes: int) -> None:
        """Refuses a prompt that cannot fit before it is tokenized, which takes memory and time for each byte."""
        context = self.plan.context
        if prompt_bytes <= 8 * context:  # looking through the vocabulary takes a tenth of a second
            return
        longest = self.model.longest_token_bytes
        if prompt_bytes > context * longest:
            raise PromptError(
                f"the prompt has {prompt_bytes} bytes, too many for a context of {context} tokens of at most {longest} bytes"
            )


def _sampler(model: Model, sampling: Sampling) -> Sampler:
    return Sampler(
        model,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repeat_penalty=sampling.repeat_penalty,
        repeat_last=sampling.repeat_last,
        seed=sampling.seed,
    )


def peak_rss_bytes() -> int:
    """The most memory that this process has held, memory-mapped weights included as far as they were touched.

    On Linux from /proc, whose VmHWM begins anew with each program; ru_maxrss starts from the parent's.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
