"""A server on this machine that speaks as much of the Hugging Face hub's API as downloads use, and misbehaves when asked to.

As the hub does it lists a repository under /api/models, redirects /REPO/resolve/COMMIT/FILE to a second host with the checksum
in X-Linked-Etag, and answers ranges there. The second host is `localhost`, the first `127.0.0.1`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    """A request that came: method, path, and headers with lower-case names."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def start(self) -> int | None:
        """Where the requested range begins, None without one."""
        text = self.headers.get("range", "")
        return int(text.removeprefix("bytes=").partition("-")[0]) if text else None


@dataclass
class HubServer:
    """What the server has and how it behaves; a test changes the fields at will, between two requests or before the first.

    cut_after: bytes after which a connection to the second host is broken, `cuts` times; after_cuts: the status that
    follows. sent: what is sent in place of a
    file's content. refusals: status and headers by the beginning of a path. listing: changes the listing before it is sent.
    """

    url: str = ""
    content_url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    in_git: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    cut_after: int | None = None
    cuts: int = 1 << 30
    after_cuts: int | None = None
    sent: dict[str, bytes] = field(default_factory=dict)
    refusals: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    refuse_times: int = 1 << 30
    listing: Callable[[dict[str, Any]], Any] = lambda answer: answer
    ranges: bool = True
    claimed_bytes: int | None = None
    endless: str | None = None
    compressed: str | None = None
    circle: bool = False
    slow: threading.Event | None = None

    def content_requests(self) -> list[Request]:
        return [request for request in self.requests if request.path.startswith("/content/")]


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_checksum(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve() -> Iterator[HubServer]:
    """A running server, gone afterwards."""
    hub = HubServer()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    port = server.server_address[1]
    hub.url, hub.content_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_arguments: Any) -> None:
        """A client that went away, which many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(Request(self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        try:
            for prefix, (status, headers) in hub.refusals.items():
                if path.startswith(prefix) and hub.refuse_times > 0:
                    hub.refuse_times -= 1
                    self._send(status, b"", headers)
                    return
            if hub.endless is not None and path.startswith(hub.endless):
                self._send_for_ever()
            elif path.startswith("/api/models/"):
                self._list(*path.removeprefix("/api/models/").partition("/revision/")[::2])
            elif path.startswith("/content/"):
                self._content(path.removeprefix("/content/"))
            elif "/resolve/" in path:
                repo, _, rest = path[1:].partition("/resolve/")
                self._redirect(repo, rest.partition("/")[2], path)
            else:
                self._send(404, b"")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _list(self, repo: str, revision: str) -> None:
        files = self.hub.repositories.get(repo)
        if files is None:
            self._send(401, b'{"error":"x"}', {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        if revision not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        rows = []
        for name, content in files.items():
            row: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_checksum(content)}
            if name not in self.hub.in_git:
                row["lfs"] = {"sha256": checksum(content), "size": len(content), "pointerSize": 134}
            rows.append(row)
        answer = self.hub.listing({"id": repo, "sha": COMMIT, "gated": False, "siblings": rows})
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _redirect(self, repo: str, name: str, path: str) -> None:
        content = self.hub.repositories.get(repo, {}).get(name)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        etag = git_checksum(content) if name in self.hub.in_git else checksum(content)
        facts = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        target = path if self.hub.circle else self.hub.content_url + quote(f"/content/{repo}/{name}")
        self._send(302, b"", {**facts, "Location": target})

    def _content(self, path: str) -> None:
        hub = self.hub
        repo, name = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
        content = hub.sent.get(name, hub.repositories[repo][name])
        start, end, status = 0, len(content), 200
        headers = {"ETag": '"of-the-second-host"'}
        total = hub.claimed_bytes if hub.claimed_bytes is not None else len(content)
        text = self.headers.get("Range")
        if text and hub.ranges:
            first, _, last = text.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last) + 1 if last else end, end), 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        body = content[start:end]
        if hub.compressed is not None:
            body, headers["Content-Encoding"] = gzip.compress(body), hub.compressed
        whole = not (text and text.split("-")[1])  # not the header, of which a part is asked for
        if hub.after_cuts is not None and whole and not hub.cuts:
            self._send(hub.after_cuts, b"")
            return
        if hub.cut_after is not None and whole and hub.cuts > 0:
            hub.cuts -= 1
            self._send(status, body, headers, only=hub.cut_after)
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
            return
        if hub.slow is not None and whole:
            self._send(status, body, headers, only=len(body) // 2)
            self.wfile.flush()
            hub.slow.wait(30)
            self.close_connection = True
            return
        self._send(status, body, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, only: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:only])

    def _send_for_ever(self) -> None:
        """A body without end, until the other side goes."""
        text, status = self.headers.get("Range"), 200
        headers: dict[str, str] = {}
        if text:
            start = int(text.removeprefix("bytes=").partition("-")[0])
            status, headers["Content-Range"] = 206, f"bytes {start}-{1 << 40}/*"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(bytes(1 << 20))
