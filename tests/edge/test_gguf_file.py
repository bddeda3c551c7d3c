"""The GGUF reader against gguf's own writer and reader, against literal bytes, and against every way a header can be wrong."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import Parts, Tensor, pack, tiny_parts, write

from tinyedge import ggml_types
from tinyedge.errors import GGUFError, ModelNotFoundError
from tinyedge.gguf_file import GGUFFile, is_gguf, parse_header, read_gguf
from tinyedge.gguf_values import GGUFArray


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A file from gguf.GGUFWriter with every kind of value and a quantized tensor."""
    path = tmp_path / "reference.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    for kind, value in (
        ("uint8", 200),
        ("int8", -3),
        ("uint16", 65000),
        ("int16", -9),
        ("uint32", 2**32 - 1),
        ("int32", -7),
    ):
        getattr(writer, f"add_{kind}")(f"k.{kind}", value)
    writer.add_uint64("k.uint64", 2**63)
    writer.add_int64("k.int64", -(2**40))
    writer.add_float32("k.float32", 1.5)
    writer.add_float64("k.float64", 2.5)
    writer.add_bool("k.bool", True)
    writer.add_string("k.string", "naïve 火")
    writer.add_array("k.strings", ["a", "", "火"])
    writer.add_array("k.floats", [0.5, -2.0])
    writer.add_array("k.bools", [True, False])
    writer.add_tensor("f32", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("q8", np.zeros((4, 68), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("f16", np.zeros((2, 3, 5), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_is_what_the_writer_was_given(reference: Path) -> None:
    metadata = read_gguf(reference).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["k.uint8"] == 200 and metadata["k.int8"] == -3
    assert metadata["k.uint16"] == 65000 and metadata["k.int16"] == -9
    assert metadata["k.uint32"] == 2**32 - 1 and metadata["k.int32"] == -7
    assert metadata["k.uint64"] == 2**63 and metadata["k.int64"] == -(2**40)
    assert metadata["k.float32"] == 1.5 and metadata["k.float64"] == 2.5
    assert metadata["k.bool"] is True and metadata["k.string"] == "naïve 火"
    assert list(metadata["k.strings"]) == ["a", "", "火"]
    assert list(metadata["k.floats"]) == [0.5, -2.0]
    assert list(metadata["k.bools"]) == [True, False]


def test_tensors_are_where_ggufs_own_reader_finds_them(reference: Path) -> None:
    expected = gguf.GGUFReader(str(reference))
    found = read_gguf(reference)
    assert found.data_offset == expected.data_offset
    for mine, theirs in zip(found.tensors, expected.tensors, strict=True):
        assert (mine.name, mine.shape) == (theirs.name, tuple(theirs.shape))
        assert (mine.type.id, mine.bytes) == (int(theirs.tensor_type), int(theirs.n_bytes))
        assert mine.offset + found.data_offset == theirs.data_offset


def test_the_test_suites_own_packer_makes_files_that_ggufs_reader_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", tiny_parts())
    assert [tensor.name for tensor in gguf.GGUFReader(str(path)).tensors] == [tensor.name for tensor in read_gguf(path).tensors]


def test_literal_bytes() -> None:
    header = (
        b"GGUF" + b"\x03\0\0\0" + b"\x01\0\0\0\0\0\0\0" + b"\x01\0\0\0\0\0\0\0"
        b"\x01\0\0\0\0\0\0\0" + b"a" + b"\x04\0\0\0" + b"\x2a\0\0\0"
        b"\x01\0\0\0\0\0\0\0" + b"t" + b"\x01\0\0\0" + b"\x20\0\0\0\0\0\0\0" + b"\x08\0\0\0" + b"\0\0\0\0\0\0\0\0"
    )
    found = parse_header(header, Path("literal"), 96 + 34)
    assert found.metadata == {"a": 42} and found.value_types == {"a": "u32"}
    assert found.data_offset == 96
    (tensor,) = found.tensors
    assert (tensor.name, tensor.shape, tensor.type.name, tensor.offset, tensor.bytes) == ("t", (32,), "Q8_0", 0, 34)


def test_version_2_reads_as_version_3(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.version = 2
    assert read_gguf(write(tmp_path / "2.gguf", parts)).version == 2


def test_another_alignment_moves_the_data(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.set("general.alignment", "u32", 256)
    parts.alignment = 256
    found = read_gguf(write(tmp_path / "aligned.gguf", parts))
    assert found.alignment == 256 and found.data_offset % 256 == 0


def test_arrays_are_decoded_on_demand(tmp_path: Path) -> None:
    array = read_gguf(write(tmp_path / "tiny.gguf", tiny_parts())).metadata["tokenizer.ggml.tokens"]
    assert isinstance(array, GGUFArray)
    assert "values" not in vars(array) and len(array) == 312 and array.element_type == "str"
    assert array.head(2) == ("<unk>", "<s>")
    assert array[259] == "▁" and array.raw_strings[259] == "▁".encode()


def test_the_header_of_a_real_vocabulary_parses_in_60_ms(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.set("tokenizer.ggml.tokens", "arr[str]", [b"token%d" % i for i in range(32000)])
    parts.set("tokenizer.ggml.scores", "arr[f32]", [0.0] * 32000)
    path = write(tmp_path / "large.gguf", parts)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        read_gguf(path)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.06


def test_every_type_has_the_sizes_of_the_installed_ggml() -> None:
    from llama_cpp import _ggml

    library = _ggml.libggml
    library.ggml_type_size.restype, library.ggml_type_size.argtypes = ctypes.c_size_t, [ctypes.c_int]
    library.ggml_blck_size.restype, library.ggml_blck_size.argtypes = ctypes.c_int64, [ctypes.c_int]
    library.ggml_type_name.restype, library.ggml_type_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    count = 0
    for kind in ggml_types.BY_ID.values():
        if library.ggml_type_name(kind.id) is None:  # an older ggml than the table
            continue
        assert library.ggml_type_name(kind.id).decode().upper() == kind.name
        assert (library.ggml_blck_size(kind.id), library.ggml_type_size(kind.id)) == (
            kind.block_elements,
            kind.block_bytes,
        )
        count += 1
    assert count >= 30
    assert not set(ggml_types.BY_ID) & set(ggml_types.REMOVED)


def test_row_bytes_of_whole_blocks_only() -> None:
    assert ggml_types.row_bytes("Q4_K", 512) == 288
    assert ggml_types.row_bytes("f16", 3) == 6
    with pytest.raises(ValueError, match="256"):
        ggml_types.row_bytes("Q4_K", 100)


def _raw(edit: Callable[[bytearray], None]) -> bytes:
    data = bytearray(pack(tiny_parts()))
    edit(data)
    return bytes(data)


def _bent(edit: Callable[[Parts], None]) -> bytes:
    parts = tiny_parts()
    edit(parts)
    return pack(parts)


def _put(offset: int, raw: bytes) -> Callable[[bytearray], None]:
    def edit(data: bytearray) -> None:
        data[offset : offset + len(raw)] = raw

    return edit


def _first(**changes: object) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        for name, value in changes.items():
            setattr(parts.tensors[0], name, value)

    return edit


BAD = {
    "is not a GGUF file": _raw(_put(0, b"GGML")),
    "version 1": _raw(_put(4, struct.pack("<I", 1))),
    "big-endian": _raw(_put(4, struct.pack(">I", 3))),
    "version 9": _raw(_put(4, struct.pack("<I", 9))),
    "tensors, more than": _raw(_put(8, struct.pack("<Q", 2**63))),
    "metadata entries, more than": _raw(_put(16, struct.pack("<Q", 2**40))),
    "metadata key 0 of": _raw(_put(24, struct.pack("<Q", 2**62))),
    "value type 99": _raw(_put(24 + 8 + 20, struct.pack("<I", 99))),
    "nests arrays": _raw(_put(24 + 8 + 20, struct.pack("<II", 9, 9))),
    "not UTF-8": _raw(_put(32, b"\xff")),
    "with a NUL": _raw(_put(32, b"\0")),
    "runs past the end": pack(tiny_parts())[:4500],
    "elements under the metadata key 'k'": _bent(lambda p: p.set("k", "arr[f32]", [])).replace(
        struct.pack("<IIQ", 9, 6, 0), struct.pack("<IIQ", 9, 6, 2**50)
    ),
    "twice": _bent(lambda p: p.pairs.append(p.pairs[0])),
    "general.alignment of type str": _bent(lambda p: p.set("general.alignment", "str", b"32")),
    "not a power of two": _bent(lambda p: p.set("general.alignment", "u32", 48)),
    "alignment 0": _bent(lambda p: p.set("general.alignment", "u32", 0)),
    "has the tensor 'output.weight' twice": _bent(_first(name="output.weight")),
    "a tensor name of 64 bytes": _bent(_first(name="x" * 64)),
    "a tensor name of 0 bytes": _bent(_first(name="")),
    "5 dimensions": _bent(_first(shape=(32, 1, 1, 1, 1))),
    "0 dimensions": _bent(_first(shape=())),
    "impossible shape (32, 0)": _bent(_first(shape=(32, 0))),
    "impossible shape": _bent(_first(shape=(2**40, 2**40))),
    "Q4_0_4_4, a type that llama.cpp has removed": _bent(_first(type_id=31)),
    "ggml type 77": _bent(_first(type_id=77)),
    "rows of 33 values": _bent(_first(shape=(33, 32))),
    "was expected": _bent(_first(data=b"short")),
    "1 bytes are missing": pack(tiny_parts())[:-1],
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, message: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD[message])
    with pytest.raises(GGUFError) as refused:
        read_gguf(path)
    assert message in refused.value.problem
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)
    assert refused.value.exit_code == 11


def test_control_characters_of_a_file_do_not_reach_the_message(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.gguf", Parts(tensors=[Tensor("\x1b[31mred\x9b", (33,), 8, b"")]))
    with pytest.raises(GGUFError) as refused:
        read_gguf(path)
    assert "\\x1b[31mred\\x9b" in refused.value.problem


def test_a_path_that_is_no_file_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.gguf", tmp_path):
        with pytest.raises(ModelNotFoundError):
            read_gguf(path)
        assert not is_gguf(path)


def test_the_result_cannot_be_changed(tmp_path: Path) -> None:
    found: GGUFFile = read_gguf(write(tmp_path / "tiny.gguf", tiny_parts()))
    with pytest.raises(TypeError):
        found.metadata["x"] = 1  # type: ignore[index]
    with pytest.raises(AttributeError):
        found.version = 2  # type: ignore[misc]


def test_a_pipe_is_neither_a_gguf_file_nor_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    for path, problem in ((pipe, "is not a file"), (tmp_path, "is not a file"), (tmp_path / "absent", "is not there")):
        assert not is_gguf(path)
        with pytest.raises(ModelNotFoundError, match=problem):
            read_gguf(path)
