"""Numbers and strangers' text as the commands print them."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc

import pytest
from typer.testing import CliRunner

from tinyedge.cli.app import _explain
from tinyedge.cli.output import format_bytes, format_count, format_seconds, late_progress, print_json, printable, status


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


def test_a_text_of_megabytes_is_printed_without_taking_it_apart(capsys: pytest.CaptureFixture[str]) -> None:
    text = "火" * 2_000_000 + "\x9b" + "a" * 4_000_000
    tracemalloc.start()
    print_json({"text": text})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert json.loads(capsys.readouterr().out) == {"text": text}
    assert peak < 150 << 20  # capsys keeps a copy of its own; one object for each character would be 500 MB


def test_work_goes_on_where_nobody_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    status("unheard")
    with late_progress("unseen", "tokens") as bar:
        assert bar is None


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), 1, "error: /a/b: Permission denied; check its permissions"),
        (OSError(36, "File name too long", "x\x1b"), 1, "error: x\\x1b: File name too long"),
        (OSError(28, "No space left on device"), 9, "error: the output cannot be written (No space left on device)"),
        (OSError("odd"), 1, "error: odd; check the path"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(
    error: OSError, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _explain(error, debug=False) == code
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.count("\n") == 1


def test_help_says_each_command_in_one_line_and_each_value_in_a_word() -> None:
    from tinyedge.cli.app import app

    top = CliRunner().invoke(app, ["--help"]).output
    listed = [line.split() for line in top.partition("Commands:\n")[2].splitlines()]
    assert len(listed) == len(app.registered_commands) + len(app.registered_groups)
    assert not any(words[-1].endswith("...") for words in listed)
    for name, *_ in listed:
        page = CliRunner().invoke(app, [name, "--help"]).output
        assert not re.search(r"<(int|float|str)|2147483647", page), name
