"""The wheels that the emulated tests prove: built by the command's own code, kept in the real cache, each once a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinyedge_targets.boards import find_boards
from tinyedge_targets.wheels import BuiltWheel, make_wheels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TINYEDGE_EMULATION"):
        return
    skip = pytest.mark.skip(
        reason="builds wheels and runs them under qemu, many minutes the first time: set TINYEDGE_EMULATION=1"
    )
    for item in items:
        if "emulation" in item.keywords:
            item.add_marker(skip)


def _build(names: str, folder: Path, *, single: bool = False) -> BuiltWheel:
    (made,) = make_wheels(find_boards(names), folder, single=single, version=None, progress=lambda *_: None)
    return made


@pytest.fixture(scope="session")
def universal_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One wheel for every 64-bit ARM board."""
    return _build("rpi4,rpi5,rk3588", tmp_path_factory.mktemp("universal")).path


@pytest.fixture(scope="session")
def armv7_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for 32-bit systems."""
    return _build("armv7", tmp_path_factory.mktemp("armv7")).path


@pytest.fixture(scope="session")
def rpi5_single_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel for a Cortex-A76 and no other: the wrong one for a Raspberry Pi 4."""
    return _build("rpi5", tmp_path_factory.mktemp("single"), single=True).path
