"""Small wheels and small libraries to check: packed by hand, compiled with zig."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

NAME = "llama_cpp_python-1.2"
INFO = f"{NAME}.dist-info"
TAG = "py3-none-manylinux2014_aarch64"
GLIBC = {"aarch64": "aarch64-linux-gnu.2.17", "arm": "arm-linux-gnueabihf.2.17", "x86_64": "x86_64-linux-gnu.2.17"}


def record(files: Mapping[str, bytes]) -> bytes:
    """The RECORD of these files, as the packaging specification has it."""
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        for name, data in files.items()
        if name != f"{INFO}/RECORD"
    }
    rows = [f"{name},sha256={digest},{len(files[name])}\n" for name, digest in digests.items()]
    return "".join([*rows, f"{INFO}/RECORD,,\n"]).encode()


def wheel_files(files: Mapping[str, bytes], tag: str = TAG) -> dict[str, bytes]:
    """`files` and what makes them a wheel of llama-cpp-python 1.2; entries that are there already stay."""
    whole = {
        "llama_cpp/__init__.py": b"",
        f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 1.2\n\nVersion: of the text\n",
        f"{INFO}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
        **files,
    }
    return {f"{INFO}/RECORD": record(whole), **whole}


def write_wheel(folder: Path, files: Mapping[str, bytes], tag: str = TAG) -> Path:
    """The wheel of `files` in `folder`."""
    path = folder / f"{NAME}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in wheel_files(files, tag).items():
            archive.writestr(name, data)
    return path


@cache
def compiled(source: str, *flags: str, machine: str = "aarch64", cpu: str = "generic", suffix: str = "c") -> bytes:
    """The shared library (with "-c", the object) that zig makes of C or assembler (`suffix` "s") source.

    Raises AssertionError with the compiler's words when it refuses.
    """
    cpu = "x86_64" if (machine, cpu) == ("x86_64", "generic") else cpu  # zig's generic one has no SSE, which its ABI needs
    command = [sys.executable, "-m", "ziglang", "cc", "-target", GLIBC[machine], f"-mcpu={cpu}", "-O2", "-g0"]
    kind = [] if "-c" in flags else ["-shared", "-Wl,-z,noexecstack"]
    with TemporaryDirectory(prefix="tinyedge-test-") as folder:
        path = Path(folder) / f"x.{suffix}"
        path.write_text(source)
        line = [*command, path.name, "-o", "x.so", *kind, *flags]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(done.stderr[-2000:])
        return path.with_name("x.so").read_bytes()
