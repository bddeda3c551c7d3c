"""Whether a GGUF file can be trusted: that it is whole, runs, talks and tokenizes as it should, and is near its source.

What a file says of itself is never taken for granted, and a file that says something impossible gets a failing report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tinyedge.chat.chat_template import ChatTemplate, Message
from tinyedge.errors import GGUFError, TinyEdgeError
from tinyedge.gguf_file import GGUFFile
from tinyedge.gguf_split import read_model, read_parts
from tinyedge.model_check import check_runnable
from tinyedge.model_probe import probe
from tinyedge_quantize.convert import Wishes
from tinyedge_quantize.provenance import SourceHashes
from tinyedge_quantize.strangers import show
from tinyedge_quantize.tensors import SourceTensor
from tinyedge_quantize.verification.against import (
    Reference,
    comparable,
    compared_keys,
    copied,
    metadata_problems,
    open_reference,
    recorded_hashes,
    tensor_problems,
    together,
)
from tinyedge_quantize.verification.file_pass import FilePass, hash_file, read_through
from tinyedge_quantize.verification.recorded import options_remedy
from tinyedge_quantize.verification.report import FAILED, PASSED, SKIPPED, Check, FileReport, TensorReport, Verification
from tinyedge_quantize.verification.tensors import SlabObserver, error_bound
from tinyedge_quantize.verification.tokenizer import check_tokenizer, has_tokenizer
from tinyedge_quantize.write import Progress, default_threads

# By general.type.
_NOT_MODELS = {
    "adapter": ("it is a LoRA adapter and not a model", "verify the model it belongs to"),
    "imatrix": ("it is an importance matrix and not a model", "look at it with `tinyedge imatrix FILE --show`"),
}
_OTHER_SOURCE = "give the source that it was made from with --against, or make it again from this one with `tinyedge quantize`"
_USER_TEXT = "What is the capital of France?"
_CONVERSATION = (Message("user", "Hello."), Message("assistant", "Hello, how can I help?"), Message("user", _USER_TEXT))


def verify(
    path: Path,
    against: Path | None = None,
    wishes: Wishes | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Reads the GGUF file at `path` once and reports on it; `against` is a checkpoint or GGUF file that it was made from.

    `wishes` are those it was made with: merged adapters, layers left out, keys set by hand. `progress` is called with the
    bytes read since its last call and the total. A bad file gives a failing report; raises ModelNotFoundError when it is not
    there, and what `open_reference` raises for `against`.
    """
    with ExitStack() as opened:
        reference = opened.enter_context(open_reference(against, wishes)) if against is not None else None
        return _verify(path, reference, reference.folder if reference else None, None, wishes, threads, progress)


