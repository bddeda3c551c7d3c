"""A case's runs as a row of results: llama-bench's columns where it has the thing, with its meaning, and ours beside them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from tinyedge.model_facts import ModelFacts
from tinyedge_bench.speed.cases import Case
from tinyedge_bench.speed.ceilings import Ceilings
from tinyedge_bench.speed.conditions import Observed, clocks, held_back, joules_per_token, temperatures, throttled
from tinyedge_bench.speed.doubts import doubts, row_title
from tinyedge_bench.speed.runs import Sample

_FLASH_AUTO = -1  # llama_flash_attn_type
_NOT_OURS = "the energy of another program's run cannot be told from that of its start"
_NS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is measured, as the rows name it. `description` is llama.cpp's own: `llama 1B Q4_K - Medium`."""

    filename: str
    description: str
    facts: ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A program that is measured. `ours` tells whether it is tinyedge; `notes` are what a reader of its figures must know."""

    name: str
    version: str
    ours: bool = False


@dataclass(slots=True, kw_only=True)
class Timed:
    """The runs of one case by one engine so far."""

    case: Case
    engine: Engine
    batch: int
    gpu_layers: int
    samples: list[Sample] = field(default_factory=list)
    seen: list[Observed] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    begun: str = ""

    def add(self, sample: Sample, seen: Observed) -> None:
        """A run that ended just now."""
        self.begun = self.begun or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.samples.append(sample)
        self.seen.append(seen)


def row(timed: Timed, subject: Subject, ceilings: Ceilings) -> dict[str, Any]:
    """The row of a "speed" document; there must be at least one run."""
    case, facts, seen = timed.case, subject.facts, timed.seen
    seconds = [sample.seconds for sample in timed.samples]
    speeds = [case.tokens / each for each in seconds]
    first = [sample.first_token_s for sample in timed.samples if sample.first_token_s is not None]
    joules, note = joules_per_token(seen, case.tokens) if timed.engine.ours else (None, _NOT_OURS)
    found: dict[str, Any] = {
        "model_filename": subject.filename,
        "model_type": subject.description,
        "model_size": facts.weight_bytes,
        "model_n_params": facts.parameters,
        "engine": timed.engine.name,
        "engine_version": timed.engine.version,
        "backends": case.backend,
        "n_batch": timed.batch,
        "n_ubatch": timed.batch,
        "n_threads": case.threads,
        "type_k": case.kv_type.lower(),
        "type_v": case.kv_type.lower(),
        "n_gpu_layers": timed.gpu_layers,
        "flash_attn": _FLASH_AUTO,
        "n_prompt": case.prompt,
        "n_gen": case.generate,
        "n_depth": case.depth,
        "n_parallel": case.sequences,
        "test": case.name,
        "test_time": timed.begun,
        "avg_ns": round(statistics.fmean(seconds) * _NS),
        "stddev_ns": round(_spread(seconds) * _NS),
        "avg_ts": statistics.fmean(speeds),
        "stddev_ts": _spread(speeds),
        "samples_ns": [round(each * _NS) for each in seconds],
        "samples_ts": speeds,
        "median_ts": statistics.median(speeds),
        "ttft_ns": round(statistics.median(first) * _NS) if first else None,
        "ttft_samples_ns": [round(each * _NS) for each in first],
        **ceilings.shares(facts, case, statistics.median(seconds)),
        "energy_j_per_token": joules,
        "energy_note": note,
        "temperature_c": temperatures(seen),
        "clock_mhz": clocks(seen),
        "throttled": throttled(seen),
    }
    return {**found, "warnings": [*doubts(row_title(found), speeds, held_back(seen)), *timed.notes]}


def _spread(values: list[float]) -> float:
    """The standard deviation of the sample (divided by n - 1), as llama-bench gives it; 0 for a single run."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
