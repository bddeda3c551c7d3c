"""One pool of CPU threads for the life of a context.

Without a pool of its own, a build without OpenMP (macOS, Android) starts and joins its threads at every decode.
llama-bench attaches one likewise.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from tinyedge.native import library

# struct ggml_threadpool_params takes 532 bytes, which ggml fills and ggml reads; it begins with a byte for each of 512 CPUs.
_PARAMETER_BYTES = 4096
_MASK_BYTES = 512  # GGML_MAX_N_THREADS


class ThreadPool:
    """`threads` workers of ggml's CPU backend, on the CPUs in `affinity`, on any when it is empty.

    An empty shell where the installed backend offers no pool.
    """

    def __init__(self, threads: int, affinity: tuple[int, ...] = ()) -> None:
        self._pointer: int | None = None
        new = _cpu_function("ggml_threadpool_new", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p))
        if new is None:
            return
        parameters = ctypes.create_string_buffer(_PARAMETER_BYTES)
        library.function("ggml_threadpool_params_init", None, ctypes.c_void_p, ctypes.c_int)(parameters, threads)
        for cpu in affinity:
            if 0 <= cpu < _MASK_BYTES:
                parameters[cpu] = b"\1"
        self._pointer = new(ctypes.addressof(parameters))

    def attach(self, context: int) -> None:
        """Makes the llama context at this address compute with the pool, prompts and generation alike."""
        if self._pointer:
            _attach()(context, self._pointer, None)

    def close(self) -> None:
        """Ends the threads; the context must be freed before."""
        pointer, self._pointer = self._pointer, None
        free = _cpu_function("ggml_threadpool_free", ctypes.CFUNCTYPE(None, ctypes.c_void_p)) if pointer else None
        if free is not None:
            free(pointer)


@functools.cache
def _cpu_function(name: str, prototype: Any) -> Any:
    """A function of the CPU backend, which may be a library of its own that was loaded at run time."""
    registry = library.function("ggml_backend_reg_by_name", ctypes.c_void_p, ctypes.c_char_p)(b"CPU")
    find = library.function("ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
    address = find(registry, name.encode()) if registry else None
    return prototype(address) if address else None


@functools.cache
def _attach() -> Any:
    attach = library.ready()._lib["llama_attach_threadpool"]
    attach.restype = None
    attach.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    return attach
