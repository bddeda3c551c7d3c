"""The stored errors are those of the kernels, and a kernel that is worse is caught."""

from __future__ import annotations

import pytest

from tinyedge.errors import SelfCheckError
from tinyedge_quantize import selfcheck
from tinyedge_quantize.recipes import FALLBACK, RECIPES


def test_every_type_a_recipe_can_choose_is_checked() -> None:
    chosen = {recipe.default for recipe in RECIPES.values()} | set(FALLBACK) | set(FALLBACK.values())
    assert chosen - {"F32"} == set(selfcheck.STOCK_ERRORS)


@pytest.mark.parametrize("name", selfcheck.STOCK_ERRORS)
def test_the_installed_kernel_has_the_stored_error(name: str) -> None:
    """Within one percent on either side; the flags of setup.sh make Q2_K half a percent better."""
    assert selfcheck.kernel_error(name, selfcheck.sample()) == pytest.approx(selfcheck.STOCK_ERRORS[name], rel=0.01)


def test_a_kernel_worse_than_its_bound_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selfcheck.STOCK_ERRORS, "Q4_K", 0.07)
    with pytest.raises(SelfCheckError, match=r"miscompiled: relative RMS error Q4_K 0\.077\d+ \(bound 0\.070\d+\)"):
        selfcheck.check_kernels()
