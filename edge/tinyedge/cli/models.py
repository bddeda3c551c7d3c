"""Turns the MODEL argument of `run` and `bench` into a GGUF file: the file itself, or a checkpoint quantized into a cache."""

from __future__ import annotations

from pathlib import Path

import typer

from tinyedge import __version__
from tinyedge.cache import CACHE_REMEDY, cache_folder
from tinyedge.cli.output import byte_progress, format_bytes, format_seconds, printable, status
from tinyedge.errors import GGUFError, ModelNotFoundError, OutputError

CACHE_TYPE = "Q4_K_M"

# What a GGUF file takes from beside the weights.
_SIDE_FILES = (
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "tokenizer.model",
    "merges.txt",
    "model_config.yaml",
    "README.md",
)


def resolve_model(argument: str, *, quiet: bool = False, type_name: str = CACHE_TYPE) -> Path:
    """The GGUF file that `argument` names: a GGUF file, a checkpoint (quantized once, then cached), a pulled model, or `demo`.

    `type_name` is what a checkpoint is quantized to. Says on stderr what it quantizes unless `quiet`. Raises ModelNotFoundError
    when there is nothing of that name.
    """
    path = named_path(argument, "MODEL")
    if path is None:
        return quantized(demo_checkpoint(), "the demo model", quiet=quiet, type_name=type_name)
    if path.is_dir() or not _claims_gguf(path):
        return quantized(path, str(path), quiet=quiet, type_name=type_name)
    return path


def named_path(argument: str, metavar: str) -> Path | None:
    """The existing path that `argument` names, None for `demo` where there is no file of that name.

    A name of the hub (`tinyllama`, ORG/NAME:TYPE) means its file in the hub's cache; the network is never asked. Raises
    ModelNotFoundError when there is nothing, and a usage error when `argument` is empty.
    """
    if not argument:
        raise typer.BadParameter("an empty name; give a file, a folder, or `demo`", param_hint=metavar)
    try:
        path = Path(argument).expanduser()
    except RuntimeError:  # ~name of nobody
        path = Path(argument)
    try:
        path.stat()
    except FileNotFoundError:
        if argument == "demo":
            return None
        from tinyedge.hub.cache import resolve

        return resolve(argument)
    except OSError as error:
        raise ModelNotFoundError(f"{argument} cannot be opened ({error.strerror})") from error
    return path


def demo_checkpoint() -> Path:
    """The folder of the small checkpoint that comes with the package."""
    from importlib.resources import files

    folder = Path(str(files("tinyedge") / "demo"))
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError("this installation has no demo checkpoint", "install tinyedge again")
    return folder


def quantized(source: Path, title: str, *, quiet: bool = False, type_name: str = CACHE_TYPE) -> Path:
    """The cached file of the checkpoint at `source` in that type, made now if it is not there or out of date."""
    from tinyedge_quantize.checkpoint import open_checkpoint, weight_paths

    weights = weight_paths(source)
    output = cache_folder() / f"{(source.resolve().stem or 'model')[:60]}-{_key(weights)}-{type_name}.gguf"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the cache folder {output.parent} cannot be made ({error.strerror})",
            CACHE_REMEDY,
        ) from error
    if _is_whole(output):
        return output
    from tinyedge_quantize.convert import convert

    open_checkpoint(source).close()  # what is no checkpoint is refused before anything is said
    if not quiet:
        status(f"quantizing {title} to {type_name} into {output}")
    with byte_progress("quantizing", quiet=quiet) as bar:
        report = convert(source, output, type_name, progress=bar)
    if not quiet:
        status(
            f"quantized {format_bytes(report.source_bytes)} to {format_bytes(report.bytes)} in {format_seconds(report.seconds)}"
        )
    return output


def _is_whole(output: Path) -> bool:
    """True when there is a GGUF file whose header is right and whose tensors all lie inside it; any other is removed."""
    from tinyedge.gguf_file import read_gguf

    try:
        read_gguf(output)
    except ModelNotFoundError:
        return False
    except GGUFError as error:
        status(f"the cached file is made anew: {printable(error.problem, 300)}")
        output.unlink()  # `convert` replaces nothing but GGUF files
        return False
    return True


def _claims_gguf(path: Path) -> bool:
    """True for a file with GGUF's magic or suffix; a damaged one is for `read_gguf` to explain."""
    from tinyedge.gguf_file import is_gguf

    return path.suffix.lower() == ".gguf" or is_gguf(path)


def _key(weights: list[Path]) -> str:
    """Changes when the weights or a file beside them change, or with the version of tinyedge or llama-cpp-python."""
    import hashlib

    from tinyedge.native.library import package_version

    folder = weights[0].parent
    beside = sorted(path for pattern in _SIDE_FILES for path in folder.glob(pattern) if path.is_file())
    digest = hashlib.sha256(f"{__version__} {package_version()}".encode())
    for path in (*weights, *beside):
        facts = path.stat()
        digest.update(f"\0{path.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
