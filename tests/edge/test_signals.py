"""Ctrl-C and SIGTERM at every stage of a run: the right exit code, nothing lost, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.native.interrupt import Interruptible

EXIT_CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]

# Runs the command in a process that sends itself a signal when it first looks for the module argv[2].
AT_IMPORT = """
import os, sys
number, module = int(sys.argv.pop(1)), sys.argv.pop(1)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
from tinyedge.cli.entry import main
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = tiny_parts()
    parts.set("llama.context_length", "u32", 100_000)
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", parts)


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
@pytest.mark.parametrize(
    "module", ["typer", "tinyedge.cli.app", "tinyedge.backends", "tinyedge.engine", "tinyedge.native.context"]
)
def test_a_signal_during_an_import_ends_the_command(model: Path, number: int, code: int, module: str) -> None:
    command = [sys.executable, "-c", AT_IMPORT, str(int(number)), module, "run", str(model), "-p", "ab", "-n", "-1"]
    done = subprocess.run([*command, "--ctx", "100000"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert ("interrupted\n" in done.stderr) == (number == signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
@pytest.mark.parametrize("module", ["zipfile", "tinyedge_quantize.convert", "tinyedge.engine"])
def test_a_signal_during_the_demo_leaves_no_folder_behind(tmp_path: Path, number: int, code: int, module: str) -> None:
    """Raised in the midst of `TemporaryDirectory`, it would leave the folder."""
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, str(int(number)), module, "demo"],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.01, 0.02, 0.04, 0.3])
def test_a_signal_while_loading_or_reading_the_prompt_ends_the_command(
    model: Path, number: int, code: int, seconds: float
) -> None:
    """The line that says what was chosen comes right before the loading; the prompt takes ten seconds."""
    command = [sys.executable, "-m", "tinyedge", "run", str(model), "-n", "3", "--ctx", "60000", "--threads", "1"]
    with subprocess.Popen(
        [*command, "-p", "word " * 10_000], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("CPU (")
        time.sleep(seconds)
        process.send_signal(number)
        begun = time.monotonic()
        text, error = process.communicate(timeout=60)
    assert (process.returncode, text) == (code, ""), error
    assert time.monotonic() - begun < 5
    assert "Exception ignored" not in error
    assert "Traceback" not in error
    if number == signal.SIGINT:
        assert "interrupted\n" in error
        assert "prompt 50" not in error  # the whole prompt has 50002 tokens


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_native_call_is_noted_and_handled_after_it(number: signal.Signals) -> None:
    handled: list[int] = []

    def take(number: int, _frame: FrameType | None) -> None:
        handled.append(number)

    usual = signal.signal(number, take)
    try:
        with Interruptible() as interrupt:
            os.kill(os.getpid(), number)
            assert interrupt.requested
            assert handled == []
        assert handled == [number]
        assert signal.getsignal(number) is take
    finally:
        signal.signal(number, usual)


def test_an_ignored_signal_stays_ignored(model: Path) -> None:
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "tinyedge", "run", str(model)]
    arguments = ["-p", "word " * 400, "-n", "3", "--ctx", "4096", "--threads", "1"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
