"""A file appears whole or not at all, with and without nameless files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinyedge.errors import DiskSpaceError, OutputError
from tinyedge_quantize import output_file
from tinyedge_quantize.output_file import check_room, new_file


@pytest.fixture(params=["nameless", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of making the file: macOS and some file systems have no nameless ones."""
    if request.param == "named":
        monkeypatch.setattr(output_file, "_can_name_later", lambda _folder, _name: False)
    elif not output_file._can_name_later(Path.cwd(), Path.cwd() / ".probe"):
        pytest.skip("this file system has no O_TMPFILE")
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_the_name_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    with new_file(path) as output:
        output.write_at(b"world", 5)
        output.write_at(b"hello", 0)
        assert not path.exists()
    assert path.read_bytes() == b"helloworld"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.usefixtures("way")
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), new_file(path) as output:
        output.write_at(b"new", 0)
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.gguf"]


def test_permissions_are_the_usual_ones(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with new_file(tmp_path / "out.gguf") as output:
            output.write_at(b"x", 0)
    finally:
        os.umask(old)
    assert (tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o640


def test_room_is_checked(tmp_path: Path) -> None:
    check_room(tmp_path / "out.gguf", 1)
    with pytest.raises(DiskSpaceError, match="needs 1,152,921,504,606,846,976 bytes"):
        check_room(tmp_path / "out.gguf", 2**60)
    with pytest.raises(OutputError, match="does not exist"):
        check_room(tmp_path / "missing" / "out.gguf", 1)
    with pytest.raises(OutputError, match="is a folder"):
        check_room(tmp_path, 1)
