"""`tinyedge wheel` as a person runs it, and what it says to what it cannot use: one sentence, a remedy, its own exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tinyedge.cli.wheel import _shortfall
from tinyedge_targets.cache import cache_folder
from tinyedge_targets.proof import Proof

VERSION = "9.9"
_MAIN = "from tinyedge.cli.entry import main; main()"
_PROJECT = """cmake_minimum_required(VERSION 3.21)
project(llama_cpp C CXX)
add_subdirectory(vendor/llama.cpp)
"""
# The two targets that are asked for; ggml's name of a backend list lets the run-time path be set as in the real sources.
_LIBRARIES = """set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(ggml SHARED ggml.c)
add_library(llama SHARED llama.c)
target_link_libraries(llama PRIVATE ggml)
"""


def run(
    *arguments: str, cache: Path, program: str = "from tinyedge.cli.entry import main; main()"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, "wheel", *arguments],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def error_of(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one sentence; nothing else may be on stderr but the stages."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def sources(cache: Path, changed: Mapping[str, str] | None = None) -> None:
    """Puts small sources of llama-cpp-python VERSION into the cache, as if they had been downloaded."""
    files = {
        "CMakeLists.txt": _PROJECT,
        "PKG-INFO": f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {VERSION}\n",
        "LICENSE.md": "MIT",
        "llama_cpp/__init__.py": "",
        "llama_cpp/llama_cpp.py": "_base_path = 1\n_lib = 2\n",
        "vendor/llama.cpp/CMakeLists.txt": _LIBRARIES,
        "vendor/llama.cpp/LICENSE": "MIT",
        "vendor/llama.cpp/ggml.c": "int ggml(void) { return 1; }\n",
        "vendor/llama.cpp/llama.c": "int ggml(void); int llama(void) { return ggml(); }\n",
    }
    folder = cache / "tinyedge/sdists"
    folder.mkdir(parents=True)
    (cache / "tinyedge/zig").symlink_to(cache_folder("zig"))  # zig's own libraries, half a minute of compiling
    with tarfile.open(folder / f"llama_cpp_python-{VERSION}.tar.gz", "w:gz") as archive:
        for name, text in (files | dict(changed or {})).items():
            member = tarfile.TarInfo(f"llama_cpp_python-{VERSION}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def builds(cache: Path) -> list[str]:
    """What the cache of builds holds but for its locks."""
    folder = cache / "tinyedge/builds"
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock")) if folder.is_dir() else []


def test_an_unknown_board_names_the_nearest(tmp_path: Path) -> None:
    message = error_of(run("--board", "rpi44", cache=tmp_path), 18)
    assert "rpi44" in message and "rpi4" in message.replace("rpi44", "")


def test_a_python_that_the_boards_system_does_not_have(tmp_path: Path) -> None:
    message = error_of(run("--board", "rpi4", "--python", "3.8", "--bundle", cache=tmp_path), 18)
    assert "3.8" in message and "3.11" in message


def test_no_board_is_wrong_usage(tmp_path: Path) -> None:
    done = run(cache=tmp_path)
    assert done.returncode == 2
    assert "tinyedge boards" in done.stderr


def test_a_board_without_its_option_is_told_the_command(tmp_path: Path) -> None:
    done = run("rpi4", cache=tmp_path)
    assert done.returncode == 2
    assert "tinyedge wheel --board rpi4" in done.stderr


def test_a_version_that_is_none(tmp_path: Path) -> None:
    assert "is not a version" in error_of(run("--board", "rpi4", "--llama-cpp-python", "x y", cache=tmp_path), 19)


@pytest.mark.parametrize("module", ["ziglang", "packaging"])
def test_a_missing_extra_names_the_command(tmp_path: Path, module: str) -> None:
    program = f"import os, sys; os.environ['PATH'] = ''; sys.modules[{module!r}] = None\n" + _MAIN
    sources(tmp_path)
    done = run("--board", "rpi4", "--llama-cpp-python", VERSION, cache=tmp_path, program=program)
    assert "pip install 'tinyedge-llm[targets]'" in error_of(done, 19)


def test_a_folder_that_cannot_be_written_is_said_before_the_build(tmp_path: Path) -> None:
    sources(tmp_path)
    (tmp_path / "file").write_text("")
    done = run("--board", "rpi4", "--llama-cpp-python", VERSION, "-o", str(tmp_path / "file"), cache=tmp_path)
    error_of(done, 9)
    assert builds(tmp_path) == []


def test_what_is_no_model_is_told_before_the_build(tmp_path: Path) -> None:
    sources(tmp_path)
    (tmp_path / "model.gguf").write_bytes(bytes(100))
    arguments = (
        "--board",
        "rpi4",
        "--llama-cpp-python",
        VERSION,
        "-o",
        str(tmp_path),
        "--bundle",
        str(tmp_path / "model.gguf"),
    )
    assert "GGUF" in error_of(run(*arguments, cache=tmp_path), 11)
    assert builds(tmp_path) == [] and not list(tmp_path.glob("*.whl"))


def test_no_name_is_no_board_to_verify_for(tmp_path: Path) -> None:
    assert "has to be named" in error_of(run("verify", "a.whl", "--board", "", cache=tmp_path), 18)


@pytest.mark.parametrize("content", ["text", "zip", "folder", "missing", "endless"])
def test_a_file_that_is_no_wheel(tmp_path: Path, content: str) -> None:
    path = tmp_path / "llama_cpp_python-1.0-py3-none-any.whl"
    if content == "text":
        path.write_text("not a wheel")
    elif content == "zip":
        path.write_bytes(b"PK\x05\x06" + bytes(18))
    elif content == "folder":
        path.mkdir()
    elif content == "endless":
        path.symlink_to("/dev/zero")
    assert "tinyedge wheel" in error_of(run("verify", str(path), cache=tmp_path), 20)


def test_what_was_not_run_is_told_with_the_remedy_for_that_alone() -> None:
    proof = Proof(
        wheel=Path("a.whl"),
        boards=("rpi4",),
        static=(),
        trials=(),
        emulated=False,
        reason="apt-get is needed",
        remedy="verify it on Debian",
        seconds=1.0,
    )
    error = _shortfall(proof)
    assert error is not None and error.exit_code == 22
    assert str(error) == "a.whl is as it should be but was not run: apt-get is needed; verify it on Debian"


class TestBuilding:
    """With small sources in place of llama.cpp's, built by the real tools."""

    @pytest.fixture(autouse=True)
    def _needs_zig(self) -> None:
        pytest.importorskip("ziglang", reason="needs the extra [targets]")

    def test_what_does_not_build_shows_the_error_and_the_log(self, tmp_path: Path) -> None:
        sources(tmp_path, {"vendor/llama.cpp/llama.c": "int llama(void) { return missing_name; }\n"})
        message = error_of(run("--board", "rpi4", "--llama-cpp-python", VERSION, cache=tmp_path), 19)
        assert "missing_name" in message
        log = Path(message.rpartition("read the log ")[2])
        assert "missing_name" in log.read_text()
        assert builds(tmp_path) == []

    def test_an_interrupt_leaves_nothing_and_nobody(self, tmp_path: Path) -> None:
        slow = "add_custom_target(slow COMMAND sleep 60)\nadd_dependencies(ggml slow)\n"
        sources(tmp_path, {"vendor/llama.cpp/CMakeLists.txt": _LIBRARIES + slow})
        command = [sys.executable, "-m", "tinyedge", "wheel", "--board", "rpi4", "--llama-cpp-python", VERSION]
        process = subprocess.Popen(
            command, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)}, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        log = tmp_path / "tinyedge/logs"
        deadline = time.monotonic() + 60
        while not any("ninja" in path.read_text() for path in log.glob("build-*.log")) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130, told
        assert builds(tmp_path) == []
        assert not list(tmp_path.glob("*.whl"))
        running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert str(tmp_path) not in running

    def test_the_second_request_is_served_from_the_cache(self, tmp_path: Path) -> None:
        """These libraries are not llama.cpp, so the proof fails, and says so: what a wheel without the real content gets."""
        sources(tmp_path)
        arguments = ("--board", "rpi5", "--single", "--llama-cpp-python", VERSION, "-o", str(tmp_path / "out"), "--json")
        reports = []
        for _ in range(2):
            done = run(*arguments, cache=tmp_path)
            assert done.returncode == 21, done.stderr
            reports.append(json.loads(done.stdout)["wheels"][0])
        first, second = reports
        assert first["build_seconds"] > 0 and second["build_seconds"] == 0
        assert first["bytes"] == second["bytes"] and not first["proof"]["passed"]
        # What failed its proof is not handed out.
        assert first["path"] is None
        assert [path.name.partition("-")[0] for path in (tmp_path / "out").iterdir()] == ["tinyedge_llm"]
        assert len(builds(tmp_path)) == 1

    def test_a_damaged_entry_of_the_cache_is_built_anew(self, tmp_path: Path) -> None:
        sources(tmp_path)
        arguments = ("--board", "rpi5", "--single", "--llama-cpp-python", VERSION, "-o", str(tmp_path / "out"), "--json")
        sizes = []
        for damage in (None, bytes(10)):
            for path in (tmp_path / "tinyedge/builds").glob("*/lib/libllama.so"):
                assert damage is not None
                path.write_bytes(damage)
            wheel = json.loads(run(*arguments, cache=tmp_path).stdout)["wheels"][0]
            assert wheel["build_seconds"] > 0
            sizes.append(wheel["bytes"])
        assert sizes[0] == sizes[1]

    @pytest.mark.parametrize("name", ["a space and 'ü'", "#%,(x)&[@]"])
    def test_a_cache_of_an_unusual_name_works(self, tmp_path: Path, name: str) -> None:
        cache = tmp_path / name
        sources(cache)
        done = run("--board", "rpi5", "--single", "--llama-cpp-python", VERSION, "-o", str(tmp_path / "out"), cache=cache)
        error_of(done, 21)
        assert str(tmp_path).encode() not in next((cache / "tinyedge/builds").glob("*/lib/libllama.so")).read_bytes()

    @pytest.mark.parametrize("name", ['"', "$x", "`", "a:b", "a;b", "a\\b", "a\nb", "\udcff"])
    def test_a_cache_where_the_tools_cannot_work_is_told_before_they_start(self, tmp_path: Path, name: str) -> None:
        cache = tmp_path / name
        sources(cache)
        message = error_of(run("--board", "rpi5", "--llama-cpp-python", VERSION, "-o", str(tmp_path / "out"), cache=cache), 19)
        assert "XDG_CACHE_HOME" in message
        assert builds(cache) == []


