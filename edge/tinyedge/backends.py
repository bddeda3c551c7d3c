"""Chooses where and how a model runs: backend, device, layers, context and threads, with the reason.

`choose` is pure: what the machine has comes in as a value, so every decision can be tested without the hardware.
Nothing is loaded here; a plan that cannot fit is refused before a byte of the weights is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyedge.cpu import CpuFacts, cpu_facts
from tinyedge.errors import BackendError, MemoryFitError
from tinyedge.memory import MemoryNeed, free_memory_bytes, largest_context_that_fits, memory_needed
from tinyedge.model_facts import ModelFacts
from tinyedge.native.library import Device, compiled_backends, devices

# A longer context is for who asks: its cache is cleared at every start and is memory that the rest of a board may need.
DEFAULT_CONTEXT_LIMIT = 8192
# What a GPU's driver and libraries take beside llama.cpp's own buffers.
GPU_RESERVE_BYTES = 512 << 20

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for; None and `auto` leave it to us."""

    backend: str = "auto"
    gpu_layers: int | None = None
    context: int | None = None
    threads: int | None = None
    kv_type: str = "F16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is: backends compiled into the library, devices present, free main memory, the processor."""

    compiled: tuple[str, ...]
    devices: tuple[Device, ...]
    free_bytes: int
    cpu: CpuFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """How a model will be loaded. `gpu_layers` counts the output layer too, as llama.cpp does; `reason` is one line."""

    backend: str
    device: Device
    gpu_layers: int
    context: int
    threads: int
    kv_type: str
    reason: str


def this_machine() -> Machine:
    """The machine that this process runs on, as of now."""
    return Machine(
        compiled=compiled_backends(), devices=devices(), free_bytes=free_memory_bytes(), cpu=cpu_facts()
    )  # fmt: skip


def choose(facts: ModelFacts, request: Request, machine: Machine) -> LoadPlan:
    """The plan for a model.

    Raises BackendError for a backend that is not there and MemoryFitError when the model cannot fit free memory.
    """
    backend, device, why = _choose_backend(request, machine)
    if backend.word == "cpu":
        layers, free = 0, machine.free_bytes
    else:
        layers, free = _layers_that_fit(facts, request, backend, device)
        if layers == 0 and request.backend == "auto":
            why = f"the model does not fit the {backend.title} device ({_size(device.memory_free)} free)"
            backend, device, free = BY_WORD["cpu"], _cpu_device(machine), machine.free_bytes
        elif not backend.shares_memory and layers <= facts.layers:
            free = machine.free_bytes + device.memory_free - GPU_RESERVE_BYTES
            why += f", {layers} of {facts.layers + 1} layers fit its {_size(device.memory_free)}"
    context, context_why = _choose_context(facts, request, free)
    threads = request.threads or machine.cpu.threads
    thread_why = "as asked" if request.threads else machine.cpu.reason
    return LoadPlan(
        backend=backend.word,
        device=device,
        gpu_layers=layers,
        context=context,
        threads=threads,
        kv_type=request.kv_type,
        reason=f"{backend.title} ({device.description}): {why}; {_count(threads, 'thread')} ({thread_why}); "
        f"context {context} ({context_why})",
    )


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


def _layers_that_fit(facts: ModelFacts, request: Request, backend: Backend, device: Device) -> tuple[int, int]:
    """How many layers go to the GPU, the output layer included, and the free memory that they share with the context."""
    reserve = 0 if backend.shares_memory else GPU_RESERVE_BYTES
    free = device.memory_free - reserve
    if request.gpu_layers is not None:
        return min(request.gpu_layers, facts.layers + 1), free
    need = memory_needed(facts, request.context or min(facts.context or 512, 512), kv_type=request.kv_type)
    if need.total_bytes <= free:
        return facts.layers + 1, free
    per_layer = (need.weights_bytes + need.kv_bytes) / max(1, facts.layers + 1)
    return max(0, min(facts.layers, int((free - need.compute_bytes) / per_layer))), free


def _choose_context(facts: ModelFacts, request: Request, free: int) -> tuple[int, str]:
    """The context in tokens and where it comes from. Raises MemoryFitError when weights, cache and buffers exceed `free`."""
    trained = facts.context or DEFAULT_CONTEXT_LIMIT
    if request.context is not None:
        need = memory_needed(facts, request.context, kv_type=request.kv_type)
        if need.total_bytes > free:
            raise _does_not_fit(facts, request.context, need, free, request.kv_type)
        over = request.context > trained
        return request.context, f"as asked, beyond the {trained} it was trained on" if over else "as asked"
    smallest = min(trained, 512)
    need = memory_needed(facts, smallest, kv_type=request.kv_type)
    if need.total_bytes > free:
        raise _does_not_fit(facts, smallest, need, free, request.kv_type)
    wanted = min(trained, DEFAULT_CONTEXT_LIMIT)
    fits = largest_context_that_fits(facts, free, kv_type=request.kv_type)
    if fits < wanted:
        return max(smallest, fits // 256 * 256), f"as free memory allows, of {trained}"
    if wanted < trained:
        return wanted, f"of {trained}, --ctx raises it"
    return wanted, "the model's own"


def _does_not_fit(facts: ModelFacts, context: int, need: MemoryNeed, free: int, kv_type: str) -> MemoryFitError:
    problem = (
        f"the model needs {_size(need.total_bytes)} (weights {_size(need.weights_bytes)}, KV cache "
        f"{_size(need.kv_bytes)} for {context} tokens, compute buffers {_size(need.compute_bytes)}) and {_size(free)} are free"
    )
    fits = largest_context_that_fits(facts, free, kv_type=kv_type)
    if fits >= 64:
        return MemoryFitError(problem, f"a context of {fits} tokens fits: --ctx {fits}")
    room = free - need.compute_bytes - need.kv_bytes
    bits = 8 * room / facts.parameters if facts.parameters else 0.0
    if bits >= 2.5:
        return MemoryFitError(
            problem,
            f"quantize it to a type of at most {bits:.1f} bits per weight; this file has {facts.bits_per_weight:.1f}",
        )
    return MemoryFitError(problem, "free some memory or choose a smaller model")


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 10 << 30 else f"{max(0, count) / (1 << 20):.0f} MiB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
