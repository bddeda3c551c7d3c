"""The stored errors are those of the kernels, and a kernel that is worse is caught."""

from __future__ import annotations

import numpy as np
import pytest

from tinyedge.errors import SelfCheckError
from tinyedge.native.quantize import widen
from tinyedge_quantize import selfcheck
from tinyedge_quantize.controls.options import TENSOR_TYPES
from tinyedge_quantize.recipes import FALLBACK, RECIPES
from tinyedge_quantize.recipes.weighting import NEEDS_IMATRIX


def test_every_type_a_tensor_can_get_is_checked() -> None:
    chosen = {recipe.default for recipe in RECIPES.values()} | set(FALLBACK) | set(FALLBACK.values())
    assert chosen <= set(TENSOR_TYPES)
    assert set(TENSOR_TYPES) - {"F32"} == set(selfcheck.STOCK_ERRORS) | set(selfcheck.STOCK_WEIGHTED_ERRORS)


def test_a_type_that_needs_an_importance_matrix_is_checked_with_one() -> None:
    assert set(selfcheck.STOCK_WEIGHTED_ERRORS) >= NEEDS_IMATRIX
    assert selfcheck.SLOW.isdisjoint(selfcheck.STOCK_ERRORS)


@pytest.mark.parametrize("name", selfcheck.STOCK_ERRORS)
def test_the_installed_kernel_has_the_stored_error(name: str) -> None:
    """Within one percent on either side; the flags of setup.sh make Q2_K half a percent better."""
    assert selfcheck.kernel_error(name, selfcheck.sample()) == pytest.approx(selfcheck.STOCK_ERRORS[name], rel=0.01)


@pytest.mark.parametrize("name", selfcheck.STOCK_WEIGHTED_ERRORS)
def test_the_installed_kernel_has_the_stored_error_with_an_importance_matrix(name: str) -> None:
    error = selfcheck.kernel_error(name, selfcheck.sample(), selfcheck.importance())
    assert error == pytest.approx(selfcheck.STOCK_WEIGHTED_ERRORS[name], rel=0.01)


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0"])
def test_blocks_that_gguf_does_not_know_are_widened_as_ggml_does(name: str) -> None:
    blocks = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (3, 4 * 18), np.uint8)
    blocks.reshape(3, 4, 18)[..., 1] = 0x3C  # scales about 1
    widened = np.empty((3, 4 * {"Q1_0": 128, "Q2_0": 64}[name]), np.float32)
    widen(name, blocks.ctypes.data, widened.ctypes.data, widened.size)
    assert np.array_equal(selfcheck.dequantized(name, blocks), widened)


def test_the_slow_types_are_left_out_unless_asked_for() -> None:
    checked = {result.type for result in selfcheck.check_kernels()}
    assert checked == set(selfcheck.STOCK_ERRORS) | {
        f"{name}+imatrix" for name in selfcheck.STOCK_WEIGHTED_ERRORS if name not in selfcheck.SLOW
    }
    slow = {result.type for result in selfcheck.check_kernels(slow=True)}
    assert slow - checked == {f"{name}+imatrix" for name in selfcheck.SLOW}


def test_a_kernel_worse_than_its_bound_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selfcheck.STOCK_ERRORS, "Q4_K", 0.07)
    monkeypatch.setitem(selfcheck.STOCK_WEIGHTED_ERRORS, "IQ4_XS", 0.07)
    with pytest.raises(
        SelfCheckError,
        match=r"relative RMS error Q4_K 0\.077\d+ \(bound 0\.070\d+\), IQ4_XS\+imatrix 0\.077\d+ \(bound 0\.070\d+\)",
    ):
        selfcheck.check_kernels()
