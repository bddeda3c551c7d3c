"""Ollama beside us, against a server that speaks the API as Ollama documents it (docs/api.md).

Ollama itself is not a package that a test can install, so what is proven here is what we send (the same bytes, prompts of
exactly the case's tokens, no prompt twice), the arithmetic on the durations, and that nothing is left behind.
"""

from __future__ import annotations

import hashlib
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tinyedge.errors import PeerError
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import ModelFacts, describe_model
from tinyedge.native.model import Model
from tinyedge_bench.peers import ollama, ollama_server, open_peer
from tinyedge_bench.peers.ollama_server import OllamaServer
from tinyedge_bench.speed.cases import Case
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

PROMPT_NS, TOKEN_NS = 1_000_000, 3_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(demo_tokenizer().parent, tmp_path_factory.mktemp("peers") / "demo.gguf").path


@pytest.fixture(scope="module")
def facts(model: Path) -> ModelFacts:
    return describe_model(read_gguf(model))


class Double(ThreadingHTTPServer):
    """Documented endpoints over models that take a set time per token: of a prompt only what is not in the cache already."""

    daemon_threads = True

    def __init__(self, tokenizer: Model) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokenizer = tokenizer
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, str] = {}
        self.loaded: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.cached: list[int] = []
        self.ends_after = 1 << 30
        self.changes: dict[str, Any] = {}

    def generate(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked.get("keep_alive") == 0:
            self.loaded.discard(asked["model"])
            return {"model": asked["model"], "response": "", "done": True, "done_reason": "unload"}
        self.loaded.add(asked["model"])
        self.asked.append(asked)
        tokens = self.tokenizer.tokenize(asked["prompt"])
        shared = next((i for i, (a, b) in enumerate(zip(tokens, self.cached, strict=False)) if a != b), 0)
        self.cached = tokens
        count = min(asked["options"]["num_predict"], self.ends_after)
        return {
            "model": asked["model"],
            "response": "x" * count,
            "done": True,
            "prompt_eval_count": len(tokens),
            "prompt_eval_duration": (len(tokens) - max(0, shared - 1)) * PROMPT_NS,
            "eval_count": count,
            "eval_duration": (count - 1) * TOKEN_NS,
        } | self.changes


class _Handler(BaseHTTPRequestHandler):
    server: Double

    def _answer(self, status: int, value: dict[str, Any] | None = None) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.rpartition("/")[2] in self.server.blobs else 404)

    def do_GET(self) -> None:
        running = [{"name": f"{name}:latest", "size_vram": 0} for name in self.server.loaded]
        self._answer(200, {"version": "0.5.13"} if self.path == "/api/version" else {"models": running})

    def do_DELETE(self) -> None:
        known = self.server.models.pop(json.loads(self._body())["model"], None)
        self._answer(200 if known else 404)

    def do_POST(self) -> None:
        body, digest = self._body(), self.path.rpartition("/")[2]
        if self.path.startswith("/api/blobs/"):
            if digest != "sha256:" + hashlib.sha256(body).hexdigest():
                return self._answer(400, {"error": "digest mismatch"})
            self.server.blobs[digest] = body
            return self._answer(201)
        asked = json.loads(body)
        if self.path == "/api/create":
            (digest,) = asked["files"].values()
            if digest not in self.server.blobs:
                return self._answer(400, {"error": "no such blob"})
            self.server.models[asked["model"]] = digest
            return self._answer(200, {"status": "success"})
        if asked["model"] not in self.server.models:
            return self._answer(404, {"error": f"model '{asked['model']}' not found"})
        return self._answer(200, self.server.generate(asked))

    def log_message(self, *_: object) -> None:
        """Nothing to stderr."""


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def double(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    tokenizer = Model(model)
    server = Double(tokenizer)
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_address[1]}")
    with _serving(server):
        yield server
    tokenizer.close()


def test_it_is_given_the_same_file_and_keeps_nothing(model: Path, facts: ModelFacts, double: Double) -> None:
    peer = open_peer("ollama", model, facts)
    assert (peer.name, peer.version, list(peer.notes)) == ("ollama", "0.5.13", [])
    assert list(double.blobs.values()) == [model.read_bytes()]
    assert [name.startswith("tinyedge-bench-") for name in double.models] == [True]
    peer.close()
    peer.close()
    assert (double.models, list(peer.notes)) == ({}, [])


