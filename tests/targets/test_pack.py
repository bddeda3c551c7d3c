"""Packing: a wheel that pip takes, each library once, the same bytes for the same input."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tinyedge.errors import BuildError, DiskSpaceError
from tinyedge_targets.build import Build, BuiltLibraries
from tinyedge_targets.pack import pack
from tinyedge_targets.wheel_file import BUILD_FILE, open_wheel

UNIVERSAL = Build(triple="aarch64-linux-gnu", toolchain="zig", layout="variants", cpu="generic", options=())
SINGLE = Build(triple="aarch64-linux-gnu", toolchain="zig", layout="single", cpu="cortex_a76-aes-sha2", options=())
ARMV7 = Build(triple="arm-linux-gnueabihf", toolchain="zig", layout="single", cpu="cortex_a7", options=())
CUDA = Build(triple="x86_64-linux-gnu", toolchain="native", layout="single", cpu="native", options=("-DGGML_CUDA=ON",))


def built(folder: Path, build: Build = UNIVERSAL, bindings: str = "import os\n_base_path = 1\n_lib = 2\n") -> BuiltLibraries:
    """A cache entry with small files in the places of the real ones."""
    package = folder / "sources/llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.2"\n')
    (package / "llama_cpp.py").write_text(bindings)
    (folder / "sources/PKG-INFO").write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 1.2\n\nVersion: a text\n")
    (folder / "sources/LICENSE.md").write_text("MIT")
    (folder / "sources/vendor/llama.cpp").mkdir(parents=True)
    (folder / "sources/vendor/llama.cpp/LICENSE").write_text("MIT")
    (folder / "lib").mkdir()
    for name in ("libllama.so", "libggml.so", "libggml-base.so", "libggml-cpu-armv8.0_1.so", "libggml-cpu-armv8.2_2.so"):
        (folder / "lib" / name).write_bytes(name.encode())
    return BuiltLibraries(build=build, folder=folder, compiler="zig 1", flags=("-O3",), seconds=1.0)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (UNIVERSAL, "llama_cpp_python-1.2+tinyedge-py3-none-manylinux2014_aarch64.whl"),
        (SINGLE, "llama_cpp_python-1.2+tinyedge.cortex.a76-py3-none-manylinux2014_aarch64.whl"),
        (ARMV7, "llama_cpp_python-1.2+tinyedge.cortex.a7-py3-none-manylinux2014_armv7l.whl"),
    ],
)
def test_the_name_says_what_it_is(tmp_path: Path, build: Build, name: str) -> None:
    assert pack(built(tmp_path / "built", build), "1.2", tmp_path / "out").name == name


def test_a_gpu_is_in_the_name(tmp_path: Path) -> None:
    assert "+tinyedge.native.cuda-py3-none-" in pack(built(tmp_path / "built", CUDA), "1.2", tmp_path / "out").name


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first = pack(built(tmp_path / "a"), "1.2", tmp_path / "first")
    second = pack(built(tmp_path / "b"), "1.2", tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()


def test_what_was_built_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(built(tmp_path / "built"), "1.2", tmp_path)) as wheel:
        facts = json.loads(wheel.read(BUILD_FILE))
    assert facts["variants"] == ["armv8.0_1", "armv8.2_2"]
    assert {"rpi4", "rpi5"} <= set(facts["boards"])
    assert "mac-m2" not in facts["boards"]
    del facts["boards"], facts["variants"]
    assert facts == {
        "format": 1,
        "llama_cpp_python": "1.2",
        "triple": "aarch64-linux-gnu",
        "glibc": "2.17",
        "cpu": "generic",
        "layout": "variants",
        "compiler": "zig 1",
        "flags": ["-O3"],
    }


def test_pip_installs_it(tmp_path: Path) -> None:
    """pip checks every file against RECORD when it unpacks for another platform too."""
    wheel = pack(built(tmp_path / "built"), "1.2", tmp_path)
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--only-binary", ":all:"]
    subprocess.run(
        [*command, "--platform", "manylinux2014_aarch64", "--python-version", "3.11", "--target", str(target), str(wheel)],
        check=True,
    )
    assert (target / "llama_cpp/lib/libllama.so").read_bytes() == b"libllama.so"
    assert "ggml_backend_load_all_from_path" in (target / "llama_cpp/llama_cpp.py").read_text()
    metadata = (target / "llama_cpp_python-1.2+tinyedge.dist-info/METADATA").read_text()
    assert metadata == "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 1.2+tinyedge\n\nVersion: a text\n"


def test_only_variants_need_loading(tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(built(tmp_path / "built", SINGLE), "1.2", tmp_path)) as wheel:
        assert "ggml_backend_load" not in wheel.read("llama_cpp/llama_cpp.py").decode()


def test_bindings_of_another_shape_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="--single"):
        pack(built(tmp_path / "built", bindings="something = 1\n"), "1.2", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(DiskSpaceError, match=r"out became full"):
        pack(built(tmp_path / "built"), "1.2", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_two_that_write_the_same_wheel_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first is writing."""
    packed: list[Path] = []
    write = zipfile.ZipFile.writestr

    def write_in_between(archive: zipfile.ZipFile, *arguments: Any) -> None:
        monkeypatch.setattr(zipfile.ZipFile, "writestr", write)
        packed.append(pack(built(tmp_path / "other"), "1.2", tmp_path / "out"))
        write(archive, *arguments)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", write_in_between)
    packed.append(pack(built(tmp_path / "built"), "1.2", tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == [packed[0]] == [packed[1]]
    assert open_wheel(packed[0]).libraries
