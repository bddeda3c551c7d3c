"""What `tinyedge plan` knows, as the object that --json prints; `plan_lines` makes the text for a person of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyedge.backends import DEFAULT_KV_TYPE, LoadPlan, Machine, Request, case_of, wished_context
from tinyedge.ceiling import bytes_per_token
from tinyedge.cli.models import CACHE_TYPE
from tinyedge.errors import MemoryFitError
from tinyedge.fitting import Case, Settings, blocks_divide, fittable, smallest
from tinyedge.memory import DEFAULT_BATCH
from tinyedge.model_facts import ModelFacts
from tinyedge.other_machine import SpeedShare

_KV_TYPES = ("F16", "Q8_0", "Q4_0")  # columns of the table of contexts
_LONGEST_ROW = 1 << 17
# Below it caches hold much of a model, and starting each operation takes longer than reading its weights.
_SMALL_WEIGHTS = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """What is planned for: the argument as it was given and the header's facts.

    `quantize` is the type that the `checkpoint` is to become first, None for a GGUF file.
    """

    argument: str
    facts: ModelFacts
    quantize: str | None = None
    checkpoint: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A machine to plan for. `reserve` says what of its memory is not counted as free, "" where free is what was measured.

    `memory_bytes` is all its memory, None for this machine, of which only what is free counts.
    `bandwidth` is in bytes per second, None where it is not known; `basis` says where it comes from, or why it is not there.
    """

    name: str
    machine: Machine
    memory_bytes: int | None = None
    reserve: str = ""
    bandwidth: float | None = None
    share: SpeedShare | None = None
    basis: str = ""
    here: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came out for one machine: a plan, or the error that says why there is none."""

    place: Place
    plan: LoadPlan | None = None
    refusal: MemoryFitError | None = None


def report(model: PlannedModel, request: Request, chosen: Answer, answers: list[Answer]) -> dict[str, Any]:
    """Everything `plan` knows, as the object that --json prints."""
    facts, plan, place = model.facts, chosen.plan, chosen.place
    case, settings = _situation(facts, request, chosen)
    return {
        "model": model.argument,
        "name": facts.name,
        "type": facts.file_type,
        "parameters": facts.parameters,
        "file_bytes": facts.file_bytes,
        "trained_context": facts.context,
        "machine": {
            "name": place.name,
            "memory_bytes": place.memory_bytes,
            "reserve": place.reserve,
            "free_bytes": place.machine.free_bytes,
        },
        "fits": plan is not None,
        "problem": chosen.refusal and str(chosen.refusal),
        "plan": plan and _plan_object(plan),
        "memory": _memory_object(case, settings, fits=plan is not None),
        "speed": _speed_object(facts, place, plan),
        "commands": _commands(model, request, plan, place) if plan else [],
        "contexts": _contexts(case, settings, wished_context(facts, request)),
        "sizes": [_size_object(facts, answer) for answer in answers] if len(answers) > 1 else [],
    }


def _situation(facts: ModelFacts, request: Request, answer: Answer) -> tuple[Case, Settings]:
    """The case and the settings whose numbers are shown: those planned, those refused, or the least where nothing fits."""
    machine, plan = answer.place.machine, answer.plan
    if plan is not None:
        settings = Settings(context=plan.context, kv_type=plan.kv_type, gpu_layers=plan.gpu_layers, batch=plan.batch)
        return case_of(facts, request, machine, plan.backend, plan.device), settings
    word = "cpu" if request.backend == "auto" else request.backend
    device = next(device for device in machine.devices if device.kind == word)
    case = case_of(facts, request, machine, word, device)
    wished = Settings(
        context=wished_context(facts, request),
        kv_type=request.kv_type or DEFAULT_KV_TYPE,
        gpu_layers=0 if word == "cpu" else facts.layers + 1,
        batch=request.batch or DEFAULT_BATCH,
    )
    return case, wished if fittable(case, wished) else smallest(case, wished)


def _plan_object(plan: LoadPlan) -> dict[str, Any]:
    return {
        "backend": plan.backend,
        "device": plan.device.description,
        "gpu_layers": plan.gpu_layers,
        "context": plan.context,
        "kv_type": plan.kv_type,
        "threads": plan.threads,
        "batch": plan.batch,
        "batch_threads": plan.batch_threads,
        "affinity": list(plan.affinity),
        "flash": plan.flash,
        "mmap": plan.mmap,
        "mlock": plan.mlock,
        "rope_scaling": plan.rope_scaling,
        "rope_scale": plan.rope_scale,
        "reason": plan.reason,
        "steps": list(plan.steps),
        "warnings": list(plan.warnings),
    }


def _memory_object(case: Case, settings: Settings, *, fits: bool) -> dict[str, Any]:
    need, on_gpu = case.need(settings), case.on_gpu(settings)
    return {
        "context": settings.context,
        "kv_type": settings.kv_type,
        "batch": settings.batch,
        "weights_bytes": need.weights_bytes,
        "kv_bytes": need.kv_bytes,
        "compute_bytes": need.compute_bytes,
        "total_bytes": need.total_bytes,
        "free_bytes": case.room.main,
        "gpu_bytes": on_gpu,
        "gpu_free_bytes": case.room.gpu,
        "fits": fits,
    }


def _speed_object(facts: ModelFacts, place: Place, plan: LoadPlan | None) -> dict[str, Any] | None:
    """The range of speeds to expect, from a full context to an empty one; None without a plan, without rates if unknown.

    What is known of this machine is the speed of its main memory, which says nothing about a GPU with its own.
    """
    if plan is None:
        return None
    known = place.bandwidth if not place.here or plan.backend == "cpu" else None
    if known is None or place.share is None:
        basis = place.basis if place.bandwidth is None else "the speed of the GPU's memory is not known"
        return {"tokens_per_s": None, "basis": basis}
    full, empty = (bytes_per_token(facts, depth, plan.kv_type) for depth in (plan.context, 0))
    if empty.total < _SMALL_WEIGHTS:
        return {"tokens_per_s": None, "basis": "the model is so small that the speed of memory does not bound it"}
    return {
        "tokens_per_s": [place.share.low * full.ceiling(known), place.share.high * empty.ceiling(known)],
        "bytes_per_token": full.total,
        "bandwidth_bytes_per_s": known,
        "share": [place.share.low, place.share.high],
        "basis": place.basis,
    }


def _commands(model: PlannedModel, request: Request, plan: LoadPlan, place: Place) -> list[str]:
    """What to type: `run`, after `quantize` where that would not happen by itself or not on that machine.

    What was tuned is left out, the batch excepted: `run` finds it by itself.
    """
    target, commands = model.argument, []
    if model.quantize is not None and (model.quantize != CACHE_TYPE or not place.here):
        assert model.checkpoint is not None
        target = f"{model.checkpoint.resolve().stem or 'model'}-{model.quantize}.gguf"
        commands.append(["tinyedge", "quantize", str(model.checkpoint), "-t", model.quantize, "-o", target])
    layers = [] if plan.backend == "cpu" or plan.gpu_layers > model.facts.layers else ["--gpu-layers", str(plan.gpu_layers)]
    options = [
        *["--ctx", str(plan.context)],
        *(["--kv", plan.kv_type.lower()] if plan.kv_type != DEFAULT_KV_TYPE else []),
        *(["--backend", plan.backend] if request.backend != "auto" else []),
        *layers,
        *(["--threads", str(plan.threads)] if request.threads else []),
        *(["--batch", str(plan.batch)] if plan.batch != DEFAULT_BATCH else []),
        *(["--flash-attn", request.flash] if request.flash != "auto" else []),
        *(["--rope-scaling", plan.rope_scaling] if plan.rope_scaling else []),
        *(["--rope-scale", f"{request.rope_scale:g}"] if plan.rope_scaling and request.rope_scale else []),
        *(["--no-mmap"] if not request.mmap else []),
        *(["--mlock"] if request.mlock else []),
    ]
    commands.append(["tinyedge", "run", target, *options, "-p", "Hello"])
    return [shlex.join(command) for command in commands]


def _contexts(case: Case, settings: Settings, wished: int) -> list[dict[str, Any]]:
    """What the model takes at contexts of 512, 1024, ... tokens with each KV type, and whether that fits."""
    longest = min(max(case.facts.context, wished), _LONGEST_ROW)
    rows = (1 << bits for bits in range(9, 18))
    shown = sorted({*(row for row in rows if row <= longest), settings.context, wished})
    kinds = [kind for kind in dict.fromkeys((*_KV_TYPES, settings.kv_type)) if blocks_divide(case.facts, kind)]
    return [
        {"context": context, "kv_type": kind, "total_bytes": case.need(each).total_bytes, "fits": case.fits(each)}
        for context in shown
        for kind in kinds
        if (each := replace(settings, context=context, kv_type=kind))
    ]


def _size_object(facts: ModelFacts, answer: Answer) -> dict[str, Any]:
    plan = answer.plan
    speed = _speed_object(facts, answer.place, plan)
    return {
        "machine": answer.place.name,
        "memory_bytes": answer.place.memory_bytes,
        "fits": plan is not None,
        "context": plan and plan.context,
        "kv_type": plan and plan.kv_type,
        "batch": plan and plan.batch,
        "tokens_per_s": speed and speed["tokens_per_s"],
        "steps": list(plan.steps) if plan else [],
    }
