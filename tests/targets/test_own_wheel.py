"""tinyedge's own wheel: the same bytes each time, and the same files whether from the sources or from an installation."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from tinyedge.errors import BuildError
from tinyedge_targets import own_wheel
from tinyedge_targets.own_wheel import build_from_sources, pack_installed, source_folder
from tinyedge_targets.wheel_writing import write_wheel

ROOT = Path(__file__).resolve().parent.parent.parent


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as hatchling builds it."""
    try:
        return build_from_sources(ROOT, tmp_path_factory.mktemp("built"))
    except BuildError as error:
        if "hatchling" in error.problem and "distribution" in error.problem:
            pytest.skip("hatchling is neither installed nor can it be downloaded")
        raise


@pytest.fixture
def installed(built: Path, tmp_path: Path) -> Distribution:
    """That wheel installed in a folder of its own."""
    folder = tmp_path / "site-packages"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
        str(built),
    ]
    subprocess.run(command, check=True)
    return Distribution.at(next(folder.glob("*.dist-info")))


def test_the_same_sources_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    again = build_from_sources(ROOT, tmp_path)
    assert (again.name, again.read_bytes()) == (built.name, built.read_bytes())


def test_it_holds_all_packages_their_data_and_the_command(built: Path) -> None:
    files = contents(built)
    packages = ("tinyedge", "tinyedge_quantize", "tinyedge_targets", "tinyedge_bench")
    assert all(f"{package}/__init__.py" in files for package in packages)
    assert {"tinyedge_targets/install.sh", "tinyedge_targets/boards.toml", "tinyedge/demo/config.json"} <= set(files)
    info = built.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert b"tinyedge = tinyedge.cli.entry:main" in files[f"{info}/entry_points.txt"]
    assert not [name for name in files if name.endswith(".pyc") or name.startswith("tests")]


def test_an_installation_packs_into_the_wheel_it_came_from(installed: Distribution, built: Path, tmp_path: Path) -> None:
    repacked = pack_installed(installed, tmp_path)
    assert repacked.name == built.name
    ours, theirs = contents(repacked), contents(built)
    record = next(name for name in ours if name.endswith("/RECORD"))
    assert sorted(ours.pop(record).splitlines()) == sorted(theirs.pop(record).splitlines())
    assert ours == theirs
    first = repacked.read_bytes()
    assert pack_installed(installed, tmp_path).read_bytes() == first


def test_a_repacked_wheel_installs(installed: Distribution, tmp_path: Path) -> None:
    repacked, folder = pack_installed(installed, tmp_path), tmp_path / "again"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(repacked)], check=True)
    assert (folder / "tinyedge_targets/install.sh").is_file()
    assert (folder / "bin/tinyedge").is_file()


def test_a_file_that_was_changed_or_removed_is_named(installed: Distribution, tmp_path: Path) -> None:
    path = Path(str(installed.locate_file("tinyedge/version.py")))
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(BuildError, match=r"tinyedge/version\.py was changed after"):
        pack_installed(installed, tmp_path)
    path.unlink()
    with pytest.raises(BuildError, match=r"tinyedge/version\.py cannot be read"):
        pack_installed(installed, tmp_path)
    assert not list(tmp_path.glob("*.whl"))


def test_sources_are_told_from_an_installation(tmp_path: Path) -> None:
    assert source_folder(Path(own_wheel.__file__).resolve().parent) == ROOT
    package = tmp_path / "targets/tinyedge_targets"
    package.mkdir(parents=True)
    assert source_folder(package) is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "of-someone-else"\n', encoding="utf-8")
    assert source_folder(package) is None


def test_sources_that_do_not_build_give_pips_message(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project\n", encoding="utf-8")
    with pytest.raises(BuildError, match="could not be built"):
        build_from_sources(tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]


def test_a_written_wheel_is_in_order_for_pip(tmp_path: Path) -> None:
    files = {
        'odd,"name/__init__.py': b"",
        "odd-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n",
        "odd-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    wheel = write_wheel(tmp_path / "odd-1.0-py3-none-any.whl", "odd-1.0.dist-info", files)
    assert write_wheel(tmp_path / "odd-1.0-py3-none-any.whl", "odd-1.0.dist-info", files).read_bytes() == wheel.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(tmp_path / "there"), str(wheel)]
    subprocess.run(command, check=True)
    assert (tmp_path / "there" / 'odd,"name/__init__.py').is_file()
