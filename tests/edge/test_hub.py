"""`tinyedge pull` against a local server that speaks the hub's API: what arrives, what is refused, and what is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import tiny_gguf
from hub_server import COMMIT, HubServer, checksum, git_checksum, serve

from tinyedge.cli import app, models
from tinyedge.errors import DiskSpaceError, HubError
from tinyedge.hub import session
from tinyedge.hub.cache import hub_folder, partials
from tinyedge.hub.download import check_disk, fetch
from tinyedge.hub.pull import Wanted, find_on_hub, named, read_header_of
from tinyedge.hub.session import PACKAGES, Hub

REPO = "org/Tiny-GGUF"
FILE = "tiny-Q4_K_M.gguf"
MODEL = tiny_gguf.pack(tiny_gguf.tiny_parts())


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with one model in its own cache folder, and no waiting between attempts."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    monkeypatch.setattr(session, "RETRY_WAITS", (0.0, 0.0, 0.0))
    with serve() as hub:
        hub.repositories[REPO] = {"README.md": b"# tiny", FILE: MODEL}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def tinyedge(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process, with `server` as the hub: its exit code, stdout and stderr."""
    del server

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tinyedge", *arguments])
        code = app._run(debug=False)
        return (code, *capsys.readouterr())

    return run


def find(revision: str = "main", name: str = REPO) -> tuple[Hub, Wanted]:
    hub = Hub(pause=lambda _seconds: None)
    return hub, find_on_hub(hub, named(name), revision)


def snapshot(name: str = FILE) -> Path:
    folder = hub_folder()
    assert folder is not None
    return folder / "models--org--Tiny-GGUF/snapshots" / COMMIT / name


def left_behind() -> list[str]:
    """All files in the cache but locks."""
    folder = hub_folder()
    assert folder is not None
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("models--*/**/*") if not path.is_dir())


def test_a_pulled_model_is_where_huggingface_hub_looks_for_it(tinyedge: Any) -> None:
    code, out, err = tinyedge("pull", REPO)
    assert (code, out) == (0, f"{snapshot()}\n")
    assert "checksum right" in err
    assert snapshot().read_bytes() == MODEL
    folder = hub_folder()
    found = huggingface_hub.try_to_load_from_cache(REPO, FILE, cache_dir=str(folder))
    assert found == str(snapshot())
    offline = huggingface_hub.hf_hub_download(REPO, FILE, cache_dir=str(folder), local_files_only=True)
    assert offline == str(snapshot())
    report = huggingface_hub.scan_cache_dir(folder)
    assert not report.warnings
    assert report.size_on_disk == len(MODEL)
    assert snapshot().resolve().name == checksum(MODEL)
    assert not partials(folder)


