"""A bundle for an ARM board installs on that board's system and CPU, emulated, without a network, and tells its story."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tinyedge.errors import NotEmulatedError
from tinyedge_targets import emulation
from tinyedge_targets.boards import Board, find_board
from tinyedge_targets.bundle import Bundle, make_bundle
from tinyedge_targets.emulation import Root

pytestmark = pytest.mark.emulation

# pip looks whether a 32-bit Python is an ELF file of the hard-float ABI (PEP 513's successors for ARM ask for it). Under qemu
# sys.executable is a script that enters the emulator, so for pip alone that one question is answered here.
_PIP = """
import os, runpy, sys
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
from pip._vendor.packaging import _manylinux
_manylinux._have_compatible_abi = lambda executable, archs: "armv7l" in archs
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def prepared(board: Board, python: str) -> Root:
    try:
        return emulation.prepare(board.triple, python)
    except NotEmulatedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as a GGUF file."""
    from tinyedge_quantize.convert import convert

    path = tmp_path_factory.mktemp("model") / "demo.gguf"
    convert(Path(__file__).resolve().parent.parent.parent / "edge/tinyedge/demo", path, "Q4_K_M")
    return path


def on_board(root: Root, cpu: str, bundle: Bundle, folder: Path, **more: str) -> str:
    """What the installed command prints when it runs the model, all of it on an emulated board without a network."""
    home = folder / "home"
    home.mkdir()
    with tarfile.open(bundle.path) as archive:
        archive.extractall(home, filter="data")
    environment = emulation.environment(root, cpu, home, more)
    offline = ["unshare", "-rn"]
    if not shutil.which("unshare") or subprocess.run([*offline, "true"], capture_output=True).returncode:
        offline = []
    unpacked = home / bundle.folder
    done = subprocess.run([*offline, "sh", unpacked / "install.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Linux {emulation.MACHINES[root.triple].uname}" in done.stdout
    run = [home / ".local/bin/tinyedge", "run", unpacked / "demo.gguf", "-p", "Once", "-n", "4", "--threads", "1"]
    told = subprocess.run([*offline, *run], env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


def test_a_raspberry_pi_4_with_64_bits(universal_wheel: Path, model: Path, tmp_path: Path) -> None:
    board = find_board("rpi4")
    root = prepared(board, "3.11")
    bundle = make_bundle(board, "3.11", universal_wheel, model, tmp_path, progress=lambda *_: None)
    assert on_board(root, "cortex-a72", bundle, tmp_path)


def test_a_raspberry_pi_4_with_32_bits(armv7_wheel: Path, model: Path, tmp_path: Path) -> None:
    board = find_board("rpi4-32")
    root = prepared(board, "3.13")
    bundle = make_bundle(board, "3.13", armv7_wheel, model, tmp_path, progress=lambda *_: None)
    shim, python = tmp_path / "shim", tmp_path / "python"
    enter = shlex.join([str(root.qemu), "-L", str(root.path), "-0"])
    shim.write_text(
        f'#!/bin/sh\ncase "$*" in *wheels/pip-*) shift; set -- -I -c {shlex.quote(_PIP)} "$@" ;; esac\n'
        f'exec {enter} "$0" {shlex.quote(str(root.path / "usr/bin/python3.13"))} "$@"\n',
        encoding="utf-8",
    )
    python.write_text(
        f'#!/bin/sh\n{shlex.quote(str(root.launchers / "python3"))} "$@" || exit\n'
        f'case "$*" in *"-m venv"*) for folder; do :; done; rm "$folder/bin/python"; cp {shim} "$folder/bin/python" ;; esac\n',
        encoding="utf-8",
    )
    for script in (shim, python):
        script.chmod(0o755)
    assert on_board(root, "cortex-a7", bundle, tmp_path, PYTHON=str(python))
