"""One matrix product as a model computes it, timed: ggml's own kernels on one device, the weights in any buffer that it offers.

A CPU multiplies some types with other kernels, faster or slower, once their weights are repacked, for which ggml has buffer
types of its own. llama.cpp takes the first that can multiply a weight, repacking ones before the plain one
(src/llama-model.cpp, `make_cpu_buft_list`; src/llama-model-loader.cpp, `weight_buft_supported`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tinyedge.errors import NativeError
from tinyedge.ggml_types import type_named
from tinyedge.native import library
from tinyedge.native.handle import Handle, freeing
from tinyedge.native.quantize import quantize_rows

Floats: TypeAlias = npt.NDArray[np.float32]

_F32 = 0  # GGML_TYPE_F32
_USED_FOR_WEIGHTS = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS
_SUCCESS = 0  # GGML_STATUS_SUCCESS
_DESCRIPTIONS = 1 << 20  # bytes for the descriptions of a few tensors and of a graph of the default size
_POINTER = ctypes.c_void_p


class _InitParameters(ctypes.Structure):
    """ggml.h, struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@dataclass(frozen=True, slots=True)
class WeightBuffer:
    """Where a device keeps weights: ggml's name of it ("CPU_REPACK", "CPU", "CUDA0") and ggml's handle."""

    name: str
    handle: int


def weight_buffers(device: str) -> tuple[WeightBuffer, ...]:
    """The buffer types of the device that ggml calls `device`, in llama.cpp's order. Raises NativeError when there is none."""
    handle = library.device_handle(device)
    name = library.function("ggml_backend_buft_name", ctypes.c_char_p, _POINTER)
    plain: int = library.function("ggml_backend_dev_buffer_type", _POINTER, _POINTER)(handle)
    return tuple(WeightBuffer(name(each).decode(), each) for each in (*_repacking(handle), plain))


def _repacking(device: int) -> list[int]:
    """Handles of the buffer types in which the device's weights are stored in another order; only the CPU has any."""
    get = _device_function(device, "ggml_backend_dev_get_extra_bufts", ctypes.CFUNCTYPE(_POINTER, _POINTER))
    listed = get(device) if get else None
    found: list[int] = []
    while listed and (each := _POINTER.from_address(listed + len(found) * ctypes.sizeof(_POINTER)).value):
        found.append(each)
    return found


def _device_function(device: int, name: str, prototype: Any) -> Any:
    """A function that the device's backend offers by name, None when it offers none."""
    registry = library.function("ggml_backend_dev_backend_reg", _POINTER, _POINTER)(device)
    find = library.function("ggml_backend_reg_get_proc_address", _POINTER, _POINTER, ctypes.c_char_p)
    address = find(registry, name.encode())
    return prototype(address) if address else None


