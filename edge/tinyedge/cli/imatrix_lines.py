"""The statistics of an importance matrix for `tinyedge imatrix --show`: as one object, and as the table that is printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tinyedge.cli.output import printable

if TYPE_CHECKING:
    from tinyedge_quantize.imatrix.file import Imatrix


def describe_statistics(found: Imatrix) -> dict[str, Any]:
    """The statistics of every tensor and layer, for --json and the table."""
    from tinyedge_quantize.imatrix.statistics import layer_statistics, tensor_statistics

    tensors = tensor_statistics(found)
    return {
        "tensor_statistics": [asdict(each) | {"kind": each.short_name} for each in tensors],
        "layer_statistics": [asdict(each) for each in layer_statistics(tensors)],
    }


def statistics_lines(report: dict[str, Any]) -> Iterator[str]:
    """The statistics in the columns of `llama-imatrix --show-statistics`."""
    tensors, layers = report["tensor_statistics"], report["layer_statistics"]
    width = max(6, *(len(printable(each["kind"], 40)) for each in tensors))
    yield (
        f"layer  {'tensor':<{width}}  {'Σ(act²)':>12}  {'min':>10}  {'max':>12}  {'μ':>9}  {'σ':>9}  {'active':>8}  {'N':>8}  "
        f"{'entropy':>8}  {'E (norm)':>8}  {'ZD':>7}  {'cos sim':>8}"
    )
    for each in tensors:
        layer = "-" if each["layer"] is None else each["layer"]
        yield (
            f"{layer:>5}  {printable(each['kind'], 40):<{width}}  {each['total']:>12.2f}  {each['minimum']:>10.4f}  "
            f"{each['maximum']:>12.4f}  {each['mean']:>9.2f}  {each['deviation']:>9.2f}  {each['active']:>8.2%}  "
            f"{each['values']:>8}  {each['entropy']:>8.4f}  {each['evenness']:>8.2%}  {each['outliers']:>7.2%}  "
            f"{each['similarity']:>8.4f}"
        )
    yield ""
    yield f"layer  {'μΣ(act²)':>12}  {'μZD':>8}  {'μ cos sim':>9}"
    for each in layers:
        yield f"{each['layer']:>5}  {each['total']:>12.2f}  {each['outliers']:>8.2%}  {each['similarity']:>9.4f}"
