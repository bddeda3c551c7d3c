"""Metadata entries: what fits its GGUF type, and the sentence for what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tinyedge.errors import CheckpointError
from tinyedge_quantize import metadata as md
from tinyedge_quantize.metadata import MetadataEntry


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (md.boolean(False), MetadataEntry("bool", False)),
        (md.uint32(2**32 - 1), MetadataEntry("uint32", 2**32 - 1)),
        (md.int32(-(2**31)), MetadataEntry("int32", -(2**31))),
        (md.float32(10000), MetadataEntry("float32", 10000.0)),
        (md.float32(3.4028234663852886e38), MetadataEntry("float32", 3.4028234663852886e38)),
        (md.string("h\u00e9"), MetadataEntry("string", "h\u00e9")),
        (md.string(b"h\xc3\xa9"), MetadataEntry("string", b"h\xc3\xa9")),
        (md.strings([b"a", "b"]), MetadataEntry("array", [b"a", "b"], "string")),
        (md.strings(iter([b"a", b"b"])), MetadataEntry("array", [b"a", b"b"], "string")),
        (md.floats([1, 2.5]), MetadataEntry("array", [1.0, 2.5], "float32")),
        (md.int32s(range(3)), MetadataEntry("array", [0, 1, 2], "int32")),
        (md.uint32s([2**31]), MetadataEntry("array", [2**31], "uint32")),
        (md.booleans([True]), MetadataEntry("array", [True], "bool")),
    ],
)
def test_values_that_fit_are_kept(entry: MetadataEntry, expected: MetadataEntry) -> None:
    assert entry == expected


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (md.boolean, 1),
        (md.uint32, 2**32),
        (md.uint32, -1),
        (md.uint32, True),
        (md.uint32, 4.0),
        (md.uint32, "4"),
        (md.uint32, None),
        pytest.param(md.uint32, 10**5000, id="thousands of digits"),
        (md.int32, 2**31),
        (md.float32, float("nan")),
        (md.float32, float("inf")),
        (md.float32, 1e39),
        (md.float32, 10**400),
        (md.float32, "1"),
        (md.float32, False),
        (md.string, "\ud800"),
        (md.string, b"\xff"),
        (md.string, 7),
        (md.strings, [b"a", b"\xff"]),
        (md.strings, [b"\xc3", b"\xa9"]),
        (md.strings, ["a", "\ud800"]),
        (md.floats, [1.0, float("nan")]),
        (md.floats, [1.0, 1e39]),
        (md.int32s, [1, 2**31]),
        (md.int32s, [1, True]),
        (md.uint32s, [-1]),
        (md.booleans, [0]),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(make: Callable[[Any, str], MetadataEntry], value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"hidden_size is .* is needed"):
        make(value, "hidden_size")
