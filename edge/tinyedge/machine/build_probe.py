"""Loads the installed llama.cpp in a child process and tells what it is, so that a build for another CPU kills only the child.

A build for a newer CPU ends with SIGILL: while its libraries are loaded, or in the first kernel that uses what is missing.
The child writes a line of JSON after each step, so what it learned before it died is known.

On Linux the child is a fork. A new process would not see the CPU that this one sees when both run under qemu-user, and takes
half a second on a Pi. On macOS, where a forked process may not use Metal, it is a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from tinyedge.errors import NativeError, TinyEdgeError, WheelError
from tinyedge.native import features, library
from tinyedge.native.library import Device
from tinyedge.wheel_facts import WheelFacts, read_wheel_facts

_SECONDS = 120  # libraries of 700 MB (CUDA) from a slow SD card
_MOST_BYTES = 1 << 20
_SHELL_SIGNAL = 128  # what a shell or an emulator adds to a signal's number when it reports one as an exit status


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The installed llama.cpp, as far as it came.

    `version` is llama-cpp-python's, None when it is not installed. `cpu_library` is the file of the CPU kernels that was
    loaded, `features` what ggml says they use (None when that is not known), `wheel` what `tinyedge wheel` wrote about it.
    `signal` killed the child that tried it; `problem` says in one sentence why it cannot be used, "" when its kernels compute.
    """

    version: str | None
    ggml: str = ""
    ggml_commit: str = ""
    llama_cpp: str = ""
    cpu_library: str = ""
    features: dict[str, str] | None = None
    backends: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    wheel: WheelFacts | None = None
    wheel_problem: str = ""
    signal: int | None = None
    problem: str = ""

    @property
    def variant(self) -> str:
        """`armv8.2_2` for libggml-cpu-armv8.2_2.so; "" for a build of one kind of kernels."""
        stem = Path(self.cpu_library).name.partition(".so")[0].partition(".dylib")[0]
        return stem.partition("ggml-cpu-")[2]


def probe_build() -> Build:
    """The installed build, tried in a child process. Never raises for what is wrong with it."""
    package = features.package_folder()
    if package is None:
        return Build(version=None, problem="llama-cpp-python is not installed")
    wheel, wheel_problem = None, ""
    try:
        wheel = read_wheel_facts(package)
    except WheelError as error:
        wheel_problem = error.problem
    said, status = _in_a_fork(_tell) if sys.platform.startswith("linux") else _in_a_new_process()
    return _as_build(said, status, wheel, wheel_problem)


def _as_build(said: bytes, status: int | None, wheel: WheelFacts | None, wheel_problem: str) -> Build:
    """The build of which a child said `said` and ended with `status`; None means that it hung."""
    told: dict[str, Any] = {}
    for line in said.splitlines():
        with contextlib.suppress(ValueError):  # a line cut short by the child's death
            part = json.loads(line)
            told |= part if isinstance(part, dict) else {}
    killer = _signal_of(status)
    return Build(
        version=library.package_version(),
        ggml=told.get("ggml", ""),
        ggml_commit=told.get("ggml_commit", ""),
        llama_cpp=told.get("llama_cpp") or "",
        cpu_library=told.get("cpu_library", ""),
        features=told.get("features"),
        backends=tuple(told.get("backends", ())),
        devices=tuple(Device(**each) for each in told.get("devices", ())),
        wheel=wheel,
        wheel_problem=wheel_problem,
        signal=killer,
        problem=_problem(told, status, killer),
    )


def _problem(told: dict[str, Any], status: int | None, killer: int | None) -> str:
    """Why the build of which a child said `told` cannot be used; "" when its kernels computed."""
    if "refused" in told:
        return str(told["refused"])
    if told.get("computes"):
        return ""
    if killer == signal.SIGILL:
        return "it uses an instruction that this CPU does not have (SIGILL, exit code 132): it was built for a newer CPU"
    step = "its CPU kernels run" if "features" in told else "it is loaded"
    if status is None:
        return f"it hangs when {step}"
    how = f"is killed by {signal.Signals(killer).name}" if killer else f"ends with {status}"
    return f"a process that tries it {how} when {step}"


def _signal_of(status: int | None) -> int | None:
    """The signal that ended a process, from its exit status: -4 and 132 are both SIGILL."""
    number = -status if status is not None and status < 0 else (status or 0) - _SHELL_SIGNAL
    return number if number in {each.value for each in signal.Signals} else None


def _in_a_fork(tell: Callable[[int], None]) -> tuple[bytes, int | None]:
    """What `tell` writes to the descriptor it gets, in a forked process, and how that ended; None when it had to be killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_the_child(tell, writer)
    os.close(writer)
    ended = False
    try:
        said, ended = _read_all(reader)
    finally:
        os.close(reader)
        if not ended:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    return said, os.waitstatus_to_exitcode(status) if ended else None


def _read_all(reader: int) -> tuple[bytes, bool]:
    """What comes out of the pipe until its end, and whether that came in time and within bounds."""
    deadline = time.monotonic() + _SECONDS
    said = b""
    while len(said) <= _MOST_BYTES:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return said, False
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return said, True
        said += chunk
    return said, False


def _be_the_child(tell: Callable[[int], None], writer: int) -> NoReturn:
    """Runs `tell` in silence and leaves without the parent's exit handlers."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        tell(writer)
        status = 0
    finally:
        os._exit(status)


def _in_a_new_process() -> tuple[bytes, int | None]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "tinyedge.machine.build_probe"]
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return b"", None
    return done.stdout[:_MOST_BYTES], done.returncode


def _tell(writer: int) -> None:
    """The child's work: each step's findings as a line of JSON."""
    try:
        for part in _findings():
            os.write(writer, json.dumps(part).encode() + b"\n")
    except TinyEdgeError as error:
        os.write(writer, json.dumps({"refused": error.problem}).encode() + b"\n")
    except Exception as error:  # whatever another version of the bindings may raise is its diagnosis
        os.write(writer, json.dumps({"refused": f"it raises {type(error).__name__} ({error})"}).encode() + b"\n")


def _findings() -> Iterator[dict[str, Any]]:
    versions = library.versions()
    yield {"ggml": versions.ggml, "ggml_commit": versions.ggml_commit, "llama_cpp": versions.llama_cpp}
    yield {"backends": library.compiled_backends()}
    if "cpu" not in library.compiled_backends():
        raise NativeError("none of its CPU kernels suits this CPU: they were built for newer ones")
    yield {"cpu_library": features.cpu_library(), "features": features.build_features()}
    yield {"devices": [asdict(device) for device in library.devices()]}
    features.try_kernels()
    yield {"computes": True}


if __name__ == "__main__":
    _tell(1)
