"""`tinyedge verify`: whether a GGUF file can be trusted."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.option_groups import with_option_groups
from tinyedge.cli.output import byte_progress, format_bytes, format_seconds, print_json, print_line, printable
from tinyedge.cli.quantize_options import QuantizeOptions

if TYPE_CHECKING:
    from tinyedge_quantize.convert import Wishes
    from tinyedge_quantize.verification.report import Check, TensorReport, Verification

WORST_SHOWN = 10
_DETAIL_CHARACTERS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """A group for `option_groups`: how the file was made from SOURCE, in the words of `tinyedge quantize`."""

    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="DIR[:SCALE]", help="An adapter that was merged into SOURCE; repeatable."),
    ] = None
    prune_layers: Annotated[
        str | None, typer.Option("--prune-layers", metavar="N,N-N", help="Layers of SOURCE that were dropped.")
    ] = None
    override_kv: Annotated[
        list[str] | None, typer.Option("--override-kv", metavar="KEY=KIND:VALUE", help="Metadata that was set; repeatable.")
    ] = None
    config: Annotated[str | None, typer.Option("--config", metavar="NAME", help="As given to quantize.")] = None
    pre_tokenizer: Annotated[str | None, typer.Option("--pre-tokenizer", metavar="NAME", help="As given to quantize.")] = None

    def wishes(self) -> Wishes:
        """The conversion that the options describe; raises a TinyEdgeError naming an option that cannot be used."""
        return QuantizeOptions(**dataclasses.asdict(self)).wishes()


@with_option_groups
def verify(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A GGUF file or the first of its parts, or a pulled model.", show_default=False),
    ],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="SOURCE", help="The checkpoint or GGUF file it was made from: compare every weight."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many of the worst tensors to show.")] = WORST_SHOWN,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=512, help="Default: all processors allowed.")] = None,
    checksums: Annotated[
        bool,
        typer.Option(
            "--checksums", help="SHA-256 of every tensor too; always given with --json and where stdout is no terminal."
        ),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    *,
    source: SourceOptions,
) -> None:
    """Check that a GGUF file is whole, runs, tokenizes and is near its source; print checksums.

    Leaves with 0 when every check passed and with 32 when one failed.

    \b
    Example:
      tinyedge verify tiny.gguf --against TinyLlama-1.1B
    """
    from tinyedge.cli.models import demo_checkpoint, named_path, resolve_model
    from tinyedge_quantize.verification.verify import verify as verify_file

    path = named_path(model, "MODEL") or resolve_model(model)
    reference = (named_path(against, "--against") or demo_checkpoint()) if against is not None else None
    wishes = source.wishes()
    with byte_progress(f"verify {printable(path.name, 60)}", quiet=json_output) as bar:
        report = verify_file(path, reference, wishes, threads=threads, progress=bar)
    print_report(report, top, checksums=checksums, json_output=json_output)
    report.require()


def print_report(report: Verification, top: int, *, checksums: bool = False, json_output: bool) -> None:
    """The whole report on stdout; on a terminal with every tensor's checksum only if `checksums`."""
    if json_output:
        print_json(describe(report))
        return
    everything = checksums or sys.stdout is None or not sys.stdout.isatty()
    for line in report_lines(report, top, checksums=everything):
        print_line(line)


def describe(report: Verification) -> dict[str, Any]:
    """The report for --json: shapes as [rows, columns]; an error that is no number is null."""
    return {
        "path": str(report.path),
        "passed": report.passed,
        "against": str(report.against) if report.against else None,
        "files": [{"path": str(file.path), "bytes": file.bytes, "sha256": file.sha256} for file in report.files],
        "seconds": round(report.seconds, 3),
        "checks": [_describe_check(check) for check in report.checks],
        "tensors": [_describe_tensor(tensor) for tensor in report.tensors],
    }


def _describe_check(check: Check) -> dict[str, str]:
    described = {"name": check.name, "result": check.result, "detail": check.detail}
    return described | ({"remedy": check.remedy} if check.remedy is not None else {})


def _describe_tensor(tensor: TensorReport) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": tensor.name,
        "type": tensor.type,
        "shape": list(tensor.shape[::-1]),
        "bytes": tensor.bytes,
        "sha256": tensor.sha256,
        "valid": tensor.valid,
    }
    if tensor.errors is not None:
        errors = {"relative_rms": tensor.errors.relative_rms, "cosine": tensor.errors.cosine, "largest": tensor.errors.largest}
        described |= {key: value if math.isfinite(value) else None for key, value in errors.items()}
        described |= {"bound": tensor.bound, "within_bound": tensor.within_bound}
    return described


def report_lines(report: Verification, top: int, *, checksums: bool) -> list[str]:
    """The report for a person: the checks, the worst tensors, and checksums as `sha256sum` writes them.

    Those of the tensors stand before those of the files, and only if `checksums`.
    """
    size = sum(file.bytes for file in report.files)
    against = f", against {printable(str(report.against))}" if report.against else ""
    read = f"{size:,} bytes ({format_bytes(size)}), read in {format_seconds(report.seconds)}{against}"
    width = max(len(check.name) for check in report.checks)
    lines = [
        f"{printable(str(report.path))}: {read}",
        *(
            f"  {check.result:<7}  {check.name:<{width}}  {printable(check.detail, _DETAIL_CHARACTERS)}"
            for check in report.checks
        ),
    ]
    worst = report.worst_first[:top]
    if worst:
        lines += ["", *_worst_lines(worst)]
    lines.append("")
    if checksums:
        lines += [f"{tensor.sha256}  {printable(tensor.name)}" for tensor in report.tensors]
    lines += [f"{file.sha256}  {printable(str(file.path))}" for file in report.files]
    return lines


def _worst_lines(tensors: tuple[TensorReport, ...]) -> list[str]:
    width = max(len("worst tensors"), *(len(printable(tensor.name)) for tensor in tensors))
    columns = f"{'type':>7}  {'relative RMS':>12}  {'bound':>8}  {'of bound':>8}  {'cosine':>8}  {'largest error':>13}"
    lines = [f"{'worst tensors':<{width}}  {columns}"]
    for tensor in tensors:
        errors = tensor.errors
        assert errors is not None
        mark = "" if tensor.within_bound else "  too much"
        lines.append(
            f"{printable(tensor.name):<{width}}  {tensor.type:>7}  {errors.relative_rms:>12.6f}  {tensor.bound:>8.3g}  "
            f"{tensor.share_of_bound:>8.0%}  {errors.cosine:>8.6f}  {errors.largest:>13.3g}{mark}"
        )
    return lines
