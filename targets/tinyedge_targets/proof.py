"""Whether a wheel does on a board what it should: its files looked at, then run on each CPU of the board under emulation.

The wheel's code runs in child processes only, but with the rights of the user: qemu confines nothing.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyedge.errors import NotEmulatedError
from tinyedge_targets import emulation
from tinyedge_targets.boards import Board, boards, emulated_cpu, find_board
from tinyedge_targets.checks import Check
from tinyedge_targets.progress import Progress
from tinyedge_targets.static_checks import check_wheel
from tinyedge_targets.trials import Trial, Workplace, emulated_trial, make_workplace, native_trial
from tinyedge_targets.wheel_file import Wheel, open_wheel
from tinyedge_targets.zig import PROCESSORS

# The machine of a wheel's platform tag, on Linux and on macOS -> the triple of its boards.
_LINUX = {machine: triple for triple, machine in PROCESSORS.items()}
_MACOS = {"arm64": "aarch64-macos"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was looked at and what was tried. `emulated` is False when nothing could be run; `reason` and `remedy` then say why
    and what to do.
    """

    wheel: Path
    boards: tuple[str, ...]
    static: tuple[Check, ...]
    trials: tuple[Trial, ...]
    emulated: bool
    reason: str
    remedy: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether everything that was looked at and tried is as it should be; a wheel that was not run passes by its files."""
        return all(check.passed for check in self.static) and all(trial.passed for trial in self.trials)

    @property
    def verdict(self) -> str:
        """`proven on cortex-a72 and cortex-a76`, `failed` with the number of failures, or why it was not emulated."""
        if not self.passed:
            return f"failed, {len(self.failures)} of its checks do not hold"
        if not self.emulated:
            return f"not emulated ({self.reason}); its files are as they should be"
        return f"proven on {' and '.join(trial.cpu for trial in self.trials)} in {self.seconds:.0f} s"

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each check that does not hold."""
        static = [f"{check.name}: {check.detail}" for check in self.static if not check.passed]
        tried = [
            f"{trial.cpu}: {check.name}: {check.detail}" for trial in self.trials for check in trial.checks if not check.passed
        ]
        return (*static, *tried)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values of JSON."""
        facts = dataclasses.asdict(self)
        facts["wheel"] = self.wheel.name
        facts["trials"] = [
            facts_of_trial | {"passed": trial.passed}
            for facts_of_trial, trial in zip(facts["trials"], self.trials, strict=True)
        ]
        return facts | {"passed": self.passed, "verdict": self.verdict, "failures": list(self.failures)}


def prove(wheel: Path, boards: Sequence[Board] = (), *, python: str | None = None, progress: Progress) -> Proof:
    """The proof of a wheel for `boards`: those that it was built for when none is given, or else all of its kind of processor.

    `python` ("3.11") is that of the emulated system, by default the first board's. Raises WheelError for a file that is no
    wheel, NativeError when this machine's own llama.cpp fails, DiskSpaceError when the disk is full.
    """
    started = time.perf_counter()
    opened = open_wheel(wheel)
    wanted = tuple(boards) or _built_for(opened)
    progress("check files", 0, 0)
    static = _static(wheel, wanted)
    trials: tuple[Trial, ...] = ()
    reason = remedy = ""
    try:
        trials = _tried(opened, wanted, python, progress)
    except NotEmulatedError as error:
        reason, remedy = error.problem, error.remedy
    return Proof(
        wheel=wheel,
        boards=tuple(board.name for board in wanted),
        static=static,
        trials=trials,
        emulated=bool(trials),
        reason=reason,
        remedy=remedy,
        seconds=time.perf_counter() - started,
    )


def _static(wheel: Path, wanted: Sequence[Board]) -> tuple[Check, ...]:
    """The static checks for every board: all that fail, and of those that hold for all boards one of each name."""
    kinds = {(board.triple, board.glibc, board.cpu, board.features): board for board in wanted}
    found = list(dict.fromkeys(check for board in kinds.values() or (None,) for check in check_wheel(wheel, board)))
    failing = {check.name for check in found if not check.passed}
    passing = {check.name: check for check in reversed(found) if check.name not in failing}
    return tuple(check for check in found if not check.passed or passing.get(check.name) is check)


def triple_of(wheel: Wheel) -> str:
    """The triple that the wheel's tag means; "" for one that no board has."""
    table = _MACOS if all(each.startswith("macosx") for each in wheel.platforms) else _LINUX
    return table.get(wheel.platform_machine, "")


