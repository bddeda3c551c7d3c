"""Talking to an Ollama server: plain HTTP with bounded answers and no redirects, proxies or retries."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from time import monotonic
from typing import IO, Any
from urllib.parse import urlsplit

from tinyedge.errors import PeerError
from tinyedge_bench.peers.peer import quoted

DEFAULT = "127.0.0.1:11434"
_MOST_ANSWER = 4 << 20  # the text of an answer, and nothing more
_JSON = {"Content-Type": "application/json"}
_WHERE = "start it with `ollama serve`, set OLLAMA_HOST, or leave --peer out"


class OllamaServer:
    """The server at `address`, written as in OLLAMA_HOST: HOST, HOST:PORT or http(s)://HOST:PORT. Raises PeerError."""

    def __init__(self, address: str) -> None:
        scheme, separator, rest = address.strip().rpartition("://")
        if separator and scheme not in ("http", "https"):
            raise PeerError(f"OLLAMA_HOST names something else than http or https: {quoted(address)}", _WHERE)
        try:
            parts = urlsplit(f"//{rest}")
            port = parts.port
        except ValueError as error:
            raise PeerError(f"OLLAMA_HOST is not an address: {quoted(address)}", _WHERE) from error
        host = parts.hostname or "127.0.0.1"
        # Those two are addresses to listen at, which is what else the variable is for.
        self.host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self._path = parts.path.rstrip("/")
        self._port = port or ({"http": 80, "https": 443}[scheme] if separator else 11434)
        self._connection = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection

    @property
    def is_here(self) -> bool:
        """Whether the address is this machine's own."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    def status(self, method: str, path: str, question: Mapping[str, Any] | None, timeout_s: float) -> int:
        """The status code that it answers with. Raises PeerError for nonsense, silence, and no server."""
        body = None if question is None else json.dumps(question).encode()
        return self._exchange(method, path, body, _JSON, timeout_s)[0]

    def ask(self, method: str, path: str, question: Mapping[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        """The object it answers. Raises PeerError for a refusal, nonsense, silence, and no server."""
        body = None if question is None else json.dumps(question).encode()
        status, answer = self._exchange(method, path, body, _JSON, timeout_s)
        if not answer and status == 200:
            return {}
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise PeerError(f"the server at {self._name} answered something else than JSON to {path}", _WHERE) from error
        if not isinstance(value, dict):
            raise PeerError(f"the server at {self._name} answered something else than an object to {path}", _WHERE)
        if status >= 300 or "error" in value:
            raise PeerError(f"ollama refused {path} (status {status}): {quoted(str(value.get('error', '')))}", _WHERE)
        return value

    def upload(self, path: str, file: IO[bytes], size: int, timeout_s: float) -> None:
        """Sends a file as the body. Raises PeerError."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        status, answer = self._exchange("POST", path, file, headers, timeout_s)
        if status not in (200, 201):
            words = quoted(answer.decode("utf-8", "replace"))
            raise PeerError(f"ollama did not take the file (status {status}): {words}", _WHERE)

    @property
    def _name(self) -> str:
        return quoted(f"{self.host}:{self._port}")

    def _exchange(
        self, method: str, path: str, body: bytes | IO[bytes] | None, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, bytes]:
        """Status and body, all of it within `timeout_s`, however slowly a server lets bytes trickle."""
        connection = self._connection(self.host, self._port, timeout=timeout_s)
        started = monotonic()
        try:
            connection.connect()
            with _cut_after(timeout_s, connection.sock):
                connection.request(method, self._path + path, body, dict(headers))
                response = connection.getresponse()
                status, answer = response.status, response.read(_MOST_ANSWER + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, TimeoutError) or monotonic() - started >= timeout_s:
                raise self._silent(path, timeout_s) from error
            raise self._broken(error) from error
        finally:
            connection.close()
        if monotonic() - started >= timeout_s:
            raise self._silent(path, timeout_s)
        if len(answer) > _MOST_ANSWER:
            raise PeerError(f"the server at {self._name} answered {path} with more than {_MOST_ANSWER >> 20} MiB", _WHERE)
        return status, answer

    def _silent(self, path: str, timeout_s: float) -> PeerError:
        return PeerError(f"the server at {self._name} did not answer {path} within {timeout_s:.0f} s", _WHERE)

    def _broken(self, error: Exception) -> PeerError:
        if isinstance(error, OSError):
            return PeerError(f"no ollama server answers at {self._name} ({quoted(error.strerror or str(error))})", _WHERE)
        return PeerError(f"the server at {self._name} does not speak HTTP: {quoted(repr(error))}", _WHERE)


@contextmanager
def _cut_after(seconds: float, connected: socket.socket) -> Iterator[None]:
    """Shuts the connection down when the block takes longer."""

    def cut() -> None:
        with suppress(OSError):  # closed already
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def configured_server() -> OllamaServer:
    """The server that OLLAMA_HOST names, or the usual one on this machine. Raises PeerError."""
    return OllamaServer(os.environ.get("OLLAMA_HOST") or DEFAULT)