def verify_written(
    path: Path,
    observer: SlabObserver,
    tokenizer_folder: Path | None = None,
    *,
    against: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """The same report on a file that was just written, with the errors that `observer` saw on the way.

    The file is read back for its checksums alone. `tokenizer_folder` holds the tokenizer it was made from, `against` is the
    source that the report names.
    """
    return replace(_verify(path, None, tokenizer_folder, observer, None, threads, progress), against=against)


def _verify(
    path: Path,
    reference: Reference | None,
    folder: Path | None,
    observer: SlabObserver | None,
    wishes: Wishes | None,
    threads: int | None,
    progress: Progress | None,
) -> Verification:
    started = time.perf_counter()
    against = reference.path if reference else None
    try:
        parts = read_parts(path)
        gguf = read_model(path)
    except GGUFError as error:
        files: tuple[FileReport, ...] = (FileReport(path, *hash_file(path)),)
        unreadable = Check("structure", FAILED, _without(path, error.problem), error.remedy)
        return Verification(path, files, against, (unreadable,), (), time.perf_counter() - started)
    checks = [_runs(gguf)]
    runs = checks[0].result == PASSED
    sources = _sources(gguf, reference)
    copies = copied(gguf, reference) if reference is not None else frozenset()
    recorded = recorded_hashes(gguf, reference) if reference is not None else None
    with SourceHashes(reference.files if reference is not None and recorded else ()) as hashes:
        passed = read_through(
            parts, sources, copied=copies, observer=observer, threads=threads or default_threads(), progress=progress
        )
        found = hashes.wait()
    tensors = _tensor_reports(gguf, passed, frozenset(sources if observer is None else passed.sums))
    checks.append(_values(tensors))
    if observer is not None:
        checks.append(_unaltered(passed))
    checks.append(_template(gguf))
    checks += _tokenizer(gguf, folder, runs)
    if reference is not None:
        source = _source(reference, recorded, found)
        compared = [*_compared(gguf, reference), *_copies(copies, passed), _errors(tensors)]
        remedy = options_remedy(gguf, wishes or Wishes()) or (_OTHER_SOURCE if source.result == SKIPPED else None)
        checks += [source, *(replace(check, remedy=remedy) if check.result == FAILED else check for check in compared)]
    elif observer is not None:
        checks.append(_errors(tensors))
    files = tuple(FileReport(part.path, part.file_bytes, sha256) for part, sha256 in zip(parts, passed.files, strict=True))
    return Verification(path, files, against, tuple(checks), tensors, time.perf_counter() - started)


def _runs(gguf: GGUFFile) -> Check:
    """Whether llama.cpp runs the model: by its header and tensors, and for families other than llama by trying in a child."""
    kind = gguf.metadata.get("general.type")
    if isinstance(kind, str) and kind in _NOT_MODELS:
        return Check("structure", FAILED, *_NOT_MODELS[kind])
    try:
        check_runnable(gguf)
        probe(gguf)
    except TinyEdgeError as error:
        return Check("structure", FAILED, _without(gguf.path, error.problem), error.remedy)
    architecture = gguf.metadata["general.architecture"]
    return Check("structure", PASSED, f"GGUF {gguf.version}, {architecture}, {len(gguf.tensors)} tensors in their places")


def _without(path: Path, problem: str) -> str:
    """The problem without the path that the report names already."""
    return problem.replace(f"{path} ", "it ", 1)


def _sources(gguf: GGUFFile, reference: Reference | None) -> dict[str, SourceTensor]:
    """The sources of those tensors that can be compared."""
    if reference is None:
        return {}
    pairs = ((tensor, reference.tensors.get(tensor.name)) for tensor in gguf.tensors)
    return {tensor.name: source for tensor, source in pairs if source is not None and comparable(tensor, source)}


def _tensor_reports(gguf: GGUFFile, passed: FilePass, compared: frozenset[str]) -> tuple[TensorReport, ...]:
    reports = []
    for tensor in gguf.tensors:
        sums = passed.sums.get(tensor.name)
        reports.append(
            TensorReport(
                name=tensor.name,
                type=tensor.type.name,
                shape=tensor.shape,
                bytes=tensor.bytes,
                sha256=passed.tensors[tensor.name],
                valid=sums is None or sums.valid,
                bound=error_bound(tensor.type.name),
                errors=sums.errors if sums is not None and tensor.name in compared else None,
            )
        )
    return tuple(reports)


def _values(tensors: tuple[TensorReport, ...]) -> Check:
    invalid = [f"{show(tensor.name)} ({tensor.type}) holds NaN or infinite values" for tensor in tensors if not tensor.valid]
    if invalid:
        return Check("values", FAILED, together(invalid))
    return Check("values", PASSED, "no tensor holds NaN or infinity")


def _unaltered(passed: FilePass) -> Check:
    if passed.altered:
        return Check("written", FAILED, together([f"{show(name)} is not what was written" for name in passed.altered]))
    return Check("written", PASSED, "every tensor reads back as it was written")


def _template(gguf: GGUFFile) -> Check:
    """Whether the chat template renders a short conversation, in the process that renders every template."""
    try:
        template = ChatTemplate.of_model(gguf)
        if template is None:
            return Check("chat template", SKIPPED, "none")
        with template:
            text = template.render(_CONVERSATION)
    except TinyEdgeError as error:
        return Check("chat template", FAILED, error.problem)
    if _USER_TEXT not in text:
        return Check("chat template", FAILED, "it leaves out what the user says")
    return Check("chat template", PASSED, f"renders a conversation of three messages as {len(text)} characters")


def _tokenizer(gguf: GGUFFile, folder: Path | None, runs: bool) -> list[Check]:
    """The tokenizer's checks; `folder` is where the source's lies, by default beside the file."""
    if not runs:
        return [Check("tokenizer", SKIPPED, "not tried, for llama.cpp might abort on such a file")]
    if folder is None and has_tokenizer(gguf.path.parent):
        folder = gguf.path.parent
    report = check_tokenizer(gguf, folder)
    passed, detail = report.decoding
    checks = [Check("tokenizer", PASSED if passed else FAILED, detail)]
    if report.compared is not None:
        same, detail = report.compared
        checks.append(Check("token ids", SKIPPED if same is None else PASSED if same else FAILED, detail))
    return checks


def _source(reference: Reference, recorded: list[str] | None, found: list[str]) -> Check:
    """Whether the source has the checksums that the file records of what it was made from."""
    if recorded is None:
        return Check("source", SKIPPED, "the file does not say that it was made from these files")
    other = [file.path.name for file, *digests in zip(reference.files, recorded, found, strict=False) if len(set(digests)) > 1]
    if other or len(recorded) != len(found):
        name = show(other[0] if other else reference.files[0].path.name)
        return Check("source", FAILED, f"the file was made from another {name}", _OTHER_SOURCE)
    return Check("source", PASSED, f"{len(found)} files with the checksums that the file records")


def _compared(gguf: GGUFFile, reference: Reference) -> list[Check]:
    checks = []
    sides: tuple[tuple[str, Callable[[GGUFFile, Reference], list[str]], str], ...] = (
        (
            "metadata",
            metadata_problems,
            f"{compared_keys(reference)} keys of architecture and tokenizer as they should be",
        ),
        ("tensors", tensor_problems, f"all {len(reference.tensors)} of the source, in their shapes"),
    )
    for name, find, good in sides:
        problems = find(gguf, reference)
        checks.append(Check(name, FAILED, together(problems)) if problems else Check(name, PASSED, good))
    return checks


def _copies(copies: frozenset[str], passed: FilePass) -> list[Check]:
    """Whether the tensors of the source's type are copies of its own; nothing where there are none."""
    if not copies:
        return []
    # In the order of the file.
    differing = [name for name in passed.tensors if name in passed.differing]
    if not differing:
        return [Check("bytes", PASSED, f"all {len(copies)} tensors of the same type as in the source have its bytes")]
    how_many = "1 tensor differs in its" if len(differing) == 1 else f"{len(differing)} tensors differ in their"
    return [Check("bytes", FAILED, f"{how_many} bytes: {together([show(name) for name in differing])}")]


def _errors(tensors: tuple[TensorReport, ...]) -> Check:
    compared = [tensor for tensor in tensors if tensor.errors is not None]
    beyond = [
        f"{show(tensor.name)} ({tensor.type}) has a relative RMS error of {tensor.errors.relative_rms:.4g}, "
        f"more than {tensor.bound:.4g}"
        for tensor in compared
        if tensor.errors is not None and not tensor.within_bound
    ]
    if beyond:
        return Check("errors", FAILED, together(beyond))
    return Check("errors", PASSED, f"{len(compared)} tensors within the bounds of their types")
