"""Several models measured over a text, against a base and on tasks.

What cannot be measured is kept as missing, with the reason, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tinyedge.errors import TinyEdgeError
from tinyedge.model_probe import runnable_facts
from tinyedge_bench.quality.divergence import check_same_vocabulary, measure_divergence
from tinyedge_bench.quality.models import OpenModel, load_model, plan_model
from tinyedge_bench.quality.perplexity import measure_perplexity
from tinyedge_bench.quality.rows import divergence_row, model_row, perplexity_row
from tinyedge_bench.quality.text import Text
from tinyedge_bench.quality.windows import DEFAULT_CONTEXT, cut, tokens_wanted
from tinyedge_bench.result_files import Document, Missing, measured_here

if TYPE_CHECKING:
    from tinyedge_bench.quality.tasks import Task

TASK_CONTEXT = 2048  # room for the questions of every task we know, five MMLU examples before them included


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to measure: what to call it, and how to get its GGUF file, which may take making it."""

    name: str
    find: Callable[[], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to measure and how. `context` None are windows of 512 tokens, or the model's context where that is less."""

    text: Text | None = None
    context: int | None = None
    stride: int | None = None
    chunks: int | None = None
    tasks: tuple[str, ...] = ()
    shots: int = 0
    limit: int | None = None
    threads: int | None = None
    backend: str = "auto"
    gpu_layers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far one measurement of one model is; `estimate` is the perplexity so far, None where there is none."""

    model: str
    what: str
    unit: str
    done: int
    total: int
    estimate: float | None = None


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """What was measured so far. `opened` is told of each model when it is loaded, `progress` of each step."""

    subjects: Sequence[Subject]
    wanted: Wanted
    base: Subject | None = None
    opened: Callable[[OpenModel], None] = lambda _: None
    progress: Callable[[Step], None] = lambda _: None
    results: list[dict[str, Any]] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    _text: Text | None = field(default=None, init=False)
    _tasks: list[Task] = field(default_factory=list, init=False)

    def run(self) -> None:
        """Measures all. Raises the first error when nothing at all could be measured; Ctrl-C leaves what was measured."""
        self._read()
        if self._text or self._tasks:
            with self._base() as base:
                for number, subject in enumerate(self.subjects):
                    try:
                        with self._going_on(subject.name):
                            self._measure(subject, base)
                    except KeyboardInterrupt:
                        self.missing += [Missing(what=left.name, reason="interrupted") for left in self.subjects[number:]]
                        raise
        if not self.results:
            raise self.errors[0]

    def document(self) -> Document:
        """What there is by now, of kind "quality"."""
        return measured_here("quality", self.results, self.missing)

    def _read(self) -> None:
        """The text and the tasks, each of which may be unusable."""
        text = self.wanted.text
        if text is not None:
            with self._going_on(f"perplexity over {text.name}"):
                text.check()
                self._text = text
        for argument in self.wanted.tasks:
            from tinyedge_bench.quality.choices import check_examples
            from tinyedge_bench.quality.tasks import read_task

            with self._going_on(f"task {argument}"):
                task = read_task(argument)
                check_examples(task, self.wanted.shots, self.wanted.limit)
                self._tasks.append(task)

    @contextmanager
    def _base(self) -> Iterator[tuple[str, OpenModel] | None]:
        base, loaded = self.base if self._text else None, None
        try:
            if base is not None:
                with self._going_on(f"divergence from {base.name}"):
                    loaded = base.name, self._open(base.find(), DEFAULT_CONTEXT)
            yield loaded
        finally:
            if loaded is not None:
                loaded[1].close()

    def _measure(self, subject: Subject, base: tuple[str, OpenModel] | None) -> None:
        began = perf_counter()
        with self._open(subject.find(), TASK_CONTEXT if self._tasks else DEFAULT_CONTEXT) as model:
            self.opened(model)
            loaded = perf_counter()
            found: dict[str, Any] = {}
            if self._text is not None:
                with self._going_on(f"{subject.name}: perplexity over {self._text.name}"):
                    row = self._over_text(self._text, subject.name, model, base)
                    row["perplexity"]["seconds"] = round(perf_counter() - loaded, 3)
                    found |= row
            scores = []
            for task in self._tasks:
                with self._going_on(f"{subject.name}: {task.name}"):
                    scores.append(self._answers(task, subject.name, model))
            if scores:
                found["tasks"] = scores
            if found:
                seconds = round(perf_counter() - began, 3)
                self.results.append(model_row(model, subject.name) | found | {"seconds": seconds})

    def _open(self, path: Path, most: int) -> OpenModel:
        """The model, planned for the context asked for, otherwise its own up to `most` tokens."""
        wanted, facts = self.wanted, runnable_facts(path)
        context = wanted.context or min(most, facts.context or most)
        plan = plan_model(facts, threads=wanted.threads, backend=wanted.backend, gpu_layers=wanted.gpu_layers, context=context)
        return load_model(path, facts, plan)

    def _over_text(self, text: Text, name: str, model: OpenModel, base: tuple[str, OpenModel] | None) -> dict[str, Any]:
        wanted = self.wanted
        context = wanted.context or min(DEFAULT_CONTEXT, model.facts.context or DEFAULT_CONTEXT)
        tokens = text.tokens(model.model, tokens_wanted(context, wanted.stride, wanted.chunks))
        windows = cut(tokens, text.name, context=context, bos=model.model.bos, stride=wanted.stride, chunks=wanted.chunks)

        def progress(done: int, total: int, estimate: float) -> None:
            self.progress(Step(model=name, what=text.name, unit="windows", done=done, total=total, estimate=estimate))

        if base is not None:
            with self._going_on(f"{name}: divergence from {base[0]}"):
                check_same_vocabulary(model.path, base[1].path)
                perplexity, divergence = measure_divergence(model, base[1], windows, progress)
                return perplexity_row(perplexity, text.name, wanted.stride) | divergence_row(divergence, base[0])
        return perplexity_row(measure_perplexity(model, windows, progress), text.name, wanted.stride)

    def _answers(self, task: Task, name: str, model: OpenModel) -> dict[str, Any]:
        from tinyedge_bench.quality.choices import answer

        def progress(done: int, total: int) -> None:
            self.progress(Step(model=name, what=task.name, unit="questions", done=done, total=total))

        return asdict(answer(model, task, shots=self.wanted.shots, limit=self.wanted.limit, progress=progress))

    @contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Keeps an error within as something that is missing."""
        try:
            yield
        except (TinyEdgeError, OSError) as error:
            self.errors.append(error)
            self.missing.append(Missing(what=what, reason=str(error)))
