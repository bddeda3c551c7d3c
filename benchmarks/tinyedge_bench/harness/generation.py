"""Continues several texts side by side in one context: as soon as one ends, the next takes its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tinyedge.engine import context_settings
from tinyedge.generation import TextBuilder, no_numbers
from tinyedge.load_plan import LoadPlan
from tinyedge.memory import padded_context
from tinyedge.native.model import Model
from tinyedge.native.sequences import SequenceContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How the next token is chosen: the likeliest at `temperature` 0, else drawn.

    Of the `top_k` likeliest (0: of all), then of the fewest that together have `top_p` of the probability, as transformers
    does it. A `seed` and a text always give the same draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1234

    def token(self, logits: npt.NDArray[np.float32], random: np.random.Generator) -> int:
        if self.temperature <= 0:
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64) / self.temperature
        order = np.argsort(-scaled, kind="stable")[: self.top_k or None]
        shares = np.exp(scaled[order] - scaled[order[0]])
        shares /= shares.sum()
        before = np.cumsum(shares) - shares
        kept = max(1, int(np.count_nonzero(before < self.top_p)))
        return int(order[random.choice(kept, p=shares[:kept] / shares[:kept].sum())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuing:
    """A text to continue by at most `most` tokens, up to one of the `stops` or a token that ends generation."""

    tokens: tuple[int, ...]
    most: int
    stops: tuple[str, ...] = ()
    choice: Choice = field(default_factory=Choice)


@dataclass(slots=True)
class _Running:
    """One text on its way in the context: `fed` of its tokens are in the cache."""

    index: int
    request: Continuing
    tokens: list[int]
    built: TextBuilder
    random: np.random.Generator
    fed: int = 0
    text: str = ""

    @property
    def waiting(self) -> int:
        return len(self.tokens) - self.fed

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.tokens)


class Generator:
    """`sequences` texts side by side, each with room for `context` tokens. Close it with `with` or `close`.

    With `strip_space` a text loses the space that it begins with: what a SentencePiece tokenizer of transformers does when it
    decodes an answer by itself. Raises NativeError when the memory cannot be had.
    """

    def __init__(self, model: Model, plan: LoadPlan, *, context: int, sequences: int, strip_space: bool = False) -> None:
        cells = padded_context(context) * sequences
        settings = replace(context_settings(plan), context=cells, sequences=sequences, outputs=sequences)
        self._model, self._limit, self._strip = model, context, strip_space
        self._context = SequenceContext(model, settings)
        self._slots: list[_Running | None] = [None] * sequences

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._context.close()

    def texts(self, requests: Sequence[Continuing]) -> Iterator[tuple[int, str]]:
        """The number of a request and its continuation, as each is done. A text longer than its room is cut from the left."""
        self._context.clear()
        self._slots = [None] * len(self._slots)
        pending = deque(enumerate(requests))
        while pending or any(self._slots):
            for slot, running in enumerate(self._slots):
                if running is None and pending:
                    self._context.forget(slot)
                    self._slots[slot] = self._begin(*pending.popleft())
            yield from self._step()

    def _begin(self, index: int, request: Continuing) -> _Running:
        kept = request.tokens[-max(1, self._limit - request.most) :]
        return _Running(
            index=index,
            request=replace(request, tokens=kept, most=min(request.most, self._limit - len(kept))),
            tokens=list(kept),
            built=TextBuilder(self._spelling(), request.stops),
            random=np.random.default_rng([request.choice.seed, index]),
        )

    def _spelling(self) -> Callable[[int], bytes]:
        """The bytes of a text's tokens, to be asked for in their order."""
        begun = not self._strip

        def piece(token: int) -> bytes:
            nonlocal begun
            spelled = self._model.piece(token)
            if not begun and spelled:
                begun, spelled = True, spelled.removeprefix(b" ")
            return spelled

        return piece

    def _step(self) -> Iterator[tuple[int, str]]:
        """Reads one batch: the newest token of every text that generates, and as much of the others' prompts as fits."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[int] = []
        answering: list[int] = []
        running = [(slot, each) for slot, each in enumerate(self._slots) if each is not None]
        for slot, each in sorted(running, key=lambda pair: pair[1].waiting):
            part = each.tokens[each.fed : each.fed + self._context.room - len(tokens)]
            if not part:
                continue
            tokens += part
            positions += range(each.fed, each.fed + len(part))
            sequences += [slot] * len(part)
            each.fed += len(part)
            wanted += [0] * (len(part) - 1) + [int(not each.waiting)]
            if not each.waiting:
                answering.append(slot)
        logits = self._context.read(tokens, positions, sequences, wanted)
        for slot, row in zip(answering, logits, strict=True):
            yield from self._advance(slot, row)

    def _advance(self, slot: int, logits: npt.NDArray[np.float32]) -> Iterator[tuple[int, str]]:
        running = self._slots[slot]
        assert running is not None
        if not np.isfinite(logits.max()):
            raise no_numbers()
        token = running.request.choice.token(logits, running.random)
        ended = self._model.ends_generation(token)
        if not ended:
            running.tokens.append(token)
            running.text += running.built.add(token)
        if ended or running.built.stopped or running.generated >= running.request.most:
            self._slots[slot] = None
            yield running.index, running.text + running.built.end()
