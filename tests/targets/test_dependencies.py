"""A board gets what it needs by its own markers and tags, not by those of the machine that fetches."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tinyedge.errors import BoardError, BuildError, WheelError
from tinyedge_targets import debian_wheels
from tinyedge_targets.board_python import BoardPython, board_python, manylinux_tags, needed_glibc
from tinyedge_targets.boards import find_board
from tinyedge_targets.dependencies import download_wheels, wheel_package
from tinyedge_targets.wheel_writing import write_wheel

RPI4 = board_python(find_board("rpi4"), "3.11")
OLD = board_python(find_board("aarch64"), "3.10")

MakeWheel = Callable[..., Path]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWheel:
    """A folder of wheels that is all pip sees; the function puts one there."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def make(name: str, version: str, *requires: str, tag: str = "py3-none-any", python: str = ">=3.8") -> Path:
        info = f"{name}-{version}.dist-info"
        fields = [f"Name: {name}", f"Version: {version}", f"Requires-Python: {python}", "Provides-Extra: fast"]
        fields += [f"Requires-Dist: {each}" for each in requires]
        metadata = "\n".join(["Metadata-Version: 2.1", *fields, ""])
        files = {
            f"{name}/__init__.py": b"",
            f"{info}/METADATA": metadata.encode(),
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
        }
        return write_wheel(folder / f"{name}-{version}-{tag}.whl", info, files)

    return make


def names(wheels: tuple[Path, ...]) -> list[str]:
    return ["-".join(wheel.name.split("-")[:2]) for wheel in wheels]


def test_markers_are_the_boards(index: MakeWheel, tmp_path: Path) -> None:
    index(
        "app",
        "1.0",
        'tomli; python_version < "3.11"',
        'onlyarm; platform_machine == "aarch64"',
        'onlypc; platform_machine == "x86_64"',
        'colorama; sys_platform == "win32"',
        "plain[fast]",
    )
    for name in ("tomli", "onlyarm", "onlypc", "quick"):
        index(name, "1.0")
    index("plain", "1.0", 'quick; extra == "fast"', 'absent; extra == "slow"')
    pc = board_python(find_board("x86-64-v3"), "3.12")
    assert names(download_wheels(RPI4, ["app"], [], tmp_path / "a")) == ["app-1.0", "onlyarm-1.0", "plain-1.0", "quick-1.0"]
    assert names(download_wheels(OLD, ["app"], [], tmp_path / "b")) == [
        "app-1.0",
        "onlyarm-1.0",
        "plain-1.0",
        "quick-1.0",
        "tomli-1.0",
    ]
    assert names(download_wheels(pc, ["app"], [], tmp_path / "c")) == ["app-1.0", "onlypc-1.0", "plain-1.0", "quick-1.0"]


def test_what_a_later_package_asks_for_narrows_an_earlier_choice(index: MakeWheel, tmp_path: Path) -> None:
    for version in ("1.0", "1.9", "2.0"):
        index("base", version, *(["gone"] if version == "2.0" else []))
    index("gone", "1.0")
    index("late", "1.0", "base<2")
    index("app", "1.0", "base>=1", "late")
    assert names(download_wheels(RPI4, ["app"], [], tmp_path / "out")) == ["app-1.0", "base-1.9", "late-1.0"]


