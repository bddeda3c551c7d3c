"""The rows of a document as a report shows them, checked; what a file does not have, or has not as it must be, is None."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinyedge_bench.report.checked_values import count, file_name, number, numbers, passage, sentences, text
from tinyedge_bench.report.names import distinct_labels
from tinyedge_bench.result_files import Document
from tinyedge_bench.speed.cases import Case

MOST_ROWS = 1000  # of one document


@dataclass(frozen=True, kw_only=True)
class SpeedCase:
    """A row of a speed document; speeds in tokens/s, `source` the document's short name, shares of 1."""

    source: str
    model: str
    kind: str
    size: int
    params: int
    engine: str
    engine_version: str
    backend: str
    threads: int
    kv: str
    batch: int
    micro_batch: int
    case: Case
    median: float
    mean: float
    deviation: float
    samples: tuple[float, ...]
    first_token_s: float | None
    bytes_per_s: float | None
    bandwidth_share: float | None
    flops: float | None
    matrix_share: float | None
    energy_j: float | None
    energy_note: str
    temperature: tuple[float | None, ...]
    clock: tuple[float | None, ...]
    throttled: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def phase(self) -> str:
        """What is timed, which decides with what a speed can be compared."""
        if self.case.prompt and self.case.generate:
            return "prompt and generation"
        return "prompt" if self.case.prompt else "generation"

    @cached_property
    def traits(self) -> dict[str, str]:
        """What may tell it from other cases, in the order in which it is named."""
        cases = self.case
        return {
            "model": self.model,
            "engine": self.engine,
            "backend": self.backend,
            "test": Case(prompt=cases.prompt, generate=cases.generate, sequences=cases.sequences, threads=1).name,
            "depth": f"@ d{cases.depth}",
            "threads": f"{self.threads} thread{'s' * (self.threads != 1)}",
            "kv": f"KV {self.kv}",
            "batch": f"batch {self.batch}/{self.micro_batch}",
            "source": self.source,
        }


def speed_cases(document: Document, source: str = "") -> list[SpeedCase]:
    """The rows of a speed document that have a speed, MOST_ROWS at most."""
    return [case for row in document.results[:MOST_ROWS] if (case := _speed_case(row, source)) is not None]


