"""What `tinyedge plan` prints: one object for --json, and the lines for a person made from it."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyedge.backends import DEFAULT_KV_TYPE, LoadPlan, Machine, Request, case_of, wished_context
from tinyedge.ceiling import bytes_per_token
from tinyedge.cli.models import CACHE_TYPE
from tinyedge.cli.output import format_bytes, format_count, printable
from tinyedge.errors import MemoryFitError
from tinyedge.fitting import SHORTEST_CONTEXT, Case, Settings, blocks_divide, size
from tinyedge.memory import DEFAULT_BATCH
from tinyedge.model_facts import ModelFacts
from tinyedge.other_machine import SpeedShare

_LABEL_WIDTH = 9
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

    `bandwidth` is in bytes per second, None where it is not known; `basis` says where it comes from, or why it is not there.
    """

    name: str
    machine: Machine
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
        "machine": {"name": place.name, "reserve": place.reserve, "free_bytes": place.machine.free_bytes},
        "fits": plan is not None,
        "problem": chosen.refusal and str(chosen.refusal),
        "plan": plan and _plan_object(plan),
        "memory": _memory_object(case, settings, fits=plan is not None),
        "speed": _speed_object(facts, place, plan),
        "commands": _commands(model, request, plan, place) if plan else [],
        "contexts": _contexts(case, settings, wished_context(facts, request)),
        "sizes": [_size_object(answer) for answer in answers] if len(answers) > 1 else [],
    }


def _situation(facts: ModelFacts, request: Request, answer: Answer) -> tuple[Case, Settings]:
    """The case and the settings whose numbers are shown: those planned, or those that were refused."""
    machine, plan = answer.place.machine, answer.plan
    if plan is not None:
        settings = Settings(context=plan.context, kv_type=plan.kv_type, gpu_layers=plan.gpu_layers, batch=plan.batch)
        return case_of(facts, request, machine, plan.backend, plan.device), settings
    word = "cpu" if request.backend == "auto" else request.backend
    device = next(device for device in machine.devices if device.kind == word)
    wished = wished_context(facts, request)
    case = case_of(facts, request, machine, word, device)
    context = wished if request.strict else min(wished, SHORTEST_CONTEXT, case.longest)
    layers = 0 if word == "cpu" else facts.layers + 1
    kv_type = request.kv_type or DEFAULT_KV_TYPE
    return case, Settings(context=context, kv_type=kv_type, gpu_layers=layers, batch=request.batch or DEFAULT_BATCH)


