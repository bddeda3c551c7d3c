"""Chooses where and how a model runs: backend, device, layers, context and threads, with the reason.

`choose` is pure: what the machine has comes in as a value, so every decision can be tested without the hardware.
Nothing is loaded here; a plan that cannot fit is made to by `fitting`'s ladder, or refused before a byte of the weights is
read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinyedge.errors import BackendError, NativeError
from tinyedge.fitting import Case, Room, Settings, blocks_divide, fit, fittable, size
from tinyedge.load_plan import MAX_ROPE_SCALE, LoadPlan, Machine, Request
from tinyedge.machine.cpu import cpu_facts
from tinyedge.memory import DEFAULT_BATCH, NO_LIMIT, free_memory_bytes
from tinyedge.model_facts import ModelFacts
from tinyedge.native.library import Device, compiled_backends, devices

__all__ = [
    "BACKENDS",
    "BY_WORD",
    "DEFAULT_CONTEXT_LIMIT",
    "DEFAULT_KV_TYPE",
    "GPU_RESERVE_BYTES",
    "Backend",
    "LoadPlan",
    "Machine",
    "Request",
    "case_of",
    "choose",
    "this_machine",
    "wished_context",
]

# A longer context is for who asks: its cache is cleared at every start and is memory that the rest of a board may need.
DEFAULT_CONTEXT_LIMIT = 8192
# What a GPU's driver and libraries take beside llama.cpp's own buffers.
GPU_RESERVE_BYTES = 512 << 20
DEFAULT_KV_TYPE = "F16"

_REBUILD = 'CMAKE_ARGS="{flag}" pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python'


@dataclass(frozen=True, slots=True)
class Backend:
    """A row of the table below: the word for --backend, its name, the CMake flag that compiles it in.

    `automatic` backends are chosen without being asked for. `shares_memory` means that the device uses the main memory.
    """

    word: str
    title: str
    flag: str
    automatic: bool = False
    shares_memory: bool = False


# In the order of preference.
BACKENDS = (
    Backend("metal", "Metal", "-DGGML_METAL=on", automatic=True, shares_memory=True),
    Backend("cuda", "CUDA", "-DGGML_CUDA=on", automatic=True),
    Backend("cpu", "CPU", "", automatic=True, shares_memory=True),
    Backend("vulkan", "Vulkan", "-DGGML_VULKAN=on"),
    Backend("rocm", "ROCm", "-DGGML_HIP=on"),
    Backend("sycl", "SYCL", "-DGGML_SYCL=on"),
    Backend("opencl", "OpenCL", "-DGGML_OPENCL=on"),
    Backend("musa", "MUSA", "-DGGML_MUSA=on"),
    Backend("cann", "CANN", "-DGGML_CANN=on"),
)
BY_WORD = {backend.word: backend for backend in BACKENDS}


def this_machine() -> Machine:
    """The machine that this process runs on, as of now."""
    return Machine(
        compiled=compiled_backends(), devices=devices(), free_bytes=free_memory_bytes(), cpu=cpu_facts()
    )  # fmt: skip


def choose(facts: ModelFacts, request: Request, machine: Machine) -> LoadPlan:
    """The plan for a model.

    Raises BackendError for a backend that is not there, NativeError for a KV type that the model's heads do not divide into,
    and MemoryFitError when the model cannot fit free memory.
    """
    _check_kv_type(facts, request)
    backend, device, why = _choose_backend(request, machine)
    wished = Settings(
        context=wished_context(facts, request),
        kv_type=request.kv_type or DEFAULT_KV_TYPE,
        gpu_layers=0 if backend.word == "cpu" else min(_or(request.gpu_layers, facts.layers + 1), facts.layers + 1),
        batch=request.batch or DEFAULT_BATCH,
    )
    case = case_of(facts, request, machine, backend.word, device)
    if case.room.gpu is not None and request.backend == "auto" and not fittable(case, wished):
        why = f"the model does not fit the {backend.title} device ({size(device.memory_free)} free)"
        backend, device, wished = BY_WORD["cpu"], _cpu_device(machine), replace(wished, gpu_layers=0)
        case = case_of(facts, request, machine, backend.word, device)
    found = fit(case, wished, strict=request.strict)
    layers = found.settings.gpu_layers
    if backend.word != "cpu" and layers <= facts.layers and request.gpu_layers != layers:
        why += f", {layers} of {facts.layers + 1} layers fit its {size(device.memory_free)}"
    threads = request.threads or machine.cpu.threads
    thread_why = "as asked" if request.threads else machine.cpu.reason
    context = found.settings.context
    scaling, scale = _rope(facts, request, context)
    return LoadPlan(
        backend=backend.word,
        device=device,
        gpu_layers=layers,
        context=context,
        threads=threads,
        kv_type=found.settings.kv_type,
        reason=f"{backend.title} ({device.description}): {why}; {_count(threads, 'thread')} ({thread_why}); "
        f"context {context} ({_context_reason(facts, request, wished.context, context)})",
        batch=found.settings.batch,
        flash=request.flash,
        mmap=request.mmap,
        mlock=request.mlock,
        affinity=request.affinity,
        rope_scaling=scaling,
        rope_scale=scale,
        steps=found.steps,
        warnings=_warnings(facts, request, context, scale),
    )


def case_of(facts: ModelFacts, request: Request, machine: Machine, backend: str, device: Device) -> Case:
    """What the ladder has to fit: the model, and the memory that it may use on this device of `backend`."""
    return Case(
        facts=facts,
        room=_room(machine, BY_WORD[backend], device),
        longest=_longest_context(facts, request),
        flash=request.flash != "off",
        repacked=machine.repacked,
    )


def _room(machine: Machine, backend: Backend, device: Device) -> Room:
    if backend.word == "cpu":
        return Room(main=machine.free_bytes)
    reserve = 0 if backend.shares_memory else GPU_RESERVE_BYTES
    shared = backend.shares_memory or device.type == "igpu"
    return Room(main=machine.free_bytes, gpu=device.memory_free - reserve, shared=shared)


def _longest_context(facts: ModelFacts, request: Request) -> int:
    """The tokens that the model can make sense of, stretched as asked for."""
    if not facts.context:
        return NO_LIMIT
    return int(facts.context * (request.rope_scale or (MAX_ROPE_SCALE if request.rope_scaling else 1.0)))


def _check_kv_type(facts: ModelFacts, request: Request) -> None:
    if request.kv_type and not blocks_divide(facts, request.kv_type):
        raise NativeError(
            f"a {request.kv_type} KV cache needs attention heads whose width divides by 32, and this model's are "
            f"{facts.head_dim_k} wide for keys and {facts.head_dim_v} for values",
            "use --kv f16",
        )


def wished_context(facts: ModelFacts, request: Request) -> int:
    """The context asked for, otherwise the trained one, stretched if that is asked for, up to the default limit."""
    trained = facts.context or DEFAULT_CONTEXT_LIMIT
    return request.context or min(int(trained * (request.rope_scale or 1.0)), DEFAULT_CONTEXT_LIMIT)


def _rope(facts: ModelFacts, request: Request, context: int) -> tuple[str | None, float | None]:
    """The RoPE scaling to use and how far it stretches; none where the context needs none and no scale was asked for."""
    needed = context / facts.context if facts.context else 1.0
    scale = request.rope_scale or min(needed, MAX_ROPE_SCALE)
    return (request.rope_scaling, scale) if request.rope_scaling and scale > 1.0 else (None, None)


def _context_reason(facts: ModelFacts, request: Request, wished: int, context: int) -> str:
    trained = facts.context or DEFAULT_CONTEXT_LIMIT
    if context < wished:
        return f"the {wished} asked do not fit" if request.context else f"as free memory allows, of {trained}"
    if request.context is not None:
        return f"as asked, beyond the {trained} it was trained on" if context > trained else "as asked"
    if context < trained:
        return f"of {trained}, --ctx raises it"
    return "the model's own" if context == trained else f"{trained} stretched"


def _warnings(facts: ModelFacts, request: Request, context: int, scale: float | None) -> tuple[str, ...]:
    """What is to be expected of a context beyond the trained one, and of a RoPE scaling that does not suit it."""
    trained = facts.context
    if not trained:
        return ()
    beyond = f"the context of {context} tokens is longer than the {trained} this model was trained on"
    if scale is None:
        if context > trained:
            return (f"{beyond}: its text falls apart there; --rope-scaling yarn keeps it readable",)
        return ("RoPE scaling is left out: the context is within what the model was trained on",) * bool(request.rope_scaling)
    reach = int(trained * scale)
    if reach < context:
        return (f"{beyond}, and a RoPE scale of {scale:g} reaches {reach}: beyond them its text falls apart",)
    if context > trained:
        return (f"{beyond}: {request.rope_scaling} RoPE scaling stretches it {scale:.3g} times, and its text gets worse",)
    return (f"a RoPE scale of {scale:.3g} makes text worse, and a context of {context} tokens does not need it",)


def _choose_backend(request: Request, machine: Machine) -> tuple[Backend, Device, str]:
    if request.backend == "auto":
        if request.gpu_layers == 0:
            return BY_WORD["cpu"], _cpu_device(machine), "no GPU layers, as asked"
        for backend in BACKENDS:
            device = _best_device(backend.word, machine)
            if backend.automatic and device is not None:
                _check_layers_need_gpu(request, backend)
                return backend, device, _why_automatic(backend, machine)
        raise BackendError("ggml has no device at all, not even the CPU", "reinstall llama-cpp-python")
    wanted = BY_WORD.get(request.backend)
    if wanted is None:
        raise BackendError(f"there is no backend {request.backend}", f"choose one of auto, {', '.join(BY_WORD)}")
    device = _best_device(wanted.word, machine)
    if device is None:
        raise _not_there(wanted, machine)
    _check_layers_need_gpu(request, wanted)
    return wanted, device, "as asked"


def _why_automatic(backend: Backend, machine: Machine) -> str:
    if backend.word != "cpu":
        return "the fastest backend here"
    others = [BY_WORD[word].title for word in machine.compiled if word in BY_WORD and word != "cpu"]
    usable = [BY_WORD[device.kind].title for device in machine.devices if device.kind in BY_WORD and device.kind != "cpu"]
    if usable:
        return f"{usable[0]} is used only when asked for"
    return f"{others[0]} is compiled in, but has no device here" if others else "no GPU backend is compiled in"


def _check_layers_need_gpu(request: Request, backend: Backend) -> None:
    if request.gpu_layers and backend.word == "cpu":
        raise BackendError("--gpu-layers needs a GPU backend, and the CPU is what would run", "leave --gpu-layers out")


def _not_there(wanted: Backend, machine: Machine) -> BackendError:
    there = ", ".join(dict.fromkeys(device.kind for device in machine.devices if device.type != "accelerator")) or "none"
    if wanted.word in machine.compiled:
        return BackendError(
            f"{wanted.title} is compiled in, but no {wanted.title} device is present (there is: {there})",
            "check its driver, or use --backend auto",
        )
    return BackendError(
        f"the installed llama.cpp has no {wanted.title} backend (there is: {there})",
        f"use --backend auto, or on a machine with {wanted.title} rebuild it: " + _REBUILD.format(flag=wanted.flag),
    )


def _best_device(word: str, machine: Machine) -> Device | None:
    """The device of a backend with the most free memory."""
    found = [device for device in machine.devices if device.kind == word and device.type != "accelerator"]
    return max(found, key=lambda device: device.memory_free, default=None)


def _cpu_device(machine: Machine) -> Device:
    device = _best_device("cpu", machine)
    if device is None:
        raise BackendError("ggml has no CPU device", "reinstall llama-cpp-python")
    return device


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
