"""What `tinyedge imatrix` says: of a collection in one line, and the statistics as one object and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tinyedge.cli.output import format_seconds, printable

if TYPE_CHECKING:
    from tinyedge_quantize.imatrix.file import Imatrix

# Of the size of the vocabulary, which is the perplexity of logits that are all the same.
_GUESSING = 0.99

# The columns of numbers: the word in --json, the width, the format.
_TENSOR_COLUMNS = (
    ("total", 10, ".2f"),
    ("mean", 8, ".2f"),
    ("deviation", 9, ".2f"),
    ("active", 7, ".1%"),
    ("evenness", 8, ".1%"),
    ("outliers", 8, ".1%"),
    ("similarity", 10, ".4f"),
)
_LAYER_COLUMNS = tuple(column for column in _TENSOR_COLUMNS if column[0] in ("total", "outliers", "similarity"))
_KIND_WIDTH = 19  # with it a line has 100 columns
_LEGEND = (
    "total, mean, deviation: of the inputs' mean squares, one for each column; active: share above 1e-5;",
    "evenness: entropy in % of the largest; outliers: share beyond mean + deviation;",
    "similarity: cosine to the layer before; more in --json",
)
_SHOWN_TEXTS = 3


def describe(found: Imatrix) -> dict[str, Any]:
    """What an importance matrix goes over, for --json; `chunk_size` None for a .dat file, which does not say."""
    return {
        "path": str(found.path),
        "tensors": len(found.tensors),
        "chunks": found.chunks,
        "chunk_size": found.chunk_size or None,
        "datasets": list(found.datasets),
    }


def describe_statistics(found: Imatrix) -> dict[str, Any]:
    """The statistics of every tensor and layer, for --json and the table."""
    from tinyedge_quantize.imatrix.statistics import layer_statistics, tensor_statistics

    tensors = tensor_statistics(found)
    return {
        "tensor_statistics": [asdict(each) | {"kind": each.short_name} for each in tensors],
        "layer_statistics": [asdict(each) for each in layer_statistics(tensors)],
    }


def statistics_lines(report: dict[str, Any]) -> Iterator[str]:
    """What the file goes over, a legend, and a table of the tensors and one of the layers, at most 100 columns wide."""
    yield f"{title(report)}{_from(report['datasets'])}"
    yield from _LEGEND
    yield ""
    tensors = report["tensor_statistics"]
    width = max(4, *(len(printable(each["kind"], _KIND_WIDTH)) for each in tensors))
    yield f"layer  {'kind':<{width}}{_headings(_TENSOR_COLUMNS)}"
    for each in tensors:
        layer = "-" if each["layer"] is None else each["layer"]
        yield f"{layer:>5}  {printable(each['kind'], _KIND_WIDTH):<{width}}{_numbers(each, _TENSOR_COLUMNS)}"
    yield ""
    yield f"layer{_headings(_LAYER_COLUMNS)}"
    for each in report["layer_statistics"]:
        yield f"{each['layer']:>5}{_numbers(each, _LAYER_COLUMNS)}"


def _headings(columns: tuple[tuple[str, int, str], ...]) -> str:
    return "".join(f"  {word:>{width}}" for word, width, _ in columns)


def _numbers(row: dict[str, Any], columns: tuple[tuple[str, int, str], ...]) -> str:
    return "".join(f"  {_number(row[word], width, form):>{width}}" for word, width, form in columns)


def _number(value: float | None, width: int, form: str) -> str:
    """The number within that width: one that is too long as a power of ten."""
    if value is None:
        return "-"
    text = format(value, form)
    return text if len(text) <= width else f"{value:.2e}"[:width]


def _from(datasets: list[str]) -> str:
    """The texts' names, the first of many."""
    if not datasets:
        return ""
    texts = list(dict.fromkeys(datasets))
    names = ", ".join(printable(name, 60) for name in texts[:_SHOWN_TEXTS])
    more = len(texts) - _SHOWN_TEXTS
    return f", from {names}" + (f" and {more} more" if more > 0 else "")


def title(report: dict[str, Any]) -> str:
    """The file, its tensors and chunks: `x.gguf: 35 tensors, 5 chunks of 64 tokens`."""
    name = report["path"] or " + ".join(report["merged"])
    size = f" of {report['chunk_size']} tokens" if report["chunk_size"] else ""
    chunks = f"{report['chunks']} chunk{'s' * (report['chunks'] != 1)}"
    return f"{printable(name)}: {report['tensors']} tensors, {chunks}{size}"


def guessing_warning(perplexity: float, vocabulary: int) -> str | None:
    """A sentence when a model did no better than guessing among the tokens of its vocabulary; None when it did."""
    if not perplexity >= _GUESSING * vocabulary:
        return None
    return (
        f"the model predicted the text no better than guessing among its {vocabulary} tokens, so the importance matrix says "
        "little; try it with `tinyedge run`: its file may be damaged, or the text of another kind than it was trained on"
    )


def summary_line(report: dict[str, Any]) -> str:
    """What was written, in one line for stderr."""
    line = title(report)
    if "model" not in report:
        return f"{line}, merged from {len(report['merged'])} files"
    if report["perplexity"] is not None:
        line += f", perplexity {decimal(report['perplexity'])}"
    if report["perplexity_error"] is not None:
        line += f" ± {decimal(report['perplexity_error'])}"
    return f"{line}, in {format_seconds(report['seconds'])}"


def decimal(value: float) -> str:
    """A perplexity with four decimals, or, where it has hundreds of digits, as a power of ten."""
    return f"{value:.4f}" if value < 1e9 else f"{value:.4g}"