def _plan_object(plan: LoadPlan) -> dict[str, Any]:
    return {
        "backend": plan.backend,
        "device": plan.device.description,
        "gpu_layers": plan.gpu_layers,
        "context": plan.context,
        "kv_type": plan.kv_type,
        "threads": plan.threads,
        "batch": plan.batch,
        "flash": plan.flash,
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
    """What to type: `run`, after `quantize` where that would not happen by itself or not on that machine."""
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
        *(["--flash-attn", plan.flash] if plan.flash != "auto" else []),
        *(["--rope-scaling", plan.rope_scaling] if plan.rope_scaling else []),
        *(["--rope-scale", f"{request.rope_scale:g}"] if plan.rope_scaling and request.rope_scale else []),
        *(["--no-mmap"] if not plan.mmap else []),
        *(["--mlock"] if plan.mlock else []),
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


def _size_object(answer: Answer) -> dict[str, Any]:
    plan = answer.plan
    return {
        "machine": answer.place.name,
        "fits": plan is not None,
        "context": plan and plan.context,
        "kv_type": plan and plan.kv_type,
        "steps": list(plan.steps) if plan else [],
    }


def report_lines(told: dict[str, Any], columns: int) -> list[str]:
    """The report for a person, lines of at most `columns` characters where words allow it."""
    plan, speed = told["plan"], told["speed"]
    name = printable(told["name"], 40) or printable(told["model"], 60)
    facts = [
        ("model", f"{name}: {told['type']}, {format_count(told['parameters'])} parameters, {format_bytes(told['file_bytes'])}"),
        ("machine", told["machine"]["name"]),
        ("", told["machine"]["reserve"]),
    ]
    lines = [*_wrapped(facts, columns), "", *_memory_lines(told["memory"]), ""]
    if plan is not None:
        facts = [("backend", plan["reason"])]
        facts += [("to fit", step) for step in plan["steps"]]
        facts += [("warning", warning) for warning in plan["warnings"]]
        facts += [("speed", _speed_words(speed))]
        facts += [("then" if number else "type", command) for number, command in enumerate(told["commands"])]
        lines += [*_wrapped(facts, columns), ""]
    lines += _context_lines(told["contexts"])
    if told["sizes"]:
        lines += ["", *_size_lines(told["sizes"], columns)]
    return lines


def _wrapped(facts: list[tuple[str, str]], columns: int) -> list[str]:
    lines = []
    for label, value in facts:
        if label in ("type", "then"):  # to be pasted, so it stays one line
            lines.append(f"{label:<{_LABEL_WIDTH}} {printable(value, 4096)}")
        elif value:
            width = max(columns - _LABEL_WIDTH - 1, 40)
            first, *others = textwrap.wrap(printable(value, 4096), width, break_long_words=False, break_on_hyphens=False)
            lines += [f"{label:<{_LABEL_WIDTH}} {first}", *(" " * (_LABEL_WIDTH + 1) + line for line in others)]
    return lines


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    rows = [
        ("weights", memory["weights_bytes"], ""),
        (f"KV cache, {memory['kv_type']}", memory["kv_bytes"], ""),
        ("compute", memory["compute_bytes"], ""),
        ("together", memory["total_bytes"], ""),
    ]
    if memory["gpu_bytes"]:
        rows += [("of it on GPU", memory["gpu_bytes"], ""), ("GPU's free", memory["gpu_free_bytes"], "")]
    verdict = ", it fits" if memory["fits"] else ", it does not fit"
    rows.append(("free", memory["free_bytes"], verdict))
    return [
        f"memory at a context of {memory['context']} tokens:",
        *(f"  {label:<15} {size(count):>9}{after}" for label, count, after in rows),
    ]


def _speed_words(speed: dict[str, Any]) -> str:
    if speed["tokens_per_s"] is None:
        return f"not known: {speed['basis']}"
    low, high = speed["tokens_per_s"]
    shares = " to ".join(f"{share:.0%}" for share in speed["share"])
    return (
        f"{_rate(low)} to {_rate(high)} tokens/s expected, from a full context to an empty one: {shares} of "
        f"{speed['bandwidth_bytes_per_s'] / 1e9:.3g} GB/s"
    )


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if rate < 9.95 else f"{rate:.0f}"


def _context_lines(cells: list[dict[str, Any]]) -> list[str]:
    """A table of memory by context and KV type; what does not fit stands in brackets."""
    kinds = list(dict.fromkeys(cell["kv_type"] for cell in cells))
    rows: dict[int, list[str]] = {}
    for cell in cells:
        shown = size(cell["total_bytes"])
        rows.setdefault(cell["context"], []).append(f"{shown} " if cell["fits"] else f"({shown})")
    left = "" if all(cell["fits"] for cell in cells) else ", in brackets what does not fit"
    return [
        f"together by context and KV cache{left}:",
        "  " + f"{'tokens':>8}" + "".join(f"{kind:>12} " for kind in kinds),
        *("  " + f"{context:>8}" + "".join(f"{text:>13}" for text in texts) for context, texts in rows.items()),
    ]


def _size_lines(sizes: list[dict[str, Any]], columns: int) -> list[str]:
    width = max(len(row["machine"]) for row in sizes)
    lines = ["by memory:"]
    for row in sizes:
        answer = f"context {row['context']}, KV {row['kv_type']}" if row["fits"] else "does not fit"
        lines.append(printable(f"  {row['machine']:<{width}}  {answer}", max(columns, 40)))
    return lines
