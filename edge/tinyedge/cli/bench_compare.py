"""`tinyedge bench compare`: how two measurements differ, by how much, and whether noise could explain it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.output import print_json, print_line, printable, status

if TYPE_CHECKING:
    from tinyedge_bench.speed.compare import ComparedCase, Comparison
    from tinyedge_bench.speed.compare_ratio import Ratio
    from tinyedge_bench.speed.read_speed import SpeedRow

_EXAMPLES = """\b
Examples:
  tinyedge bench compare before.json after.json
  tinyedge bench compare main.json branch.json --fail-below 0.97
  tinyedge bench compare results.json --peer llama-bench
  tinyedge bench compare nightly.sqlite
"""


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Results of tinyedge or llama-bench: json, jsonl, csv, sqlite.")],
    second: Annotated[Path | None, typer.Argument(metavar="[B]", help="Results to compare with A.")] = None,
    peer: Annotated[
        str | None,
        typer.Option(metavar="ENGINE", help="Compare ours with this engine within A, run by run, such as llama-bench."),
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="Leave with exit code 38 when any case's ratio is below this, such as 0.97."),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="P", help="Of the intervals, such as 0.99.")] = 0.95,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare two measurements: the ratio B/A of median tokens per second, with a bootstrap interval.

    Of a .sqlite or .jsonl file the newest measurement is taken. A alone: its newest is compared with the one before.

    Cases are the same when model, engine, backend, threads, KV cache and test are; what is one thing throughout A and another
    throughout B is what you compare, and is told. A ratio of which the interval holds 1 tells no difference. --fail-below looks
    at the ratio itself and says how many of those below it noise cannot explain.
    """
    from tinyedge_bench.speed.compare import compare_files, compare_last, compare_peer

    if second is not None and peer is not None:
        raise typer.BadParameter("--peer ENGINE compares within one file; leave out the second")
    if not 0.5 <= confidence <= 0.9999:
        raise typer.BadParameter("--confidence must be from 0.5 to 0.9999")
    if fail_below is not None and not (math.isfinite(fail_below) and fail_below > 0):
        raise typer.BadParameter("--fail-below must be a ratio above 0, such as 0.97")
    if peer is not None:
        compared, names = compare_peer(first, peer, confidence), (peer, "tinyedge")
    else:
        names = ("A", "B")
        compared = compare_last(first, confidence) if second is None else compare_files(first, second, confidence)
    if json:
        print_json(_object(compared, fail_below))
    else:
        for line in _lines(compared, names):
            print_line(line)
    for line in (*compared.differences, *compared.notes):
        status(f"note: {printable(line, 300)}")
    if not json:
        _say_missing(compared, names)
    if fail_below is not None:
        _require(compared, fail_below)


compare.__doc__ = f"{inspect.cleandoc(compare.__doc__ or '')}\n\n{_EXAMPLES}"


def _lines(compared: Comparison, names: tuple[str, str]) -> list[str]:
    """The table, and below it what its ratios are and their mean."""
    from tinyedge_bench.speed.formats_cells import cell_text, markdown_table

    telling = _telling([case.second for case in compared.cases])
    first, second = (cell_text(name, 20) for name in names)
    head = [
        *telling,
        f"{first} t/s",
        f"{second} t/s",
        f"{second}/{first}",
        _level(compared),
        "runs",
        "told",
    ]
    rows = [
        [
            *(cell_text(value) for value in _values(case.second, telling)),
            f"{case.first.median:.2f}",
            f"{case.second.median:.2f}",
            f"{case.ratio.value:.3f}",
            _interval(case.ratio),
            f"{len(case.first.samples) or '?'}, {len(case.second.samples) or '?'}",
            case.ratio.told,
        ]
        for case in compared.cases
    ]
    lines = markdown_table(head, rows)
    if compared.basis:
        lines += ["", printable(compared.basis, 300)]
    if len(rows) > 1:
        mean = compared.mean
        interval = f", {_level(compared)} {_interval(mean)}" if mean.low is not None else ""
        lines += ["", f"geometric mean of {len(rows)} ratios: {mean.value:.3f}{interval}: {mean.told}"]
    return lines