@pytest.mark.parametrize(
    ("case", "prompt", "predict", "nanoseconds"),
    [
        (Case(prompt=64, generate=0, threads=2), 64, 1, 64 * PROMPT_NS),
        (Case(prompt=0, generate=16, threads=1), 2, 17, 16 * TOKEN_NS),
        (Case(prompt=0, generate=16, depth=100, threads=1), 100, 17, 16 * TOKEN_NS),
        (Case(prompt=32, generate=8, threads=4), 32, 9, 32 * PROMPT_NS + 8 * TOKEN_NS),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_prompts_have_the_cases_tokens_and_durations_are_the_servers(
    model: Path, facts: ModelFacts, double: Double, case: Case, prompt: int, predict: int, nanoseconds: int
) -> None:
    peer = open_peer("ollama", model, facts)
    assert peer.supports(case) is None
    assert [peer.sample(case) for _ in range(3)] == pytest.approx([nanoseconds / 1e9] * 3)
    timed = double.asked[1::2]
    assert [len(double.tokenizer.tokenize(asked["prompt"])) for asked in timed] == [prompt] * 3
    assert len({asked["prompt"] for asked in double.asked}) == 6
    for asked in timed:
        assert (asked["raw"], asked["stream"]) == (True, False)
        options = asked["options"]
        assert (options["num_predict"], options["num_thread"], options["num_gpu"]) == (predict, case.threads, 0)
        assert options["num_ctx"] >= prompt + case.generate
    assert (double.loaded, list(peer.notes)) == (set(), [])
    peer.close()


def test_a_model_that_ends_early_is_timed_by_the_tokens_that_came(model: Path, facts: ModelFacts, double: Double) -> None:
    double.ends_after = 5
    peer = open_peer("ollama", model, facts)
    assert peer.sample(Case(prompt=0, generate=16, threads=1)) == pytest.approx(16 * TOKEN_NS / 1e9)
    assert list(peer.notes) == ["ollama's model ended after fewer tokens than 16; time per token is that of those"]
    double.ends_after = 1
    with pytest.raises(PeerError, match="ended its text at once in 3 attempts"):
        peer.sample(Case(prompt=0, generate=16, threads=1))
    peer.close()


def test_another_count_of_prompt_tokens_is_scaled_and_said(model: Path, facts: ModelFacts, double: Double) -> None:
    double.changes = {"prompt_eval_count": 80, "prompt_eval_duration": 80 * PROMPT_NS}
    peer = open_peer("ollama", model, facts)
    assert peer.sample(Case(prompt=64, generate=0, threads=1)) == pytest.approx(0.064)
    assert list(peer.notes) == ["ollama read 80 tokens for a prompt of 64; its time is scaled to 64"]
    peer.close()


def test_cases_that_ollama_does_not_have_are_named(model: Path, facts: ModelFacts, double: Double) -> None:
    peer = open_peer("ollama", model, facts)
    assert "one sequence only" in str(peer.supports(Case(prompt=8, generate=0, threads=1, sequences=2)))
    assert "KV cache when its server starts" in str(peer.supports(Case(prompt=8, generate=0, threads=1, kv_type="Q8_0")))
    assert "before a prompt that is timed" in str(peer.supports(Case(prompt=8, generate=0, depth=8, threads=1)))
    with pytest.raises(PeerError, match="ollama ran the model on the CPU"):
        peer.sample(Case(prompt=8, generate=0, threads=1, backend="cuda"))
    assert double.loaded == set()
    peer.close()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt_eval_count": None}, "did not say how many tokens"),
        ({"prompt_eval_count": True}, "did not say how many tokens"),
        ({"prompt_eval_duration": 0}, "gave no prompt_eval_duration"),
        ({"prompt_eval_duration": "1e9"}, "gave no prompt_eval_duration"),
        ({"prompt_eval_duration": -5}, "gave no prompt_eval_duration"),
        ({"eval_count": 1 << 40}, "ended its text at once"),
        ({"eval_duration": 10**30}, "gave no eval_duration"),
        ({"error": "out of \x1b[31mmemory\n"}, "refused /api/generate (status 200): out of  [31mmemory"),
    ],
)
def test_numbers_that_cannot_be_are_one_sentence(
    model: Path, facts: ModelFacts, double: Double, changes: dict[str, Any], problem: str
) -> None:
    double.changes = changes
    peer = open_peer("ollama", model, facts)
    with pytest.raises(PeerError) as caught:
        peer.sample(Case(prompt=8, generate=8, threads=1))
    assert problem in caught.value.problem
    assert double.loaded == set()
    assert caught.value.problem.isprintable()
    peer.close()
    assert double.models == {}


