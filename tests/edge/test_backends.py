"""The plan for a model on machines of every kind; what a machine has is a value here, the decision is the real one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.backends import BACKENDS, DEFAULT_CONTEXT_LIMIT, GPU_RESERVE_BYTES, Machine, Request, choose, this_machine
from tinyedge.errors import BackendError, MemoryFitError, NativeError
from tinyedge.gguf_file import read_gguf
from tinyedge.machine.cpu import CpuFacts
from tinyedge.memory import memory_needed
from tinyedge.model_facts import ModelFacts, describe_model
from tinyedge.native.library import Device

MIB = 1 << 20
GIB = 1 << 30
CPU = Device("cpu", "CPU", "Cortex-A76", 8 * GIB, 8 * GIB, "cpu")
CUDA = Device("cuda", "CUDA0", "NVIDIA Orin", 8 * GIB, 7 * GIB)
METAL = Device("metal", "MTL0", "Apple M2", 16 * GIB, 11 * GIB)
VULKAN = Device("vulkan", "Vulkan0", "Mali", 4 * GIB, 4 * GIB, "igpu")
BLAS = Device("blas", "BLAS", "OpenBLAS", 0, 0, "accelerator")
PROCESSOR = CpuFacts(name="Cortex-A76", logical=4, physical=4, performance=4, quota=None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return describe_model(read_gguf(write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    """The tiny model with the trained context of Llama 3."""
    parts = tiny_parts()
    parts.set("llama.context_length", "u32", 131072)
    return describe_model(read_gguf(write(tmp_path_factory.mktemp("model") / "long.gguf", parts)))


def machine(*devices: Device, compiled: tuple[str, ...] = (), free: int = 6 * GIB) -> Machine:
    kinds = tuple(dict.fromkeys((*compiled, *(device.kind for device in devices))))
    return Machine(compiled=kinds, devices=devices, free_bytes=free, cpu=PROCESSOR)


@pytest.mark.parametrize(
    ("devices", "backend"),
    [
        ((CPU,), "cpu"),
        ((CUDA, CPU), "cuda"),
        ((METAL, CPU), "metal"),
        ((CUDA, METAL, CPU), "metal"),
        ((BLAS, CPU), "cpu"),
        ((VULKAN, CPU), "cpu"),
    ],
)
def test_auto_takes_metal_then_cuda_then_cpu(tiny: ModelFacts, devices: tuple[Device, ...], backend: str) -> None:
    plan = choose(tiny, Request(), machine(*devices))
    assert plan.backend == backend
    assert plan.device.kind == backend
    assert plan.gpu_layers == (0 if backend == "cpu" else tiny.layers + 1)


def test_the_reason_is_one_line_that_names_device_threads_and_context(tiny: ModelFacts) -> None:
    reason = choose(tiny, Request(), machine(CPU)).reason
    assert reason == (
        "CPU (Cortex-A76): no GPU backend is compiled in; 4 threads (4 physical cores); context 128 (the model's own)"
    )


def test_a_backend_compiled_in_without_a_device_is_not_chosen_and_said(tiny: ModelFacts) -> None:
    plan = choose(tiny, Request(), machine(CPU, compiled=("cuda",)))
    assert plan.backend == "cpu"
    assert "CUDA is compiled in, but has no device here" in plan.reason


def test_other_backends_run_when_asked_for(tiny: ModelFacts) -> None:
    assert choose(tiny, Request(backend="vulkan"), machine(VULKAN, CPU)).device == VULKAN


def test_the_device_with_the_most_free_memory_is_taken(tiny: ModelFacts) -> None:
    second = Device("cuda", "CUDA1", "NVIDIA A2", 16 * GIB, 15 * GIB)
    assert choose(tiny, Request(), machine(CUDA, second, CPU)).device == second


@pytest.mark.parametrize("word", [backend.word for backend in BACKENDS if backend.word != "cpu"])
def test_asking_for_a_backend_that_is_not_compiled_in_says_how_to_get_it(tiny: ModelFacts, word: str) -> None:
    with pytest.raises(BackendError) as caught:
        choose(tiny, Request(backend=word), machine(CPU))
    flag = next(backend.flag for backend in BACKENDS if backend.word == word)
    assert "there is: cpu" in caught.value.problem
    assert f'CMAKE_ARGS="{flag}" pip install' in caught.value.remedy


def test_asking_for_a_backend_without_a_device_says_so(tiny: ModelFacts) -> None:
    with pytest.raises(BackendError, match="CUDA is compiled in, but no CUDA device is present"):
        choose(tiny, Request(backend="cuda"), machine(CPU, compiled=("cuda",)))


def test_an_unknown_backend_is_refused_with_the_known_ones(tiny: ModelFacts) -> None:
    with pytest.raises(BackendError, match=r"no backend tpu.*auto, metal, cuda, cpu"):
        choose(tiny, Request(backend="tpu"), machine(CPU))


def test_gpu_layers_without_a_gpu_are_refused(tiny: ModelFacts) -> None:
    for request in (Request(gpu_layers=3), Request(gpu_layers=3, backend="cpu")):
        with pytest.raises(BackendError, match="needs a GPU"):
            choose(tiny, request, machine(CPU))


def test_no_gpu_layers_means_the_cpu(tiny: ModelFacts) -> None:
    assert choose(tiny, Request(gpu_layers=0), machine(CUDA, CPU)).backend == "cpu"


def test_as_many_layers_as_fit_go_to_the_gpu(tiny: ModelFacts) -> None:
    need = memory_needed(tiny, tiny.context)
    half = GPU_RESERVE_BYTES + need.compute_bytes + (need.weights_bytes + need.kv_bytes) // 2
    plan = choose(tiny, Request(), machine(Device("cuda", "CUDA0", "small", GIB, half), CPU))
    assert plan.backend == "cuda"
    assert 0 < plan.gpu_layers < tiny.layers + 1


def test_a_gpu_with_no_room_for_a_layer_is_left_for_the_cpu(tiny: ModelFacts) -> None:
    full = Device("cuda", "CUDA0", "full", GIB, 10 * MIB)
    plan = choose(tiny, Request(), machine(full, CPU))
    assert (plan.backend, plan.gpu_layers) == ("cpu", 0)
    assert "does not fit the CUDA device" in plan.reason


def test_a_long_context_is_taken_only_when_asked_for(large: ModelFacts) -> None:
    assert choose(large, Request(), machine(CPU)).context == DEFAULT_CONTEXT_LIMIT
    assert choose(large, Request(context=20000), machine(CPU)).context == 20000


def test_the_context_shrinks_to_free_memory(large: ModelFacts) -> None:
    free = memory_needed(large, 2048, batch=128).total_bytes
    plan = choose(large, Request(), machine(CPU, free=free))
    assert plan.context == 2048
    assert "as free memory allows" in plan.reason


def test_a_context_beyond_the_trained_one_is_said(tiny: ModelFacts) -> None:
    assert "beyond the 128 it was trained on" in choose(tiny, Request(context=256), machine(CPU)).reason


def test_a_model_that_cannot_fit_is_refused_with_the_numbers(tiny: ModelFacts) -> None:
    with pytest.raises(MemoryFitError, match=r"needs at least [\d.]+ MiB \(weights [\d.]+ [KM]iB, .* and 1\.0 MiB are free"):
        choose(tiny, Request(), machine(CPU, free=MIB))


def test_a_context_that_cannot_fit_is_shortened_and_said(large: ModelFacts) -> None:
    free = memory_needed(large, 4096, batch=128).total_bytes
    plan = choose(large, Request(context=100000), machine(CPU, free=free))
    saved = round((memory_needed(large, 100000).kv_bytes - memory_needed(large, 4096).kv_bytes) / MIB)
    assert plan.context == 4096
    assert plan.steps[1:] == (f"context 100000 -> 4096 tokens: {saved} MiB of KV cache saved",)
    assert "the 100000 asked do not fit" in plan.reason


def test_strict_refuses_a_context_that_cannot_fit_with_one_that_does(large: ModelFacts) -> None:
    free = memory_needed(large, 4096, batch=128).total_bytes
    with pytest.raises(MemoryFitError, match=r"for 100000 tokens") as caught:
        choose(large, Request(context=100000, strict=True), machine(CPU, free=free))
    assert caught.value.remedy == "this fits: --ctx 4096 --batch 128"
    assert choose(large, Request(context=4096, batch=128, strict=True), machine(CPU, free=free)).context == 4096


def test_strict_also_refuses_to_shorten_the_model_s_own_context(large: ModelFacts) -> None:
    with pytest.raises(MemoryFitError, match="--ctx 2048"):
        choose(large, Request(strict=True), machine(CPU, free=memory_needed(large, 2048, batch=128).total_bytes))


def test_a_mistyped_context_does_not_take_all_memory(tiny: ModelFacts) -> None:
    assert choose(tiny, Request(context=2_000_000_000), machine(CPU)).context == tiny.context


def test_what_was_asked_for_stands_in_the_plan(tiny: ModelFacts) -> None:
    wishes = {"kv_type": "Q4_0", "batch": 64, "flash": "on", "mmap": False, "mlock": True, "affinity": (0, 2)}
    plan = choose(tiny, Request(**wishes), machine(CPU))  # type: ignore[arg-type]
    assert {name: getattr(plan, name) for name in wishes} == wishes
    assert (plan.steps, plan.warnings) == ((), ())


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"kv_type": "Q3_K"}, "the KV type is one of F16, Q8_0"),
        ({"kv_type": "Q8_0", "flash": "off"}, "a Q8_0 KV cache needs flash attention"),
        ({"flash": "yes"}, "flash attention is auto, on or off"),
        ({"rope_scaling": "ntk"}, "RoPE scaling is linear or yarn"),
        ({"rope_scale": 2.0}, "needs a kind of RoPE scaling"),
        ({"rope_scaling": "yarn", "rope_scale": 0.5}, "the RoPE scale is from 1 to 64"),
        ({"rope_scaling": "yarn", "rope_scale": float("nan")}, "the RoPE scale is from 1 to 64"),
    ],
)
def test_a_wish_without_meaning_is_refused(wish: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Request(**wish)


def test_a_kv_type_that_the_heads_do_not_divide_into_is_refused(tiny: ModelFacts) -> None:
    odd = replace(tiny, head_dim_k=80, head_dim_v=80)
    with pytest.raises(NativeError, match="80 wide") as caught:
        choose(odd, Request(kv_type="Q8_0"), machine(CPU))
    assert caught.value.remedy == "use --kv f16"
    assert choose(odd, Request(kv_type="BF16"), machine(CPU)).kv_type == "BF16"


@pytest.mark.parametrize(
    ("request_", "scaling", "scale", "warning"),
    [
        (Request(context=100), None, None, None),
        (Request(context=256), None, None, "longer than the 128 this model was trained on: its text falls apart.*yarn"),
        (Request(context=256, rope_scaling="yarn"), "yarn", 2.0, "yarn RoPE scaling stretches it 2 times"),
        (Request(context=256, rope_scaling="linear", rope_scale=3.0), "linear", 3.0, "linear RoPE scaling stretches it 3"),
        (Request(context=256, rope_scaling="yarn", rope_scale=1.5), "yarn", 1.5, "a RoPE scale of 1.5 reaches 192"),
        (Request(context=100, rope_scaling="yarn"), None, None, "RoPE scaling is left out"),
        (Request(context=100, rope_scaling="yarn", rope_scale=2.0), "yarn", 2.0, "does not need it"),
        (Request(rope_scaling="yarn", rope_scale=2.0), "yarn", 2.0, "256 tokens is longer than the 128"),
    ],
)
def test_a_context_beyond_the_trained_one_is_warned_of(
    tiny: ModelFacts, request_: Request, scaling: str | None, scale: float | None, warning: str | None
) -> None:
    plan = choose(tiny, request_, machine(CPU))
    assert (plan.rope_scaling, plan.rope_scale) == (scaling, scale)
    assert len(plan.warnings) == (warning is not None)
    assert warning is None or re.search(warning, plan.warnings[0])


def test_threads_are_the_cores_unless_asked_for(tiny: ModelFacts) -> None:
    assert choose(tiny, Request(), machine(CPU)).threads == 4
    assert choose(tiny, Request(threads=2), machine(CPU)).threads == 2


def test_this_machine_has_a_cpu_and_free_memory() -> None:
    here = this_machine()
    assert "cpu" in here.compiled
    assert any(device.kind == "cpu" for device in here.devices)
    assert here.free_bytes > 0


def test_a_plan_is_a_value(tiny: ModelFacts, tmp_path: Path) -> None:
    del tmp_path
    assert choose(tiny, Request(), machine(CPU)) == choose(tiny, Request(), machine(CPU))
