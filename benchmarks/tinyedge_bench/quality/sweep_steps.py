"""The work of a sweep, step by step: a file is made, read beside the base, asked, timed, freed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge.errors import TinyEdgeError
from tinyedge.load_plan import LoadPlan
from tinyedge_bench.quality.divergence import check_same_vocabulary, measure_divergence
from tinyedge_bench.quality.evaluation import TASK_CONTEXT
from tinyedge_bench.quality.models import OpenModel, open_model
from tinyedge_bench.quality.perplexity import Perplexity
from tinyedge_bench.quality.rows import divergence_row, model_row, perplexity_row
from tinyedge_bench.quality.sweep import SweepWishes, Tell
from tinyedge_bench.quality.sweep_files import Base, PlannedFile
from tinyedge_bench.quality.windows import DEFAULT_CONTEXT, Windows, cut, tokens_wanted
from tinyedge_bench.result_files import Missing
from tinyedge_bench.speed.quick import quick_speed
from tinyedge_quantize.convert import Wishes, convert

if TYPE_CHECKING:
    from tinyedge_bench.quality.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The rows of the types that could be measured, in the order asked for, and that of the base."""

    rows: list[dict[str, Any]]
    base: dict[str, Any]


@dataclass(slots=True)
class _Measured:
    """A model whose quality is known: its file, its row, how it runs, and the tokens/s of each timed run."""

    path: Path
    row: dict[str, Any]
    plan: LoadPlan
    prompt: list[float] = field(default_factory=list)
    generated: list[float] = field(default_factory=list)


class Steps:
    """One sweep. Where `all_at_once` the files stay until all are timed in turn, otherwise each until it is timed."""

    def __init__(
        self, wishes: SweepWishes, tasks: Sequence[Task], base: Base, folder: Path, all_at_once: bool, tell: Tell
    ) -> None:
        self._wishes, self._asked, self._base = wishes, tasks, base
        self._folder, self._all, self._tell = folder, all_at_once, tell
        self._done, self._total = 0, 1

    def run(self, files: Sequence[PlannedFile], missing: list[Missing], plain: Wishes) -> Found:
        """Measures every file, `plain` being how the base is made. What a type cannot have is added to `missing`."""
        each = 2 + len(self._asked) + self._wishes.runs
        self._total = each * (len(files) + 1)
        base_path, base_seconds = self._base_file(plain)
        found: list[_Measured] = []
        with self._open(base_path) as base:
            windows = self._windows(base)
            kind = base.facts.file_type if self._base.path else self._base.type
            own = _Measured(base_path, _facts(kind, base, base_seconds), base.plan)
            own.row |= self._answers(own.row["type"], base)
            for file in files:
                path = self._folder / self._name(file.type)
                try:
                    measured, base_perplexity = self._measure(file, path, base, windows)
                    own.row |= self._perplexity(base_perplexity)
                    found.append(measured)
                    if not self._all:
                        self._time([measured], missing)
                except TinyEdgeError as error:
                    missing.append(Missing(what=file.type, reason=str(error)))
                if not self._all:
                    path.unlink(missing_ok=True)
        self._time([own, *found] if self._all else [own], missing)
        return Found(rows=[measured.row for measured in found], base=own.row)

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
        wishes = self._wishes
        context = max(wishes.context or DEFAULT_CONTEXT, TASK_CONTEXT if self._asked else 0)
        return open_model(path, threads=wishes.threads, backend=wishes.backend, context=context)

    def _windows(self, base: OpenModel) -> Windows:
        """The windows of the text, the same for all types, which have the base's vocabulary."""
        wishes, model = self._wishes, base.model
        context = wishes.context or min(DEFAULT_CONTEXT, base.facts.context or DEFAULT_CONTEXT)
        tokens = wishes.text.tokens(model, tokens_wanted(context, wishes.stride, wishes.chunks))
        return cut(tokens, wishes.text.name, context=context, bos=model.bos, stride=wishes.stride, chunks=wishes.chunks)

    def _measure(self, file: PlannedFile, path: Path, base: OpenModel, windows: Windows) -> tuple[_Measured, Perplexity]:
        """The type's file made, read beside the base, and asked; with it the base's perplexity, which comes out too."""
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
            return _Measured(path, row, model.plan), divergence.base_perplexity

    def _perplexity(self, perplexity: Perplexity) -> dict[str, Any]:
        return perplexity_row(perplexity, self._wishes.text.name, self._wishes.stride)

    def _answers(self, kind: str, model: OpenModel) -> dict[str, Any]:
        """How well the model does in each task, where there are any."""
        if not self._asked:
            return {}
        from tinyedge_bench.quality.choices import answer

        scores = []
        for task in self._asked:
            with self._step(f"{kind}: {task.name}") as advance:
                score = answer(model, task, limit=self._wishes.limit, progress=lambda done, total: advance(done / total))
            scores.append(asdict(score))
        return {"tasks": scores}

    def _time(self, models: Sequence[_Measured], missing: list[Missing]) -> None:
        """Puts the speeds into the rows: in every round each model once."""
        wishes = self._wishes
        failed: set[str] = set()
        for number in range(wishes.runs):
            for each in models:
                kind = each.row["type"]
                with self._step(f"{kind}: speed, round {number + 1} of {wishes.runs}"):
                    if kind in failed:
                        continue
                    try:
                        speed = quick_speed(each.path, each.plan, prompt=wishes.prompt, generate=wishes.generate, runs=1)
                    except TinyEdgeError as error:
                        failed.add(kind)
                        missing.append(Missing(what=f"speed of {kind}", reason=str(error)))
                        continue
                each.prompt += [speed.prompt_tokens_per_s] if speed.prompt_tokens_per_s else []
                each.generated += [speed.generated_tokens_per_s] if speed.generated_tokens_per_s else []
        for each in models:
            for name, samples in (("prompt", each.prompt), ("generated", each.generated)):
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


def _facts(kind: str, model: OpenModel, seconds: float | None) -> dict[str, Any]:
    made = {"type": kind, "bits_per_weight": model.facts.bits_per_weight, "quantize_s": seconds}
    return made | model_row(model, model.path.name)
