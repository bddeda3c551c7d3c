"""Nothing in a pickle can execute, allocate what the file does not hold, or end in a traceback."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch_saves as ts

from tinyedge.errors import CheckpointError, UnsafePickleError
from tinyedge_quantize.containers.torch_file import read_torch_file
from tinyedge_quantize.tensors import WeightFile


class _Call:
    """Pickles as a call of `function`: what an attacker writes."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._parts = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._parts


def _read(tmp_path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> object:
    return read_torch_file(WeightFile(ts.save(tmp_path / "pytorch_model.bin", pickled, storages)))


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch hacked",), "posix.system"),
        (eval, ("open('hacked', 'w')",), "builtins.eval"),
        (exec, ("open('hacked', 'w')",), "builtins.exec"),
        (__import__, ("os",), "builtins.__import__"),
        (getattr, (os, "system"), "builtins.getattr"),
        (subprocess.Popen, (["touch", "hacked"],), "subprocess.Popen"),
        (open, ("hacked", "w"), "io.open"),
        (bytearray, (10**12,), "builtins.bytearray"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_call_is_refused_by_name_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: object, arguments: tuple[object, ...], name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = tuple("os" if argument is os else argument for argument in arguments)
    pickled = pickle.dumps({"model": _Call(function, *arguments)}, protocol)
    with pytest.raises(UnsafePickleError) as caught:
        _read(tmp_path, pickled)
    expected = name if protocol > 2 else name.replace("builtins", "__builtin__")
    assert expected.split(".")[1] in caught.value.problem
    assert not (tmp_path / "hacked").exists()


def test_harmless_training_objects_are_skipped_without_importing(tmp_path: Path) -> None:
    import argparse

    weights = ts.dictionary({"w": ts.tensor("0", 4, (2, 2), (2, 1))})
    arguments = pickle.dumps(argparse.Namespace(lr=1e-4), 2)[2:-1]
    value = _read(tmp_path, ts.program(ts.dictionary({"model": weights, "args": arguments})), {"0": bytes(8)})
    assert isinstance(value, dict)
    assert value["model"]["w"].shape == (2, 2)
    assert type(value["args"]).__name__ == "Inert"


def test_a_name_that_hides_behind_an_attribute_path_is_refused(tmp_path: Path) -> None:
    """Protocol 4 can name `torch.serialization.os.system`."""
    body = (
        ts.text("torch.serialization")
        + ts.text("os.system")
        + pickle.STACK_GLOBAL
        + ts.text("id")
        + pickle.TUPLE1
        + pickle.REDUCE
    )
    with pytest.raises(UnsafePickleError, match=r"torch\.serialization\.os\.system"):
        _read(tmp_path, ts.program(body))


def test_a_huge_storage_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    body = ts.dictionary({"w": ts.tensor("0", 2**40, (2**20, 2**20), (2**20, 1))})
    with pytest.raises(CheckpointError, match="claims 1099511627776 elements but holds 8 bytes"):
        _read(tmp_path, ts.program(body), {"0": bytes(8)})


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((2, 4), (4, 1), 1), ((2, 4), (5, 1), 0), ((2**31, 2**31), (0, 0), 0), ((8,), (1,), 2**61), ((3, 3), (0, 1), 7)],
)
def test_a_view_beyond_its_storage_is_refused(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    body = ts.dictionary({"w": ts.tensor("0", 8, shape, strides, offset)})
    with pytest.raises(CheckpointError, match="reaches beyond its storage of 16 bytes"):
        _read(tmp_path, ts.program(body), {"0": bytes(16)})


def test_a_missing_storage_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lacks storage 7"):
        _read(tmp_path, ts.program(ts.dictionary({"w": ts.tensor("7", 4, (2, 2), (2, 1))})))


@pytest.mark.parametrize(
    "body",
    [
        pickle.EMPTY_LIST + pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1),
        pickle.MARK * 1000,
        pickle.EMPTY_TUPLE + pickle.TUPLE1 * 100_000,
        pickle.EMPTY_LIST + (pickle.DUP + pickle.APPEND) * 1000,
        (pickle.EMPTY_LIST + pickle.BINPUT + b"\0") + (pickle.BINGET + b"\0" + pickle.BINGET + b"\0" + pickle.TUPLE2) * 1000,
        pickle.EMPTY_DICT * 1_200_000,
        pickle.LONG4 + struct.pack("<i", 2**31 - 1),
        pickle.BINUNICODE + struct.pack("<I", 2**32 - 1),
        pickle.INT + b"9" * 100_000 + b"\n",
        pickle.BINPERSID,
        pickle.REDUCE,
        pickle.NONE + pickle.EMPTY_TUPLE + pickle.REDUCE,
        pickle.EXT1 + b"\1",
        ts.integer(1) + pickle.BINPERSID,
        b"",
        b"\xff\xff\xff",
    ],
    ids=range(16),
)
def test_damaged_and_inflating_programs_end_in_one_sentence(tmp_path: Path, body: bytes) -> None:
    path = ts.save(tmp_path / "pytorch_model.bin", ts.program(body))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from pathlib import Path\n"
        "from tinyedge.errors import TinyEdgeError\n"
        "from tinyedge_quantize.checkpoint import open_checkpoint\n"
        "try: open_checkpoint(Path(sys.argv[1]))\n"
        "except TinyEdgeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_the_old_torch_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + bytes(100))
    with pytest.raises(CheckpointError, match=r"torch before 1\.6.*torch\.save\(torch\.load"):
        read_torch_file(WeightFile(path))
