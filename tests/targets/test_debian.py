"""Debian packages unpacked into a root: real packages made here, and what stops when apt cannot work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tinyedge.errors import DiskSpaceError, NotEmulatedError
from tinyedge_targets import debian

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    """A package with what makes unpacking awkward: absolute links, a hard link, /lib, documentation."""
    tree = tmp_path / "tree"
    for name, content in {
        "DEBIAN/control": "Package: awkward\nVersion: 1\nArchitecture: all\nMaintainer: n <n@x.org>\nDescription: x\n",
        "DEBIAN/postinst": "#!/bin/sh\ntouch /tmp/tinyedge-postinst-ran\n",
        "lib/ld.so": "loader",
        "usr/bin/python3.11": "interpreter",
        "usr/bin/tar": "not needed",
        "usr/lib/python3.11/os.py": "os",
        "usr/lib/python3.11/tests/test_os.py": "test",
        "usr/share/doc/awkward/README": "words",
        "usr/share/python-wheels/pip.whl": "pip",
        "etc/passwd": "root",
    }.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / "usr/bin/python3.11").chmod(0o755)
    (tree / "usr/lib/absolute").symlink_to("/lib/ld.so")
    (tree / "usr/lib/relative").symlink_to("python3.11/os.py")
    os.link(tree / "usr/lib/python3.11/os.py", tree / "usr/lib/python3.11/same.py")
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, tmp_path / "a.deb"], check=True, capture_output=True)
    return tmp_path / "a.deb"


@needs_dpkg
def test_a_package_is_unpacked_without_its_ballast_and_with_links_that_stay_inside(deb: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    debian.unpack(deb, root)
    files = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    assert files == {
        "usr/lib/ld.so",
        "usr/bin/python3.11",
        "usr/lib/python3.11/os.py",
        "usr/lib/python3.11/same.py",
        "usr/lib/absolute",
        "usr/lib/relative",
        "usr/share/python-wheels/pip.whl",
    }
    assert (root / "usr/lib/absolute").readlink() == Path("ld.so")
    assert (root / "usr/lib/absolute").read_text() == "loader"
    assert (root / "usr/lib/relative").read_text() == "os"
    assert (root / "usr/lib/python3.11/same.py").read_text() == "os"
    assert os.access(root / "usr/bin/python3.11", os.X_OK)
    assert not os.access(root / "usr/lib/ld.so", os.X_OK)
    assert not Path("/tmp/tinyedge-postinst-ran").exists()


@needs_dpkg
def test_unpacking_again_over_it_changes_nothing(deb: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    debian.unpack(deb, root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    debian.unpack(deb, root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("path", ["../../etc/shadow", "/../x", "./lib/../../../x"])
def test_no_path_of_a_package_leaves_the_root(path: str) -> None:
    inside = debian._inside(path)
    assert inside is not None
    assert not Path(inside).is_absolute()
    assert ".." not in Path(inside).parts


def test_a_mirror_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "http://x main\ndeb [trusted=yes] http://y")
    with pytest.raises(NotEmulatedError, match="not the address of a Debian mirror"):
        debian._mirror()


def test_without_apt_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotEmulatedError, match="apt-get and dpkg-deb are needed"):
        debian.fetch(["python3"], debian.Release(), tmp_path)


@needs_apt
@needs_dpkg
def test_a_mirror_that_does_not_answer_leaves_nothing_half_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = next((path for path in Path("/usr/share/keyrings").glob("*.gpg")), None)
    if keys is None:
        pytest.skip("no keyring at all here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(debian.MIRROR_VARIABLE, f"file:{tmp_path}/no-such-mirror")
    monkeypatch.setattr(debian, "_keyring", lambda: keys)
    with pytest.raises(NotEmulatedError, match="could not be fetched") as caught:
        debian.python_root("arm64", "3.11")
    assert debian.MIRROR_VARIABLE in caught.value.remedy
    assert [path.name for path in (tmp_path / "tinyedge/emulation").iterdir() if path.is_dir()] == []


def test_a_full_disk_is_told_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1 << 20))
    monkeypatch.setattr(debian, "_keyring", lambda: tmp_path)
    with pytest.raises(DiskSpaceError, match="MB of disk"):
        debian.python_root("arm64", "3.11")
    assert [path.name for path in (tmp_path / "tinyedge/emulation").iterdir() if path.is_dir()] == []


@needs_apt
def test_apt_works_on_nothing_but_its_own_folder(tmp_path: Path) -> None:
    release = debian.Release(
        architecture="arm64", suite="bookworm", mirror="http://mirror.invalid/debian", keyring=tmp_path / "k"
    )
    configuration = debian._apt_configuration(release, tmp_path)
    dump = subprocess.run(
        ["apt-config", "dump"], env=os.environ | {"APT_CONFIG": str(configuration)}, capture_output=True, text=True, check=True
    ).stdout
    values = dict(re.findall(r'^(\S+) "(.*)";$', dump, re.MULTILINE))
    assert values["APT::Architecture"] == "arm64"
    for name in ("Dir::State", "Dir::State::status", "Dir::Cache", "Dir::Cache::archives", "Dir::Etc::sourcelist", "Dir::Log"):
        assert values[name].startswith(str(tmp_path)), name
    assert "Invoke" not in dump  # the machine's hooks are not ours to run
    sources = (tmp_path / "sources.list").read_text()
    assert sources == f"deb [signed-by={tmp_path / 'k'}] http://mirror.invalid/debian bookworm main\n"


@pytest.mark.parametrize(
    ("line", "carried"),
    [
        ('Acquire::http::Proxy "http://proxy:3128";', True),
        ('Acquire::Check-Valid-Until "false";', True),
        ('Acquire::https::mirror.example::Verify-Peer "false";', True),
        ('Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "true";', False),
        ('APT::Update::Post-Invoke:: "rm -rf /";', False),
    ],
)
def test_of_the_machines_apt_settings_those_of_the_network_are_carried_over(line: str, carried: bool) -> None:
    assert (debian._CARRIED.fullmatch(line) is not None) == carried
