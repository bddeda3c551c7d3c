"""`tinyedge report`: what it writes, says and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from report_documents import speed_document, write_all

from tinyedge.cli.option_groups import with_metavars
from tinyedge.cli.report import report
from tinyedge.errors import OutputError, ResultFileError

Command = Callable[..., None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, run in a folder with bench.json, eval.json and sweep.json."""
    write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(with_metavars(report))
    return lambda *words: app(list(words), standalone_mode=False)


def test_a_page_is_written(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    command("bench.json", "sweep.json", "--title", "Pi <5>")
    assert (tmp_path / "report.html").read_text().count("Pi &lt;5&gt;") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wrote report.html: 2 files of results, 11 plots, ")
    command("sweep.json")  # over its own page
    assert "Pi" not in (tmp_path / "report.html").read_text()


def test_pictures_alone_write_no_page(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command("sweep.json", "--png", "pictures")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["perplexity-1.png", "size-quality-1.png"]
    assert not (tmp_path / "report.html").exists()


def test_the_terminal_needs_no_matplotlib(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command("bench.json", "eval.json", "sweep.json", "--terminal")
    out = capsys.readouterr().out
    assert "bench: prompt, tokens/s (median)" in out
    assert "eval: accuracy, %" in out
    assert "sweep: mean KL divergence" in out
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ResultFileError, match="matplotlib, which is not installed") as caught:
        command("bench.json")
    assert caught.value.remedy.startswith('install it with `pip install "tinyedge-llm[bench]"`')
    assert not (tmp_path / "report.html").exists()


def test_without_a_home_folder_it_says_what_to_set(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    script = """
import sys
from pathlib import Path

def homeless():
    raise RuntimeError("Could not determine home directory.")

Path.home = homeless  # as for a user of a container who is not in its /etc/passwd
from tinyedge.cli.entry import main

sys.argv = ["tinyedge", "report", "bench.json"]
sys.exit(main())
"""
    write_all(tmp_path)
    settings = {key: value for key, value in os.environ.items() if key not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME")}
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert told.returncode in (0, ResultFileError.exit_code)  # matplotlib from 3.11 goes on, and says the same
    assert "MPLCONFIGDIR" in told.stderr
    subprocess.run(command, cwd=tmp_path, env=settings | {"MPLCONFIGDIR": str(tmp_path / "settings")}, check=True)
    assert (tmp_path / "report.html").exists()


def test_what_cannot_be_read_is_said_and_left_out(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "old.json").write_text(json.dumps({**speed_document(), "tinyedge": {"schema": 0, "kind": "speed"}}))
    command("old.json", "sweep.json", "-o", "page.html")
    assert "note: left out: old.json is of an older schema" in capsys.readouterr().err
    assert "old.json is of an older schema" in (tmp_path / "page.html").read_text()
    with pytest.raises(ResultFileError, match="older schema"):
        command("old.json")


def test_someone_elses_page_is_kept(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "report.html").write_text("<h1>mine</h1>")
    with pytest.raises(OutputError, match=r"report\.html exists and is not a report"):
        command("bench.json")
    assert (tmp_path / "report.html").read_text() == "<h1>mine</h1>"


def test_a_file_of_something_else_is_answered_with_what_is_read(command: Command, tmp_path: Path) -> None:
    (tmp_path / "foo.txt").write_text("hello")
    with pytest.raises(ResultFileError) as caught:
        command("foo.txt")
    assert caught.value.remedy == "give a file that `tinyedge bench`, `eval`, `eval sweep` or llama-bench wrote"
