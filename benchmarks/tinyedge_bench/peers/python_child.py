"""A peer that is a Python library: it runs in a process of its own, with the interpreter and the packages of this one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tinyedge.errors import PeerError
from tinyedge_bench.peers.peer import quoted
from tinyedge_bench.peers.program import run_program

# Nothing is imported from the folder the command was called in, and what a library prints does not reach the answer.
_OPENING = """\
import sys
sys.path = [folder for folder in sys.path if folder]
import json, os
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
asked = json.loads(sys.argv[1])
"""
_CLOSING = """
print(json.dumps(answer), file=answers, flush=True)
"""


def installed_version(package: str, remedy: str) -> str:
    """The version of an installed package. Raises PeerError when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        raise PeerError(f"{package} is not installed", remedy) from None


def run_script(
    name: str, script: str, asked: Mapping[str, Any], timeout_s: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The `answer` that `script`, which finds its question in `asked`, makes. Raises PeerError as `run_program` does."""
    command = [sys.executable, "-c", _OPENING + script + _CLOSING, json.dumps(asked)]
    output = run_program(name, command, timeout_s, environment)
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise PeerError(f"{name} answered something else than JSON: {quoted(output)}") from error
    if not isinstance(answer, dict):
        raise PeerError(f"{name} answered something else than an object: {quoted(output)}")
    return answer


def seconds_of(name: str, answer: Mapping[str, Any]) -> float:
    """The answer's "seconds". Raises PeerError when there are none."""
    seconds = answer.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e6:
        raise PeerError(f"{name} gave no time: {quoted(str(seconds))}")
    return float(seconds)
