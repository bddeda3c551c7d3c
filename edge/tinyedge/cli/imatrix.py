"""`tinyedge imatrix`: what matters in a model, measured while it reads a text, for better small files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.imatrix_lines import describe_statistics, statistics_lines
from tinyedge.cli.option_groups import within
from tinyedge.cli.output import MAX_TOKENS, format_seconds, on_terminal, print_json, print_line, printable, status

if TYPE_CHECKING:
    from tinyedge.backends import LoadPlan
    from tinyedge_quantize.imatrix.calibrate import ChunkDone, Collection
    from tinyedge_quantize.imatrix.file import Imatrix

_EXAMPLES = """\b
Examples:
  tinyedge imatrix model-f16.gguf --text calibration.txt -o imatrix.gguf
  tinyedge imatrix demo --text story.txt --chunks 100 --ctx 256
  tinyedge imatrix --in-file a.gguf --in-file b.dat -o both.gguf
  tinyedge imatrix imatrix.gguf --show
"""
DEFAULT_OUTPUT = Path("imatrix.gguf")
_REPLACE = "name another file with -o, or give --overwrite to replace it"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What to collect and how; `chunks` and `context` None for what the text and the model have."""

    text: Path
    output: Path
    chunks: int | None
    context: int | None
    threads: int | None
    backend: str
    process_output: bool
    parse_special: bool
    save_every: int
    resume: bool
    quiet: bool


