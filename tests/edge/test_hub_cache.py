"""The models on this machine: found by `run` without a network, listed by `ls`, deleted by `rm`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny_gguf

from tinyedge.cli import app, models
from tinyedge.errors import HubError, ModelNotFoundError
from tinyedge.hub.cache import PARTIAL_SUFFIX, find, hub_folder, hub_models, repo_folder

REPO = "org/Tiny-GGUF"
TINYLLAMA = "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF"
COMMITS = ("0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches; the hub's is returned."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/huggingface/hub"


@pytest.fixture
def tinyedge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process: its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tinyedge", *arguments])
        code = app._run(debug=False)
        return (code, *capsys.readouterr())

    return run


def put(hub: Path, repo: str, file: str, content: bytes = b"GGUF", commit: str = COMMITS[0], blob: str = "") -> Path:
    """A file in the hub's cache as huggingface_hub would have put it there; `main` is the commit."""
    folder = repo_folder(hub, repo)
    target = folder / "blobs" / (blob or f"{len(content):064x}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    path = folder / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text(commit)
    return path


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/x/cache"},
        {"HF_HOME": "/x/home"},
        {"HF_HOME": "~/home", "XDG_CACHE_HOME": "/x/cache"},
        {"HUGGINGFACE_HUB_CACHE": "/x/old", "HF_HOME": "/x/home"},
        {"HF_HUB_CACHE": "$HOME/hub", "HUGGINGFACE_HUB_CACHE": "/x/old", "HF_HOME": "/x/home"},
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    program = "import huggingface_hub.constants as constants; print(constants.HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert str(hub_folder()) == theirs.stdout.strip()


def test_a_pulled_model_is_found_by_every_form_of_its_name(caches: Path) -> None:
    path = put(caches, TINYLLAMA, "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf")
    other = put(caches, TINYLLAMA, "tinyllama-1.1b-chat-v1.0.Q8_0.gguf", b"GGUF8")
    for name in ("tinyllama", "TinyLlama", "tinyllama:q4_k_m", TINYLLAMA, TINYLLAMA.lower(), f"{TINYLLAMA}:{path.name}"):
        assert models.resolve_model(name) == path
    assert models.resolve_model("tinyllama:Q8_0") == other


def test_what_is_there_is_taken_where_no_type_is_asked_for(caches: Path) -> None:
    path = put(caches, REPO, "m-Q2_K.gguf")
    assert models.resolve_model(REPO) == path
    better = put(caches, REPO, "m-Q8_0.gguf", b"GGUF8")
    assert models.resolve_model(REPO) == better
    with pytest.raises(
        ModelNotFoundError, match=r"neither a path nor a model that was pulled.*tinyedge pull org/Tiny-GGUF:Q4_0"
    ):
        models.resolve_model(f"{REPO}:Q4_0")


def test_a_path_that_exists_comes_before_the_hub(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(caches, TINYLLAMA, "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf")
    monkeypatch.chdir(tmp_path)
    tiny_gguf.write(Path("tinyllama"), tiny_gguf.tiny_parts())
    assert models.resolve_model("tinyllama") == Path("tinyllama")


def test_the_newest_whole_revision_counts(caches: Path) -> None:
    old = put(caches, REPO, "m-Q4_K_M.gguf", b"GGUF-old", COMMITS[1])
    new = put(caches, REPO, "m-Q4_K_M.gguf", b"GGUF-newer", COMMITS[0])
    assert models.resolve_model(REPO) == new
    new.resolve().unlink()
    assert models.resolve_model(REPO) == old


def test_a_model_that_is_not_here_says_how_to_get_it(tinyedge: Any) -> None:
    code, out, err = tinyedge("run", "tinyllama", "-p", "x")
    assert (code, out) == (16, "")
    assert err == "error: tinyllama is not on this machine yet; fetch it with `tinyedge pull tinyllama`\n"
    assert "did you mean tinyllama" in tinyedge("run", "tinylama", "-p", "x")[2]


def test_files_of_one_type_are_told_apart_by_name(caches: Path) -> None:
    put(caches, REPO, "a/m-Q4_K_M.gguf")
    put(caches, REPO, "b/m-Q4_K_M.gguf", b"GGUFb")
    with pytest.raises(HubError, match=r"2 files of type Q4_K_M; name one: org/Tiny-GGUF:FILE with there are a/m-Q4_K_M.gguf"):
        models.resolve_model(REPO)
    assert models.resolve_model(f"{REPO}:b/m-Q4_K_M.gguf").parent.name == "b"


def test_run_needs_no_huggingface_hub_and_no_network(caches: Path) -> None:
    """In a process in which neither can be had."""
    put(caches, REPO, "tiny-Q8_0.gguf", tiny_gguf.pack(tiny_gguf.tiny_parts()))
    program = (
        "import sys, socket\n"
        "def refuse(*_arguments, **_options): raise OSError('no network here')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "sys.modules['huggingface_hub'] = sys.modules['httpx'] = None\n"
        f"sys.argv = ['tinyedge', 'run', '{REPO}', '-p', 'ab', '-n', '4', '--temp', '0', '--json']\n"
        "from tinyedge.cli.app import main\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["generated_tokens"] == 4


def test_ls_names_what_run_takes(caches: Path, tinyedge: Any) -> None:
    assert tinyedge("ls")[1] == ""
    put(caches, TINYLLAMA, "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", b"G" * 2048)
    put(caches, TINYLLAMA, "tinyllama-1.1b-chat-v1.0.Q8_0.gguf", b"G" * 4096)
    put(caches, REPO, "sub/nameless.gguf", b"G" * 100)
    put(caches, REPO, "config.json", b"{}")
    own = caches.parent.parent / "tinyedge/story-0123-Q4_K_M.gguf"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"G" * 50)
    partial = repo_folder(caches, "org/Half") / "blobs" / f"abc{PARTIAL_SUFFIX}"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"G" * 10)
    code, out, _err = tinyedge("ls", "--json")
    report = json.loads(out)
    assert code == 0
    rows = {row["name"]: (row["type"], row["bytes"], row["cache"]) for row in report["models"]}
    assert rows == {
        "tinyllama": ("Q4_K_M", 2048, "hub"),
        "tinyllama:Q8_0": ("Q8_0", 4096, "hub"),
        f"{REPO}:sub/nameless.gguf": (None, 100, "hub"),
        str(own): ("Q4_K_M", 50, "tinyedge"),
    }
    assert report["partial"] == [{"repo": "org/Half", "path": str(partial), "bytes": 10}]
    assert report["total_bytes"] == 2048 + 4096 + 100 + 50 + 10
    for name, row in zip(rows, report["models"], strict=True):
        if row["cache"] == "hub":
            assert str(models.named_path(name, "MODEL")) == row["path"]
    code, out, _err = tinyedge("ls")
    assert code == 0
    assert len(out.splitlines()) == 1 + 5 + 1
    assert out.splitlines()[-1] == "4 models, 6.2 KiB"


def test_ls_reads_no_model(caches: Path, tinyedge: Any) -> None:
    path = put(caches, REPO, "m-Q4_K_M.gguf", b"x" * 100)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    (row,) = json.loads(tinyedge("ls", "--json")[1])["models"]
    assert row["last_used"] == "2001-09-09T01:46:40+00:00"
    assert path.stat().st_atime == 1_000_000_000


def test_a_hostile_cache_does_not_drive_the_terminal(caches: Path, tinyedge: Any) -> None:
    put(caches, "org/\x1b[2J", "m-Q4_K_M.gguf")
    (repo_folder(caches, REPO) / "snapshots").mkdir(parents=True)
    (repo_folder(caches, REPO) / "snapshots" / COMMITS[0]).symlink_to("/nowhere")
    (caches / "models--file").write_text("")
    code, out, _err = tinyedge("ls")
    assert code == 0
    assert "\x1b" not in out


def test_rm_deletes_a_model_and_nothing_else(caches: Path, tinyedge: Any) -> None:
    kept = put(caches, REPO, "m-Q8_0.gguf", b"G" * 3000)
    gone = put(caches, REPO, "m-Q4_K_M.gguf", b"G" * 5000)
    put(caches, REPO, "m-Q4_K_M.gguf", b"G" * 7000, COMMITS[1])
    code, _out, err = tinyedge("rm", f"{REPO}:Q4_K_M", "-y")
    assert code == 0
    assert "12 KiB are free again" in err
    assert not gone.is_symlink()
    assert kept.read_bytes() == b"G" * 3000
    assert [path.name for path in (repo_folder(caches, REPO) / "blobs").iterdir()] == [f"{3000:064x}"]
    report = huggingface_hub.scan_cache_dir(caches)
    assert report.size_on_disk == 3000
    assert tinyedge("rm", REPO, "-y")[0] == 0
    assert not repo_folder(caches, REPO).exists()
    assert tinyedge("rm", REPO, "-y")[0] == 16


def test_rm_deletes_nothing_that_was_not_named_exactly(caches: Path, tinyedge: Any) -> None:
    paths = [put(caches, REPO, f"m-{kind}.gguf", kind.encode()) for kind in ("Q4_K_M", "Q8_0")]
    code, _out, err = tinyedge("rm", REPO, "-y")
    assert code == 28
    assert f"{REPO} has 2 files here; name one: {REPO}:Q4_K_M, {REPO}:Q8_0" in err
    assert all(path.is_file() for path in paths)
    named = [put(caches, TINYLLAMA, f"m-{kind}.gguf", kind.encode()) for kind in ("Q4_K_M", "Q8_0")]
    assert tinyedge("rm", TINYLLAMA, "-y")[0] == 28
    assert tinyedge("rm", "tinyllama", "-y")[0] == 0
    assert [path.is_symlink() for path in named] == [False, True]
    put(caches, TINYLLAMA, "m-Q4_K_M.gguf", b"Q4_K_M")
    assert tinyedge("rm", "tinyllama:m-Q8_0.gguf", "-y")[0] == 0
    assert [path.is_symlink() for path in named] == [True, False]
    assert tinyedge("rm", "tinyllama:Q8_0", "-y")[0] == 16
    assert tinyedge("rm", f"{TINYLLAMA}:m-Q8_0.gguf", "-y")[0] == 16
    assert [path.is_symlink() for path in named] == [True, False]


def test_rm_keeps_content_that_another_name_uses(caches: Path, tinyedge: Any) -> None:
    put(caches, REPO, "a-Q4_K_M.gguf", b"G" * 5000)
    kept = put(caches, REPO, "copy-Q8_0.gguf", b"G" * 5000)
    code, _out, err = tinyedge("rm", f"{REPO}:Q4_K_M", "-y")
    assert code == 0
    assert "still used by another model" in err
    assert kept.read_bytes() == b"G" * 5000


def test_rm_leaves_what_other_programs_have_of_the_repository(caches: Path, tinyedge: Any) -> None:
    config = put(caches, REPO, "config.json", b"{}")
    put(caches, REPO, "m-Q4_K_M.gguf", b"G" * 5000)
    assert tinyedge("rm", REPO, "-y")[0] == 0
    assert config.read_bytes() == b"{}"
    assert not huggingface_hub.scan_cache_dir(caches).warnings


def test_rm_takes_the_name_that_ls_gives_for_a_quantized_checkpoint(caches: Path, tinyedge: Any) -> None:
    own = caches.parent.parent / "tinyedge/story-0123-Q4_K_M.gguf"
    own.parent.mkdir(parents=True)
    for name in (own.name, str(own)):
        own.write_bytes(b"G" * 50)
        assert tinyedge("rm", name, "-y")[0] == 0
        assert not own.exists()


def test_rm_takes_an_unfinished_download(caches: Path, tinyedge: Any) -> None:
    partial = repo_folder(caches, REPO) / "blobs" / f"abc{PARTIAL_SUFFIX}"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"G" * 10)
    assert tinyedge("rm", REPO, "-y")[0] == 0
    assert not repo_folder(caches, REPO).exists()


