"""The work of a sweep, step by step: a file is made, read beside the base, asked, timed, freed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge.errors import OutputError, TinyEdgeError
from tinyedge.load_plan import LoadPlan
from tinyedge.model_probe import runnable_facts
from tinyedge_bench.quality.divergence import check_same_vocabulary, measure_divergence
from tinyedge_bench.quality.evaluation import TASK_CONTEXT
from tinyedge_bench.quality.models import OpenModel, load_model, plan_model
from tinyedge_bench.quality.perplexity import Perplexity
from tinyedge_bench.quality.rows import divergence_row, model_row, perplexity_row
from tinyedge_bench.quality.sweep import SweepWishes, Tell
from tinyedge_bench.quality.sweep_files import Base, PlannedFile
from tinyedge_bench.quality.windows import DEFAULT_CONTEXT, Windows, cut, tokens_wanted
from tinyedge_bench.result_files import Missing
from tinyedge_bench.speed.doubts import FEWEST_RUNS, doubts
from tinyedge_bench.speed.quick import quick_speed
from tinyedge_quantize.convert import Wishes, convert

if TYPE_CHECKING:
    from tinyedge_bench.quality.tasks import Task


@dataclass(slots=True)
class _Measured:
    """A model whose quality is known: its file, its row, how it runs, and the tokens/s of each timed run."""

    path: Path
    row: dict[str, Any]
    plan: LoadPlan
    prompt: list[float] = field(default_factory=list)
    generated: list[float] = field(default_factory=list)


class Steps:
    """One sweep. Where `all_at_once` the files stay until all are timed in turn, otherwise each until it is timed.

    `rows` and `base_row` are what is measured so far, in the order asked for; what a type cannot have is added to `missing`.
    """

    def __init__(
        self,
        wishes: SweepWishes,
        tasks: Sequence[Task],
        base: Base,
        folder: Path,
        *,
        all_at_once: bool,
        missing: list[Missing],
        tell: Tell,
    ) -> None:
        self._wishes, self._asked, self._base = wishes, tasks, base
        self._folder, self._all, self._missing, self._tell = folder, all_at_once, missing, tell
        self._done, self._total = 0, 1
        self.rows: list[dict[str, Any]] = []
        self.base_row: dict[str, Any] = {}

    def run(self, files: Sequence[PlannedFile], plain: Wishes) -> None:
        """Measures every file, `plain` being how the base is made."""
        each = 2 + len(self._asked) + self._wishes.runs
        self._total = each * (len(files) + 1)
        base_path, base_seconds = self._base_file(plain)
        found: list[_Measured] = []
        with self._open(base_path) as base:
            windows = self._windows(base)
            kind = base.facts.file_type if self._base.path else self._base.type
            self.base_row |= _facts(kind, base, base_seconds) | self._answers(kind, base)
            own = _Measured(base_path, self.base_row, base.plan)
            for file in files:
                path = self._folder / self._name(file.type)
                with self._going_on(file.type):
                    found.append(self._measure(file, path, base, windows))
                    self.rows.append(found[-1].row)
                    if not self._all:
                        self._time(found[-1:])
                if not self._all:
                    path.unlink(missing_ok=True)
        self._time([own, *found] if self._all else [own])

    @contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Keeps an error within as something that is missing."""
        try:
            yield
        except TinyEdgeError as error:
            self._missing.append(Missing(what=what, reason=str(error)))

    def _base_file(self, plain: Wishes) -> tuple[Path, float | None]:
        """The base's file, and the seconds it took to make it; None for one that was there."""
        if self._base.path is not None:
            return self._base.path, None
        return self._convert(self._base.type, self._folder / self._name(self._base.type), plain)

    def _name(self, kind: str) -> str:
        checkpoint = self._wishes.checkpoint.resolve()
        return f"{checkpoint.name if checkpoint.is_dir() else checkpoint.stem}-{kind}.gguf"

    def _convert(self, kind: str, path: Path, conversion: Wishes) -> tuple[Path, float]:
        with self._step(f"{kind}: quantizing") as advance:
            done = 0

            def progress(count: int, total: int) -> None:
                nonlocal done
                done += count
                advance(done / max(total, 1))

            report = convert(self._wishes.checkpoint, path, kind, conversion, threads=self._wishes.threads, progress=progress)
        return report.path, report.seconds

    def _open(self, path: Path) -> OpenModel:
        wishes, most = self._wishes, TASK_CONTEXT if self._asked else DEFAULT_CONTEXT
        facts = runnable_facts(path)
        context = wishes.context or min(most, facts.context or most)
        return load_model(path, facts, plan_model(facts, threads=wishes.threads, backend=wishes.backend, context=context))

    def _windows(self, base: OpenModel) -> Windows:
        """The windows of the text, the same for all types, which have the base's vocabulary."""
        wishes, model = self._wishes, base.model
        context = wishes.context or min(DEFAULT_CONTEXT, base.facts.context or DEFAULT_CONTEXT)
        tokens = wishes.text.tokens(model, tokens_wanted(context, wishes.stride, wishes.chunks))
        return cut(tokens, wishes.text.name, context=context, bos=model.bos, stride=wishes.stride, chunks=wishes.chunks)

    def _measure(self, file: PlannedFile, path: Path, base: OpenModel, windows: Windows) -> _Measured:
        """The type's file made, read beside the base, and asked. The base's perplexity, which comes out too, is kept."""
        if path.resolve() == base.path.resolve():
            raise OutputError(f"{path.name} is the base and cannot be replaced", "keep the files in another folder")
        path, seconds = self._convert(file.type, path, self._wishes.conversion)
        check_same_vocabulary(path, base.path)
        with self._open(path) as model:
            row = _facts(file.type, model, seconds)
            with self._step(f"{file.type}: reading {self._wishes.text.name}") as advance:
                perplexity, divergence = measure_divergence(
                    model, base, windows, lambda done, total, _value: advance(done / total)
                )
            row |= self._perplexity(perplexity) | divergence_row(divergence, base.path.name)
            row |= self._answers(file.type, model)
            self.base_row |= self._perplexity(divergence.base_perplexity)
            return _Measured(path, row, model.plan)

    def _perplexity(self, perplexity: Perplexity) -> dict[str, Any]:
        return perplexity_row(perplexity, self._wishes.text.name, self._wishes.stride)

    def _answers(self, kind: str, model: OpenModel) -> dict[str, Any]:
        """How well the model does in each task, where there are any."""
        if not self._asked:
            return {}
        from tinyedge_bench.quality.choices import answer

        scores = []
        for task in self._asked:
            with self._going_on(f"{kind}: {task.name}"), self._step(f"{kind}: {task.name}") as advance:
                score = answer(
                    model,
                    task,
                    shots=self._wishes.shots,
                    limit=self._wishes.limit,
                    progress=lambda done, total: advance(done / total),
                )
                scores.append(asdict(score))
        return {"tasks": scores}

    def _time(self, models: Sequence[_Measured]) -> None:
        """Puts the speeds into the rows: in every round each model once."""
        wishes = self._wishes
        left = list(models)
        for number in range(wishes.runs):
            for each in list(left):
                left.remove(each)
                what = f"{each.row['type']}: speed"
                with self._going_on(what), self._step(f"{what}, round {number + 1} of {wishes.runs}"):
                    speed = quick_speed(each.path, each.plan, prompt=wishes.prompt, generate=wishes.generate, runs=1)
                    each.prompt += [speed.prompt_tokens_per_s] if speed.prompt_tokens_per_s else []
                    each.generated += [speed.generated_tokens_per_s] if speed.generated_tokens_per_s else []
                    left.append(each)  # to run again; not one that failed
        for each in models:
            each.row["warnings"] = []
            for name, samples in (("prompt", each.prompt), ("generated", each.generated)):
                each.row["warnings"] += speed_doubts(f"{each.row['type']}: {name} tokens", samples)
                each.row[f"{name}_tokens_per_s"] = statistics.median(samples) if samples else None
                each.row[f"{name}_samples_tokens_per_s"] = samples

    @contextmanager
    def _step(self, text: str) -> Iterator[Callable[[float], None]]:
        """One of the equal steps of which the sweep has `_total`; yields what takes the share of it that is done."""

        def advance(share: float) -> None:
            self._tell(text, min(1.0, (self._done + share) / self._total))

        advance(0)
        yield advance
        self._done += 1
        advance(0)


def speed_doubts(name: str, samples: Sequence[float]) -> Iterator[str]:
    """What `tinyedge bench` doubts of such runs, without its advice on options that a sweep has not."""
    if len(samples) >= FEWEST_RUNS:
        for sentence in doubts(name, samples):
            yield f"{sentence.partition('; ')[0]}; let the machine rest and sweep again"


def _facts(kind: str, model: OpenModel, seconds: float | None) -> dict[str, Any]:
    made = {"type": kind, "bits_per_weight": model.facts.bits_per_weight, "quantize_s": seconds}
    return made | model_row(model, model.path.name)
