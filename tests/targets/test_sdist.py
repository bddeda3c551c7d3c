"""Source archives: what is damaged or reaches outside its folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tinyedge.errors import BuildError
from tinyedge_targets.cache import file_digest
from tinyedge_targets.sdist import Sdist, fetch_sdist, unpack

_TREE = ("llama_cpp_python-1.0/CMakeLists.txt", "llama_cpp_python-1.0/vendor/llama.cpp/CMakeLists.txt")


def _archive(path: Path, names: tuple[str, ...], links: dict[str, str] | None = None) -> Sdist:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return Sdist(path=path, version="1.0", sha256=file_digest(path))


def test_the_tree_is_unpacked(tmp_path: Path) -> None:
    tree = unpack(_archive(tmp_path / "a.tar.gz", _TREE), tmp_path / "out")
    assert (tree / "vendor/llama.cpp/CMakeLists.txt").read_text() == "x"


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    sdist = _archive(
        tmp_path / "a.tar.gz",
        (*_TREE, "../outside", "/tmp/tinyedge-outside", "llama_cpp_python-1.0/../../outside", "llama_cpp_python-1.0/link/file"),
        {"llama_cpp_python-1.0/link": str(tmp_path)},
    )
    unpack(sdist, tmp_path / "deep/out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "deep"]
    assert not Path("/tmp/tinyedge-outside").exists()


@pytest.mark.parametrize("damage", ["cut", "noise", "other", "checksum"])
def test_a_damaged_archive_is_an_error_with_a_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.tar.gz"
    _archive(path, _TREE if damage != "other" else ("something/else",))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:60])
    elif damage == "noise":
        path.write_bytes(b"no archive at all")
    elif damage == "checksum":
        whole = path.read_bytes()
        path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])  # a gzip file ends with it and with the size
    with pytest.raises(BuildError, match="delete"):
        unpack(Sdist(path=path, version="1.0", sha256=""), tmp_path / "out")


def test_a_version_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    log = tmp_path / "log"
    with pytest.raises(BuildError, match=r"llama-cpp-python==99\.9 .*log: .*pip index versions"):
        fetch_sdist("99.9", log)
    assert "No matching distribution" in log.read_text()
    assert list((tmp_path / "tinyedge/sdists").iterdir()) == []


def test_a_version_that_is_an_option_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BuildError, match="is not a version"):
        fetch_sdist("1.0 --index-url=http://example.org", tmp_path / "log")
    with pytest.raises(BuildError, match="is not a version"):
        fetch_sdist("../../1.0", tmp_path / "log")
