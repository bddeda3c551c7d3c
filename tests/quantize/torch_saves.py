"""Pickles and ZIPs as torch.save writes them, made without torch: opcodes by hand, so that hostile ones can be made too."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

Tensor = tuple[str, str, int, int, tuple[int, ...], tuple[int, ...]]


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    if 0 <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def integers(values: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(integer, values)) + pickle.TUPLE


def named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def tensor(
    key: str, count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, storage: str = "BFloat16Storage"
) -> bytes:
    """A _rebuild_tensor_v2 call on storage `key` of `count` elements."""
    persistent = (
        pickle.MARK + text("storage") + named("torch", storage) + text(key) + text("cpu") + integer(count) + pickle.TUPLE
    )
    arguments = persistent + pickle.BINPERSID + integer(offset) + integers(shape) + integers(strides)
    hooks = named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    call = pickle.MARK + arguments + pickle.NEWFALSE + hooks + pickle.TUPLE + pickle.REDUCE
    return named("torch._utils", "_rebuild_tensor_v2") + call


def dictionary(items: dict[str, bytes]) -> bytes:
    body = b"".join(text(name) + value for name, value in items.items())
    return pickle.EMPTY_DICT + pickle.MARK + body + pickle.SETITEMS


def program(body: bytes) -> bytes:
    return pickle.PROTO + b"\x02" + body + pickle.STOP


def save(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None, name: str = "archive") -> Path:
    """A ZIP as torch.save lays it out."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{name}/data.pkl", pickled)
        archive.writestr(f"{name}/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"{name}/data/{key}", data)
        archive.writestr(f"{name}/version", "3\n")
    return path