@pytest.mark.emulation
def test_one_command_gives_a_proven_wheel_and_the_archive_for_the_board(tmp_path: Path, universal_wheel: Path) -> None:
    """As the README has it, with the libraries that the fixture built."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    done = run("--board", "rpi4,rpi5", "--python", "3.11", "--bundle", "-o", str(tmp_path), "--json", cache=own)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (wheel,) = report["wheels"]
    assert wheel["proof"]["passed"] and wheel["proof"]["emulated"]
    checked = [check["name"] for check in wheel["proof"]["static"]]
    assert len(checked) == len(set(checked)), "what holds for all boards is said once"
    assert Path(wheel["path"]).read_bytes() == universal_wheel.read_bytes()
    assert {trial["cpu"]: trial["variant"] for trial in wheel["proof"]["trials"]} == {
        "cortex-a72": "armv8.0_1",
        "cortex-a76": "armv8.2_2",
    }
    assert [bundle["board"] for bundle in report["bundles"]] == ["rpi4", "rpi5"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        Path(wheel["path"]).name,
        Path(report["tinyedge"]).name,
        "tinyedge-rpi4-py3.11.tar",
        "tinyedge-rpi5-py3.11.tar",
    }
    assert "demo-Q4_K_M.gguf" in report["bundles"][0]["files"]
