"""zig behind CMake: what llama.cpp asks of GCC is asked of zig in its own words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tinyedge.errors import BuildError
from tinyedge_targets import zig


def _asked(tmp_path: Path, triple: str, cpu: str, *arguments: str) -> list[str]:
    """The arguments with which the `cc` script calls the program that TINYEDGE_ZIG names."""
    script = tmp_path / "cc"
    script.write_text(zig.scripts(triple, cpu)["cc"])
    echo = tmp_path / "echo zig"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    for path in (script, echo):
        path.chmod(0o755)
    done = subprocess.run(
        [script, *arguments], env=os.environ | {"TINYEDGE_ZIG": str(echo)}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("march", "mcpu"),
    [
        ("armv8-a", "generic+v8a"),
        ("armv8.2-a+dotprod", "generic+v8_2a+dotprod"),
        ("armv8.2-a+dotprod+fp16+sve", "generic+v8_2a+dotprod+fullfp16+sve"),
        ("armv8.6-a+dotprod+fp16+sve+i8mm+sve2", "generic+v8_6a+dotprod+fullfp16+sve+i8mm+sve2"),
        ("armv9.2-a+dotprod+fp16+sve+i8mm+sme", "generic+v9_2a+dotprod+fullfp16+sve+i8mm+sme"),
        ("armv8.6-a+dotprod+nosve", "generic+v8_6a+dotprod-sve"),
    ],
)
def test_march_becomes_mcpu(tmp_path: Path, march: str, mcpu: str) -> None:
    asked = _asked(tmp_path, "aarch64-linux-gnu", "generic", "-O3", f"-march={march}", "-DA=b c", "x.c")
    assert asked == ["cc", "-target", "aarch64-linux-gnu.2.17", f"-mcpu={mcpu}", "-O3", "-DA=b c", "x.c"]


def test_without_march_the_board_decides(tmp_path: Path) -> None:
    asked = _asked(tmp_path, "arm-linux-gnueabihf", "cortex_a7", "-c", "a file.c")
    assert asked == ["cc", "-target", "arm-linux-gnueabihf.2.17", "-mcpu=cortex_a7", "-c", "a file.c"]


def test_the_builders_own_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _asked(tmp_path, "aarch64-linux-gnu", "generic", "-march=native", "x.c")


def test_every_cpu_variant_compiles(tmp_path: Path) -> None:
    """zig itself takes the translated names: each macro that llama.cpp tests for is defined as it is meant to be."""
    pytest.importorskip("ziglang")
    script = tmp_path / "cc"
    script.write_text(zig.scripts("aarch64-linux-gnu", "generic")["cc"])
    script.chmod(0o755)
    environment = os.environ | {"TINYEDGE_ZIG": str(zig.find_zig().program)}
    for march, defined in (
        ("armv8-a", set()),
        ("armv8.2-a+dotprod+fp16", {"DOTPROD", "FP16_VECTOR_ARITHMETIC"}),
        ("armv8.6-a+dotprod+fp16+sve+i8mm+sve2", {"DOTPROD", "FP16_VECTOR_ARITHMETIC", "SVE", "SVE2", "MATMUL_INT8"}),
        ("armv9.2-a+dotprod+fp16+sve+i8mm+sme", {"DOTPROD", "FP16_VECTOR_ARITHMETIC", "SVE", "MATMUL_INT8", "SME"}),
    ):
        done = subprocess.run(
            [script, f"-march={march}", "-dM", "-E", "-x", "c", os.devnull],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        macros = {
            line.split()[1].removeprefix("__ARM_FEATURE_") for line in done.stdout.splitlines() if "__ARM_FEATURE_" in line
        }
        assert defined <= macros
        if not defined:
            assert not macros & {"DOTPROD", "FP16_VECTOR_ARITHMETIC", "SVE", "MATMUL_INT8", "SME", "ATOMICS", "CRC32"}


def test_no_zig_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zig.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match=r"pip install 'tinyedge-llm\[targets\]'"):
        zig.find_zig()
