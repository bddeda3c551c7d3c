"""What is to be quantized in, GGUF out: the one call behind `tinyedge quantize`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tinyedge.errors import AdapterError, CheckpointError, OutputError
from tinyedge.gguf_file import is_gguf
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.controls.values import Controls
from tinyedge_quantize.gguf_source import open_gguf
from tinyedge_quantize.plan import QuantPlan, Source, make_plan
from tinyedge_quantize.provenance import SourceHashes, provenance, sha256_of, without_provenance
from tinyedge_quantize.recipes import Recipe, find_recipe
from tinyedge_quantize.splits import oversized, split_paths, split_plan
from tinyedge_quantize.write import Observer, Progress, write

DEFAULT_TYPE = "Q4_K_M"
_MAX_IMATRIX_BYTES = 2**31


@dataclass(frozen=True)
class ConversionReport:
    """What was written: `source_bytes` and `bytes` of the files, wall-clock `seconds`, and tensors per type.

    `path` is the file that is to be run, the first of `paths`.
    """

    path: Path
    paths: tuple[Path, ...]
    type: str
    layout: str
    parameters: int
    source_bytes: int
    bytes: int
    bits_per_weight: float
    seconds: float
    type_counts: dict[str, int]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How a conversion differs from the plain one; every default asks for nothing.

    `options` are the words that asked for it on the command line, kept in the file's metadata.
    """

    config_name: str | None = None
    pre_tokenizer: str | None = None
    adapters: Sequence[tuple[Path, float]] = ()
    controls: Controls = field(default_factory=Controls)
    split_max_bytes: int | None = None
    options: Sequence[str] = ()


def open_source(path: Path, wishes: Wishes) -> Source:
    """The checkpoint or GGUF file at `path`, open; close it, or use it in a with statement."""
    if not (path.suffix.lower() == ".gguf" or is_gguf(path)):
        return open_checkpoint(path, wishes.config_name, wishes.adapters)
    if wishes.adapters:
        raise AdapterError(
            f"adapters cannot be merged into the GGUF file {path}",
            "give the checkpoint it came from, or use the adapter at run time (`tinyedge lora`, then `tinyedge run --lora`)",
        )
    if wishes.config_name is not None:
        raise CheckpointError(f"--config is for Lit-GPT checkpoints, and {path} is a GGUF file", "leave it out")
    return open_gguf(path)


def plan_conversion(source: Source, recipe: Recipe, wishes: Wishes | None = None) -> QuantPlan:
    """The plan with the keys that say what made the file; their hashes are not known yet and zero."""
    wishes = wishes or Wishes()
    plan = make_plan(source, recipe, wishes.pre_tokenizer, wishes.controls)
    plan = replace(plan, metadata=without_provenance(plan.metadata))
    return plan.with_metadata(provenance(source.files, recipe.name, wishes.options, imatrix_sha256=_imatrix_hash(wishes)))


def convert(
    source: Path,
    output: Path,
    type_name: str = DEFAULT_TYPE,
    wishes: Wishes | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    observer: Observer | None = None,
) -> ConversionReport:
    """Quantizes the checkpoint or GGUF file at `source` into `output` in one pass.

    `progress` is called with the bytes written since its last call and the total. Raises a TinyEdgeError and leaves no file
    when the checkpoint cannot be converted or written; an existing `output` stays as it was.
    """
    wishes = wishes or Wishes()
    recipe = find_recipe(type_name)
    started = time.perf_counter()
    with open_source(source, wishes) as opened:
        plan = plan_conversion(opened, recipe, wishes)
        files = split_plan(plan, wishes.split_max_bytes)
        paths = [_link_target(path) for path in split_paths(output, len(files))]
        _require_other(opened, paths)
        with SourceHashes(opened.files) as hashes:

            def final_header() -> bytes:
                keys = provenance(
                    opened.files,
                    recipe.name,
                    wishes.options,
                    digests=hashes.wait(),
                    imatrix_sha256=_imatrix_hash(wishes),
                )
                return split_plan(plan.with_metadata(keys), wishes.split_max_bytes)[0].header

            write(files, paths, threads, progress, observer=observer, final_header=final_header)
        return ConversionReport(
            path=paths[0] if len(paths) > 1 else output,
            paths=tuple(paths),
            type=recipe.name,
            layout=opened.layout,
            parameters=plan.parameters,
            source_bytes=opened.source_bytes,
            bytes=sum(file.bytes for file in files),
            bits_per_weight=plan.bits_per_weight,
            seconds=time.perf_counter() - started,
            type_counts=plan.type_counts,
            warnings=(*plan.warnings, *oversized(files, wishes.split_max_bytes)),
        )


def _imatrix_hash(wishes: Wishes) -> str | None:
    imatrix = wishes.controls.imatrix
    return None if imatrix is None else sha256_of(imatrix.path, _MAX_IMATRIX_BYTES)


def _require_other(source: Source, paths: Sequence[Path]) -> None:
    """Raises OutputError when the output is one of the files that are read."""
    reads = {file.path.resolve() for file in source.files}
    for path in paths:
        if path.resolve() in reads:
            raise OutputError(f"{path} is read and cannot be the output", "choose another path with -o")


def _link_target(path: Path) -> Path:
    """The file a symbolic link points to, so that the link stays one."""
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path} is a link that leads nowhere") from error
