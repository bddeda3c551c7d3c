"""Programs of another processor run here: what they see, what they may start, and how each way to end is told."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyedge.errors import NotEmulatedError
from tinyedge_targets import emulation
from tinyedge_targets.boards import emulated_cpu
from tinyedge_targets.emulation import Finished, Root, run_here

ARM64, ARM32 = "aarch64-linux-gnu", "arm-linux-gnueabihf"


def root_for(triple: str, python: str = "3.11") -> Root:
    try:
        return emulation.prepare(triple, python)
    except NotEmulatedError as error:
        pytest.skip(str(error))


def python_here(program: str, folder: Path, timeout: float = 60) -> Finished:
    return run_here([sys.executable, "-c", program], {"ONLY": "this"}, folder=folder, timeout=timeout)


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(3)", 3, "exit 3"),
        ("import sys; print('first'); sys.exit('the last words')", 1, "exit 1: the last words"),
        ("import os; os.kill(os.getpid(), 4)", 132, "built for a newer CPU: illegal instruction (exit 132)"),
        ("import os; os.kill(os.getpid(), 11)", 139, "crashed: segmentation fault (exit 139)"),
        ("import os; os.abort()", 134, "aborted by itself (exit 134)"),
    ],
)
def test_each_way_to_end_is_told_in_words(program: str, code: int, words: str, tmp_path: Path) -> None:
    done = python_here(program, tmp_path)
    assert (done.code, done.failure) == (code, words)


def test_a_program_gets_the_variables_it_was_given_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of this process")
    done = python_here("import os, json; print(json.dumps(dict(os.environ)))", tmp_path)
    seen = json.loads(done.stdout)
    assert seen["ONLY"] == "this"
    assert not seen.keys() - {"ONLY", "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}  # some of which a shell adds


def test_time_that_is_up_ends_the_program_and_its_children(tmp_path: Path) -> None:
    program = "import os, time; child = os.fork(); open('pids', 'a').write(f'{os.getpid()} '); time.sleep(60)"
    begun = time.monotonic()
    done = python_here(program, tmp_path, timeout=3)
    assert done.code is None
    assert done.failure.startswith("did not end in 3")
    assert time.monotonic() - begun < 20
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
        assert state.strip() in ("",) or state.startswith("Z")


def test_a_child_that_outlives_its_parent_is_ended(tmp_path: Path) -> None:
    program = "import os, time\nif os.fork() == 0:\n time.sleep(60)\nelse:\n print('done')"
    begun = time.monotonic()
    assert python_here(program, tmp_path).stdout == "done\n"
    assert time.monotonic() - begun < 20


def test_output_is_read_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "_OUTPUT_BYTES", 1000)
    assert len(python_here("print('x' * 100_000)", tmp_path).stdout) == 1000


def test_a_file_that_grows_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "_FILE_BLOCKS", 8)
    done = python_here("import signal; signal.signal(25, 0); open('big', 'wb').write(bytes(1 << 20))", tmp_path)
    assert done.code == 128 + signal.SIGXFSZ
    assert (tmp_path / "big").stat().st_size <= 8 * 1024  # a shell's block is 512 or 1024 bytes


def test_a_triple_that_nothing_emulates_is_an_error() -> None:
    with pytest.raises(NotEmulatedError, match="no emulator for aarch64-macos"):
        emulation.prepare("aarch64-macos")


def test_without_qemu_and_apt_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NotEmulatedError, match="apt-get"):
        emulation.prepare(ARM64)


@pytest.mark.emulation
@pytest.mark.parametrize(
    ("triple", "cpu", "machine"),
    [
        (ARM64, "cortex-a53", "aarch64"),
        (ARM64, "cortex-a76", "aarch64"),
        (ARM64, "max", "aarch64"),
        (ARM32, "cortex-a7", "armv7l"),
    ],
)
def test_python_runs_as_on_that_cpu(
    triple: str, cpu: str, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of this process")
    program = (
        "import os, sys, json, platform, numpy\n"
        "from tinyedge.machine.cpu_features import cpu_features\n"
        "assert (numpy.ones((70, 70), 'f') @ numpy.ones((70, 70), 'f')).sum() == 70 ** 3\n"
        "print(json.dumps([platform.machine(), sys.version_info[:2], cpu_features().words, dict(os.environ)]))"
    )
    import tinyedge

    sources = Path(tinyedge.__file__).parent.parent
    done = emulation.run(root_for(triple), cpu, ["-c", program], folder=tmp_path, env={"PYTHONPATH": str(sources)})
    assert done.failure == ""
    seen, version, words, variables = json.loads(done.stdout)
    assert (seen, version) == (machine, [3, 11])
    decisive = {"asimd", "asimddp", "fphp", "asimdhp", "i8mm", "sve", "sve2", "sme", "bf16", "neon", "vfpv4"}
    assert set(words) & decisive == set(emulated_cpu(cpu).features) & decisive
    assert variables["HOME"] == str(tmp_path)
    assert "SECRET" not in variables


@pytest.mark.emulation
def test_an_illegal_instruction_there_is_exit_132(tmp_path: Path) -> None:
    done = emulation.run(root_for(ARM64), "cortex-a72", ["-c", "import os; os.kill(os.getpid(), 4)"], folder=tmp_path)
    assert done.failure == "built for a newer CPU: illegal instruction (exit 132)"


@pytest.mark.emulation
def test_an_emulated_python_may_start_itself(tmp_path: Path) -> None:
    child = "import platform; print(platform.machine())"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    done = emulation.run(root_for(ARM64), "cortex-a53", ["-c", program], folder=tmp_path)
    assert (done.failure, done.stdout) == ("", "aarch64\n")


@pytest.mark.emulation
@pytest.mark.parametrize(("triple", "cpu"), [(ARM64, "cortex-a72"), (ARM32, "cortex-a7")])
def test_a_shell_script_finds_the_emulated_python_and_can_make_a_venv(triple: str, cpu: str, tmp_path: Path) -> None:
    root = root_for(triple)
    program = "import sys, platform; print(platform.machine(), sys.prefix)"
    script = f"uname -m; python3 -m venv --without-pip v && v/bin/python3 -c '{program}'"
    done = run_here(["/bin/sh", "-c", script], emulation.environment(root, cpu, tmp_path), folder=tmp_path)
    machine = emulation.MACHINES[triple].uname
    assert done.failure == ""
    assert done.stdout == f"{machine}\n{machine} {tmp_path / 'v'}\n"


@pytest.mark.emulation
def test_a_root_is_made_once_and_kept() -> None:
    first = root_for(ARM64)
    begun = time.monotonic()
    assert root_for(ARM64) == first
    assert time.monotonic() - begun < 1
    assert not list(first.path.parent.glob(".*-arm64-*/usr"))  # nothing half-made beside it


def test_a_folder_that_is_gone_is_a_program_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "gone", tmp_path / "file"):
        done = python_here("print(1)", folder)
        assert done.code == 126
        assert done.failure.startswith(f"exit 126: {folder}: ")


@pytest.mark.emulation
def test_a_damaged_root_is_told_with_a_remedy(tmp_path: Path) -> None:
    root = root_for("aarch64-linux-gnu")
    emulation.check_root(root, "cortex-a72")
    shutil.copytree(root.path, tmp_path / "root", symlinks=True)
    shutil.rmtree(tmp_path / "root/usr/lib/python3/dist-packages/numpy")
    copy = tmp_path / "root"
    damaged = dataclasses.replace(root, path=copy, launchers=copy / root.launchers.relative_to(root.path))
    with pytest.raises(NotEmulatedError, match=r"damaged .*numpy.* delete .*root and try again"):
        emulation.check_root(damaged, "cortex-a72")
