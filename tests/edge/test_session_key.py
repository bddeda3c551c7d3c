"""The key that KV states are sealed with: made once, private, the same for every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyedge.chat.state_key import state_key

TELL = (
    "import sys; from pathlib import Path; from tinyedge.chat.state_key import state_key\n"
    "print(state_key(Path(sys.argv[1])).hex())"
)


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    key = state_key(folder)
    assert key is not None
    assert len(key) == 32
    assert state_key(folder) == key
    assert [(each.name, each.stat().st_mode & 0o777) for each in folder.iterdir()] == [("state.key", 0o600)]
    assert state_key(tmp_path / "other") != key


def test_processes_that_begin_at_once_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TELL, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    keys = {process.communicate(timeout=60)[0] for process in processes}
    assert len(keys) == 1
    assert len(keys.pop().strip()) == 64


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_could_reach_is_replaced(tmp_path: Path, mode: int) -> None:
    key = state_key(tmp_path)
    (tmp_path / "state.key").chmod(mode)
    other = state_key(tmp_path)
    assert other not in (key, None)
    assert state_key(tmp_path) == other


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_key_is_replaced(tmp_path: Path, content: bytes) -> None:
    state_key(tmp_path)
    (tmp_path / "state.key").write_bytes(content)
    key = state_key(tmp_path)
    assert key is not None
    assert len(key) == 32
    assert (tmp_path / "state.key").read_bytes() == key


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.write_bytes(b"k" * 32)
    planted.chmod(0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "state.key").symlink_to(planted)
    assert state_key(tmp_path / "folder") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file somebody else's")
def test_root_leaves_the_key_of_another_user_alone(tmp_path: Path) -> None:
    key = state_key(tmp_path)
    os.chown(tmp_path / "state.key", 12345, 12345)
    assert state_key(tmp_path) is None
    assert (tmp_path / "state.key").read_bytes() == key


def test_there_is_no_key_where_none_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert state_key(tmp_path / "file") is None
    (tmp_path / "state.key").mkdir()
    assert state_key(tmp_path) is None
