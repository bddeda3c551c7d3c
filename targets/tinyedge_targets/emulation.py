"""Runs a Python of another processor here: qemu's user mode over Debian packages, as an ordinary user, without root or chroot.

qemu translates one process and passes its system calls on: a program sees the machine's own files, but finds its libraries
under the root first. Nothing is confined by that: code from a wheel runs with the rights of who verifies it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import NotEmulatedError
from tinyedge_targets import debian
from tinyedge_targets.cache import content_key, entry_in_progress

DEFAULT_PYTHON = "3.11"
# The most that is kept of what a program prints, and the most it may write into one file: a wheel's code is a stranger's.
_OUTPUT_BYTES = 64 << 20
_FILE_BLOCKS = 4 << 20  # of 512 bytes (POSIX ulimit -f): 2 GiB

# Signing return addresses as the architecture says takes three quarters of the time of a Debian 13 program.
_OPTIONS = {("aarch64-linux-gnu", "max"): "max,pauth-impdef=on"}

# What a trial takes of debian.PACKAGES; a name from within, since a folder that lost its files still imports.
_IMPORTS = "import diskcache, jinja2, psutil, tqdm, typing_extensions; from numpy import ndarray; from yaml import load"
_SHELL_CANNOT_START = 126
_SHELL_SIGNAL_BASE = 128  # what a shell adds to the number of the signal that ended a program


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """How a triple is emulated: qemu's name of it, Debian's, and what `uname -m` says on such a machine."""

    qemu: str
    debian: str
    uname: str


MACHINES = {
    "aarch64-linux-gnu": Machine(qemu="aarch64", debian="arm64", uname="aarch64"),
    "arm-linux-gnueabihf": Machine(qemu="arm", debian="armhf", uname="armv7l"),
    "x86_64-linux-gnu": Machine(qemu="x86_64", debian="amd64", uname="x86_64"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """What runs programs of `triple`: the emulator `qemu` and the folder `path` with its Debian and `python` ("3.11").

    `launchers` holds `python3` and `uname` scripts that enter the emulator, of the CPU that QEMU_CPU names.
    """

    triple: str
    python: str
    qemu: Path
    path: Path
    launchers: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended: `code` as a shell gives it (128 and the signal), None when its time was up; `seconds` it took."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def failure(self) -> str:
        """Why it did not end well, in one line; empty when it did."""
        if self.code == 0:
            return ""
        if self.code is None:
            return f"did not end in {self.seconds:.0f} s"
        if self.code in _CAUSES:
            return f"{_CAUSES[self.code]} (exit {self.code})"
        said = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return f"exit {self.code}" + (f": {said[-1][:300]}" if said else "")


_CAUSES = {
    _SHELL_SIGNAL_BASE + signal.SIGILL: "built for a newer CPU: illegal instruction",
    _SHELL_SIGNAL_BASE + signal.SIGSEGV: "crashed: segmentation fault",
    _SHELL_SIGNAL_BASE + signal.SIGBUS: "crashed: bus error",
    _SHELL_SIGNAL_BASE + signal.SIGABRT: "aborted by itself",
    _SHELL_SIGNAL_BASE + signal.SIGFPE: "crashed: arithmetic error",
    _SHELL_SIGNAL_BASE + signal.SIGKILL: "killed, perhaps for want of memory",
    _SHELL_SIGNAL_BASE + signal.SIGXFSZ: "wrote a file beyond 2 GiB",
}


def prepare(triple: str, python: str = DEFAULT_PYTHON) -> Root:
    """The emulator and the root for `triple`, fetched and made at the first call, then kept.

    A Python that no Debian release has is replaced by the default. Raises NotEmulatedError with the reason where emulation is
    impossible, DiskSpaceError when the disk is full.
    """
    machine = MACHINES.get(triple)
    if machine is None:
        raise NotEmulatedError(f"there is no emulator for {triple}", "run `tinyedge wheel verify` on such a machine")
    qemu = find_qemu(triple)
    chosen = python if python in debian.SUITES else DEFAULT_PYTHON
    path = debian.python_root(machine.debian, chosen)
    return Root(triple=triple, python=chosen, qemu=qemu, path=path, launchers=_launchers(qemu, path, chosen, machine))


def check_root(root: Root, cpu: str) -> None:
    """Raises NotEmulatedError when the emulated Python itself does not run: a wheel would get the blame for its damage."""
    done = run(root, cpu, ["-c", _IMPORTS], folder=root.path)
    if done.failure:
        raise NotEmulatedError(f"the emulated system is damaged ({done.failure})", f"delete {root.path} and try again")


def find_qemu(triple: str) -> Path:
    """qemu for programs of `triple`: the one installed, or Debian's package unpacked into the cache.

    Raises NotEmulatedError where there is neither.
    """
    names = [f"qemu-{MACHINES[triple].qemu}-static", f"qemu-{MACHINES[triple].qemu}"]
    for name in names:
        installed = shutil.which(name)
        if installed is not None:
            return Path(installed).resolve()
    for name in names:
        fetched = debian.host_program("qemu-user-static", name)
        if fetched is not None:
            return fetched
    raise NotEmulatedError(f"{names[1]} is not installed and no package here has it")


def command(root: Root, cpu: str) -> tuple[str, ...]:
    """What goes before Python's own arguments to run it on `cpu`, a CPU model of qemu.

    sys.executable is a script that enters the emulator anew, so the program may start itself; see `environment`.
    """
    interpreter = root.path / "usr/bin" / f"python{root.python}"
    return (
        str(root.qemu),
        "-L",
        str(root.path),
        "-cpu",
        _model(root, cpu),
        "-0",
        str(root.launchers / "python3"),
        str(interpreter),
    )


def environment(root: Root, cpu: str, home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """All the variables a program on `cpu` gets: nothing of this process's but what is here and in `extra`.

    PATH begins with `python3`, `pythonX.Y` and `uname` of the emulated machine; every other program is this machine's own. A
    venv made with that `python3` works: its interpreter is a link to the script, which is found by what it was called as.
    """
    return {
        "PATH": f"{root.launchers}:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONNOUSERSITE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "QEMU_CPU": _model(root, cpu),
        **(extra or {}),
    }


def run(
    root: Root, cpu: str, arguments: Sequence[str], *, folder: Path, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Finished:
    """Runs the emulated Python with `arguments` on `cpu` in `folder`, which is its home too; `timeout` in seconds."""
    return run_here([*command(root, cpu), *arguments], environment(root, cpu, folder, env), folder=folder, timeout=timeout)


def run_here(arguments: Sequence[str], environment: Mapping[str, str], *, folder: Path, timeout: float = 300) -> Finished:
    """Runs any program with exactly these variables in `folder`, with bounds on what it prints, writes and takes of time.

    When it ended, its time is up, or on Ctrl-C, all that is left of its session is ended; a child that left the session stays.
    """
    started = time.perf_counter()
    limited = ["/bin/sh", "-c", f'ulimit -c 0; ulimit -f {_FILE_BLOCKS}; exec "$@"', "sh", *arguments]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                limited,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:  # `folder` is a stranger's to remove
            return Finished(code=_SHELL_CANNOT_START, stdout="", stderr=f"{folder}: {error.strerror}", seconds=0.0)
        code: int | None = None
        try:
            status = process.wait(timeout)
            code = status if status >= 0 else _SHELL_SIGNAL_BASE - status
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read(_OUTPUT_BYTES).decode("utf-8", "replace"))
    return Finished(code=code, stdout=texts[0], stderr=texts[1], seconds=time.perf_counter() - started)


def _model(root: Root, cpu: str) -> str:
    return _OPTIONS.get((root.triple, cpu), cpu)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the program's whole session: its children may outlive it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _launchers(qemu: Path, root: Path, python: str, machine: Machine) -> Path:
    """The folder of the scripts that stand for the emulated machine's programs.

    They lie in the root's own usr, where Python, asking from its executable's folder upward, finds its library.
    """
    interpreter = root / "usr/bin" / f"python{python}"
    enter = (
        f'#!/bin/sh\nexec {shlex.quote(str(qemu))} -L {shlex.quote(str(root))} -0 "$0" {shlex.quote(str(interpreter))} "$@"\n'
    )
    uname = f'#!/bin/sh\ncase "$*" in -m | -p) echo {machine.uname} ;; *) exec /usr/bin/uname "$@" ;; esac\n'
    scripts = {"python3": enter, f"python{python}": enter, "uname": uname}
    folder = root / "usr/launchers"
    folder.mkdir(exist_ok=True)
    key = content_key(scripts)
    with entry_in_progress(folder, key) as new:
        if new is not None:
            for name, text in scripts.items():
                (new / name).write_text(text, encoding="utf-8")
                (new / name).chmod(0o755)
    return folder / key