def test_an_interrupt_while_the_model_is_made_leaves_nothing(
    model: Path, facts: ModelFacts, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = OllamaServer.ask

    def interrupted(server: OllamaServer, method: str, path: str, *rest: Any) -> dict[str, Any]:
        answer = ask(server, method, path, *rest)
        if path == "/api/create":
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(OllamaServer, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_peer("ollama", model, facts)
    assert double.models == {}


def test_what_could_not_be_removed_is_said(model: Path, facts: ModelFacts, double: Double) -> None:
    peer = open_peer("ollama", model, facts)
    name = next(iter(double.models))
    double.shutdown()
    double.server_close()
    peer.close()
    assert list(peer.notes) == [f"ollama could not be told to remove what it was given: ollama rm {name}"]


def test_ctrl_c_is_not_hidden_by_a_server_that_hangs_too(
    model: Path, facts: ModelFacts, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = open_peer("ollama", model, facts)

    def interrupted(*_: Any) -> dict[str, Any]:
        double.shutdown()
        double.server_close()
        raise KeyboardInterrupt

    monkeypatch.setattr(OllamaServer, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        peer.sample(Case(prompt=8, generate=8, threads=1))
    peer.close()
    assert [note.partition(" ")[0] for note in peer.notes] == ["ollama", "ollama"]


@pytest.mark.parametrize(
    ("address", "host", "port", "here"),
    [
        ("127.0.0.1:11434", "127.0.0.1", 11434, True),
        ("0.0.0.0", "127.0.0.1", 11434, True),
        (":8080", "127.0.0.1", 8080, True),
        ("http://localhost:1234/", "localhost", 1234, True),
        ("[::1]:99", "::1", 99, True),
        ("https://box.example", "box.example", 443, False),
        ("http://192.168.1.2", "192.168.1.2", 80, False),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(address: str, host: str, port: int, here: bool) -> None:
    server = OllamaServer(address)
    assert (server.host, server._port, server.is_here) == (host, port, here)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://x", "http://x:99999", "http://[::1", "x:port"])
def test_an_address_that_is_none_is_one_sentence(address: str) -> None:
    with pytest.raises(PeerError, match=r"OLLAMA_HOST (names|is not)"):
        OllamaServer(address)


def _raw(answer: Callable[[socketserver.StreamRequestHandler], None]) -> socketserver.BaseServer:
    """A server that is no Ollama."""

    class Stranger(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            with suppress(BrokenPipeError, ConnectionResetError):
                answer(self)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    return Server(("127.0.0.1", 0), Stranger)


def _trickle(handler: socketserver.StreamRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def _says(answer: bytes, status: str = "200 OK") -> Callable[[socketserver.StreamRequestHandler], None]:
    head = f"HTTP/1.1 {status}\r\nLocation: file:///etc/passwd\r\nConnection: close\r\n\r\n"
    return lambda handler: handler.wfile.write(head.encode() + answer) and None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n"), "does not speak HTTP"),
        (_says(b"<html>"), "answered something else than JSON to /api/version"),
        (_says(b"[" * 100_000), "answered something else than JSON to /api/version"),
        (_says(b"[1]"), "answered something else than an object to /api/version"),
        (_says(b" " * (5 << 20)), "with more than 4 MiB"),
        (_says(b"{}", "302 Found"), "refused /api/version (status 302)"),
        (_says(b'{"error": "\\u001b[2J full"}', "500 Oops"), "refused /api/version (status 500): [2J full"),
        (lambda _: None, "no ollama server answers"),
        (_trickle, "did not answer /api/version within 1 s"),
        (lambda _: time.sleep(3), "did not answer /api/version within 1 s"),
    ],
)
def test_a_server_that_is_no_ollama_is_one_sentence(
    model: Path,
    facts: ModelFacts,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[socketserver.StreamRequestHandler], None],
    problem: str,
) -> None:
    monkeypatch.setattr(ollama, "_SHORT_S", 1.0)
    server = _raw(answer)
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_address[1]}")
    started = time.monotonic()
    with _serving(server), pytest.raises(PeerError) as caught:
        open_peer("ollama", model, facts)
    assert problem in caught.value.problem
    assert caught.value.problem.isprintable()
    assert time.monotonic() - started < 3


def test_a_server_that_is_not_there_is_one_sentence(model: Path, facts: ModelFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    server = _raw(lambda _: None)
    port = server.server_address[1]
    server.server_close()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    with pytest.raises(PeerError, match=rf"no ollama server answers at 127.0.0.1:{port} \(Connection refused\); start it"):
        open_peer("ollama", model, facts)
    assert ollama_server.DEFAULT == "127.0.0.1:11434"