def imatrix(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A GGUF file, a checkpoint, a pulled name, or `demo`.", show_default=False),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="The text to read, like what the model will be used for.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write.", show_default="imatrix.gguf")
    ] = None,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, max=MAX_TOKENS, help="Most chunks to read.", show_default="all")
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", callback=within(16, MAX_TOKENS), help="Tokens per chunk.", show_default="512, or the model's context"
        ),
    ] = None,
    in_file: Annotated[
        list[Path] | None,
        typer.Option("--in-file", metavar="FILE", help="Add an imatrix that is there already, .gguf or .dat; several."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the statistics of each tensor and layer.")] = False,
    process_output: Annotated[bool, typer.Option("--process-output", help="Collect for output.weight too.")] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Take names of special tokens in the text for these.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Go on with what the output holds of the same, or begin anew.")
    ] = True,
    save_every: Annotated[int, typer.Option("--save-every", min=1, max=MAX_TOKENS, help="Chunks between two savings.")] = 10,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=512, help="CPU threads.", show_default="performance cores")
    ] = None,
    backend: Annotated[str, typer.Option("--backend", metavar="[auto|cpu|cuda|metal]", help="Where to run.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Measure which weights matter while a model reads a text, for `tinyedge quantize --imatrix`.

    Writes llama.cpp's imatrix format. Stopped, it goes on where it was when it is called again.
    """
    from tinyedge.native import log
    from tinyedge_quantize.imatrix.file import merge, read_imatrix, write_imatrix

    given = [] if in_file is None else list(in_file)
    if text is not None:
        if model is None:
            raise typer.BadParameter("give the model that is to read the text", param_hint="MODEL")
        log.set_verbose(verbose)
        wanted = _Wanted(
            text=text,
            output=output or DEFAULT_OUTPUT,
            chunks=chunks,
            context=ctx,
            threads=threads,
            backend=backend,
            process_output=process_output,
            parse_special=parse_special,
            save_every=save_every,
            resume=resume,
            quiet=json,
        )
        report = _collect(model, given, wanted)
        if show:
            report |= describe_statistics(read_imatrix(wanted.output))
        _tell(report, json=json, show=show)
        return
    if show and model is not None:
        given.insert(0, Path(model))
    elif model is not None or not given:
        raise typer.BadParameter("give a text for the model to read, or files to merge with --in-file", param_hint="--text")
    imatrices = [read_imatrix(path) for path in given]
    sizes = (each.chunk_size for each in imatrices)
    found = merge(imatrices, output or DEFAULT_OUTPUT, ctx or next(filter(None, sizes), 512))
    report = {}
    if output is not None or not show:
        _check_output(found.path, overwrite=not resume or any(_same_file(path, found.path) for path in given))
        write_imatrix(found, found.path)
        report = _describe(found) | {"merged": [str(path) for path in given]}
    _tell(report | (describe_statistics(found) if show else {}), json=json, show=show)


imatrix.__doc__ = f"{imatrix.__doc__}\n\n{_EXAMPLES}"


def _same_file(first: Path, second: Path) -> bool:
    return second.exists() and first.samefile(second)


def _check_output(path: Path, *, overwrite: bool) -> None:
    """Raises ImatrixError when `path` holds something that would be lost: anything at all, or with `overwrite` a model."""
    from tinyedge.errors import GGUFError, ImatrixError
    from tinyedge.gguf_file import read_gguf

    if not _is_there(path):
        return
    if not overwrite:
        raise ImatrixError(f"{path} is there already and would be lost", _REPLACE)
    try:
        names = [tensor.name for tensor in read_gguf(path).tensors]
    except GGUFError:  # `write_imatrix` says what is no GGUF file, and a damaged one is no loss
        return
    if names and not any(name.endswith(".in_sum2") for name in names):
        raise ImatrixError(f"{path} is a model and would be lost", "name another file with -o")


def _is_there(path: Path) -> bool:
    """Whether there is a file with something in it."""
    try:
        return path.stat().st_size > 0
    except OSError:  # `write_imatrix` says what is wrong with the path
        return False


def _collect(argument: str, in_files: list[Path], wanted: _Wanted) -> dict[str, Any]:
    """Collects into the output; the report. What is there of the same collection is gone on with."""
    from tinyedge.backends import Request, choose, this_machine
    from tinyedge.cli.load_options import tell
    from tinyedge.cli.models import resolve_model
    from tinyedge.engine import context_settings
    from tinyedge.model_identity import model_identity
    from tinyedge.model_probe import runnable_facts
    from tinyedge_quantize.imatrix.calibrate import Collection, collect_into, read_tokens
    from tinyedge_quantize.imatrix.importance import DEFAULT_CHUNK
    from tinyedge_quantize.output_file import check_room

    check_room(wanted.output, 0)
    there = _there(wanted.output) if wanted.resume else None
    if not wanted.resume:
        _check_output(wanted.output, overwrite=True)
    needed = wanted.chunks and max(wanted.chunks, Collection.chunks_in(there) if there else 0)
    path = resolve_model(argument, quiet=wanted.quiet, type_name="Q8_0")
    facts = runnable_facts(path)
    size = wanted.context or min(DEFAULT_CHUNK, facts.context or DEFAULT_CHUNK)
    request = Request(context=size, threads=wanted.threads, backend=wanted.backend, strict=True)
    plan = choose(facts, request, this_machine())
    collection = Collection(model_identity(path).fingerprint, size, wanted.process_output)
    _begin_with(collection, in_files)
    name = str(wanted.text).encode("utf-8", "replace").decode()  # a path may hold bytes that are no text
    began = perf_counter()
    if not wanted.quiet:
        tell(plan)
    with _loaded(path, plan) as model:
        tokens = read_tokens(model, wanted.text, size, needed, parse_special=wanted.parse_special)
        if there is not None:
            collection = collection.resumed(there, tokens)
        resumed = collection.chunks
        if resumed and not wanted.quiet:
            status(f"{printable(str(wanted.output))} has {resumed} chunks already: going on from there")
        steps = collect_into(
            wanted.output,
            name,
            model,
            tokens,
            collection,
            context_settings(plan),
            wanted.chunks,
            wanted.save_every,
        )
        with closing(steps), _progress(quiet=wanted.quiet) as advance:
            for done in steps:
                advance(done)
    return _describe(collection.imatrix(wanted.output, name)) | {
        "model": str(path),
        "text": name,
        "merged": [str(path) for path in in_files],
        "read_chunks": collection.chunks,
        "resumed_chunks": resumed,
        "perplexity": _finite(collection.perplexity),
        "perplexity_error": _finite(collection.perplexity_error),
        "seconds": round(perf_counter() - began, 3),
    }


def _begin_with(collection: Collection, in_files: list[Path]) -> None:
    import hashlib

    from tinyedge_quantize.imatrix.file import merge, read_imatrix

    if in_files:
        base = merge([read_imatrix(path) for path in in_files], in_files[0], collection.chunk_size)
        collection.begin_with(base, [hashlib.sha256(path.read_bytes()).hexdigest() for path in in_files])


def _there(output: Path) -> Imatrix | None:
    """The importance matrix that is in the output already."""
    from tinyedge.errors import ImatrixError
    from tinyedge_quantize.imatrix.file import read_imatrix

    if not _is_there(output):
        return None
    try:
        return read_imatrix(output)
    except ImatrixError as error:
        raise ImatrixError(f"the output is there already and cannot be gone on with: {error.problem}", _REPLACE) from None


@contextmanager
def _loaded(path: Path, plan: LoadPlan) -> Iterator[Any]:
    from tinyedge.native.model import Model

    device = plan.device.name if plan.backend != "cpu" else None
    with Model(path, device=device, gpu_layers=plan.gpu_layers, mmap=plan.mmap, mlock=plan.mlock) as model:
        yield model


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[ChunkDone], None]]:
    """A bar of chunks with the perplexity so far on stderr, on a terminal only. Yields what takes each chunk's report."""
    if quiet or not on_terminal():
        yield lambda _done: None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("chunks"),
        rich.TimeRemainingColumn(compact=True),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("collecting", total=None)

        def advance(done: ChunkDone) -> None:
            bar.update(
                task, completed=done.chunk, total=done.chunks, description=f"collecting, perplexity {done.perplexity:.4g}"
            )

        yield advance


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _describe(found: Imatrix) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "tensors": len(found.tensors),
        "chunks": found.chunks,
        "chunk_size": found.chunk_size,
        "datasets": list(found.datasets),
    }


def _tell(report: dict[str, Any], *, json: bool, show: bool) -> None:
    if json:
        print_json(report)
        return
    if show:
        for line in statistics_lines(report):
            print_line(line)
    if "path" in report:
        status(_line(report))


def _line(report: dict[str, Any]) -> str:
    """What was written, in one line for stderr."""
    line = (
        f"{printable(report['path'])}: {report['tensors']} tensors, {report['chunks']} chunks of {report['chunk_size']} tokens"
    )
    if "model" not in report:
        return f"{line}, merged from {len(report['merged'])} files"
    if report["perplexity"] is not None:
        line += f", perplexity {report['perplexity']:.4f}"
    if report["perplexity_error"] is not None:
        line += f" ± {report['perplexity_error']:.4f}"
    return f"{line}, in {format_seconds(report['seconds'])}"