def test_rm_deletes_only_out_of_the_caches(caches: Path, tinyedge: Any, tmp_path: Path) -> None:
    outside = tiny_gguf.write(tmp_path / "mine.gguf", tiny_gguf.tiny_parts())
    code, _out, err = tinyedge("rm", str(outside), "-y")
    assert code == 16
    assert "is in none of the caches" in err
    assert outside.exists()
    link = repo_folder(caches, REPO) / "snapshots" / COMMITS[0] / "m-Q4_K_M.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    assert tinyedge("rm", REPO, "-y")[0] == 0
    assert outside.exists()
    assert not link.is_symlink()
    elsewhere = repo_folder(caches, REPO) / "snapshots" / COMMITS[0]
    elsewhere.parent.mkdir(parents=True)
    elsewhere.symlink_to(tmp_path)
    assert tinyedge("rm", f"{REPO}:mine.gguf", "-y")[0] == 16
    assert outside.exists()


def test_rm_asks_before_it_deletes(caches: Path, tinyedge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(caches, REPO, "m-Q4_K_M.gguf")
    code, _out, err = tinyedge("rm", REPO)
    assert code == 2
    assert "confirm with -y" in err
    for answer, there in (("\n", True), ("no\n", True), ("", True), ("Y\n", False)):
        monkeypatch.setattr(sys, "stdin", _Terminal(answer))
        code, _out, err = tinyedge("rm", REPO)
        assert path.is_symlink() is there
        assert code == (1 if there else 0)
        assert f"delete {path}, 4 B? [y/N]" in err


class _Terminal:
    """A terminal on which somebody types one line."""

    def __init__(self, line: str) -> None:
        self._line = line

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self._line


def test_a_cache_that_cannot_be_read_is_empty(caches: Path) -> None:
    assert hub_models(None) == hub_models(caches / "absent") == []
    assert find("tinyllama", []) is None
