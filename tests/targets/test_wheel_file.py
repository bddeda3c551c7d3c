"""A wheel is taken for one only when every byte of it is in order, and a hostile one does no harm."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_wheels import INFO, NAME, TAG, record, wheel_files, write_wheel

from tinyedge.errors import OutputError, WheelError
from tinyedge_targets.wheel_file import BUILD_FILE, open_wheel

LIBRARY = "llama_cpp/lib/libllama.so"
FILES = {LIBRARY: b"\x7fELF" + bytes(range(256)) * 40, "llama_cpp/llama.py": b"x = 1\n"}
BUILD = {
    "format": 1,
    "llama_cpp_python": "1.2",
    "triple": "aarch64-linux-gnu",
    "glibc": "2.17",
    "cpu": "generic",
    "layout": "variants",
    "variants": ["armv8.0_1", "armv8.2_2"],
    "compiler": "zig 0.17.1",
    "flags": ["-O3"],
    "boards": ["rpi4"],
}


def test_a_sound_wheel_says_what_it_is(tmp_path: Path) -> None:
    wheel = open_wheel(write_wheel(tmp_path, FILES))
    assert (wheel.name, wheel.version, wheel.tags) == ("llama-cpp-python", "1.2", (TAG,))
    assert (wheel.platforms, wheel.platform_machine) == (("manylinux2014_aarch64",), "aarch64")
    assert wheel.libraries == (LIBRARY,)
    assert wheel.sizes[LIBRARY] == len(FILES[LIBRARY])
    assert wheel.read(LIBRARY) == FILES[LIBRARY]
    assert wheel.build is None


def test_compressed_tags_are_expanded(tmp_path: Path) -> None:
    tag = "py2.py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64"
    tags = [f"{python}-none-{platform}_x86_64" for python in ("py2", "py3") for platform in ("manylinux_2_17", "manylinux2014")]
    head = b"Wheel-Version: 1.0\n" + "".join(f"Tag: {each}\n" for each in tags).encode()
    wheel = open_wheel(write_wheel(tmp_path, {f"{INFO}/WHEEL": head}, tag))
    assert sorted(wheel.tags) == sorted(tags)
    assert wheel.platform_machine == "x86_64"


@pytest.mark.parametrize(
    ("platform", "machine"),
    [
        ("linux_armv7l", "armv7l"),
        ("manylinux_2_31_x86_64", "x86_64"),
        ("musllinux_1_2_aarch64", "aarch64"),
        ("macosx_11_0_arm64", "arm64"),
        ("win_amd64", "amd64"),
        ("any", "any"),
    ],
)
def test_the_machine_is_read_off_the_platform(tmp_path: Path, platform: str, machine: str) -> None:
    assert open_wheel(write_wheel(tmp_path, {}, f"py3-none-{platform}")).platform_machine == machine


def test_the_build_is_read(tmp_path: Path) -> None:
    build = open_wheel(write_wheel(tmp_path, {BUILD_FILE: json.dumps(BUILD | {"more": 1}).encode()})).build
    assert build is not None
    assert json.loads(build.to_json()) == BUILD


def test_a_native_build_has_no_glibc_to_name(tmp_path: Path) -> None:
    build = open_wheel(write_wheel(tmp_path, {BUILD_FILE: json.dumps(BUILD | {"glibc": ""}).encode()})).build
    assert build is not None
    assert build.glibc == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": 2}',
        b'{"format": true}',
        json.dumps(BUILD | {"layout": "both"}).encode(),
        json.dumps(BUILD | {"cpu": None}).encode(),
        json.dumps(BUILD | {"cpu": "a\x1b[2Jb"}).encode(),
        json.dumps(BUILD | {"variants": "armv8.0_1"}).encode(),
        json.dumps(BUILD | {"variants": ["../x"]}).encode(),
        json.dumps(BUILD | {"flags": [["-O3"]]}).encode(),
        json.dumps(BUILD | {"boards": ["b"] * 1000}).encode(),
        json.dumps(BUILD | {"compiler": "z" * 70_000}).encode(),
    ],
    ids=lambda content: content[:20].decode("latin-1"),
)
def test_a_build_that_is_not_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(WheelError):
        open_wheel(write_wheel(tmp_path, {BUILD_FILE: content}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama.whl", "not named like a wheel"),
        ("numpy-1.2-py3-none-any.whl", "not a wheel of llama-cpp-python"),
        (f"llama_cpp_python-1.3-{TAG}.whl", "dist-info"),
        ("llama_cpp_python-1.2-py3-none-manylinux2014_x86_64.whl", "tags"),
    ],
)
def test_the_file_name_must_fit_the_content(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(WheelError, match=said):
        open_wheel(write_wheel(tmp_path, FILES).rename(tmp_path / name))


def test_no_file_and_no_zip_are_refused(tmp_path: Path) -> None:
    path = tmp_path / f"llama_cpp_python-1.2-{TAG}.whl"
    with pytest.raises(WheelError, match="no wheel at"):
        open_wheel(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(WheelError, match="not a readable zip"):
        open_wheel(path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({f"{INFO}/METADATA": b"Name: other\nVersion: 1.2\n"}, "project"),
        ({f"{INFO}/METADATA": b"Name: llama_cpp_python\nVersion: 1.3\n"}, "version"),
        ({f"{INFO}/WHEEL": b"Wheel-Version: 2.0\nTag: " + TAG.encode()}, "format version"),
        ({f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n"}, "tags"),
        ({f"{INFO}/WHEEL": b"\xff"}, "UTF-8"),
        ({f"{INFO}/RECORD": b""}, "RECORD"),
        ({f"{INFO}/RECORD": record(wheel_files(FILES)) + b"llama_cpp/ghost.py,,\n"}, "ghost"),
        ({f"{INFO}/RECORD": b'"' + b"x" * 200_000}, "RECORD"),
        ({"other-1.dist-info/METADATA": b""}, "2 .dist-info"),
    ],
)
def test_inconsistent_metadata_is_refused(tmp_path: Path, changed: dict[str, bytes], said: str) -> None:
    files = {**wheel_files(FILES), **changed}
    if f"{INFO}/RECORD" not in changed:
        del files[f"{INFO}/RECORD"]
    with pytest.raises(WheelError, match=said):
        open_wheel(write_wheel(tmp_path, files))


@pytest.mark.parametrize("missing", [f"{INFO}/METADATA", f"{INFO}/WHEEL", f"{INFO}/RECORD", LIBRARY])
def test_a_missing_file_is_refused(tmp_path: Path, missing: str) -> None:
    files = wheel_files(FILES)
    del files[missing]
    with pytest.raises(WheelError, match=missing):
        open_wheel(_zip(tmp_path, lambda archive: [archive.writestr(name, data) for name, data in files.items()]))


def test_a_changed_byte_is_found_by_its_hash(tmp_path: Path) -> None:
    files = wheel_files(FILES) | {LIBRARY: FILES[LIBRARY][:-1] + b"!"}
    with pytest.raises(WheelError, match="RECORD was written for"):
        open_wheel(_zip(tmp_path, lambda archive: [archive.writestr(name, data) for name, data in files.items()]))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../out.py", "llama_cpp/../../out", "a\\b", "C:x", "a//b", "./a", "a\nb", "a\x1b[2J", "n" * 2000]
)
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WheelError, match="name"):
        open_wheel(write_wheel(tmp_path, {name: b""}))


def _zip(folder: Path, fill: Callable[[zipfile.ZipFile], object]) -> Path:
    path = folder / f"llama_cpp_python-1.2-{TAG}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        fill(archive)
    return path


def _entry(name: str, *, mode: int = 0o100644, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, method
    return info


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (_entry("link", mode=0o120777), "neither a file"),
        (_entry("pipe", mode=0o010644), "neither a file"),
        (_entry("folder/", mode=0o100644), "neither a file"),
        (_entry("bzip2", method=zipfile.ZIP_BZIP2), "method"),
        (_entry("lzma", method=zipfile.ZIP_LZMA), "method"),
    ],
    ids=lambda value: value.filename if isinstance(value, zipfile.ZipInfo) else "",
)
def test_odd_members_are_refused(tmp_path: Path, entry: zipfile.ZipInfo, said: str) -> None:
    with pytest.raises(WheelError, match=said):
        open_wheel(_zip(tmp_path, lambda archive: archive.writestr(entry, b"/etc")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="twice"):
        open_wheel(_zip(tmp_path, lambda archive: [archive.writestr("a", data) for data in (b"1", b"2")]))


# Offsets in a central directory entry, PKWARE's APPNOTE.TXT 4.3.12.
FLAGS, PACKED, UNPACKED, LOCAL_HEADER = (8, "<H"), (20, "<I"), (24, "<I"), (42, "<I")


def _patched(path: Path, name: str, field: tuple[int, str], value: int) -> Path:
    """The same zip with one field of one central directory entry changed."""
    data = bytearray(path.read_bytes())
    entry = data.rindex(name.encode()) - 46
    assert data[entry : entry + 4] == b"PK\1\2"
    struct.pack_into(field[1], data, entry + field[0], value)
    path.write_bytes(data)
    return path


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="encrypted"):
        open_wheel(_patched(write_wheel(tmp_path, FILES), LIBRARY, FLAGS, 1))


def test_a_size_that_its_bytes_cannot_hold_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="more than its"):
        open_wheel(_patched(write_wheel(tmp_path, FILES), LIBRARY, UNPACKED, 0x7FFFFFFF))


@pytest.mark.parametrize("off", [-1, 1])
def test_a_size_that_is_not_what_is_read_is_refused(tmp_path: Path, off: int) -> None:
    with pytest.raises(WheelError):
        open_wheel(_patched(write_wheel(tmp_path, FILES), LIBRARY, UNPACKED, len(FILES[LIBRARY]) + off))


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, {"llama_cpp/a.py": b"same", "llama_cpp/b.py": b"same"})
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("llama_cpp/a.py").header_offset
    with pytest.raises(WheelError, match=r"shares bytes|damaged"):
        open_wheel(_patched(path, "llama_cpp/b.py", LOCAL_HEADER, offset))


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="more than any wheel"):
        open_wheel(write_wheel(tmp_path, {"llama_cpp/zeros.bin": bytes(30 << 20)}))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, FILES)
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(WheelError):
            open_wheel(path)


def test_damage_is_never_anything_but_a_wheel_error(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, FILES | {BUILD_FILE: json.dumps(BUILD).encode()})
    whole, chance, refused = path.read_bytes(), random.Random(1), 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            open_wheel(path)
        except WheelError:
            refused += 1
    assert refused > 500


def test_it_unpacks_to_the_same_files_and_overwrites_none(tmp_path: Path) -> None:
    wheel = open_wheel(write_wheel(tmp_path, FILES))
    wheel.extract(tmp_path / "out")
    found = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert found == wheel_files(FILES)
    with pytest.raises(OutputError):
        wheel.extract(tmp_path / "out")


def test_a_wheel_that_changes_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    wheel = open_wheel(write_wheel(tmp_path, FILES))
    _zip(tmp_path, lambda archive: archive.writestr("other", b""))
    with pytest.raises(WheelError, match="changed"):
        wheel.read(LIBRARY)
    with pytest.raises(WheelError, match="changed"):
        wheel.extract(tmp_path / "out")


def test_a_list_of_members_is_not_read_by_the_size_it_claims(tmp_path: Path) -> None:
    """A sparse file of 64 GiB whose end says that all of it is the list of members, in the 64-bit form."""
    path, size = tmp_path / f"{NAME}-{TAG}.whl", 64 << 30
    end64 = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, size, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(end64 + locator + end)
    with pytest.raises(WheelError, match="claims"):
        open_wheel(path)
