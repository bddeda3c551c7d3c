"""A wheel of small libraries passes every check, and each thing wrong with one fails just its own."""

from __future__ import annotations

import dataclasses
import io
import json
import platform
import random
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tinyedge.errors import WheelError
from tinyedge_targets.boards import Board, find_board
from tinyedge_targets.checks import Check
from tinyedge_targets.static_checks import check_wheel
from tinyedge_targets.wheel_file import BUILD_FILE

pytest.importorskip("ziglang")
from tiny_wheels import NAME, TAG, compiled, write_wheel

SDOT = 'asm volatile(".inst 0x4e829420");'  # SDOT V0.4S, V1.16B, V2.16B
CHECKS = ["wheel file", "contents", "machine", "glibc", "needed libraries", "no library twice", "instructions"]
VARIANTS = ("armv8.0_1", "armv8.2_2")


def library(name: str, body: str = "", *flags: str, machine: str = "aarch64", cpu: str = "generic") -> bytes:
    """A library of this name with one function of this body."""
    function = re.sub(r"\W", "_", name)
    source = f"#include <math.h>\ndouble {function}(double x) {{ {body} return pow(x, 3.5); }}\n"
    return compiled(source, "-lm", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", *flags, machine=machine, cpu=cpu)


def module(body: str = "", score: str = "") -> bytes:
    """A CPU variant module with one function for its work and one for its score."""
    source = f"int work(int x) {{ {body} return x; }}\nint ggml_backend_score(void) {{ {score} return 1; }}\n"
    return compiled(source, "-Wl,-rpath,$ORIGIN")


def build_facts(**changed: object) -> bytes:
    facts = {"format": 1, "llama_cpp_python": "1.2", "triple": "aarch64-linux-gnu", "glibc": "2.17", "cpu": "generic"}
    more = {"layout": "variants", "variants": VARIANTS, "compiler": "zig", "flags": [], "boards": ["rpi4"]}
    return json.dumps(facts | more | changed).encode()


SINGLE = {"layout": "single", "variants": []}


def universal(**changed: bytes | None) -> dict[str, bytes]:
    """The files of a sound universal wheel, some of its libraries exchanged or (None) left out."""
    libraries: dict[str, bytes | None] = {
        "libllama.so": library("libllama.so"),
        "libggml-base.so": library("libggml-base.so"),
        "libggml-cpu-armv8.0_1.so": module("x++;"),
        "libggml-cpu-armv8.2_2.so": module(SDOT),
    }
    whole = libraries | changed
    return {f"llama_cpp/lib/{name}": data for name, data in whole.items() if data is not None} | {BUILD_FILE: build_facts()}


def single(name: str = "libggml-cpu.so", body: str = "", **facts: object) -> dict[str, bytes]:
    """The files of a sound wheel for one processor."""
    files = {each: library(each) for each in ("libllama.so", "libggml-base.so")} | {name: library(name, body)}
    return {f"llama_cpp/lib/{each}": data for each, data in files.items()} | {BUILD_FILE: build_facts(**(SINGLE | facts))}


def checked(folder: Path, files: Mapping[str, bytes], board: Board | str | None = None, tag: str = TAG) -> dict[str, Check]:
    chosen = find_board(board) if isinstance(board, str) else board
    checks = check_wheel(write_wheel(folder, files, tag), chosen)
    assert len({check.name for check in checks}) == len(checks)
    assert all("\n" not in check.detail for check in checks)
    return {check.name: check for check in checks}


def failed(folder: Path, files: Mapping[str, bytes], board: Board | str | None = None, tag: str = TAG) -> dict[str, str]:
    return {check.name: check.detail for check in checked(folder, files, board, tag).values() if not check.passed}


@pytest.mark.parametrize("board", [None, "rpi4", "rpi5", "jetson-nano"])
def test_a_sound_universal_wheel_passes(tmp_path: Path, board: str | None) -> None:
    found = checked(tmp_path, universal(), board)
    assert list(found) == CHECKS
    assert all(check.passed for check in found.values())
    assert found["glibc"].detail.startswith("needs 2.17, manylinux2014_aarch64 has 2.17")


def test_a_file_that_is_no_wheel_is_no_failed_check(tmp_path: Path) -> None:
    path = tmp_path / f"llama_cpp_python-1.2-{TAG}.whl"
    path.write_bytes(b"no")
    with pytest.raises(WheelError):
        check_wheel(path, None)
    with pytest.raises(WheelError, match="ELF"):
        check_wheel(write_wheel(tmp_path, universal(**{"libllama.so": b"text"})), None)


def test_a_variant_that_the_build_does_not_name_is_seen(tmp_path: Path) -> None:
    assert "armv8.2_2" in failed(tmp_path, universal(**{"libggml-cpu-armv8.2_2.so": None}))["contents"]
    assert "armv9" in failed(tmp_path, universal(**{"libggml-cpu-armv9.so": module("x--;")}))["contents"]
    assert "libllama.so" in failed(tmp_path, universal(**{"libllama.so": None}))["contents"]


def test_a_library_for_another_machine_is_seen(tmp_path: Path) -> None:
    files = universal(**{"libggml-base.so": library("libggml-base.so", machine="x86_64")})
    wrong = failed(tmp_path, files)
    assert wrong["machine"] == "libggml-base.so is for x86-64, 64 bit"
    assert set(wrong) == {"machine", "instructions"}


def test_a_board_of_another_triple_is_seen(tmp_path: Path) -> None:
    assert set(failed(tmp_path, universal(), "rpi4-32")) == {"machine", "instructions"}
    assert set(failed(tmp_path, universal(), "mac-m1")) == {"machine", "instructions"}


def test_a_newer_glibc_than_promised_is_seen(tmp_path: Path) -> None:
    newer = universal(**{"libllama.so": _with_glibc("2.34")})
    assert failed(tmp_path, newer) == {"glibc": "libllama.so needs 2.34, manylinux2014_aarch64 has 2.17"}
    tag = "py3-none-manylinux_2_34_aarch64"
    assert failed(tmp_path, newer, tag=tag) == {}
    assert failed(tmp_path, newer, "rpi4", tag) == {}
    assert failed(tmp_path, newer, "jetson-nano", tag) == {"glibc": "libllama.so needs 2.34, jetson-nano has 2.27"}
    assert failed(tmp_path, newer, "jetson-nano", "py3-none-linux_aarch64") == {
        "glibc": "libllama.so needs 2.34, jetson-nano has 2.27"
    }
    assert set(failed(tmp_path, universal(), tag="py3-none-musllinux_1_2_aarch64")) == {"glibc"}


def _with_glibc(version: str) -> bytes:
    """A library that needs a symbol of this version of glibc."""
    source = "#include <pthread.h>\nint f(pthread_t *t, void *(*g)(void *)) { return pthread_create(t, 0, g, 0); }\n"
    return compiled(source, "-Wl,-soname,libllama.so", "-target", f"aarch64-linux-gnu.{version}")


@pytest.mark.parametrize("version", ["2.17", "2.34"])
def test_the_needed_glibc_is_what_auditwheel_finds(tmp_path: Path, version: str) -> None:
    pytest.importorskip("auditwheel")
    from auditwheel.elfutils import elf_find_versioned_symbols
    from elftools.elf.elffile import ELFFile

    data = _with_glibc(version)
    found = {name for _, name in elf_find_versioned_symbols(ELFFile(io.BytesIO(data))) if name.startswith("GLIBC_")}
    newest = max(found, key=lambda name: tuple(map(int, name.removeprefix("GLIBC_").split("."))))
    detail = checked(tmp_path, universal(**{"libllama.so": data}), tag="py3-none-manylinux_2_34_aarch64")["glibc"].detail
    assert detail.startswith(f"needs {newest.removeprefix('GLIBC_')},")


def test_a_library_from_elsewhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "libstdc++.so.6").write_bytes(library("libstdc++.so.6"))
    needing = library(
        "libllama.so", "extern double libstdc___so_6(double); x = libstdc___so_6(x);", str(tmp_path / "libstdc++.so.6")
    )
    wrong = failed(tmp_path, universal(**{"libllama.so": needing}))
    assert wrong == {"needed libraries": "libllama.so needs libstdc++.so.6, which is neither in the wheel nor glibc's"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("-Wl,-rpath,/opt/lib",), "libllama.so looks for libraries in '/opt/lib'"),
        (("-Wl,-rpath,$ORIGIN:",), "libllama.so looks for libraries in '.'"),
        (("-Wl,-soname,libother.so",), "libllama.so calls itself libother.so"),
    ],
)
def test_unsafe_and_wrong_names_are_seen(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    assert failed(tmp_path, universal(**{"libllama.so": library("libllama.so", "", *flags)})) == {"needed libraries": said}


def test_a_library_in_the_wheel_must_be_looked_for_beside_the_one_that_needs_it(tmp_path: Path) -> None:
    (tmp_path / "libggml-base.so").write_bytes(library("libggml-base.so"))
    source = "double libggml_base_so(double); double f(double x) { return libggml_base_so(x); }"
    flags = ("-Wl,-soname,libllama.so", str(tmp_path / "libggml-base.so"))
    needing = compiled(source, *flags)
    assert "$ORIGIN" in failed(tmp_path, universal(**{"libllama.so": needing}))["needed libraries"]
    assert failed(tmp_path, universal(**{"libllama.so": compiled(source, *flags, "-Wl,-rpath,$ORIGIN")})) == {}
    elsewhere = universal(**{"libllama.so": needing})
    elsewhere["llama_cpp/libllama.so"] = elsewhere.pop("llama_cpp/lib/libllama.so")
    assert "neither in the wheel" in failed(tmp_path, elsewhere)["needed libraries"]


def test_a_library_that_is_there_twice_is_seen(tmp_path: Path) -> None:
    files = universal(**{"libllama.so.0": library("libllama.so.0")})
    assert "libllama.so.0" in failed(tmp_path, files)["no library twice"]
    files = universal() | {"lib/libggml-base.so": library("libggml-base.so")}
    assert "the same bytes" in failed(tmp_path, files)["no library twice"]


@pytest.mark.parametrize("name", ["libllama.so", "libggml-base.so", "libggml-rpc.so"])
@pytest.mark.parametrize("board", [None, "rpi4", "rpi5"])
def test_dotprod_outside_the_variants_fails_whatever_the_board(tmp_path: Path, name: str, board: str | None) -> None:
    wrong = failed(tmp_path, universal(**{name: library(name, SDOT)}), board)
    assert set(wrong) == {"instructions"}
    assert wrong["instructions"].startswith(f"{name} has 1 asimddp (asimddp at 0x")
    assert re.sub(r"\W", "_", name) in wrong["instructions"]


@pytest.mark.parametrize(
    ("name", "body", "score", "sound"),
    [
        ("libggml-cpu-armv8.2_2.so", SDOT, "", True),
        ("libggml-cpu-armv8.2_2.so", "", SDOT, False),
        ("libggml-cpu-armv8.0_1.so", SDOT, "", False),
    ],
)
def test_in_variants_only_what_runs_unasked_must_be_plain(
    tmp_path: Path, name: str, body: str, score: str, sound: bool
) -> None:
    assert (failed(tmp_path, universal(**{name: module(body, score)})) == {}) == sound


def test_a_constructor_of_a_variant_must_be_plain(tmp_path: Path) -> None:
    source = (
        f"__attribute__((constructor)) static void first(void) {{ {SDOT} }}\nint ggml_backend_score(void) {{ return 1; }}\n"
    )
    wrong = failed(tmp_path, universal(**{"libggml-cpu-armv8.2_2.so": compiled(source)}))
    assert "asimddp" in wrong["instructions"]


def test_a_variant_without_a_score_is_seen(tmp_path: Path) -> None:
    wrong = failed(tmp_path, universal(**{"libggml-cpu-armv8.2_2.so": compiled("int work(void) { return 2; }")}))
    assert "no ggml_backend_score" in wrong["instructions"]


def test_a_single_build_may_use_what_its_board_has(tmp_path: Path) -> None:
    files = single(body=SDOT, cpu="cortex_a76")
    assert failed(tmp_path, files) == {}
    assert failed(tmp_path, files, "rpi5") == {}
    assert "asimddp" in failed(tmp_path, files, "rpi4")["instructions"]
    assert "asimddp" in failed(tmp_path, single(body=SDOT, cpu="cortex_a72-aes-sha2"))["instructions"]
    assert "not known" in failed(tmp_path, single(cpu="cortex_a999"))["instructions"]


def test_cryptography_is_only_for_boards_that_have_it(tmp_path: Path) -> None:
    files = single(body='asm volatile(".inst 0x4e284820");', cpu="cortex_a72")  # AESE V0.16B, V1.16B
    assert "aes" in failed(tmp_path, files, "rpi4")["instructions"]
    assert "aes" in failed(tmp_path, files)["instructions"]
    assert failed(tmp_path, files, "odroid-n2") == {}


@pytest.mark.skipif(platform.machine() not in ("aarch64", "x86_64"), reason="zig's targets here are these two")
def test_a_build_for_its_own_machine_may_need_that_machine(tmp_path: Path) -> None:
    machine, body = platform.machine(), "extern double libgomp_so_1(double); x = libgomp_so_1(x);"
    (tmp_path / "libgomp.so.1").write_bytes(library("libgomp.so.1", machine=machine))
    needing = library("libllama.so", body, str(tmp_path / "libgomp.so.1"), machine=machine)
    files = {"llama_cpp/lib/libllama.so": needing, BUILD_FILE: build_facts(**SINGLE, cpu="native", glibc="")}
    tag = f"py3-none-linux_{machine}"
    found = checked(tmp_path, files, "native", tag)
    assert all(check.passed for check in found.values())
    assert "libgomp.so.1" in found["needed libraries"].detail
    assert failed(tmp_path, files, tag=tag) == {}


def test_a_wheel_for_another_machine_is_not_for_this_one(tmp_path: Path) -> None:
    files = arm_files("cortex_a7")
    assert failed(tmp_path, files, "native", ARM_TAG)["machine"] == f"native is {platform.machine()}"


ARM_TAG = "py3-none-manylinux2014_armv7l"


def arm_files(cpu: str) -> dict[str, bytes]:
    names = ("libllama.so", "libggml-cpu.so")
    facts = build_facts(**SINGLE, triple="arm-linux-gnueabihf", cpu="cortex_a7")
    body = "x = __builtin_fma(x, x, x); x += (long)x / (long)(x + 2); x = __builtin_trunc(x);"
    return {f"llama_cpp/lib/{name}": library(name, body, machine="arm", cpu=cpu) for name in names} | {BUILD_FILE: facts}


def test_32_bit_wheels_are_checked_too(tmp_path: Path) -> None:
    assert failed(tmp_path, arm_files("cortex_a7"), tag=ARM_TAG) == {}
    assert failed(tmp_path, arm_files("cortex_a7"), "rpi4-32", ARM_TAG) == {}
    assert set(failed(tmp_path, arm_files("cortex_a7"), "rpi4", ARM_TAG)) == {"machine", "instructions"}
    assert "armv8" in failed(tmp_path, arm_files("cortex_a53"), "rpizero2w-32", ARM_TAG)["instructions"]


def test_soft_float_is_seen(tmp_path: Path) -> None:
    files = arm_files("cortex_a7")
    data = bytearray(files["llama_cpp/lib/libllama.so"])
    data[36:40] = (0x05000000).to_bytes(4, "little")  # e_flags
    attributes = data.index(b"aeabi\0")
    data[attributes + 6] = 9  # no file-wide attributes any more
    files["llama_cpp/lib/libllama.so"] = bytes(data)
    assert "registers" in failed(tmp_path, files, tag=ARM_TAG)["machine"]


def test_x86_wheels_are_checked_by_level(tmp_path: Path) -> None:
    pytest.importorskip("capstone")
    tag = "py3-none-manylinux2014_x86_64"
    body = "x = __builtin_fma(x, x, x);"
    files = {
        f"llama_cpp/lib/{name}": library(name, body, machine="x86_64", cpu="x86_64_v3")
        for name in ("libllama.so", "libggml-cpu.so")
    }
    files[BUILD_FILE] = build_facts(**SINGLE, triple="x86_64-linux-gnu", cpu="x86_64_v3")
    assert failed(tmp_path, files, "x86-64-v3", tag) == {}
    assert failed(tmp_path, files, tag=tag) == {}
    assert "x86-64-v3" in failed(tmp_path, files, "x86-64-v2", tag)["instructions"]


def test_wheels_without_elf_files_are_compared_by_tag(tmp_path: Path) -> None:
    files = {"llama_cpp/lib/libllama.dylib": b"\xcf\xfa\xed\xfe" + bytes(100)}
    tag = "py3-none-macosx_11_0_arm64"
    assert failed(tmp_path, files, "mac-m1", tag) == {}
    assert set(failed(tmp_path, files, "rpi4", tag)) == {"machine"}


def test_a_board_that_lacks_glibc_facts_is_no_obstacle(tmp_path: Path) -> None:
    assert failed(tmp_path, universal(), dataclasses.replace(find_board("rpi4"), glibc="")) == {}


def test_damaged_libraries_are_refused_never_worse(tmp_path: Path) -> None:
    chance, sound = random.Random(3), universal()
    names = [name for name in sound if name.endswith(".so")]
    for _ in range(60):
        files = dict(sound)
        name = chance.choice(names)
        data = bytearray(files[name])
        for _ in range(20):
            data[chance.randrange(len(data))] = chance.randrange(256)
        files[name] = bytes(data)
        try:
            check_wheel(write_wheel(tmp_path, files), None)
        except WheelError:
            continue


def test_the_wheel_of_the_tests_is_one_that_others_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_wheel(tmp_path, universal())) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(
    "name",
    [
        "argparse.py",
        "x.pth",
        "llama_cpp.py",
        "numpy/__init__.py",
        "x.cpython-311-aarch64-linux-gnu.so",
        f"{NAME}.data/purelib/x.pth",
    ],
)
def test_what_would_be_imported_beside_the_package_is_seen(tmp_path: Path, name: str) -> None:
    content = library("x.so") if name.endswith(".so") else b""
    assert name in failed(tmp_path, universal() | {name: content})["contents"]


@pytest.mark.parametrize(
    "name", ["bin/tool.py", "lib/cmake/x.cmake", "llama_cpp/server/__init__.py", "llama_cpp.libs/notes.txt"]
)
def test_files_that_python_does_not_find_are_no_matter(tmp_path: Path, name: str) -> None:
    assert checked(tmp_path, universal() | {name: b""})["contents"].passed
