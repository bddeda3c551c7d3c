"""Who may import whom: the arrows of the design, read off the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    "tinyedge": ROOT / "edge/tinyedge",
    "tinyedge_quantize": ROOT / "quantize/tinyedge_quantize",
    "tinyedge_targets": ROOT / "targets/tinyedge_targets",
    "tinyedge_bench": ROOT / "benchmarks/tinyedge_bench",
}
# tinyedge.ggml_types is a table of names and sizes that both sides of the file format read; gguf_file, gguf_split and
# gguf_values read GGUF headers, which are a quantizer's input as well as a runtime's; tinyedge.wheel_facts is the format of
# what a wheel says about itself, written here and read on the board.
ALLOWED = {
    "tinyedge": {"tinyedge"},
    "tinyedge.cli": {"tinyedge", "tinyedge_quantize", "tinyedge_targets", "tinyedge_bench"},
    "tinyedge_quantize": {
        "tinyedge_quantize",
        "tinyedge.native",
        "tinyedge.errors",
        "tinyedge.ggml_types",
        "tinyedge.gguf_file",
        "tinyedge.gguf_split",
        "tinyedge.gguf_values",
        "tinyedge.__version__",
    },
    "tinyedge_targets": {"tinyedge_targets", "tinyedge.errors", "tinyedge.wheel_facts"},
    "tinyedge_bench": {"tinyedge_bench", "tinyedge", "tinyedge_quantize"},
}
# `verify` asks of a file what the runtime asks before it loads one, and renders its chat template.
VERIFY = {"tinyedge.chat", "tinyedge.llama_check", "tinyedge.model_check", "tinyedge.model_probe"}
# The program that tries a wheel, in a process of its own on the board's side of the emulator: nothing else imports it.
TRIAL = SOURCES["tinyedge_targets"] / "trial.py"
NATIVE_ONLY = ("llama_cpp", "ctypes")


def _files() -> list[tuple[str, Path]]:
    return [(package, path) for package, folder in SOURCES.items() for path in sorted(folder.rglob("*.py"))]


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _under(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize(("package", "path"), _files(), ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_imports_point_downward(package: str, path: Path) -> None:
    folder = SOURCES[package]
    inside_cli = package == "tinyedge" and (path.is_relative_to(folder / "cli") or path.name == "__main__.py")
    allowed = ALLOWED["tinyedge.cli" if inside_cli else package]
    if path.is_relative_to(SOURCES["tinyedge_quantize"] / "verification"):
        allowed = allowed | VERIFY
    if path == TRIAL:
        allowed = allowed | {"tinyedge", "tinyedge_quantize"}
    ours = {name for name in _imports(path) if name.split(".")[0] in SOURCES}
    assert not {name for name in ours if not _under(name, allowed)}
    if package == "tinyedge" and not inside_cli:
        assert not {name for name in ours if name.startswith("tinyedge.cli")}


@pytest.mark.parametrize(("package", "path"), _files(), ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_only_native_touches_the_library(package: str, path: Path) -> None:
    if package == "tinyedge" and path.is_relative_to(SOURCES["tinyedge"] / "native"):
        return
    assert not {name for name in _imports(path) if name.split(".")[0] in NATIVE_ONLY}
