"""Lets a child process run a model first, for families whose rules `check_runnable` does not know completely.

llama.cpp has 130 model families with a few hundred asserts among them. For `llama` all that can fail are checked in Python;
for another family a child loads the file and decodes a few tokens, and when it dies, this process has lost nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from tinyedge.cache import cache_folder
from tinyedge.errors import GGUFError, TinyEdgeError
from tinyedge.gguf_file import GGUFFile
from tinyedge.gguf_split import read_model
from tinyedge.model_facts import ModelFacts, check_runnable, describe_model
from tinyedge.native.library import package_version

CHECKED_COMPLETELY = ("llama",)
_SECONDS = 900  # a gigabyte from a slow SD card takes two minutes
_PROMPT = "a fact, 火 \x01 é\n"
# Isolated: a module in the current folder, which may be a downloaded model's, must not be imported.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tinyedge.model_probe import try_model; sys.exit(try_model(sys.argv[2]))"
)
_EXIT_REFUSED = 3


def runnable_facts(path: Path) -> ModelFacts:
    """The facts of the GGUF file at `path`, after every check that must come before llama.cpp sees it.

    A family that the checks in Python do not cover completely is tried in a child process once. Raises GGUFError or
    UnsupportedArchitectureError.
    """
    gguf = read_model(path)
    check_runnable(gguf)
    probe(gguf, cache_folder(needed=False))
    return describe_model(gguf)


def probe(gguf: GGUFFile, memory_folder: Path | None = None) -> None:
    """Raises GGUFError when running the model kills or hangs a child process; does nothing for a `llama` model.

    A file that has passed once is remembered in `memory_folder` until it or llama-cpp-python changes.
    """
    if gguf.metadata.get("general.architecture") in CHECKED_COMPLETELY:
        return
    import subprocess

    passed = memory_folder / "probed" / _key(gguf) if memory_folder else None
    if passed and passed.exists():
        return
    command = [sys.executable, "-I", "-c", _CHILD, json.dumps([path for path in sys.path if path]), str(gguf.path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise GGUFError(f"{gguf.path} made llama.cpp hang for {_SECONDS} seconds") from None
    if done.returncode not in (0, _EXIT_REFUSED):
        raise GGUFError(f"{gguf.path} makes llama.cpp crash (a child process that tried it ended with {done.returncode})")
    if done.returncode == 0 and passed:
        _remember(passed)


def _key(gguf: GGUFFile) -> str:
    facts = gguf.path.stat()
    text = f"{gguf.path.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}\0{package_version()}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _remember(passed: Path) -> None:
    """Leaves an empty file; where that cannot be done, the next start probes again."""
    try:
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()
    except OSError:
        return


def try_model(path: str) -> int:
    """Loads, tokenizes, decodes and detokenizes; the exit status of the child. What llama.cpp refuses is not our concern."""
    from tinyedge.native.context import Context, ContextSettings
    from tinyedge.native.model import Model

    try:
        with Model(path) as model, Context(model, ContextSettings(context=64, threads=1)) as context:
            tokens = model.tokenize(_PROMPT)[:32] or [0]
            context.decode_all(tokens)
            context.decode(tokens[-1])
            context.wait()
            for token in tokens:
                model.piece(token)
    except TinyEdgeError:
        return _EXIT_REFUSED
    return 0
