"""The connection to the Hugging Face hub: no answer longer than expected, no wait without end, one HubError per failure.

huggingface_hub gives the HTTP session (proxies, certificates), the addresses and the token. The bytes are read here: a
download by huggingface_hub 2 begins anew after every interruption, is not compared with its checksum, and ends when the
server wants it to.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar
from urllib.parse import quote

from tinyedge import __version__
from tinyedge.errors import HubError, OfflineError
from tinyedge.hub.names import ModelName, is_safe_file, nearest_names

# Waits in seconds before each new attempt after one that brought nothing.
RETRY_WAITS = (0.5, 1.0, 2.0, 4.0)
# The extra `hub` of pyproject.toml: what must be installed, as pip takes it.
PACKAGES = ("huggingface_hub>=1.0,<3", "filelock>=3.12")
TIMEOUT = 10.0  # for a connection, and between two pieces of an answer
_MAX_REDIRECTS = 8
_MAX_LISTING_BYTES = 32 << 20
_MAX_WAIT = 30.0  # what a server may ask for by Retry-After
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRUE = ("1", "ON", "YES", "TRUE")
_PASSING = (408, 425, 429, 500, 502, 503, 504)

_T = TypeVar("_T")


class BrokenConnectionError(HubError):
    """A failure that may pass: no connection, one that broke, a server that is out of order. `wait` is what it asks for."""

    def __init__(self, problem: str, remedy: str | None = None, wait: float = 0.0) -> None:
        super().__init__(problem, remedy)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository. `checksum` is the SHA-256 of its content, or git's SHA-1 if it is kept in git itself."""

    repo: str
    commit: str
    name: str
    bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Repository:
    """What the hub says about a repository at one commit."""

    repo: str
    commit: str
    files: tuple[RepoFile, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body has not been read: `start` is where in the file it begins, `checksum` what the hub says of it."""

    start: int
    total: int | None
    checksum: str | None
    body: Iterator[bytes]


def forbidden_by_environment() -> bool:
    """Whether HF_HUB_OFFLINE (or transformers' TRANSFORMERS_OFFLINE) forbids the network, as huggingface_hub reads them."""
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE


class Hub:
    """The hub at HF_ENDPOINT, huggingface.co by default. The token is HF_TOKEN or what `hf auth login` has stored.

    Raises OfflineError where the network is forbidden and HubError where huggingface_hub is not installed.
    """

    def __init__(self, *, offline: bool = False, pause: Callable[[float], None] = time.sleep) -> None:
        if offline or forbidden_by_environment():
            why = "--offline" if offline else "HF_HUB_OFFLINE"
            raise OfflineError(f"{why} forbids to ask the hub")
        self._hub, self._utils = _library()
        self._client: Any = self._utils.get_session()
        self._http: Any = import_module(type(self._client).__module__.partition(".")[0])  # httpx, or its successor
        self._pause = pause
        self.endpoint: str = (os.environ.get("HF_ENDPOINT") or self._hub.constants.ENDPOINT).rstrip("/")

    def repository(self, name: ModelName, revision: str = "main") -> Repository:
        """The files of a repository at a branch, tag or commit. Raises HubError."""
        if not is_safe_file(revision):
            raise HubError(f"{revision!r} cannot be a revision", "give a branch, a tag or a commit with --revision")
        url = f"{self.endpoint}/api/models/{quote(name.repo)}/revision/{quote(revision, safe='')}?blobs=true"
        text = self.retried(lambda: self._read(url, name.repo, f"revision {revision}"))
        try:
            return _repository(name.repo, json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise HubError(
                f"what {self.endpoint} says about {name.repo} is not the answer of a Hugging Face hub",
                "check HF_ENDPOINT, and that no login page of the network stands between",
            ) from error

    @contextmanager
    def open(self, file: RepoFile, start: int = 0, end: int | None = None) -> Iterator[Reply]:
        """The content of a file from byte `start`, before byte `end`. Raises HubError, BrokenConnectionError where it may pass.

        The reply may begin at 0 where the server knows no ranges, and its body may be of any length.
        """
        url = self._hub.hf_hub_url(file.repo, file.name, revision=file.commit, endpoint=self.endpoint)
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        with self._answer(url, headers, file.repo, file.name, listed=True) as (response, first):
            yield Reply(
                *_range(response, start),
                checksum=_etag(first.headers.get("X-Linked-Etag")),
                body=response.iter_raw(),
            )

    def retried(self, attempt: Callable[[], _T]) -> _T:
        """What `attempt` returns, tried again after each failure that may pass."""
        for wait in RETRY_WAITS:
            try:
                return attempt()
            except BrokenConnectionError as error:
                self._pause(max(wait, error.wait))
        return attempt()

    def pause_after(self, failures: int, error: BrokenConnectionError) -> None:
        """Waits before the next attempt after `failures` in a row; raises `error` when there were enough."""
        if failures > len(RETRY_WAITS):
            raise error
        self._pause(max(RETRY_WAITS[failures - 1], error.wait))

    def _read(self, url: str, repo: str, what: str) -> bytes:
        """A whole answer of reasonable length."""
        with self._answer(url, {}, repo, what, listed=False) as (response, _):
            text = bytearray()
            for piece in response.iter_raw():
                text += piece
                if len(text) > _MAX_LISTING_BYTES:
                    raise HubError(f"the hub's answer about {repo} has no end", "check HF_ENDPOINT")
            return bytes(text)

    @contextmanager
    def _answer(self, url: str, headers: Mapping[str, str], repo: str, what: str, *, listed: bool) -> Iterator[tuple[Any, Any]]:
        """The last answer of a chain of redirections and the first one, bodies unread; their failures as HubError."""
        try:
            sent = self._utils.build_hf_headers(library_name="tinyedge", library_version=__version__)
            # Compressed answers could be larger in memory than any limit that is set on what was received.
            sent |= {"Accept-Encoding": "identity", **headers}
            request = self._client.build_request("GET", url, headers=sent, timeout=TIMEOUT)
            first = None
            for _ in range(_MAX_REDIRECTS):
                response = self._client.send(request, stream=True, follow_redirects=False)
                first = response if first is None else first
                try:
                    request = response.next_request  # without the token where it leads to another host
                    if request is None:
                        self._check(response, repo, what, listed=listed)
                        yield response, first
                        return
                finally:
                    response.close()
            raise HubError(f"the hub redirects {what} of {repo} in circles", "try again later, or check HF_ENDPOINT")
        except (self._http.HTTPError, self._http.InvalidURL, self._http.StreamError, UnicodeError) as error:
            raise self._broken(error) from error

    def _check(self, response: Any, repo: str, what: str, *, listed: bool) -> None:
        """Raises HubError for an answer that is a refusal or is compressed against our wish.

        `listed` means that the hub has already told us about the repository.
        """
        status = response.status_code
        if status in (200, 206):
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise HubError(f"the hub sends {what} of {repo} compressed, which was not asked for", "check HF_ENDPOINT")
            return
        code, message = response.headers.get("X-Error-Code"), response.headers.get("X-Error-Message", "")
        token = self._hub.get_token()
        if status in _PASSING:
            wait = response.headers.get("Retry-After", "")
            busy = "asks us to wait" if status == 429 else "is out of order"
            raise BrokenConnectionError(
                f"the hub {busy} (HTTP {status})",
                "run the command again in a few minutes: it goes on where it stopped",
                min(float(wait), _MAX_WAIT) if _NUMBER.fullmatch(wait) else 0.0,
            )
        if status == 401 and "credentials" in message.lower():
            raise HubError(
                "the hub does not know your token", "make a new one at huggingface.co/settings/tokens: hf auth login"
            )
        if code == "GatedRepo" or status == 403 or (status == 401 and listed):
            has = "your token may not read it" if token else "this machine has no token"
            raise HubError(
                f"{repo} is gated: its owners let in who accepts their terms, and {has}",
                f"accept them at https://huggingface.co/{repo}, then log in with `hf auth login` or set HF_TOKEN",
            )
        if code == "RevisionNotFound":
            raise HubError(f"{repo} has no {what}", "leave --revision out, or look at its branches and commits on the hub")
        if code == "EntryNotFound" or (status == 404 and listed):
            raise HubError(f"{what} of {repo} is listed but not there", "try again later, or take another file")
        if status in (401, 404):
            private = "" if token else "; if it is private: hf auth login, or set HF_TOKEN"
            raise HubError(
                f"the hub has no repository {repo}",
                f"check the name{private}; short names are {', '.join(nearest_names(repo.partition('/')[2]))}",
            )
        raise HubError(f"the hub answers HTTP {status} to the request for {what} of {repo}", "try again later")

    def _broken(self, error: Exception) -> HubError:
        """The sentence for a failure of the connection. Its own words are shown where they cannot hold a token."""
        http, host = self._http, self.endpoint
        if isinstance(error, http.TimeoutException):
            return BrokenConnectionError(f"the hub sent nothing for {TIMEOUT:.0f} seconds")
        if isinstance(error, http.ConnectError):
            return BrokenConnectionError(f"{host} cannot be reached ({error})", "check the connection and HF_ENDPOINT")
        if isinstance(error, (http.ReadError, http.RemoteProtocolError, http.WriteError)):
            return BrokenConnectionError("the connection to the hub broke")
        return HubError(
            f"{host} cannot be asked ({type(error).__name__})", "check HF_ENDPOINT, HF_TOKEN and the proxy settings"
        )


def _library() -> tuple[Any, Any]:
    """huggingface_hub and its `utils`. Raises HubError where one of PACKAGES is missing, or too old for the session we use."""
    remedy = "pip install " + " ".join(f'"{package}"' for package in PACKAGES)
    try:
        hub = import_module("huggingface_hub")
        import_module("filelock")
    except ImportError as error:
        raise HubError(f"{error.name or 'huggingface_hub'} is not installed, which downloads need", remedy) from error
    if not hub.__version__.partition(".")[0].isdigit() or int(hub.__version__.partition(".")[0]) < 1:
        raise HubError(f"huggingface_hub {hub.__version__} is too old", remedy)
    return hub, import_module("huggingface_hub.utils")


def _repository(repo: str, answer: Any) -> Repository:
    """The hub's answer, with everything in it checked; files that have no size or no checksum are left out."""
    commit = answer["sha"]
    if not _COMMIT.fullmatch(commit):
        raise ValueError("no commit")
    files = []
    for row in answer["siblings"]:
        name, lfs = row["rfilename"], row.get("lfs") or {}
        size = lfs.get("size", row.get("size"))
        checksum = lfs.get("sha256") or row.get("blobId") or ""
        pattern = _SHA256 if lfs else _COMMIT
        if isinstance(name, str) and is_safe_file(name) and type(size) is int and size >= 0 and pattern.fullmatch(checksum):
            files.append(RepoFile(repo, commit, name, size, checksum))
    return Repository(repo, commit, tuple(files))


def _range(response: Any, start: int) -> tuple[int, int | None]:
    """The byte at which an answer begins, and how many the whole file has if it says so."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if _NUMBER.fullmatch(length) else None
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        raise HubError("the hub sends another part of the file than was asked for", "try again later, or check HF_ENDPOINT")
    return start, None if match[2] == "*" else int(match[2])


def _etag(value: str | None) -> str | None:
    """The checksum in an entity tag, None where it is none of the two kinds the hub uses."""
    text = (value or "").removeprefix("W/").strip('"').lower()
    return text if _SHA256.fullmatch(text) or _COMMIT.fullmatch(text) else None
