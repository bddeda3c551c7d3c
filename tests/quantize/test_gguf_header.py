"""The header's bytes against gguf's own writer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tinyedge_quantize.gguf_header import TensorInfo, encode_header, padded
from tinyedge_quantize.metadata import boolean, float32, int32, int32s, string, strings, uint32


def test_the_header_is_the_one_gguf_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "reference.gguf", "llama")
    writer.add_uint32("a.number", 2**32 - 1)
    writer.add_int32("a.signed", -5)
    writer.add_float32("a.real", 1e-5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "π and 火")
    writer.add_array("a.texts", ["x", "", "火"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_tensor_info("matrix", (3, 64), np.dtype(np.float32), 3 * 64 * 4)
    writer.add_tensor_info("vector", (5,), np.dtype(np.float32), 20)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    metadata = {
        "general.architecture": string("llama"),
        "a.number": uint32(2**32 - 1),
        "a.signed": int32(-5),
        "a.real": float32(1e-5),
        "a.flag": boolean(True),
        "a.text": string("π and 火"),
        "a.texts": strings(["x", b"", "火"]),
        "a.numbers": int32s([1, -2, 3]),
    }
    tensors = [TensorInfo("matrix", (3, 64), 0, 0), TensorInfo("vector", (5,), 0, padded(3 * 64 * 4))]
    reference = (tmp_path / "reference.gguf").read_bytes()
    header = encode_header(metadata, tensors)
    assert header[: len(reference)] == reference
    assert len(header) % 32 == 0
    assert not header[len(reference) :].strip(b"\0")


def test_the_smallest_header_byte_by_byte() -> None:
    assert encode_header({}, []) == b"GGUF" + b"\x03\0\0\0" + bytes(16) + bytes(8)