def test_what_huggingface_hub_downloaded_is_not_downloaded_again(
    server: HubServer, tinyedge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    path = huggingface_hub.hf_hub_download(REPO, FILE, cache_dir=str(hub_folder()))
    server.requests.clear()
    code, out, err = tinyedge("pull", REPO)
    assert (code, out) == (0, f"{path}\n")
    assert "here already" in err
    assert server.content_requests() == []
    assert left_behind() == [f"models--org--Tiny-GGUF/{rest}" for rest in _layout(MODEL)]


def _layout(content: bytes) -> list[str]:
    return [f"blobs/{checksum(content)}", "refs/main", f"snapshots/{COMMIT}/{FILE}"]


def test_the_report_of_a_download(tinyedge: Any) -> None:
    code, out, _err = tinyedge("pull", f"{REPO}:{FILE}", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["path"] == str(snapshot())
    assert (report["repo"], report["file"], report["commit"]) == (REPO, FILE, COMMIT)
    assert (report["bytes"], report["received_bytes"], report["resumed_bytes"]) == (len(MODEL), len(MODEL), 0)
    assert report["checksum"] == checksum(MODEL)
    assert report["fits"] is True


def test_a_file_kept_in_git_is_checked_by_gits_own_checksum(server: HubServer, tinyedge: Any) -> None:
    server.in_git.add(FILE)
    assert tinyedge("pull", REPO)[0] == 0
    assert snapshot().resolve().name == git_checksum(MODEL)
    server.repositories[REPO][FILE] = MODEL + b"\0" * 32
    server.sent[FILE] = MODEL[:-32] + b"\1" * 64
    assert "another checksum" in tinyedge("pull", REPO)[2]


def test_a_file_in_a_folder_with_an_unusual_name(server: HubServer, tinyedge: Any) -> None:
    name = "für alle/tiny model #1 (50%)-Q4_K_M.gguf"
    server.repositories[REPO] = {name: MODEL}
    code, out, _err = tinyedge("pull", REPO)
    assert (code, out) == (0, f"{snapshot(name)}\n")
    assert models.resolve_model(REPO).read_bytes() == MODEL


def test_a_file_system_without_links_gets_the_content_itself(
    server: HubServer, tinyedge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert tinyedge("pull", REPO)[0] == 0
    assert not snapshot().is_symlink()
    assert snapshot().read_bytes() == MODEL
    server.requests.clear()
    assert "here already" in tinyedge("pull", REPO)[2]
    assert server.content_requests() == []
    assert tinyedge("rm", REPO, "-y")[0] == 0
    assert left_behind() == []


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server: HubServer) -> None:
    server.cut_after, server.cuts = 300_000, 3
    hub, wanted = find()
    done: list[int] = []
    fetched = fetch(hub, wanted.file, wanted.place, "main", lambda count, _total: done.append(count))
    assert fetched.path.read_bytes() == MODEL
    assert fetched.received == len(MODEL) == sum(done)
    starts = [request.start or 0 for request in server.content_requests()]
    assert len(starts) == 4
    assert starts == sorted(starts)
    assert 0 < starts[1] <= 300_000


def test_a_download_goes_on_in_the_next_call(server: HubServer, tinyedge: Any) -> None:
    server.cut_after, server.cuts, server.after_cuts = 500_000, 1, 503
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "the hub is out of order (HTTP 503); run the command again in a few minutes: it goes on where it stopped" in err
    assert not snapshot().exists()
    (partial,) = partials(hub_folder())
    assert 0 < partial.bytes <= 500_000
    server.after_cuts = None
    server.requests.clear()
    code, out, _err = tinyedge("pull", REPO, "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["resumed_bytes"], report["received_bytes"]) == (partial.bytes, len(MODEL) - partial.bytes)
    assert server.content_requests()[-1].start == partial.bytes
    assert snapshot().read_bytes() == MODEL
    assert not partials(hub_folder())


def test_a_connection_that_always_breaks_at_once_ends_with_an_error(server: HubServer, tinyedge: Any) -> None:
    server.cut_after = 0
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "the connection to the hub broke" in err
    assert "goes on where it stopped" in err
    assert len(server.content_requests()) == 1 + 4
    assert not snapshot().exists()


def test_a_server_without_ranges_begins_again(server: HubServer) -> None:
    server.ranges = False
    hub, wanted = find()
    server.cut_after, server.cuts = 400_000, 2
    fetched = fetch(hub, wanted.file, wanted.place, "main")
    assert fetched.path.read_bytes() == MODEL
    assert fetched.received > len(MODEL)


def test_content_with_another_checksum_is_deleted(server: HubServer, tinyedge: Any) -> None:
    damaged = bytearray(MODEL)
    damaged[-5] ^= 1
    server.sent[FILE] = bytes(damaged)
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert f"{FILE} arrived with another checksum than the hub gives for it and was deleted" in err
    assert left_behind() == []
    server.sent.clear()
    assert tinyedge("pull", REPO)[0] == 0


def test_a_damaged_beginning_is_not_built_upon(tinyedge: Any) -> None:
    _, wanted = find()
    wanted.place.partial.parent.mkdir(parents=True)
    wanted.place.partial.write_bytes(b"x" * 1000)
    assert tinyedge("pull", REPO)[0] == 28
    assert left_behind() == []
    wanted.place.partial.write_bytes(b"x" * (len(MODEL) + 1))
    assert tinyedge("pull", REPO)[0] == 0


@pytest.mark.parametrize(
    ("path", "status", "headers", "sentence"),
    [
        (f"/{REPO}/resolve", 401, {"X-Error-Code": "GatedRepo"}, "is gated.*no token.*accept them at .*hf auth login"),
        (f"/{REPO}/resolve", 403, {"X-Error-Code": "GatedRepo"}, "is gated"),
        ("/api", 401, {"X-Error-Code": "RepoNotFound"}, "has no repository org/Tiny-GGUF; check the name; if it is private"),
        ("/api", 401, {}, "has no repository"),
        ("/api", 404, {}, "has no repository"),
        ("/api", 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "does not know your token"),
        ("/api", 429, {"Retry-After": "0"}, "asks us to wait .HTTP 429."),
        ("/api", 500, {}, "out of order .HTTP 500."),
        ("/api", 503, {"Retry-After": "x" * 50}, "out of order"),
        ("/api", 418, {}, "answers HTTP 418"),
        (f"/{REPO}/resolve", 401, {}, "is gated"),
        (f"/{REPO}/resolve", 404, {"X-Error-Code": "EntryNotFound"}, "tiny-Q4_K_M.gguf of .* is listed but not there"),
        ("/content", 404, {}, "is listed but not there"),
        ("/content", 416, {}, "answers HTTP 416"),
    ],
)
def test_a_refusal_is_one_sentence(
    server: HubServer, tinyedge: Any, path: str, status: int, headers: dict[str, str], sentence: str
) -> None:
    server.refusals[path] = (status, headers)
    code, out, err = tinyedge("pull", REPO)
    assert (code, out) == (28, "")
    assert len(err.splitlines()) == 1
    assert re.search(sentence, err)
    assert left_behind() == []


def test_a_hub_that_is_out_of_order_for_a_moment_is_asked_again(server: HubServer, tinyedge: Any) -> None:
    server.refusals["/"] = (503, {})
    server.refuse_times = 3
    assert tinyedge("pull", REPO)[0] == 0


def test_a_wait_that_the_hub_asks_for_is_kept(server: HubServer) -> None:
    server.refusals["/api"] = (429, {"Retry-After": "7"})
    server.refuse_times = 1
    waits: list[float] = []
    Hub(pause=waits.append).repository(named(REPO))
    assert waits == [7.0]


def test_a_token_that_may_not_read_a_gated_model(server: HubServer, tinyedge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.refusals[f"/{REPO}/resolve"] = (403, {"X-Error-Code": "GatedRepo"})
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "your token may not read it" in err


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    server: HubServer, tinyedge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert tinyedge("pull", REPO)[0] == 0
    for request in server.requests:
        assert ("authorization" in request.headers) != request.path.startswith("/content/")


def test_a_token_that_cannot_be_sent_is_not_shown(tinyedge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sécret")
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "hf_s" not in err
    assert "check HF_ENDPOINT, HF_TOKEN" in err


def test_what_is_not_there_names_what_is(tinyedge: Any) -> None:
    assert "no file tiny-Q4_K.gguf; take tiny-Q4_K_M.gguf" in tinyedge("pull", f"{REPO}:tiny-Q4_K.gguf")[2]
    assert "no file of type Q8_0; there are whole files of Q4_K_M" in tinyedge("pull", f"{REPO}:Q8_0")[2]
    assert "has no revision v9" in tinyedge("pull", REPO, "--revision", "v9")[2]
    assert "'tinylama' is neither" in tinyedge("pull", "tinylama")[2]
    assert "cannot be a revision" in tinyedge("pull", REPO, "--revision", "../x")[2]


def test_no_hub_at_all(tinyedge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "http://127.0.0.1:9 cannot be reached" in err
    for endpoint in ("nonsense", "file:///etc/passwd", "http://[", "http://127.0.0.1:99999"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert tinyedge("pull", REPO)[0] == 28


@pytest.mark.parametrize(
    ("option", "variable"), [("--offline", None), (None, "HF_HUB_OFFLINE"), (None, "TRANSFORMERS_OFFLINE")]
)
def test_offline_asks_nobody(
    server: HubServer, tinyedge: Any, monkeypatch: pytest.MonkeyPatch, option: str | None, variable: str | None
) -> None:
    arguments = ["pull", REPO, *([option] if option else [])]
    if variable:
        monkeypatch.setenv(variable, "1")
    code, _out, err = tinyedge(*arguments)
    assert code == 29
    assert "is not on this machine" in err
    assert server.requests == []
    if variable:
        monkeypatch.delenv(variable)
    assert tinyedge("pull", REPO)[0] == 0
    server.requests.clear()
    if variable:
        monkeypatch.setenv(variable, "1")
    assert tinyedge(*arguments)[:2] == (0, f"{snapshot()}\n")
    assert server.requests == []


def test_a_model_larger_than_memory_is_not_downloaded(
    server: HubServer, tinyedge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyedge.memory.free_memory_bytes", lambda: 1 << 20)
    monkeypatch.setattr("tinyedge.backends.free_memory_bytes", lambda: 1 << 20)
    code, _out, err = tinyedge("pull", REPO)
    assert code == 13
    assert "nothing was downloaded: the model needs" in err
    assert "--force" in err
    assert len(server.content_requests()) == 1
    assert left_behind() == []
    code, out, err = tinyedge("pull", REPO, "--force")
    assert (code, out) == (0, f"{snapshot()}\n")
    assert "warning: the model needs" in err


def test_a_family_that_cannot_run_is_not_downloaded(server: HubServer, tinyedge: Any) -> None:
    parts = tiny_gguf.tiny_parts()
    parts.set("general.architecture", "str", b"martian")
    server.repositories[REPO][FILE] = tiny_gguf.pack(parts)
    code, _out, err = tinyedge("pull", REPO)
    assert code == 5
    assert "martian" in err
    assert len(server.content_requests()) == 1


@pytest.mark.usefixtures("server")
def test_a_file_larger_than_the_disk_is_not_downloaded() -> None:
    _, wanted = find()
    check_disk(wanted.place, wanted.file, len(MODEL) + (64 << 20))
    with pytest.raises(DiskSpaceError, match=r"needs 1 MiB more and the disk of .* has 0 MiB free.*HF_HOME"):
        check_disk(wanted.place, wanted.file, 1000)


def test_a_disk_that_fills_up_keeps_what_arrived(server: HubServer) -> None:
    limited = f"ulimit -f 600 && exec {sys.executable} -m tinyedge pull {REPO}"  # blocks of 1024 bytes
    result = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, env=os.environ, timeout=120, check=False)
    assert result.returncode == 10, result.stderr
    assert "is full with 1 MiB of tiny-Q4_K_M.gguf still missing" in result.stderr
    assert not snapshot().exists()
    (partial,) = partials(hub_folder())
    assert 500_000 < partial.bytes <= 614_400
    server.requests.clear()
    hub, wanted = find()
    assert fetch(hub, wanted.file, wanted.place, "main").resumed == partial.bytes
    assert snapshot().read_bytes() == MODEL


def test_what_is_no_gguf_file_is_seen_from_its_first_bytes(server: HubServer, tinyedge: Any) -> None:
    for content in (b"<html>log in to the network</html>", b"", b"GGUF", b"version https://git-lfs" + bytes(3 << 20)):
        server.repositories[REPO][FILE] = content
        server.requests.clear()
        code, _out, err = tinyedge("pull", REPO)
        assert code == 11, err
        assert "nothing was downloaded" in err
        assert len(server.content_requests()) <= 1
    assert left_behind() == []


def test_a_file_that_claims_another_length_than_its_tensors_is_not_downloaded(server: HubServer, tinyedge: Any) -> None:
    server.repositories[REPO][FILE] = MODEL[:-1000]
    code, _out, err = tinyedge("pull", REPO)
    assert code == 11
    assert "is truncated" in err


def test_a_header_of_several_requests(server: HubServer) -> None:
    parts = tiny_gguf.tiny_parts()
    parts.set("tokenizer.chat_template", "str", b"{# " + b"x" * (11 << 20) + b" #}")
    server.repositories[REPO][FILE] = tiny_gguf.pack(parts)
    header = read_header_of(*find())
    assert len(header.tensors) == len(parts.tensors)
    assert [request.start for request in server.content_requests()] == [0, 1 << 20, 9 << 20]
    server.ranges = False
    assert read_header_of(*find()).tensors == header.tensors


@pytest.mark.parametrize(
    "name", ["../../../evil-Q4_K_M.gguf", "/tmp/evil-Q4_K_M.gguf", "a\\..\\evil-Q4_K_M.gguf", "\x1b[2J-Q4_K_M.gguf"]
)
def test_a_hostile_file_name_is_not_offered(server: HubServer, tinyedge: Any, name: str) -> None:
    server.repositories[REPO] = {name: MODEL}
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "has no GGUF file" in err
    assert tinyedge("pull", f"{REPO}:{name}")[0] == 28
    assert server.content_requests() == []


@pytest.mark.parametrize(
    "answer",
    [
        *([], {}, "x", None, {"sha": "../..", "siblings": []}, {"sha": COMMIT}, {"sha": COMMIT, "siblings": [1]}),
        *({"sha": 5, "siblings": []}, {"sha": COMMIT, "siblings": [{"rfilename": "a.gguf", "lfs": 3}]}),
    ],
)
def test_an_answer_that_is_not_the_hubs(server: HubServer, tinyedge: Any, answer: Any) -> None:
    server.listing = lambda _answer: answer
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "is not the answer of a Hugging Face hub; check HF_ENDPOINT" in err


@pytest.mark.parametrize(
    "change",
    [
        {"lfs": {"sha256": "../../../../evil", "size": 5}},
        {"lfs": {"sha256": "A" * 64, "size": 5}},
        {"lfs": {"sha256": "a" * 64, "size": -1}},
        {"lfs": {"sha256": "a" * 64, "size": "5"}},
        {"lfs": {"sha256": "a" * 64, "size": True}},
        {"lfs": None, "blobId": "../x"},
    ],
)
def test_a_file_without_a_usable_size_and_checksum_is_not_offered(
    server: HubServer, tinyedge: Any, change: dict[str, Any]
) -> None:
    server.listing = lambda answer: answer | {"siblings": [row | change for row in answer["siblings"]]}
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28, err
    assert left_behind() == []


def test_a_listing_without_end(server: HubServer, tinyedge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MAX_LISTING_BYTES", 4 << 20)
    server.endless = "/api/"
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "has no end" in err


def test_content_without_end_stops_at_the_length_the_hub_gave(server: HubServer) -> None:
    hub, wanted = find()
    server.endless = "/content/"
    with pytest.raises(HubError, match=rf"sends more than the {len(MODEL)} bytes"):
        fetch(hub, wanted.file, wanted.place, "main")
    assert left_behind() == []


def test_a_header_without_end_reads_no_more_than_was_asked_for(server: HubServer, tinyedge: Any) -> None:
    server.endless = "/content/"
    assert tinyedge("pull", REPO)[0] == 11  # zeros are no GGUF file


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_compressed_answer_is_not_unpacked(server: HubServer, tinyedge: Any, coding: str) -> None:
    server.compressed = coding
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "compressed, which was not asked for" in err


def test_redirections_in_a_circle(server: HubServer, tinyedge: Any) -> None:
    server.circle = True
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "in circles" in err
    assert len(server.requests) < 12


def test_two_lengths_or_checksums_for_one_file(server: HubServer, tinyedge: Any) -> None:
    server.claimed_bytes = 1 << 40
    assert "two lengths or checksums" in tinyedge("pull", REPO)[2]
    server.claimed_bytes = None
    server.listing = lambda answer: (
        answer | {"siblings": [row | {"lfs": {"sha256": "a" * 64, "size": row["size"]}} for row in answer["siblings"]]}
    )
    assert "two lengths or checksums" in tinyedge("pull", REPO)[2]


def test_a_split_model_says_so(server: HubServer, tinyedge: Any) -> None:
    server.repositories[REPO] = {f"tiny-Q4_K_M-0000{part}-of-00002.gguf": MODEL for part in (1, 2)}
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    assert "is split into several files, which tinyedge does not read" in err


def test_the_same_file_twice_at_once(server: HubServer, tinyedge: Any) -> None:
    server.slow = threading.Event()
    hub, wanted = find()
    worker = threading.Thread(target=fetch, args=(hub, wanted.file, wanted.place, "main"))
    worker.start()
    try:
        deadline = time.monotonic() + 20
        while not server.content_requests() and time.monotonic() < deadline:
            time.sleep(0.01)
        code, _out, err = tinyedge("pull", REPO)
        assert code == 28
        assert "another program is downloading tiny-Q4_K_M.gguf" in err
    finally:
        event, server.slow = server.slow, None
        event.set()
        worker.join()
    assert snapshot().read_bytes() == MODEL


def test_ctrl_c_leaves_nothing_under_the_files_name(server: HubServer) -> None:
    server.slow = threading.Event()
    command = [sys.executable, "-m", "tinyedge", "pull", REPO]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 60
    folder = hub_folder()
    while time.monotonic() < deadline and not any(part.bytes for part in partials(folder)):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=30)
    server.slow.set()
    assert process.returncode == 130, err
    assert err.splitlines()[-2:] == ["what has arrived stays: the same command goes on from there", "interrupted"]
    assert not snapshot().exists()
    (partial,) = partials(folder)
    assert partial.bytes > 0


def test_without_huggingface_hub_it_says_what_to_install(tinyedge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _out, err = tinyedge("pull", REPO)
    assert code == 28
    remedy = 'pip install "huggingface_hub>=1.0,<3" "filelock>=3.12"'
    assert err == f"error: huggingface_hub is not installed, which downloads need; {remedy}\n"
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    monkeypatch.setitem(sys.modules, "filelock", None)
    assert tinyedge("pull", REPO)[::2] == (28, f"error: filelock is not installed, which downloads need; {remedy}\n")


def test_what_it_says_to_install_is_what_the_project_asks_for() -> None:
    pyproject = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^hub = (\[.*\])$", pyproject, re.MULTILINE)
    assert listed is not None
    assert sorted(package.replace("_", "-") for package in PACKAGES) == sorted(json.loads(listed[1]))


def test_a_name_that_cannot_be_on_the_hub_is_no_failed_download(server: HubServer, tinyedge: Any) -> None:
    code, _out, err = tinyedge("pull", "tinylama")
    assert (code, server.requests) == (16, [])
    assert "nor a short name; try tinyllama" in err


def test_help_imports_nothing_of_the_hub() -> None:
    program = (
        "import sys; sys.argv = ['tinyedge', 'pull', '--help']\n"
        "from tinyedge.cli.app import main\n"
        "try: main()\n"
        "finally: print([name for name in sys.modules if name.startswith(('huggingface_hub', 'httpx', 'tinyedge.hub'))])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.splitlines()[-1] == "[]"
