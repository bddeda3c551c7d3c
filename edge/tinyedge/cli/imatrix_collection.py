"""Collecting for `tinyedge imatrix`: what is checked before, what is said meanwhile, and the report."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tinyedge.cli.imatrix_lines import decimal, describe, guessing_warning
from tinyedge.cli.output import on_terminal, printable, status
from tinyedge.cli.signals import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from tinyedge.backends import LoadPlan
    from tinyedge.model_facts import ModelFacts
    from tinyedge_quantize.imatrix.calibrate import ChunkDone, Collection
    from tinyedge_quantize.imatrix.file import Imatrix
    from tinyedge_quantize.imatrix.text import Text

_REPLACE = "name another file with -o, or give --overwrite to replace it"
_FOREIGN_OPTIONS = ("--kv", "--gpu-layers", "--batch")  # of `tinyedge run`, that errors recommend


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to collect and how; `chunks` and `context` None for what the text and the model have. A text `-` is stdin."""

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


def check_output(path: Path, *, overwrite: bool) -> None:
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


def collect(argument: str, in_files: list[Path], wanted: Wanted) -> dict[str, Any]:
    """Collects into the output; the report. What is there of the same collection is gone on with.

    Leaves with the usual exit code when it is interrupted, after saying how to go on.
    """
    from tinyedge.cli.load_options import tell
    from tinyedge.cli.models import resolve_model
    from tinyedge.engine import context_settings
    from tinyedge.model_identity import model_identity
    from tinyedge.model_probe import runnable_facts
    from tinyedge_quantize.imatrix.calibrate import Collection, collect_into
    from tinyedge_quantize.imatrix.importance import DEFAULT_CHUNK
    from tinyedge_quantize.imatrix.text import read_tokens
    from tinyedge_quantize.output_file import check_room

    text = _text(wanted.text)
    check_room(wanted.output, 0)
    there = _there(wanted.output) if wanted.resume else None
    if not wanted.resume:
        check_output(wanted.output, overwrite=True)
    needed = wanted.chunks and max(wanted.chunks, Collection.chunks_in(there) if there else 0)
    path = resolve_model(argument, quiet=wanted.quiet, type_name="Q8_0")
    facts = runnable_facts(path)
    size = wanted.context or min(DEFAULT_CHUNK, facts.context or DEFAULT_CHUNK)
    plan = _plan(facts, size, wanted)
    collection = Collection(model_identity(path).fingerprint, size, wanted.process_output)
    _begin_with(collection, in_files, path)
    began = perf_counter()
    if not wanted.quiet:
        tell(plan)
        for note in _notes(facts, wanted):
            status(f"note: {note}")
    with _loaded(path, plan) as model:
        tokens = read_tokens(model, text, size, needed, parse_special=wanted.parse_special)
        if there is not None:
            collection = collection.resumed(there, tokens)
        resumed = collection.chunks
        total = min(len(tokens) // size, wanted.chunks or len(tokens))
        if resumed and not wanted.quiet:
            status(_already(wanted, resumed, total))
        steps = collect_into(
            wanted.output,
            text.name,
            model,
            tokens,
            collection,
            context_settings(plan),
            wanted.chunks,
            wanted.save_every,
        )
        with _interruptible(collection, total, wanted.output), closing(steps), _progress(resumed, total, wanted) as advance:
            for done in steps:
                advance(done)
        warning = guessing_warning(collection.perplexity, model.vocabulary_size)
    return describe(collection.imatrix(wanted.output, text.name)) | {
        "model": str(path),
        "text": text.name,
        "merged": [str(path) for path in in_files],
        "read_chunks": collection.chunks,
        "resumed_chunks": resumed,
        "chunks_read_now": collection.chunks - resumed,
        "perplexity": _finite(collection.perplexity),
        "perplexity_error": _finite(collection.perplexity_error),
        "warning": warning,
        "seconds": round(perf_counter() - began, 3),
    }


def _text(path: Path) -> Text:
    """The text, known to be there and not empty; raises ImatrixError."""
    from tinyedge_quantize.imatrix.text import Text

    data = None
    if str(path) == "-":
        data = b"" if sys.stdin is None else sys.stdin.buffer.read()
    text = Text(path, data)
    text.check()
    return text


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


def _plan(facts: ModelFacts, size: int, wanted: Wanted) -> LoadPlan:
    """The plan for chunks of `size` tokens, without words about options that this command does not have."""
    from tinyedge.backends import Request, choose, this_machine
    from tinyedge.errors import TinyEdgeError

    request = Request(context=size, threads=wanted.threads, backend=wanted.backend, strict=True)
    try:
        plan = choose(facts, request, this_machine())
    except TinyEdgeError as error:
        if any(option in error.remedy for option in _FOREIGN_OPTIONS):
            error.remedy = "take smaller chunks with --ctx, run it with --backend cpu, or free memory"
        raise
    if not facts.context or size <= facts.context:
        return plan
    warning = (
        f"chunks of {size} tokens are longer than the {facts.context} this model was trained on; take --ctx {facts.context}"
    )
    return replace(plan, warnings=(warning,))


def _notes(facts: ModelFacts, wanted: Wanted) -> Iterator[str]:
    if wanted.process_output and facts.tied_bytes:
        yield "--process-output has no effect: this model has no output.weight, its token embedding stands in"


def _begin_with(collection: Collection, in_files: Sequence[Path], model: Path) -> None:
    import hashlib

    from tinyedge.gguf_split import read_model
    from tinyedge_quantize.imatrix.file import check_names, merge, read_imatrix

    if not in_files:
        return
    names = {tensor.name for tensor in read_model(model).tensors}
    imatrices = [read_imatrix(path) for path in in_files]
    for each in imatrices:
        check_names(each, names)
    base = merge(imatrices, in_files[0], collection.chunk_size)
    collection.begin_with(base, [hashlib.sha256(path.read_bytes()).hexdigest() for path in in_files])


def _already(wanted: Wanted, resumed: int, total: int) -> str:
    line = f"{printable(str(wanted.output))} has {_chunks(resumed)} already"
    if resumed < total:
        return f"{line}: going on from there"
    asked = f", {wanted.chunks} {'was' if wanted.chunks == 1 else 'were'} asked" if wanted.chunks else ", all of the text"
    return f"{line}{asked}: nothing to do"


def _chunks(count: int) -> str:
    return f"{count} chunk{'s' * (count != 1)}"


@contextmanager
def _loaded(path: Path, plan: LoadPlan) -> Iterator[Any]:
    from tinyedge.native.model import Model

    device = plan.device.name if plan.backend != "cpu" else None
    with Model(path, device=device, gpu_layers=plan.gpu_layers, mmap=plan.mmap, mlock=plan.mlock) as model:
        yield model


@contextmanager
def _interruptible(collection: Collection, total: int, output: Path) -> Iterator[None]:
    """Says after a signal what is saved, which it is when the collecting within has been closed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        word, code = ("interrupted", EXIT_INTERRUPTED) if isinstance(stop, KeyboardInterrupt) else ("terminated", stop.code)
        done, verb = collection.chunks, "is" if collection.chunks == 1 else "are"
        saved = f"{done} of {_chunks(total)} {verb} in {printable(str(output))}; the same command goes on from there"
        status(f"{word}: {saved}" if done else f"{word}: no chunk was read, nothing was written")
        sys.exit(code)  # not typer.Exit or KeyboardInterrupt, after which main() would say "interrupted" once more


@contextmanager
def _progress(done: int, total: int, wanted: Wanted) -> Iterator[Callable[[ChunkDone], None]]:
    """A bar of chunks with the perplexity so far on stderr, on a terminal only. Yields what takes each chunk's report."""
    if wanted.quiet or not on_terminal():
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
        task = bar.add_task("collecting", total=total, completed=done)

        def advance(done: ChunkDone) -> None:
            bar.update(task, completed=done.chunk, description=f"collecting, perplexity {decimal(done.perplexity)}")

        yield advance


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