def test_the_newest_wheel_that_the_board_can_run_is_taken(index: MakeWheel, tmp_path: Path) -> None:
    index("num", "1.0", tag="cp311-cp311-manylinux_2_17_aarch64")
    index("num", "2.0", tag="cp311-cp311-manylinux_2_28_aarch64")
    index("num", "3.0", tag="cp311-cp311-manylinux_2_39_aarch64")
    index("num", "4.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    index("num", "5.0", tag="cp312-cp312-manylinux_2_17_aarch64")
    assert names(download_wheels(RPI4, ["num"], [], tmp_path / "a")) == ["num-2.0"]
    old = board_python(find_board("aarch64"), "3.11")
    assert names(download_wheels(old, ["num"], [], tmp_path / "b")) == ["num-1.0"]


def test_a_release_for_newer_pythons_is_passed_over(index: MakeWheel, tmp_path: Path) -> None:
    index("app", "1.0")
    index("app", "2.0", python=">=3.12")
    assert names(download_wheels(RPI4, ["app"], [], tmp_path / "out")) == ["app-1.0"]


def test_wheels_that_are_here_are_not_fetched_but_what_they_need_is(index: MakeWheel, tmp_path: Path) -> None:
    own = index("own", "0.3.36+tinyedge", "base").rename(tmp_path / "own-0.3.36+tinyedge-py3-none-any.whl")
    index("base", "1.0")
    index("app", "1.0", "own>=0.3.36")
    assert names(download_wheels(RPI4, ["app"], [own], tmp_path / "out")) == ["app-1.0", "base-1.0"]
    index("app", "2.0", "own>=0.4")
    with pytest.raises(BuildError, match=r"own>=0\.4 is needed and own 0\.3\.36\+tinyedge was given"):
        download_wheels(RPI4, ["app"], [own], tmp_path / "out")


def test_a_package_without_a_wheel_for_the_board_is_named(index: MakeWheel, tmp_path: Path) -> None:
    index("app", "1.0", "num")
    index("num", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    with pytest.raises(BuildError, match=r"there is no wheel of num for aarch64, Python 3\.11, glibc 2\.36; choose"):
        download_wheels(RPI4, ["app"], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_versions_that_exclude_each_other_end_in_an_error(index: MakeWheel, tmp_path: Path) -> None:
    index("base", "1.0")
    index("base", "2.0")
    index("app", "1.0", "base<2", "late")
    index("late", "1.0", "base>=2")
    with pytest.raises(BuildError, match="base"):
        download_wheels(RPI4, ["app"], [], tmp_path / "out")


def test_a_requirement_by_address_is_refused(index: MakeWheel, tmp_path: Path) -> None:
    index("app", "1.0", "base @ https://example.com/base.whl")
    with pytest.raises(BuildError, match="names an address"):
        download_wheels(RPI4, ["app"], [], tmp_path / "out")


def test_no_network_is_told_from_no_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match=r"no package index answered when numpy.* was to be downloaded; connect"):
        download_wheels(RPI4, ["numpy>=1.24"], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_packages_for_a_raspberry_pi(tmp_path: Path) -> None:
    try:
        wheels = download_wheels(RPI4, ["numpy>=1.26", "psutil", "pyyaml", "gguf", "typer<0.29", "pip"], [], tmp_path / "out")
    except BuildError as error:
        if "no package index answered" in error.problem:
            pytest.skip("no network")
        raise
    found = {wheel.name.split("-")[0] for wheel in wheels}
    assert {"numpy", "psutil", "pyyaml", "gguf", "typer", "rich", "pip", "tqdm"} <= found
    assert not found & {"colorama", "tomli"}
    for wheel in wheels:
        platforms = wheel.name.removesuffix(".whl").rpartition("-")[2].split(".")
        assert any(each == "any" or (each.startswith("manylinux") and each.endswith("_aarch64")) for each in platforms)
        assert zipfile.ZipFile(wheel).testzip() is None
    assert needed_glibc(wheels, RPI4) <= RPI4.glibc


def test_tags_reach_from_the_boards_glibc_to_the_oldest() -> None:
    assert manylinux_tags("aarch64", 18) == ("manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
    assert manylinux_tags("x86_64", 17)[-3:] == ("manylinux_2_6_x86_64", "manylinux_2_5_x86_64", "manylinux1_x86_64")


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        ("a-1-cp311-cp311-manylinux2014_aarch64.whl", True),
        ("a-1-cp36-abi3-manylinux_2_28_aarch64.whl", True),
        ("a-1-py3-none-linux_aarch64.whl", True),
        ("a-1-cp312-abi3-manylinux_2_28_aarch64.whl", False),
        ("a-1-cp310-cp310-manylinux2014_aarch64.whl", False),
        ("a-1-cp311-cp311-manylinux_2_37_aarch64.whl", False),
        ("a-1-cp311-cp311-manylinux2014_armv7l.whl", False),
        ("a-1-cp311-cp311-musllinux_1_2_aarch64.whl", False),
        ("a-1-cp311-cp311-macosx_11_0_arm64.whl", False),
        ("a-1.tar.gz", False),
        ("a.whl", False),
    ],
)
def test_wheels_that_the_board_can_install(wheel: str, fits: bool) -> None:
    assert RPI4.accepts(wheel) is fits


def test_the_glibc_needed_is_the_newest_of_the_oldest() -> None:
    wheels = [
        Path("a-1-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.manylinux_2_28_aarch64.whl"),
        Path("b-1-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl"),
        Path("c-1-py3-none-any.whl"),
    ]
    assert needed_glibc(wheels, RPI4) == "2.27"
    assert needed_glibc([Path("d-1-py3-none-linux_aarch64.whl")], RPI4) == "2.36"
    assert needed_glibc(wheels[2:], RPI4) == "2.0"


def test_32_bit_systems_take_debians_c_library() -> None:
    target = board_python(find_board("armv7"), "3.13")
    assert (target.machine, target.glibc) == ("armv7l", "2.17")
    assert debian_wheels.on_debian(target).platforms[0] == "manylinux_2_41_armv7l"
    with pytest.raises(BoardError, match=r"no 32-bit wheels for Python 3\.12; use --python 3\.11 or --python 3\.13"):
        debian_wheels.on_debian(replace(target, python="3.12"))


@pytest.mark.parametrize("python", ["3", "4.0", "3.11.2", "3.x", "", "3.11\n"])
def test_a_version_that_is_none_is_refused(python: str) -> None:
    with pytest.raises(BoardError, match="is not a version of Python"):
        board_python(find_board("rpi4"), python)


def test_every_board_has_a_python_that_wheels_can_be_chosen_for() -> None:
    from tinyedge_targets.boards import boards

    for board in boards():
        assert isinstance(board_python(board, board.python()), BoardPython)


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_wheel_from_a_stranger_cannot_surprise(tmp_path: Path) -> None:
    path, info = tmp_path / "a-1-py3-none-any.whl", "a-1.dist-info/METADATA"
    head = b"Metadata-Version: 2.1\nName: a\nVersion: 1\n"
    for content in (b"", b"PK\x05\x06", b"no zip at all"):
        path.write_bytes(content)
        with pytest.raises(WheelError, match="is not a wheel, or damaged"):
            wheel_package(path, RPI4)
    cases = {
        "it has no METADATA": {"a/__init__.py": b""},
        "bytes long": {info: head + b"\n" * (5 << 20)},
        "cannot be read": {info: head + b"Requires-Dist: a b c !!\n"},
        "damaged": {info: head + b"Summary: \xff\xfe\n"},
    }
    for problem, files in cases.items():
        with pytest.raises(WheelError, match=problem):
            wheel_package(_zip(path, files), RPI4)
    with pytest.raises(WheelError, match="does not exist"):
        wheel_package(tmp_path / "b-1-py3-none-any.whl", RPI4)
    with pytest.raises(WheelError, match="not the name of a wheel"):
        wheel_package(tmp_path / "b.whl", RPI4)
    other = _zip(tmp_path / "a-1-cp311-cp311-manylinux2014_x86_64.whl", {info: head})
    with pytest.raises(BoardError, match="does not fit aarch64"):
        wheel_package(other, RPI4)