def _speed_case(row: Mapping[str, Any], source: str) -> SpeedCase | None:
    samples = tuple(each for each in numbers(row.get("samples_ts")) if each > 0)
    mean = number(row, "avg_ts") or (statistics.fmean(samples) if samples else 0.0)
    median = number(row, "median_ts") or (statistics.median(samples) if samples else mean)
    if median <= 0:
        return None
    kv = text(row.get("type_k"), 20).upper() or "F16"
    first = number(row, "ttft_ns")
    return SpeedCase(
        source=source,
        model=file_name(row.get("model_filename")) or "unnamed model",
        kind=text(row.get("model_type")),
        size=count(row, "model_size"),
        params=count(row, "model_n_params"),
        engine=text(row.get("engine"), 40) or "tinyedge",
        engine_version=text(row.get("engine_version"), 40),
        backend=text(row.get("backends"), 20).lower(),
        threads=count(row, "n_threads"),
        kv=kv,
        batch=count(row, "n_batch"),
        micro_batch=count(row, "n_ubatch"),
        case=Case(
            prompt=count(row, "n_prompt"),
            generate=count(row, "n_gen"),
            depth=count(row, "n_depth"),
            sequences=max(1, count(row, "n_parallel")),
            threads=count(row, "n_threads"),
            kv_type=kv,
        ),
        median=median,
        mean=mean,
        deviation=number(row, "stddev_ts") or 0.0,
        samples=samples or (median,),
        first_token_s=None if first is None else first / 1e9,
        bytes_per_s=number(row, "bytes_per_s"),
        bandwidth_share=number(row, "bandwidth_share"),
        flops=number(row, "flops"),
        matrix_share=number(row, "matrix_share"),
        energy_j=number(row, "energy_j_per_token"),
        energy_note=text(row.get("energy_note"), 200),
        temperature=passage(row.get("temperature_c")),
        clock=passage(row.get("clock_mhz")),
        throttled=sentences(row.get("throttled")),
        warnings=sentences(row.get("warnings")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its standard error, None where that is not known."""

    value: float
    error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """A multiple-choice result: accuracies of 1, and `chance`, what guessing gives."""

    task: str
    questions: int
    shots: int
    chance: float | None
    plain: Estimate | None
    normalised: Estimate | None

    @property
    def best_known(self) -> Estimate | None:
        """The length-normalised accuracy, which is the one that is published, or else the plain one."""
        return self.normalised or self.plain


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityModel:
    """A row of a quality or sweep document; None where something was not asked for."""

    source: str
    model: str
    kind: str
    file_bytes: int
    params: int
    bits: float | None
    perplexity: Estimate | None
    perplexity_text: str
    context: int
    bits_per_byte: Estimate | None
    base: str
    mean_kl: Estimate | None
    kl_percentiles: Mapping[str, float]
    same_top: Estimate | None
    tasks: tuple[TaskResult, ...]
    prompt_speed: float | None
    generation_speed: float | None
    quantize_s: float | None
    pareto: bool


def quality_models(document: Document, source: str = "") -> list[QualityModel]:
    """The rows of a quality or sweep document, MOST_ROWS at most, in its order."""
    return [_quality_model(row, source) for row in document.results[:MOST_ROWS]]


def _quality_model(row: Mapping[str, Any], source: str) -> QualityModel:
    divergence = row.get("divergence")
    divergence = divergence if isinstance(divergence, Mapping) else {}
    percentiles = divergence.get("kl_percentiles")
    perplexity = row.get("perplexity")
    perplexity = perplexity if isinstance(perplexity, Mapping) else {}
    tasks = row.get("tasks")
    model = file_name(row.get("model_filename")) or "unnamed model"
    return QualityModel(
        source=source,
        model=model,
        kind=text(row.get("type"), 30) or text(row.get("model_type")),
        file_bytes=count(row, "file_bytes"),
        params=count(row, "model_n_params"),
        bits=number(row, "bits_per_weight"),
        perplexity=_estimate(row, "perplexity"),
        perplexity_text=file_name(perplexity.get("text")),
        context=count(perplexity, "n_ctx"),
        bits_per_byte=_estimate(row, "bits_per_byte"),
        base=file_name(divergence.get("base")),
        mean_kl=_estimate(divergence, "mean_kl", "mean_kl_error"),
        kl_percentiles={
            text(key, 10): found
            for key, value in list((percentiles if isinstance(percentiles, Mapping) else {}).items())[:20]
            if (found := number(value)) is not None
        },
        same_top=_estimate(divergence, "same_top", "same_top_error"),
        tasks=tuple(_task(each) for each in (tasks if isinstance(tasks, list) else [])[:20] if isinstance(each, dict)),
        prompt_speed=number(row, "prompt_tokens_per_s"),
        generation_speed=number(row, "generated_tokens_per_s"),
        quantize_s=number(row, "quantize_s"),
        pareto=row.get("pareto") is True,
    )


def _task(row: Mapping[str, Any]) -> TaskResult:
    return TaskResult(
        task=text(row.get("task"), 30) or "unnamed task",
        questions=count(row, "questions"),
        shots=count(row, "shots"),
        chance=chance if (chance := number(row, "chance")) is not None and 0 < chance < 1 else None,
        plain=_estimate(row, "accuracy", "accuracy_error"),
        normalised=_estimate(row, "accuracy_norm", "accuracy_norm_error"),
    )


def _estimate(row: Mapping[str, Any], key: str, error: str | None = None) -> Estimate | None:
    """The value at `key` with the error at `error`, or what an object at `key` says of both."""
    found = row.get(key)
    value, spread = (number(found), number(row, error)) if error else (number(found, "value"), number(found, "error"))
    return None if value is None else Estimate(value=value, error=spread)


def model_labels(models: Sequence[QualityModel]) -> list[str]:
    """Types where these tell the models apart, else names of files."""
    kinds = [model.kind for model in models]
    if all(kinds) and len(set(kinds)) == len(kinds):
        return kinds
    return distinct_labels([{"model": model.model, "type": model.kind, "source": model.source} for model in models])