class MatrixProduct(Handle):
    """Weights stored as `ggml_type` in `buffer`, times the transpose of `inputs` (tokens, columns), on ggml's `device`.

    The weights are `some_rows` (rows, columns) `copies` times one below the other, which saves the time of quantizing many
    rows; both are float32, `columns` is a multiple of the type's block, else ValueError is raised. Where the device cannot
    multiply this type from that buffer, `supported` is False and there is nothing to compute. Raises NativeError when the
    device is not there, does not start or has no memory for it. A type that quantizes only by importance is not for here.
    """

    def __init__(
        self, device: str, buffer: WeightBuffer, ggml_type: str, some_rows: Floats, inputs: Floats, *, copies: int = 1
    ) -> None:
        (tokens, columns), rows = inputs.shape, len(some_rows) * copies
        if some_rows.shape[1] != columns:
            raise ValueError(f"weights of {some_rows.shape[1]} columns do not multiply inputs of {columns}")
        packed = _packed(ggml_type, some_rows)
        self._freeing: list[Callable[[], object]] = []
        self._device = library.device_handle(device)
        self._shape = tokens, rows
        self.operations = 2 * rows * columns * tokens
        with freeing(self):
            start = library.function("ggml_backend_dev_init", _POINTER, _POINTER, ctypes.c_char_p)
            self._backend = self._own(start(self._device, None), "ggml_backend_free", f"start the device {device}")
            own, shared = self._descriptions(), self._descriptions()
            new = library.function("ggml_new_tensor_2d", _POINTER, _POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            stored, given = new(own, type_named(ggml_type).id, columns, rows), new(shared, _F32, columns, tokens)
            self._product = library.function("ggml_mul_mat", *[_POINTER] * 4)(shared, stored, given)
            self._graph = library.function("ggml_new_graph", _POINTER, _POINTER)(shared)
            library.function("ggml_build_forward_expand", None, _POINTER, _POINTER)(self._graph, self._product)
            held = self._allocate(own, buffer.handle)
            library.function("ggml_backend_buffer_set_usage", None, _POINTER, ctypes.c_int)(held, _USED_FOR_WEIGHTS)
            self._allocate(shared, weight_buffers(device)[-1].handle)
            supports = library.function("ggml_backend_dev_supports_op", ctypes.c_bool, _POINTER, _POINTER)
            self.supported: bool = supports(self._device, self._product)
            if self.supported:  # a repacking buffer takes no weights of a type it does not know
                _write(stored, np.tile(packed, copies))
                _write(given, np.ascontiguousarray(inputs, np.float32))
        self._compute = library.function("ggml_backend_graph_compute_async", ctypes.c_int, _POINTER, _POINTER)
        self._wait = library.function("ggml_backend_synchronize", None, _POINTER)

    def use_threads(self, threads: int) -> None:
        """Computes with so many threads from now on; a GPU has none to set."""
        set_threads = _device_function(
            self._device, "ggml_backend_set_n_threads", ctypes.CFUNCTYPE(None, _POINTER, ctypes.c_int)
        )
        if set_threads is not None:
            set_threads(self._backend, threads)

    def seconds(self, times: int = 1) -> float:
        """How long one product takes, the mean of `times` that are handed to the device one after the other without waiting."""
        if not self.supported:
            raise ValueError("the device does not multiply this type from this buffer")
        begun = perf_counter()
        try:
            for _ in range(times):
                if (status := self._compute(self._backend, self._graph)) != _SUCCESS:
                    raise NativeError(f"ggml failed to multiply two matrices (status {status})")
        finally:
            self._wait(self._backend)
        return (perf_counter() - begun) / times

    def result(self) -> Floats:
        """The product that was computed last, (tokens, rows)."""
        values = np.empty(self._shape, np.float32)
        read = library.function("ggml_backend_tensor_get", None, *[_POINTER] * 2, *[ctypes.c_size_t] * 2)
        read(self._product, values.ctypes.data, 0, values.nbytes)
        return values

    def close(self) -> None:
        """Frees everything on the device; again is harmless."""
        while self._freeing:
            self._freeing.pop()()

    def _own(self, pointer: int | None, free: str, what: str) -> int:
        """`pointer`, to be freed by ggml's function `free`, the last made first."""
        if not pointer:
            raise NativeError(f"ggml cannot {what}")
        release = library.function(free, None, _POINTER)
        self._freeing.append(lambda: release(pointer))
        return pointer

    def _descriptions(self) -> int:
        """A ggml context for tensors whose data lies elsewhere."""
        new = library.function("ggml_init", _POINTER, _InitParameters)
        return self._own(new(_InitParameters(_DESCRIPTIONS, None, True)), "ggml_free", "describe a matrix product")

    def _allocate(self, descriptions: int, buffer_type: int) -> int:
        """A buffer of this type with room for all tensors of the context `descriptions`."""
        allocate = library.function("ggml_backend_alloc_ctx_tensors_from_buft", *[_POINTER] * 3)
        return self._own(allocate(descriptions, buffer_type), "ggml_backend_buffer_free", "get the memory for a matrix product")


def _packed(ggml_type: str, weights: Floats) -> npt.NDArray[np.uint8]:
    """The weights as the type stores them, bytes."""
    source = np.ascontiguousarray(weights, np.float32)
    packed = np.empty(len(source) * type_named(ggml_type).row_bytes(source.shape[1]), np.uint8)
    quantize_rows(ggml_type, source.ctypes.data, packed.ctypes.data, *source.shape)
    return packed


def _write(tensor: int, content: npt.NDArray[Any]) -> None:
    write = library.function("ggml_backend_tensor_set", None, *[_POINTER] * 2, *[ctypes.c_size_t] * 2)
    write(tensor, content.ctypes.data, 0, content.nbytes)
