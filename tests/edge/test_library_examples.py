"""The examples for programmers run as they are written: the README's and the docstring's."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyedge import engine
from tinyedge.cli.models import demo_checkpoint
from tinyedge_quantize.convert import convert

README = Path(__file__).parent.parent.parent / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo model under the name that the examples use."""
    folder = tmp_path_factory.mktemp("examples")
    convert(demo_checkpoint(), folder / "demo.gguf", "Q8_0")
    return folder


def test_the_readmes_program_runs_and_is_typed(folder: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert programs
    for program in programs:
        file = folder / "example.py"
        file.write_text(program)
        done = subprocess.run([sys.executable, file], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) > 10
        checked = subprocess.run([sys.executable, "-m", "mypy", "--strict", file], cwd=folder, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


def test_the_engines_docstring_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    failed, tried = doctest.testmod(engine)
    assert (failed, tried) == (0, 5)
