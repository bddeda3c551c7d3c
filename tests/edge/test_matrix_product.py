"""The matrix product that is timed: its numbers are numpy's, its weights are repacked where ggml can, nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tinyedge.errors import NativeError
from tinyedge.ggml_types import type_named
from tinyedge.native.matrix import Floats, MatrixProduct, WeightBuffer, weight_buffers
from tinyedge.native.quantize import quantize_rows, widen

RANDOM = np.random.default_rng(5)
WEIGHTS: Floats = RANDOM.standard_normal((64, 512), dtype=np.float32)
INPUTS: Floats = RANDOM.standard_normal((48, 512), dtype=np.float32)


def buffer(name: str) -> WeightBuffer:
    found = [each for each in weight_buffers("CPU") if each.name == name]
    if not found:
        pytest.skip(f"this build of ggml has no buffer {name}")
    return found[0]


def as_stored(kind: str, weights: Floats) -> Floats:
    """The weights as they come back from the type."""
    if kind == "F32":
        return weights
    packed = np.empty(len(weights) * type_named(kind).row_bytes(weights.shape[1]), np.uint8)
    quantize_rows(kind, weights.ctypes.data, packed.ctypes.data, *weights.shape)
    back = np.empty_like(weights)
    widen(kind, packed.ctypes.data, back.ctypes.data, back.size)
    return back


# How far a kernel may be from float32 arithmetic on the stored weights: it rounds the inputs to what it multiplies them in.
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("F32", 1e-6), ("F16", 1e-3), ("BF16", 5e-3), ("Q8_0", 0.01), ("Q4_0", 0.01), ("Q4_K", 0.01)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_product_is_that_of_numpy(kind: str, tolerance: float, threads: int) -> None:
    expected = INPUTS @ np.tile(as_stored(kind, WEIGHTS), (3, 1)).T
    computed = []
    for each in weight_buffers("CPU"):
        with MatrixProduct("CPU", each, kind, WEIGHTS, INPUTS, copies=3) as product:
            if product.supported:
                product.use_threads(threads)
                assert product.seconds(2) > 0
                error = np.linalg.norm(product.result() - expected) / np.linalg.norm(expected)
                assert error < tolerance, each.name
                computed.append(each.name)
    assert "CPU" in computed
    assert product.operations == 2 * 48 * 512 * 192


def test_weights_are_repacked_where_ggml_does_so() -> None:
    repacked = buffer("CPU_REPACK")
    supported = {}
    for kind in ("F32", "Q4_0"):
        with MatrixProduct("CPU", repacked, kind, WEIGHTS, INPUTS) as product:
            supported[kind] = product.supported
            if not product.supported:
                with pytest.raises(ValueError, match="does not multiply"):
                    product.seconds()
    assert not supported["F32"]
    features = subprocess.run(
        [sys.executable, "-c", "from tinyedge.native.library import versions; print(versions().system_info)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert supported["Q4_0"] == any(f" {name} = 1 " in features for name in ("AVX2", "DOTPROD", "MATMUL_INT8"))


def test_the_repacked_weights_are_multiplied_by_other_kernels() -> None:
    """Whose sums, taken in another order, are not the same to the last bit."""
    repacked, results = buffer("CPU_REPACK"), []
    for each in (repacked, buffer("CPU")):
        with MatrixProduct("CPU", each, "Q4_0", WEIGHTS, INPUTS) as product:
            if not product.supported:
                pytest.skip("this processor has no kernels for repacked Q4_0")
            product.seconds()
            results.append(product.result())
    assert np.allclose(*results, atol=1e-2)
    assert not np.array_equal(*results)


def test_everything_is_freed() -> None:
    import psutil

    weights = np.zeros((64, 4096), np.float32)  # 16 MiB with 16 copies
    inputs = np.zeros((512, 4096), np.float32)

    def once() -> None:
        for each in weight_buffers("CPU"):
            with MatrixProduct("CPU", each, "Q4_0", weights, inputs, copies=16) as product:
                if product.supported:
                    product.seconds()
            product.close()

    once()
    before = psutil.Process().memory_info().rss
    for _ in range(8):
        once()
    assert psutil.Process().memory_info().rss - before < 16 << 20


def test_what_the_memory_cannot_hold_is_an_error_that_frees_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = []
    close = MatrixProduct.close
    monkeypatch.setattr(MatrixProduct, "close", lambda self: (freed.append(len(self._freeing)), close(self)))
    with pytest.raises(NativeError, match="memory for a matrix product"):
        MatrixProduct("CPU", buffer("CPU"), "F32", WEIGHTS, INPUTS, copies=1 << 34)  # 2 PiB
    assert freed == [3]


def test_matrices_that_do_not_fit_are_refused_before_ggml_sees_them() -> None:
    with pytest.raises(ValueError, match="256 columns do not multiply inputs of 512"):
        MatrixProduct("CPU", buffer("CPU"), "F32", WEIGHTS[:, :256], INPUTS)
    with pytest.raises(ValueError, match="100 columns do not divide"):
        MatrixProduct("CPU", buffer("CPU"), "Q4_0", WEIGHTS[:, :100], INPUTS[:, :100])


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(NativeError, match="no device CUDA9"):
        weight_buffers("CUDA9")
    with pytest.raises(NativeError, match="no device CUDA9"):
        MatrixProduct("CUDA9", buffer("CPU"), "F32", WEIGHTS, INPUTS)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_ends_it_between_two_products() -> None:
    code = """
import numpy as np
from tinyedge.native.matrix import MatrixProduct, weight_buffers
rows = np.ones((64, 512), np.float32)
with MatrixProduct("CPU", weight_buffers("CPU")[-1], "F32", rows, rows) as product:
    product.seconds()
    print("computing", flush=True)
    product.seconds(10**9)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "computing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert said.rstrip().endswith("KeyboardInterrupt")
