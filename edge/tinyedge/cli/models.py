"""Turns the MODEL argument of `run` and `bench` into a GGUF file: the file itself, or a checkpoint quantized into a cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tinyedge import __version__
from tinyedge.cli.output import byte_progress, format_bytes, format_seconds, status
from tinyedge.errors import ModelNotFoundError, OutputError

if TYPE_CHECKING:
    from tinyedge.model_facts import ModelFacts

CACHE_TYPE = "Q4_K_M"

_SIDE_FILES = ("*.json", "*.jinja", "tokenizer.model")  # what a GGUF file takes from beside the weights


def resolve_model(argument: str, *, quiet: bool = False) -> Path:
    """The GGUF file that `argument` names: a GGUF file, a checkpoint (quantized once, then cached), or `demo`.

    Says on stderr what it quantizes unless `quiet`. Raises ModelNotFoundError when there is nothing of that name.
    """
    path = Path(argument).expanduser()
    if argument == "demo" and not path.exists():
        return quantized(demo_checkpoint(), "the demo model", quiet=quiet)
    if not path.exists():
        raise ModelNotFoundError(f"{argument} does not exist")
    if path.is_dir() or not _claims_gguf(path):
        return quantized(path, str(path), quiet=quiet)
    return path


def checked_facts(path: Path) -> ModelFacts:
    """The facts of the GGUF file at `path`, after every check that must come before llama.cpp sees it.

    A family that the checks in Python do not cover completely is tried in a child process once. Raises GGUFError or
    UnsupportedArchitectureError.
    """
    from tinyedge.gguf_file import read_gguf
    from tinyedge.model_facts import check_runnable, describe_model

    gguf = read_gguf(path)
    check_runnable(gguf)
    facts = describe_model(gguf)
    if facts.architecture != "llama":  # what `probe` would do nothing for is not worth its imports
        from tinyedge.model_probe import probe

        probe(gguf, cache_folder())
    return facts


def demo_checkpoint() -> Path:
    """The folder of the small checkpoint that comes with the package."""
    from importlib.resources import files

    folder = Path(str(files("tinyedge") / "demo"))
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError("this installation has no demo checkpoint", "install tinyedge again")
    return folder


def quantized(source: Path, title: str, *, quiet: bool = False) -> Path:
    """The cached Q4_K_M file of the checkpoint at `source`, made now if it is not there or out of date."""
    from tinyedge_quantize.checkpoint import weight_paths

    weights = weight_paths(source)
    output = cache_folder() / f"{(source.resolve().stem or 'model')[:60]}-{_key(weights)}-{CACHE_TYPE}.gguf"
    if output.is_file():
        return output
    from tinyedge_quantize.convert import convert

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the cache folder {output.parent} cannot be made ({error.strerror})",
            "set XDG_CACHE_HOME to a folder you can write",
        ) from error
    if not quiet:
        status(f"quantizing {title} to {CACHE_TYPE} into {output}")
    with byte_progress("quantizing", quiet=quiet) as bar:
        report = convert(source, output, CACHE_TYPE, progress=bar)
    if not quiet:
        status(
            f"quantized {format_bytes(report.source_bytes)} to {format_bytes(report.bytes)} in {format_seconds(report.seconds)}"
        )
    return output


def cache_folder() -> Path:
    """Where quantized models are kept: XDG_CACHE_HOME or the system's usual place."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "tinyedge"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tinyedge"
    return Path.home() / ".cache" / "tinyedge"


def _claims_gguf(path: Path) -> bool:
    """True for a file with GGUF's magic or suffix; a damaged one is for `read_gguf` to explain."""
    from tinyedge.gguf_file import is_gguf

    return path.suffix.lower() == ".gguf" or is_gguf(path)


def _key(weights: list[Path]) -> str:
    """Changes when the weights or a file beside them change, or with the version of tinyedge."""
    import hashlib

    folder = weights[0].parent
    beside = sorted(path for pattern in _SIDE_FILES for path in folder.glob(pattern))
    digest = hashlib.sha256(f"{__version__} {CACHE_TYPE}".encode())
    for path in (*weights, *beside):
        facts = path.stat()
        digest.update(f"\0{path.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
