"""Speeds under what the machine was measured to be able to do: rooflines (Williams, Waterman and Patterson, 2009)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tinyedge_bench.report.checked_values import number, text
from tinyedge_bench.report.look import MOST_SERIES
from tinyedge_bench.report.names import distinct_labels
from tinyedge_bench.report.page_parts import Section, Table, decimal
from tinyedge_bench.report.placing import Spot
from tinyedge_bench.report.plots import Plot, Roofline
from tinyedge_bench.report.rows import SpeedCase, speed_cases
from tinyedge_bench.result_files import Document

_ROOFLINE = (
    "A roofline: the slope is what the measured memory bandwidth allows, the flat line what the measured matrix rate allows. "
    "Generation is counted with 2 FLOPs per weight and token; a prompt with its own FLOPs, and its weights as read once for "
    "each batch of the size in the table."
)

_READING = "Points on the slope are held back by memory, those at the flat line by arithmetic. Dotted: other types of weights."


def ceiling_section(documents: Sequence[tuple[str, Document]]) -> Section:
    """A roofline for each document in which ceilings were measured, and the ceilings."""
    return Section(
        title="Speed and the ceilings of the machine",
        intro=_ROOFLINE,
        plots=[plot for i, (name, document) in enumerate(documents) for plot in _roofline(i, name, document)],
        tables=[_ceilings(documents)],
    )


def _roofline(index: int, name: str, document: Document) -> list[Plot]:
    """The roofline at the most threads that both a case and a ceiling were measured with."""
    cases = [case for case in speed_cases(document, name) if case.engine == "tinyedge" and case.backend in ("cpu", "")]
    ceilings = _ceilings_by_threads(document)
    threads = max((case.threads for case in cases if case.threads in ceilings), default=None)
    if threads is None:
        return []
    bandwidth, matrix = ceilings[threads]
    placed = [(case, spot) for case in cases if case.threads == threads for spot in [_intensity(case)] if spot]
    if not placed or not (bandwidth or matrix):
        return []
    names = distinct_labels([case.traits for case, _ in placed])
    spots = [Spot(name=label, x=x, y=y) for label, (_, (x, y)) in zip(names, placed, strict=True)]
    more = f" The first {MOST_SERIES} of {len(spots)} cases." if len(spots) > MOST_SERIES else ""
    return [
        Roofline(
            name=f"roofline-{index + 1}",
            title=f"Roofline{f' of {name}' if name else ''}, {threads} thread{'s' * (threads != 1)}",
            description=_READING + more,
            bytes_per_s=bandwidth,
            flops=matrix,
            spots=spots[:MOST_SERIES],
        )
    ]


def _intensity(case: SpeedCase) -> tuple[float, float] | None:
    """FLOPs per byte read and FLOP/s, of a prompt or of generation."""
    if case.phase == "prompt" and case.flops and case.flops > 0 and case.size:
        batches = math.ceil(case.case.prompt * case.case.sequences / (case.micro_batch or 512))
        passes_per_s = case.median / (case.case.prompt * case.case.sequences)
        return case.flops / (case.size * batches * passes_per_s), case.flops
    if case.phase == "generation" and case.bytes_per_s and case.bytes_per_s > 0 and case.params:
        flops = 2 * case.params * case.median
        return flops / case.bytes_per_s, flops
    return None


def _ceilings_by_threads(document: Document) -> dict[int, tuple[float | None, list[tuple[str, float]]]]:
    """Bytes/s and the FLOP/s of each type, fastest first, by threads, of the CPU."""
    ceilings = document.more.get("ceilings")
    ceilings = ceilings if isinstance(ceilings, dict) else {}
    bandwidth, matrix = ceilings.get("bandwidth"), ceilings.get("matrix")
    matrix = matrix.get("cpu") if isinstance(matrix, dict) else None
    found: dict[int, tuple[float | None, list[tuple[str, float]]]] = {}
    for key in dict.fromkeys((*_keys(bandwidth), *_keys(matrix))):
        if key.isascii() and key.isdigit() and len(key) < 5:
            types = matrix.get(key) if isinstance(matrix, dict) else None
            rates = [(text(name, 12), number(types, name)) for name in _keys(types)]
            known = sorted(((name, rate) for name, rate in rates if rate and rate > 0), key=lambda each: -each[1])
            rate = number(bandwidth, key)
            found[int(key)] = (rate if rate and rate > 0 else None, known[:MOST_SERIES])
    return found


def _keys(value: Any) -> list[str]:
    return [key for key in list(value)[:64] if isinstance(key, str)] if isinstance(value, dict) else []


def _ceilings(documents: Sequence[tuple[str, Document]]) -> Table:
    rows = [
        (name, str(threads), decimal(bandwidth / 1e9) if bandwidth else "", ", ".join(f"{k} {v / 1e9:.4g}" for k, v in matrix))
        for name, document in documents
        for threads, (bandwidth, matrix) in sorted(_ceilings_by_threads(document).items())
    ]
    head = ("results", "threads", "memory bandwidth, GB/s", "matrix rate, GFLOP/s")
    return Table(caption="Measured ceilings of the processor", head=head, rows=rows, words=("results", "matrix rate, GFLOP/s"))
