"""Turns a prompt into a stream of text, and measures itself while doing so."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

from tinyedge.backends import LoadPlan
from tinyedge.errors import AdapterError, EngineBusyError, GGUFError, NativeError, PromptError
from tinyedge.generation import Chunk, Completion, Meter, Speed, TextBuilder, TokenLikelihood, no_numbers
from tinyedge.kv_cache import KvCache
from tinyedge.native import log
from tinyedge.native.context import BATCH_TOKENS, Context, ContextSettings
from tinyedge.native.model import Adapter, Model
from tinyedge.native.sampler import Sampler
from tinyedge.sampling import Sampling
from tinyedge.token_stream import MakeRoom, TokenStream

if TYPE_CHECKING:
    from tinyedge.chat.chat_template import ChatTemplate, Message
    from tinyedge.draft_length import DraftLength
    from tinyedge.speculation import Drafter, Speculator

# Logits that one decode may give: one token and the most that are ever drafted at a time.
DRAFT_ROWS = 17

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Engine:
    """A loaded model that generates one text at a time. Make it with `open`, close it with `with` or `close`.

    It may be used from any thread, by one at a time: a second call while a stream is open raises EngineBusyError. Closed by
    another thread, it ends what is being computed first.

    >>> from tinyedge import Engine, Sampling
    >>> with Engine.open("demo.gguf") as engine:
    ...     done = engine.complete("Once upon a time", Sampling(temperature=0), max_tokens=8)
    >>> len(done.tokens), done.speed.stop_reason
    (8, 'length')
    >>> with Engine.open("demo.gguf") as engine:
    ...     text = "".join(chunk.text for chunk in engine.stream("The wolf said", Sampling(seed=7), max_tokens=20))
    >>> len(text) > 0
    True
    """

    path: Path
    plan: LoadPlan
    model: Model
    context: Context
    load_s: float
    _cache: KvCache
    _meter: Meter = field(default_factory=Meter)
    _adapters: tuple[Adapter, ...] = ()
    _adapter_paths: tuple[Path, ...] = ()
    _scales: tuple[float, ...] = ()
    _embedder: Context | None = None
    _template: ChatTemplate | None = None
    _speedup: float | None = None
    _draft_length: DraftLength | None = None
    _use: threading.Lock = field(default_factory=threading.Lock)
    # Held while native code works for this engine, which must not be freed under it; a stream lets go between its chunks.
    _native: AbstractContextManager[bool] = field(default_factory=threading.RLock)
    _tokenizing: AbstractContextManager[bool] = field(default_factory=threading.RLock)
    _inside: int = 0  # the thread that does

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        plan: LoadPlan | None = None,
        *,
        lora: Sequence[tuple[str | os.PathLike[str], float]] = (),
        draft_rows: int = 1,
        verbose: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Engine:
        """An engine on the GGUF file at `path`.

        Without a `plan` the file is checked and the plan that suits this machine made; a file that comes with a plan must
        have passed `check_runnable`: llama.cpp may abort on others. `lora` are adapter files, each with its scale.
        `draft_rows` above 1 makes room for as many rows of logits in one pass, which a drafter needs: DRAFT_ROWS is the most
        that one uses. `verbose` shows llama.cpp's own log on stderr, `progress` is told the share of the weights that is
        loaded, 0 to 1.
        Raises GGUFError and MemoryFitError for a file or a machine that will not do, AdapterError for an adapter of another
        model, NativeError when llama.cpp refuses.
        """
        if plan is None:
            plan = _plan_for(Path(path))
        log.set_verbose(verbose)
        begun = perf_counter()
        on_gpu = plan.backend != "cpu"
        model = Model(
            path,
            device=plan.device.name if on_gpu else None,
            gpu_layers=plan.gpu_layers,
            mmap=plan.mmap,
            mlock=plan.mlock,
            progress=progress,
        )
        try:
            adapters = tuple(_adapter(model, Path(path), Path(file)) for file, _ in lora)
            context = Context(model, context_settings(plan, outputs=draft_rows))
        except BaseException:
            model.close()
            raise
        paths = tuple(Path(file) for file, _ in lora)
        engine = cls(
            Path(path), plan, model, context, perf_counter() - begun, KvCache(context), _adapters=adapters, _adapter_paths=paths
        )
        try:
            if adapters:
                engine.set_adapter_scales([scale for _, scale in lora])
        except BaseException:
            engine.close()
            raise
        return engine

    def close(self) -> None:
        """Frees everything. What another thread computes is ended first; an open stream raises NativeError when it goes on.

        Raises EngineBusyError in a function that the engine itself calls, such as `progress`.
        """
        if self._inside == threading.get_ident():
            raise EngineBusyError("an engine cannot be closed by a function that it calls", "close it when the call is over")
        for context in (self.context, self._embedder):
            if context is not None:
                context.stop()
        with self._native, self._tokenizing:
            if self._template is not None:
                self._template.close()
            if self._embedder is not None:
                self._embedder.close()
            self.context.close()
            self.model.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """For one that works with the context, and nobody else until the end of the block."""
        with self._taken(), self._computing():
            yield

    @contextmanager
    def _taken(self) -> Iterator[None]:
        if not self._use.acquire(blocking=False):
            raise EngineBusyError("this engine is generating already")
        try:
            yield
        finally:
            self._use.release()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """While the block runs, nothing native is freed."""
        with self._native:
            try:
                self._inside = threading.get_ident()
                yield
            finally:
                self._inside = 0

    def stream(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        *,
        stop: str | Sequence[str] = (),
        logprobs: int = 0,
        drafter: Drafter | None = None,
        reuse: bool = False,
        make_room: MakeRoom | None = None,
        progress: Progress | None = None,
    ) -> Generator[Chunk, None, None]:
        """Yields the text that follows `prompt`, a text or the ids of its tokens.

        Stops when the model ends the text, before the first of the `stop` strings, after `max_tokens`, or when the context is
        full and `make_room` is not given or gives nothing. `logprobs` is the number of likeliest tokens to report at each
        place. `drafter` guesses tokens ahead. With `reuse`, the beginning that the prompt shares with what the KV cache
        holds is not computed again; without it the same seed gives the same text whatever went before. While the prompt is
        read, `progress` is told many times how many of its tokens are done and how many there are.

        Closing the iterator ends the generation. Raises PromptError when the prompt is empty and the model has no token to
        begin with, or when it does not fit the context.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        _check_counts(max_tokens, logprobs)
        with self._taken():
            chunks = self._stream(
                prompt, sampling or Sampling(), max_tokens, stops, logprobs, drafter, make_room, progress, reuse=reuse
            )
            try:
                while True:
                    with self._computing():
                        chunk = next(chunks, None)
                    if chunk is None:
                        return
                    yield chunk
            finally:
                with self._computing():
                    chunks.close()

    def _stream(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        max_tokens: int | None,
        stops: tuple[str, ...],
        logprobs: int,
        drafter: Drafter | None,
        make_room: MakeRoom | None,
        progress: Progress | None,
        *,
        reuse: bool,
    ) -> Generator[Chunk, None, None]:
        """The chunks of `stream`, each of them computed with the engine in use."""
        begun = perf_counter()
        meter, self._speedup = Meter(), None
        self._meter = meter
        tokens = self.prompt_tokens(prompt) if isinstance(prompt, str) else list(prompt)
        self._check_fits(tokens)
        speculator = self._speculator(drafter)
        with Sampler(self.model, sampling) as sampler:
            if sampling.looks_back:
                for token in tokens:
                    sampler.accept(token)
            try:
                self._read(tokens, reuse=reuse, progress=progress)
                token = sampler.sample(self.context)
                meter.ttft_s = perf_counter() - begun
                if not math.isfinite(self.context.logits()[token]):
                    raise no_numbers()
                text = TextBuilder(self.model.piece, stops)
                yield from TokenStream(
                    model=self.model,
                    cache=self._cache,
                    sampler=sampler,
                    text=text,
                    meter=meter,
                    speed=self.speed,
                    max_tokens=max_tokens,
                    logprobs=logprobs,
                    speculator=speculator,
                    make_room=make_room,
                ).chunks(token)
            finally:
                self._cache.settle()
                self._speedup = speculator.speedup if speculator else None

    def complete(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        *,
        stop: str | Sequence[str] = (),
        logprobs: int = 0,
        drafter: Drafter | None = None,
        reuse: bool = False,
    ) -> Completion:
        """The whole text that follows `prompt`; see `stream`."""
        return self._collect(
            self.stream(prompt, sampling, max_tokens, stop=stop, logprobs=logprobs, drafter=drafter, reuse=reuse)
        )

    def chat(
        self,
        messages: Iterable[Message | Mapping[str, str]],
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        *,
        stop: str | Sequence[str] = (),
        logprobs: int = 0,
        drafter: Drafter | None = None,
        template: ChatTemplate | None = None,
    ) -> Generator[Chunk, None, None]:
        """Yields the answer to a conversation, through `template` or else the model's own chat template.

        `messages` have a role (system, user, assistant) and a content; the last is the user's. What the KV cache holds of
        the conversation already is not computed again. Raises TemplateError when there is no template or it refuses.
        `ChatTemplate.from_file(file, read_gguf(engine.path))` makes one, with `read_gguf` from tinyedge.gguf_file; close it
        when the chat is over.
        """
        tokens = self.chat_tokens(messages, template)
        return self.stream(tokens, sampling, max_tokens, stop=stop, logprobs=logprobs, drafter=drafter, reuse=True)

    def chat_tokens(self, messages: Iterable[Message | Mapping[str, str]], template: ChatTemplate | None = None) -> list[int]:
        """The prompt that asks for the answer to `messages`, as tokens; what looks special in a message is plain text in it."""
        from tinyedge.chat.chat_template import Message

        whole = []
        for each in messages:
            role, content = (each.role, each.content) if isinstance(each, Message) else (each.get("role"), each.get("content"))
            if not isinstance(role, str) or not isinstance(content, str):
                raise ValueError("a message has a role and a content, both of them text")
            whole.append(each if isinstance(each, Message) else Message(role, content))
        return (template or self.template).tokens(self.model, whole)

    @property
    def template(self) -> ChatTemplate:
        """The chat template in the model's file. Raises TemplateError when there is none."""
        from tinyedge.chat.chat_template import ChatTemplate
        from tinyedge.errors import TemplateError
        from tinyedge.gguf_split import read_model

        if self._template is None:
            self._template = ChatTemplate.of_model(read_model(self.path))
        if self._template is None:
            raise TemplateError(
                f"{self.path.name} has no chat template", "use stream() or complete(), or give chat() a template"
            )
        return self._template

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The tokens of `text`, with BOS (and EOS) where the model wants them unless `add_special` is false.

        By default the text of a special token, like `</s>` or `<|im_end|>`, becomes that token, as it does in the prompt of
        `stream`. Say `parse_special=False` for text of strangers: nothing in it can then end a turn or begin another.
        Raises PromptError for text that is not Unicode or cannot fit the context.
        """
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not Unicode at character {error.start}", "decode it without surrogates") from error
        with self._tokenizing:
            self._check_length(size)
            return self.model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def embed(self, text: str) -> list[float]:
        """The mean of the last hidden states over the tokens of `text`: as many numbers as the model is wide, not normalised.

        The tokens are those of `tokenize(text)`. It has a context of its own, made by the first call, and leaves the KV cache
        alone. Raises PromptError when the text has no tokens or more than the context holds, EngineBusyError while a stream
        is open.
        """
        with self._used():
            tokens = self.prompt_tokens(text)
            self._check_fits(tokens)
            # A mean is taken over one batch, and buffers for the whole context could take gigabytes.
            room = min(self.plan.context, max(BATCH_TOKENS, 1 << (len(tokens) - 1).bit_length()))
            if self._embedder is not None and self._embedder.settings.batch < room:
                self._embedder.close()
                self._embedder = None
            if self._embedder is None:
                settings = context_settings(self.plan)
                self._embedder = Context(self.model, replace(settings, embeddings=True, batch=room))
            self._embedder.set_adapters(self._applied(self._scales))
            self._embedder.clear()
            self._embedder.decode_all(tokens)
            self._embedder.wait()
            return self._embedder.embedding()

    def set_adapter_scales(self, scales: Sequence[float]) -> None:
        """Applies the adapters that the engine was opened with, each at its scale, 0 for off.

        The KV cache is emptied when that changes anything: its tokens were computed with other weights.
        """
        if len(scales) != len(self._adapters):
            raise ValueError(f"{len(scales)} scales for {len(self._adapters)} adapters")
        odd = [scale for scale in scales if not math.isfinite(scale)]
        if odd:
            raise ValueError(f"the scale of an adapter is a finite number, not {odd[0]}")
        with self._used():
            if tuple(scales) == self._scales:
                return
            self.context.set_adapters(self._applied(scales))
            self._scales = tuple(scales)
            self._cache.clear()

    def _applied(self, scales: Sequence[float]) -> list[tuple[Adapter, float]]:
        """The adapters that are on at these scales."""
        return [(adapter, scale) for adapter, scale in zip(self._adapters, scales, strict=True) if scale]

    @property
    def adapter_scales(self) -> tuple[float, ...]:
        return self._scales

    @property
    def adapters(self) -> tuple[tuple[Path, float], ...]:
        """The adapter files that the engine was opened with, each with its scale."""
        return tuple(zip(self._adapter_paths, self._scales, strict=True))

    def forget(self) -> None:
        """Empties the KV cache."""
        with self._used():
            self._cache.clear()

    def discard(self, start: int, end: int) -> None:
        """Takes the tokens at positions `start` up to `end` out of the KV cache; those behind move up, nothing is recomputed.

        Where the model's state cannot be moved, everything from `start` on is forgotten. Raises ValueError for a range that
        begins before 0 or ends before it begins.
        """
        with self._used():
            self._cache.discard(start, end)

    def state(self) -> memoryview:
        """The KV state of the tokens in `cached`, to be given to `restore` of an engine opened alike."""
        with self._used():
            return self._cache.state()

    def restore(self, tokens: Sequence[int], state: bytes | memoryview) -> bool:
        """Fills the KV cache with a state that `state` gave for these tokens; False and an empty cache otherwise."""
        with self._used():
            return self._cache.restore(tokens, state)

    @property
    def cached(self) -> list[int]:
        """The tokens whose state the KV cache holds now; not to be changed."""
        return self._cache.tokens

    @property
    def draft_speedup(self) -> float | None:
        """How much faster the last stream was than plain decoding, by its drafter's account; None without one."""
        return self._speedup

    @property
    def generated(self) -> tuple[int, ...]:
        """The ids of the tokens that the last stream gave, without the one that ended it."""
        return tuple(self._meter.tokens)

    def speed(self, stop_reason: str) -> Speed:
        """The speed of the generation so far, for one that was stopped from outside."""
        return self._meter.speed(stop_reason, self.load_s)

    def read(self, tokens: Sequence[int], progress: Progress | None = None) -> None:
        """Brings the KV cache to hold exactly `tokens`, computing only what it does not hold already."""
        with self._used():
            self._meter = Meter()
            self._check_fits(tokens)
            try:
                self._read(tokens, reuse=True, progress=progress)
            finally:
                self._cache.settle()

    def _read(self, tokens: Sequence[int], *, reuse: bool, progress: Progress | None) -> None:
        """Computes the logits behind the last of `tokens`."""
        meter, cache = self._meter, self._cache
        if not reuse:
            cache.clear()
        meter.reused = meter.prompt_tokens = cache.keep_common(tokens)

        def done(count: int) -> None:
            meter.prompt_tokens = count
            if progress is not None:
                progress(count, len(tokens))

        started = perf_counter()
        cache.read(tokens, done)
        meter.prompt_s = perf_counter() - started

    def _speculator(self, drafter: Drafter | None) -> Speculator | None:
        if drafter is None:
            return None
        from tinyedge.draft_length import DraftLength
        from tinyedge.speculation import Speculator

        if self.context.settings.outputs < 2:
            raise NativeError("this engine has no room for drafts", f"open it with draft_rows={DRAFT_ROWS}")
        if self._draft_length is None:
            self._draft_length = DraftLength()  # what steps cost on this machine is learnt once
        return Speculator(self.context, drafter, length=self._draft_length)

    def _collect(self, chunks: Iterator[Chunk]) -> Completion:
        texts: list[str] = []
        tops: list[TokenLikelihood] = []
        speed = None
        for chunk in chunks:
            texts.append(chunk.text)
            tops += chunk.likelihoods
            speed = chunk.speed
        assert speed is not None
        return Completion(text="".join(texts), tokens=self.generated, speed=speed, likelihoods=tuple(tops))

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The tokens of a prompt. Raises PromptError when there are none."""
        tokens = self.tokenize(prompt)
        if not tokens:
            raise PromptError("the prompt is empty, and this model has no token that begins a text", "give some words with -p")
        return tokens

    def _check_fits(self, tokens: Sequence[int]) -> None:
        excess = len(tokens) + 1 - self.plan.context
        if excess > 0:
            raise PromptError(
                f"the prompt has {len(tokens)} tokens and the context holds {self.plan.context}, one of them for an answer: "
                f"{excess} too many"
            )
        if not tokens:
            raise PromptError("the prompt has no tokens", "give at least one")
        size = self.model.vocabulary_size
        if not all(0 <= token < size for token in tokens):
            raise PromptError(f"the prompt has a token outside the vocabulary of {size}", "tokenize it with this model")

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


def _check_counts(max_tokens: int | None, logprobs: int) -> None:
    """Raises ValueError for a number of tokens or likelihoods that is none."""
    for name, count in (("max_tokens", max_tokens), ("logprobs", logprobs)):
        if count is not None and not (isinstance(count, int) and count >= 0):
            raise ValueError(f"{name} is a number from 0 up, not {count!r}")


def context_settings(plan: LoadPlan, *, outputs: int = 1) -> ContextSettings:
    """The plan in the words of the native context."""
    return ContextSettings(
        context=plan.context,
        threads=plan.threads,
        batch_threads=plan.batch_threads,
        batch=plan.batch,
        kv_type=plan.kv_type,
        flash=plan.flash,
        gpu=plan.backend != "cpu" and plan.gpu_layers > 0,
        affinity=plan.affinity,
        rope_scaling=plan.rope_scaling,
        rope_scale=plan.rope_scale,
        outputs=outputs,
    )


def _plan_for(path: Path) -> LoadPlan:
    from tinyedge.backends import Request, this_machine
    from tinyedge.model_probe import runnable_facts
    from tinyedge.tuned import tuned_plan

    return tuned_plan(runnable_facts(path), Request(), this_machine())


def _adapter(model: Model, base: Path, file: Path) -> Adapter:
    from tinyedge.adapter_check import check_adapter
    from tinyedge.gguf_file import read_gguf
    from tinyedge.gguf_split import read_model

    try:
        adapter = read_gguf(file)
    except GGUFError as error:
        raise AdapterError(error.problem, "copy or download the adapter again") from error
    check_adapter(adapter, read_model(base))
    return Adapter(model, file)
