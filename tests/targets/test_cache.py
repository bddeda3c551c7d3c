"""The cache of builds: complete entries or none."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyedge.errors import OutputError
from tinyedge_targets.cache import cache_folder, content_key, entry_in_progress, is_sealed, seal


def test_an_entry_appears_when_the_block_ends(tmp_path: Path) -> None:
    with entry_in_progress(tmp_path, "abc") as new:
        assert new is not None
        (new / "file").write_text("x")
        assert not (tmp_path / "abc").exists()
    assert (tmp_path / "abc/file").read_text() == "x"
    with entry_in_progress(tmp_path, "abc") as again:
        assert again is None


def test_a_failure_or_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), entry_in_progress(tmp_path, "abc") as new:
            assert new is not None
            (new / "file").write_text("x")
            raise error
        assert [path.name for path in tmp_path.iterdir()] == [".abc.lock"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tinyedge_targets.cache import entry_in_progress\n"
        "with entry_in_progress(Path(sys.argv[1]), 'abc') as new:\n"
        "    (new / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    assert len(list(tmp_path.glob(".abc-*"))) == 1
    with entry_in_progress(tmp_path, "abc") as new:
        assert new is not None
        assert list(tmp_path.glob(".abc-*")) == [new]


def test_two_at_a_time_make_it_once(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tinyedge_targets.cache import entry_in_progress\n"
        "with entry_in_progress(Path(sys.argv[1]), 'abc') as new:\n"
        "    print(new is not None); time.sleep(1)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    begun = time.monotonic()
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    said = sorted(process.communicate()[0] for process in processes)
    assert said == [b"False\n", b"True\n"]
    assert time.monotonic() - begun < 30


def test_the_key_differs_with_any_input() -> None:
    keys = {content_key(inputs) for inputs in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": [1, 2]}, {"a": [12]})}
    assert len(keys) == 5
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("builds") == tmp_path / "tinyedge/builds"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("builds") == tmp_path / ".cache/tinyedge/builds"


def test_a_sealed_folder_shows_what_was_lost_or_cut(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    (entry / "lib").mkdir(parents=True)
    (entry / "lib/a.so").write_text("whole")
    assert not is_sealed(entry)
    seal(entry)
    assert is_sealed(entry)
    (entry / "lib/a.so").write_text("who")
    assert not is_sealed(entry)
    (entry / "lib/a.so").unlink()
    assert not is_sealed(entry)


def test_an_entry_that_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    for expected in (True, False):
        with entry_in_progress(tmp_path, "abc", is_sealed) as new:
            assert (new is not None) == expected
            if new is not None:
                (new / "file").write_text("x")
                seal(new)
    (tmp_path / "abc/file").unlink()
    with entry_in_progress(tmp_path, "abc", is_sealed) as new:
        assert new is not None
        (new / "file").write_text("again")
    assert [path.name for path in (tmp_path / "abc").iterdir()] == ["file"]


def test_a_folder_is_the_same_wherever_a_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("builds") == tmp_path / "relative/tinyedge/builds"


def test_a_place_that_cannot_be_a_folder_is_told_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="XDG_CACHE_HOME"):
        cache_folder("builds")