_COLUMNS: dict[str, Callable[[SpeedRow], Any]] = {
    "test": lambda row: row.test or f"pp{row.prompt}+tg{row.generate} @ d{row.depth}",
    "model": lambda row: row.model_type,
    "engine": lambda row: row.engine,
    "backend": lambda row: row.backend,
    "threads": lambda row: row.threads,
    "KV cache": lambda row: f"{row.type_k}/{row.type_v}",
    "batch": lambda row: row.ubatch,
    "file": lambda row: Path(row.model_filename).name,
}


def _telling(rows: list[SpeedRow]) -> list[str]:
    """The columns in which cases differ, the test always."""
    return [name for name, value in _COLUMNS.items() if name == "test" or len({value(row) for row in rows}) > 1]


def _values(row: SpeedRow, columns: list[str]) -> list[Any]:
    return [_COLUMNS[name](row) for name in columns]


def _level(compared: Comparison) -> str:
    return f"{compared.confidence * 100:.4g}% interval"


def _interval(ratio: Ratio) -> str:
    return "" if ratio.low is None else f"{ratio.low:.3f} to {ratio.high:.3f}"


def _say_missing(compared: Comparison, names: tuple[str, str]) -> None:
    for name, rows in zip(names, (compared.only_first, compared.only_second), strict=True):
        telling = _telling([*rows, *(case.second for case in compared.cases)])
        for row in rows:
            what = ", ".join(str(value) for value in _values(row, telling))
            status(f"note: only in {printable(name, 40)}: {printable(what, 120)}")


def _require(compared: Comparison, limit: float) -> None:
    """Raises SlowerError when a case is below `limit`."""
    from tinyedge.errors import SlowerError

    below = compared.below(limit)
    if not below:
        return
    lowest = min(below, key=lambda case: case.ratio.value)
    surely = len(compared.surely_below(limit))
    told = ", ".join(str(value) for value in _values(lowest.second, _telling([case.second for case in compared.cases])))
    noise = f"{surely} of them by more than noise explains" if surely else "none of them by more than noise explains"
    raise SlowerError(
        f"{len(below)} of {len(compared.cases)} cases fell below {limit:g}, {noise} (lowest: {told}, {lowest.ratio.value:.3f})"
    )


def _object(compared: Comparison, fail_below: float | None) -> dict[str, Any]:
    return {
        "confidence": compared.confidence,
        "resamples": compared.resamples,
        "cases": [_case_object(case) for case in compared.cases],
        "geometric_mean": _ratio_object(compared.mean),
        "only_first": [_row_object(row) for row in compared.only_first],
        "only_second": [_row_object(row) for row in compared.only_second],
        "differences": list(compared.differences),
        "notes": [*([compared.basis] if compared.basis else []), *compared.notes],
        "fail_below": fail_below,
        "below": None if fail_below is None else len(compared.below(fail_below)),
        "surely_below": None if fail_below is None else len(compared.surely_below(fail_below)),
    }


def _case_object(case: ComparedCase) -> dict[str, Any]:
    return {"first": _row_object(case.first), "second": _row_object(case.second), **_ratio_object(case.ratio)}


def _row_object(row: SpeedRow) -> dict[str, Any]:
    return {
        "model_filename": row.model_filename,
        "model_type": row.model_type,
        "model_n_params": row.model_n_params,
        "engine": row.engine,
        "engine_version": row.engine_version,
        "backends": row.backend,
        "n_threads": row.threads,
        "type_k": row.type_k,
        "type_v": row.type_v,
        "test": row.test,
        "median_ts": row.median,
        "runs": len(row.samples),
    }


def _ratio_object(ratio: Ratio) -> dict[str, Any]:
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "told": ratio.told}
