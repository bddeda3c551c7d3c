"""Numbers and strangers' text as the commands print them."""

from __future__ import annotations

import json

import pytest

from tinyedge.cli.output import format_bytes, format_count, format_seconds, print_json, printable


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (667_814_656, "637 MiB"),
        (1_181_116_006, "1.1 GiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(("count", "text"), [(999, "999"), (1000, "1.00 K"), (1_100_048_384, "1.10 B"), (22_000_000, "22.0 M")])
def test_counts(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "12 ms"), (8.21, "8.2 s"), (59.96, "1 min 00 s"), (125, "2 min 05 s")])
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_control_characters_never_reach_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[2Jb\n\x9b31m\u202e"
    assert printable(hostile) == r"a\x1b[2Jb\n\x9b31m\u202e"
    assert printable("x" * 300, 10) == "x" * 9 + "…"
    print_json({"text": hostile})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"text": hostile}
    assert not {"\x1b", "\x9b", "\u202e"} & set(shown)
