"""The files of a tokenizer folder, read with a size limit and checked types, so that what follows needs no try blocks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyedge.errors import TokenizerError
from tinyedge_quantize.strangers import read_limited, show

from .large_json import parse_tokenizer_json

# The largest tokenizer.json in common use (Gemma's 262144 pieces) is 33 MB.
MAX_JSON_BYTES = 256 * 2**20
MAX_MODEL_BYTES = 64 * 2**20
MAX_TEMPLATE_BYTES = 16 * 2**20

_GIT_LFS_POINTER = b"version https://git-lfs"


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file; TokenizerError when it is larger than `limit`, unreadable, or a Git LFS pointer."""
    try:
        data = read_limited(path, limit)
    except OSError as error:
        raise TokenizerError(f"{path.name} cannot be read ({error.strerror or error})") from error
    if data is None:
        raise TokenizerError(
            f"{path.name} is larger than {limit // 2**20} MiB, which no tokenizer is", "check that it is the right file"
        )
    if data.startswith(_GIT_LFS_POINTER):
        raise TokenizerError(f"{path.name} is a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`")
    return data


def read_text(path: Path, limit: int) -> str:
    """The file as text, line ends as Python's text mode gives them; TokenizerError when it is not UTF-8."""
    try:
        text = read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path.name} is not UTF-8 (byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, parse: Callable[[bytes], Any] = lambda data: json.loads(data.decode("utf-8"))) -> dict[str, Any]:
    """The JSON object in a file, as `parse` takes it from the bytes; TokenizerError when it is not one."""
    data = read_bytes(path, MAX_JSON_BYTES)
    try:
        value = parse(data)
    except RecursionError:
        raise TokenizerError(f"{path.name} is nested too deeply to be a tokenizer's file") from None
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path.name} is not UTF-8 (byte {error.start})") from None
    except ValueError as error:  # JSONDecodeError, and numbers of more digits than Python converts
        raise TokenizerError(f"{path.name} is not valid JSON ({error})") from None
    return as_dict(value, path.name)


def as_dict(value: Any, what: str) -> dict[str, Any]:
    """`value` when it is a JSON object."""
    if not isinstance(value, dict):
        raise wrong(value, "an object", what)
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """`value` when it is a JSON array."""
    if not isinstance(value, list):
        raise wrong(value, "a list", what)
    return value


def as_text(value: Any, what: str) -> str:
    """`value` when it is a string that UTF-8 can hold (JSON escapes can spell half a surrogate pair)."""
    if not isinstance(value, str):
        raise wrong(value, "text", what)
    check_utf8(value, what)
    return value


def as_bool(value: Any, what: str) -> bool:
    """`value` when it is true or false."""
    if not isinstance(value, bool):
        raise wrong(value, "true or false", what)
    return value


def as_token_id(value: Any, what: str) -> int:
    """`value` when it is an integer that can be a token id: not negative, below 2**31."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise wrong(value, "a token id", what)
    return value


def check_utf8(text: str, what: str) -> None:
    """Raises TokenizerError for text with a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenizerError(f"{what} is {show(text)}, which has no UTF-8 form") from None


def wrong(value: Any, expected: str, what: str) -> TokenizerError:
    """The error for a value of the wrong type or range."""
    return TokenizerError(f"{what} is {show(value)} where {expected} is needed")


class TokenizerFolder:
    """The JSON files of one checkpoint folder, each read at most once."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config

    @cached_property
    def tokenizer_json(self) -> dict[str, Any] | None:
        """tokenizer.json, or None when there is none; in a large one `merges` of the model are `Merges`, not a list."""
        path = self.path / "tokenizer.json"
        return read_json(path, parse_tokenizer_json) if path.is_file() else None

    @cached_property
    def tokenizer_config(self) -> dict[str, Any] | None:
        """tokenizer_config.json, or None when there is none."""
        return self._optional("tokenizer_config.json")

    @cached_property
    def added_tokens_json(self) -> dict[str, Any] | None:
        """added_tokens.json (text to id, as slow tokenizers wrote it), or None when there is none."""
        return self._optional("added_tokens.json")

    def added_tokens_decoder(self) -> dict[int, dict[str, Any]]:
        """The added tokens that tokenizer_config.json describes, by id, each with a checked `content`."""
        what = "added_tokens_decoder in tokenizer_config.json"
        described = (self.tokenizer_config or {}).get("added_tokens_decoder")
        tokens: dict[int, dict[str, Any]] = {}
        for key, value in as_dict({} if described is None else described, what).items():
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise wrong(key, "a token id", f"a key of {what}")
            token_id = as_token_id(int(key), f"a key of {what}")
            if token_id in tokens:
                raise TokenizerError(f"{what} has two entries for id {token_id}")
            token = as_dict(value, f"token {key} of {what}")
            as_text(token.get("content"), f"the content of token {key} of {what}")
            tokens[token_id] = token
        return tokens

    def _optional(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return read_json(path) if path.is_file() else None
