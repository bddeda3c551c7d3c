"""Building: which boards share a build, what makes two builds differ, and what a failing one leaves."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tinyedge.errors import BoardError, BuildError
from tinyedge_targets import build as building
from tinyedge_targets.boards import find_board, find_boards
from tinyedge_targets.runner import Runner
from tinyedge_targets.wheels import group_boards


def test_boards_of_one_family_share_a_build() -> None:
    groups = group_boards(find_boards("rpi4,rpi5,rk3588"), single=False)
    assert [[board.name for board in boards] for boards in groups.values()] == [["rpi4", "rpi5", "rk3588"]]
    (build,) = groups
    assert (build.triple, build.layout, build.cpu) == ("aarch64-linux-gnu", "variants", "generic")


def test_single_builds_differ_by_processor() -> None:
    groups = group_boards(find_boards("rpi4,rpi5,rk3588"), single=True)
    assert [build.cpu for build in groups] == ["cortex_a72-aes-sha2", "cortex_a76"]
    assert [len(boards) for boards in groups.values()] == [1, 2]


def test_instructions_that_the_chip_lacks_are_left_out() -> None:
    """The Pi 3 and 4 have Arm's cores without the cryptographic instructions, which LLVM's name of the core includes."""
    assert building.plan_build(find_board("rpi3"), single=True).cpu == "cortex_a53-aes-sha2"
    assert building.plan_build(find_board("rpi4"), single=True).cpu == "cortex_a72-aes-sha2"


def test_32_bit_systems_have_their_own() -> None:
    build = building.plan_build(find_board("armv7"), single=False)
    assert (build.triple, build.layout, build.cpu) == ("arm-linux-gnueabihf", "single", "cortex_a7")


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac builds for Macs")
def test_a_mac_is_built_on_a_mac() -> None:
    with pytest.raises(BoardError, match="run `tinyedge wheel --board mac-m2` on that machine"):
        building.plan_build(find_board("mac-m2"), single=False)


def test_cuda_needs_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match="nvcc"):
        building.plan_build(find_board("cuda-laptop"), single=False)


def _run(log: Path, script: str, seen: list[tuple[int, int]]) -> None:
    Runner(log, {})(["/bin/sh", "-c", script], lambda done, total: seen.append((done, total)))


def test_the_log_is_kept_and_named_when_a_step_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    seen: list[tuple[int, int]] = []
    with pytest.raises(BuildError, match=r"x\.c:1: error: no such thing.*; read the log .*log") as failure:
        _run(log, "echo '[1/7] a'; echo 'x.c:1: error: no such thing' >&2; echo '[2/7] b'; exit 3", seen)
    assert seen == [(1, 7), (2, 7)]
    assert "[2/7] b" in log.read_text()
    assert failure.value.exit_code == 19


def test_an_interrupt_stops_the_children(tmp_path: Path) -> None:
    alive = tmp_path / "alive"

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Runner(tmp_path / "log", {})(["/bin/sh", "-c", f"(sleep 2; touch '{alive}') & echo '[1/2] a'; wait"], interrupt)
    time.sleep(2.5)
    assert not alive.exists()


def test_flags_for_this_machine_do_not_reach_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", "-march=native")
    Runner(tmp_path / "log", {})(["/bin/sh", "-c", 'echo "flags:$CFLAGS:"'])
    assert "flags::" in (tmp_path / "log").read_text()
