"""Checkpoint in, GGUF file out: the one call behind `tinyedge quantize`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import OutputError
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.plan import make_plan
from tinyedge_quantize.recipes import find_recipe
from tinyedge_quantize.write import Progress, write

DEFAULT_TYPE = "Q4_K_M"


@dataclass(frozen=True)
class ConversionReport:
    """What was written: `source_bytes` and `bytes` of the files, wall-clock `seconds`, and tensors per type."""

    path: Path
    type: str
    layout: str
    parameters: int
    source_bytes: int
    bytes: int
    bits_per_weight: float
    seconds: float
    type_counts: dict[str, int]


def convert(
    source: Path,
    output: Path,
    type_name: str = DEFAULT_TYPE,
    *,
    config_name: str | None = None,
    pre_tokenizer: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Quantizes the checkpoint at `source` into `output` in one pass.

    `progress` is called with the bytes written since its last call and the total. Raises a TinyEdgeError and leaves no file
    when the checkpoint cannot be converted or written; an existing `output` stays as it was.
    """
    recipe = find_recipe(type_name)
    started = time.perf_counter()
    with open_checkpoint(source, config_name) as checkpoint:
        plan = make_plan(checkpoint, recipe, pre_tokenizer)
        write(plan, _link_target(output), threads, progress)
        return ConversionReport(
            path=output,
            type=recipe.name,
            layout=checkpoint.arranged.layout,
            parameters=plan.parameters,
            source_bytes=checkpoint.source_bytes,
            bytes=plan.total_bytes,
            bits_per_weight=plan.bits_per_weight,
            seconds=time.perf_counter() - started,
            type_counts=plan.type_counts,
        )


def _link_target(path: Path) -> Path:
    """The file a symbolic link points to, so that the link stays one."""
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path} is a link that leads nowhere") from error
