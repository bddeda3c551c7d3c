"""What the installed ggml build uses of a processor, and whether its kernels run here.

Everything in this file may end the process when the build is meant for a newer CPU: `tinyedge.machine.build_probe` calls it in
a child.
"""

from __future__ import annotations

import array
import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any

from tinyedge.errors import NativeError
from tinyedge.ggml_types import type_named
from tinyedge.native import library
from tinyedge.native.quantize import quantize_rows

# One of each family of dot products: half floats, plain blocks, blocks that are repacked, K-quants.
_TRIED_TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K")
_COLUMNS, _ROWS, _TOKENS = 256, 16, 2
# Of the product of the two lengths. Q4_0, the coarsest of them, is off by 0.007; no result is below 0.5.
_TOLERANCE = 0.03
_F32 = 0


class _Feature(ctypes.Structure):
    """struct ggml_backend_feature."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


class _InitParameters(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Place(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def package_folder() -> Path | None:
    """The folder of the llama_cpp package, found without running any of it; None when it is not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def build_features() -> dict[str, str] | None:
    """What ggml says its CPU kernels were compiled for: {"NEON": "1", "DOTPROD": "1", "SVE_CNT": "32"}.

    None when the installed ggml does not say.
    """
    address = _cpu_address("ggml_backend_get_features")
    if address is None:
        return None
    rows = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), ctypes.c_void_p)(address)(_cpu_registry())
    found: dict[str, str] = {}
    for row in rows:
        if row.name is None:
            break
        found[row.name.decode()] = row.value.decode()
    return found


def cpu_library() -> str:
    """The file that the CPU kernels come from, by its full path; "" when the system does not tell."""
    address = _cpu_address("ggml_backend_get_features") or _cpu_address("ggml_backend_set_n_threads")
    find = getattr(ctypes.CDLL(None), "dladdr", None)
    if address is None or find is None:
        return ""
    place = _Place()
    find.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    return os.fsdecode(place.file or b"") if find(address, ctypes.byref(place)) else ""


def try_kernels() -> None:
    """Multiplies small matrices of several types on one thread of the CPU. Raises NativeError when a result is wrong."""
    device = library.device_handle("CPU")
    backend = _call("ggml_backend_dev_init", ctypes.c_void_p, (ctypes.c_void_p, device), (ctypes.c_char_p, None))
    if not backend:
        raise NativeError("ggml cannot start its CPU backend")
    address = _cpu_address("ggml_backend_set_n_threads")
    if address is not None:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)(backend, 1)
    try:
        for name in _TRIED_TYPES:
            _multiply(backend, name)
    finally:
        _call("ggml_backend_free", None, (ctypes.c_void_p, backend))


def _multiply(backend: int, type_name: str) -> None:
    """The product of a matrix of `type_name` with F32 columns, compared with the same sum in Python."""
    kind = type_named(type_name)
    weights = [[((column + 3 * row) % 11 - 2) / 8 for column in range(_COLUMNS)] for row in range(_ROWS)]
    inputs = [[((column + 5 * token) % 7 - 1) / 4 for column in range(_COLUMNS)] for token in range(_TOKENS)]
    source = array.array("f", [value for row in weights for value in row])
    packed = ctypes.create_string_buffer(_ROWS * kind.row_bytes(_COLUMNS))
    quantize_rows(type_name, source.buffer_info()[0], ctypes.addressof(packed), _ROWS, _COLUMNS)
    results = _product(backend, kind.id, packed.raw, array.array("f", [value for row in inputs for value in row]).tobytes())
    for token, column in enumerate(inputs):
        for row, weight in enumerate(weights):
            expected = sum(a * b for a, b in zip(weight, column, strict=True))
            scale = (sum(a * a for a in weight) * sum(b * b for b in column)) ** 0.5
            if not abs(results[token * _ROWS + row] - expected) <= _TOLERANCE * scale:
                raise NativeError(
                    f"ggml's {type_name} kernel computes {results[token * _ROWS + row]:.4g} where {expected:.4g} is right",
                    "build the wheel anew: its compiler or its flags are at fault",
                )


def _product(backend: int, ggml_type: int, weights: bytes, inputs: bytes) -> array.array[float]:
    """The (tokens, rows) floats of ggml_mul_mat, computed by `backend`."""
    bytes_needed = 8 * _call("ggml_tensor_overhead", ctypes.c_size_t) + _call("ggml_graph_overhead", ctypes.c_size_t)
    context = _call("ggml_init", ctypes.c_void_p, (_InitParameters, _InitParameters(bytes_needed, None, True)))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    buffer = None
    try:
        left = _matrix(context, ggml_type, _ROWS)
        right = _matrix(context, _F32, _TOKENS)
        product = _call("ggml_mul_mat", pointer, (pointer, context), (pointer, left), (pointer, right))
        graph = _call("ggml_new_graph", pointer, (pointer, context))
        _call("ggml_build_forward_expand", None, (pointer, graph), (pointer, product))
        buffer = _call("ggml_backend_alloc_ctx_tensors", pointer, (pointer, context), (pointer, backend))
        for tensor, data in ((left, weights), (right, inputs)):
            _call("ggml_backend_tensor_set", None, (pointer, tensor), (ctypes.c_char_p, data), (size, 0), (size, len(data)))
        status = _call("ggml_backend_graph_compute", ctypes.c_int, (pointer, backend), (pointer, graph))
        if status != 0:
            raise NativeError(f"ggml's CPU backend fails to compute (status {status})")
        output = ctypes.create_string_buffer(4 * _ROWS * _TOKENS)
        _call("ggml_backend_tensor_get", None, (pointer, product), (pointer, output), (size, 0), (size, len(output)))
    finally:
        if buffer:
            _call("ggml_backend_buffer_free", None, (pointer, buffer))
        _call("ggml_free", None, (pointer, context))
    return array.array("f", output.raw)


def _matrix(context: int, ggml_type: int, rows: int) -> int:
    matrix: int = _call(
        "ggml_new_tensor_2d",
        ctypes.c_void_p,
        (ctypes.c_void_p, context),
        (ctypes.c_int, ggml_type),
        (ctypes.c_int64, _COLUMNS),
        (ctypes.c_int64, rows),
    )
    return matrix


def _call(name: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
    """ggml's function `name`, called with pairs of C type and value."""
    return library.function(name, result, *(kind for kind, _ in arguments))(*(value for _, value in arguments))


def _cpu_registry() -> int | None:
    """ggml's handle of the CPU backend, which may be a library of its own that was loaded at run time."""
    library.ready()
    handle: int | None = _call("ggml_backend_reg_by_name", ctypes.c_void_p, (ctypes.c_char_p, b"CPU"))
    return handle


def _cpu_address(name: str) -> int | None:
    """Where the CPU backend keeps its function `name`; None when it has none."""
    registry = _cpu_registry()
    if registry is None:
        return None
    address: int | None = _call(
        "ggml_backend_reg_get_proc_address",
        ctypes.c_void_p,
        (ctypes.c_void_p, registry),
        (ctypes.c_char_p, name.encode()),
    )
    return address