def cpus_of(triple: str, wanted: Sequence[Board]) -> tuple[str, ...]:
    """The CPU models of qemu to try: those of the boards, or of all boards of the triple when none is wanted."""
    rows = wanted or [board for board in boards() if board.triple == triple]
    return tuple(dict.fromkeys(cpu for board in rows for cpu in board.emulate if emulated_cpu(cpu).triple == triple))


def _built_for(wheel: Wheel) -> tuple[Board, ...]:
    names = wheel.build.boards if wheel.build else ()
    known = {board.name for board in boards()}
    return tuple(find_board(name) for name in names if name in known)


def _tried(wheel: Wheel, wanted: Sequence[Board], python: str | None, progress: Progress) -> tuple[Trial, ...]:
    """The trials of the wheel; raises NotEmulatedError with the reason when there can be none."""
    triple = triple_of(wheel)
    built_here = all(each.startswith("linux_") for each in wheel.platforms)  # as pip builds them, and no index takes them
    cpus = () if built_here and not wanted and triple == _triple_here() else cpus_of(triple, wanted)
    if not cpus:
        _check_native(triple, wanted)
    else:
        progress("prepare emulation", 0, 0)
        chosen = python or next((version for board in wanted for version in board.pythons), emulation.DEFAULT_PYTHON)
        root = emulation.prepare(triple, chosen)
    # What a wheel's code made of the folder must not hide what came of the trials.
    with tempfile.TemporaryDirectory(prefix="tinyedge-proof-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        progress("run here", 0, 0)
        wheel.extract(folder / "wheel")
        place = make_workplace(folder, folder / "wheel")
        if not cpus:
            progress("run the wheel here", 0, 0)
            return (native_trial(place, place.expected()),)
        return tuple(_emulated(place, root, cpu, index, len(cpus), progress) for index, cpu in enumerate(cpus))


def _emulated(place: Workplace, root: emulation.Root, cpu: str, index: int, count: int, progress: Progress) -> Trial:
    progress(f"run on {cpu}", index, count)
    facts = emulated_cpu(cpu)
    # On x86 the features come from /proc/cpuinfo, which qemu passes on as this machine has it.
    features = () if facts.triple == "x86_64-linux-gnu" else facts.features
    trial = emulated_trial(place, root, cpu, place.expected(facts.variant, features), first=index == 0)
    if not trial.passed:
        emulation.check_root(root, cpu)
    return trial


def _check_native(triple: str, wanted: Sequence[Board]) -> None:
    """Raises NotEmulatedError unless this machine can run wheels of `triple` for the `wanted` boards itself."""
    if triple != _triple_here():
        raise NotEmulatedError(
            f"the wheel is for {triple or 'a processor of no board'}, this machine is not, and no emulator stands for it"
        )
    needed = {word for board in wanted if board.triple == triple for word in board.features}
    lacking = sorted(needed - _flags()) if sys.platform != "darwin" else []
    if lacking:
        raise NotEmulatedError(f"qemu emulates no such processor, and this machine's own lacks {', '.join(lacking)}")


def _triple_here() -> str:
    table = _MACOS if sys.platform == "darwin" else _LINUX
    return table.get(platform.machine(), "")


def _flags() -> set[str]:
    """The kernel's words for this machine's processor (/proc/cpuinfo)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.partition(":")[2].split()}
