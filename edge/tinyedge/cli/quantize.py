"""`tinyedge quantize`: a checkpoint becomes a GGUF file in one pass."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.option_groups import with_option_groups
from tinyedge.cli.output import (
    byte_progress,
    format_bytes,
    format_count,
    format_seconds,
    print_json,
    print_line,
    printable,
    status,
)
from tinyedge.cli.quantize_options import QuantizeOptions

if TYPE_CHECKING:
    from tinyedge_quantize.convert import ConversionReport, Wishes
    from tinyedge_quantize.plan import QuantPlan, Source
    from tinyedge_quantize.verification.tensors import SlabObserver
    from tinyedge_quantize.write import Observer


@with_option_groups
def quantize(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder or file, or a GGUF file.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.gguf", help="Where to write (default: NAME-TYPE.gguf here).")
    ] = None,
    type_name: Annotated[
        str, typer.Option("-t", "--type", metavar="TYPE", help="Q8_0 Q6_K Q5_K_M Q4_K_M IQ4_XS Q3_K_M F16 and more: --types.")
    ] = "Q4_K_M",
    types: Annotated[bool, typer.Option("--types", help="List the types with their bits and errors and stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the exact size; read no weights.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare what is written with the source in the same pass.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=512, help="Default: all processors allowed.")] = None,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Check the installed quantization kernels and stop.")
    ] = False,
    *,
    options: QuantizeOptions,
) -> None:
    """Turn a PyTorch checkpoint, or a GGUF file, into a quantized GGUF file in one pass.

    Reads Hugging Face, Lit-GPT, Meta and llama2.c checkpoints, also those packed by GPTQ, AWQ, bitsandbytes or as FP8; needs no
    torch.

    \b
    Examples:
      tinyedge quantize TinyLlama-1.1B-Chat-v1.0 -t Q4_K_M -o tiny.gguf
      tinyedge quantize model-f16.gguf -t IQ3_XXS --imatrix imatrix.gguf
    """
    if self_check:
        _self_check(json_output)
        return
    if types:
        _list_types(json_output)
        return
    if checkpoint is None:
        raise typer.BadParameter("give a checkpoint's folder or file", param_hint="CHECKPOINT")
    from tinyedge_quantize.convert import open_source, plan_conversion
    from tinyedge_quantize.recipes import find_recipe
    from tinyedge_quantize.splits import split_paths, split_plan

    if dry_run and verify:
        raise typer.BadParameter("a dry run writes nothing that could be verified", param_hint="--verify")
    checkpoint = _named(checkpoint)
    recipe = find_recipe(type_name)
    wishes = options.wishes()
    target = output_path(checkpoint, output, recipe.name)
    if dry_run:
        with open_source(checkpoint, wishes) as opened:
            plan = plan_conversion(opened, recipe, wishes)
            files = split_plan(plan, wishes.split_max_bytes)
            paths = split_paths(target, len(files))
            described = describe_plan(opened, plan) | {
                "bytes": sum(file.bytes for file in files),
                "files": [{"path": str(path), "bytes": file.bytes} for path, file in zip(paths, files, strict=True)],
            }
            (print_json if json_output else _print_plan)(described)
        return
    observer = None
    if verify:
        from tinyedge_quantize.verification.tensors import SlabObserver

        observer = SlabObserver()
    report = convert_with_progress(
        checkpoint, target, recipe.name, wishes, threads=threads, quiet=json_output, observer=observer
    )
    for warning in report.warnings:
        status(f"note: {printable(warning, 400)}")
    if not json_output:
        status(report_line(report))
    if observer is None:
        if json_output:
            print_json(describe_report(report))
        return
    _print_verification(checkpoint, report, observer, threads, json_output=json_output)


def _print_verification(
    source: Path, report: ConversionReport, observer: SlabObserver, threads: int | None, *, json_output: bool
) -> None:
    """The report on the file just written; raises VerificationError when it did not pass."""
    from tinyedge.cli.verify import WORST_SHOWN, describe, print_report
    from tinyedge_quantize.verification.verify import verify_written

    folder = source if source.is_dir() else source.parent
    with byte_progress(f"verify {report.path.name}", quiet=json_output) as bar:
        found = verify_written(report.path, observer, folder, against=source, threads=threads, progress=bar)
    if json_output:
        print_json(describe_report(report) | {"verification": describe(found)})
    else:
        print_report(found, WORST_SHOWN, json_output=False)
    found.require()


def _named(checkpoint: Path) -> Path:
    """The path itself, or that of the demo's checkpoint for `demo` where there is no file of that name."""
    from tinyedge.cli.models import demo_checkpoint

    return demo_checkpoint() if str(checkpoint) == "demo" and not checkpoint.exists() else checkpoint


def output_path(checkpoint: Path, output: Path | None, type_name: str) -> Path:
    """Where the file goes: `output`, or NAME-TYPE.gguf in the folder `output` or here.

    NAME is the checkpoint's folder, or the stem of a GGUF file without its own type and part number.
    """
    try:
        into_folder = output is None or output.is_dir()
    except OSError:  # a name too long to ask about; writing to it will say so
        into_folder = False
    if output is not None and not into_folder:
        return output
    return (output or Path()) / f"{_model_name(checkpoint.resolve())}-{type_name}.gguf"


def _model_name(path: Path) -> str:
    if path.is_dir():
        return path.name
    if path.suffix.lower() != ".gguf":
        return path.parent.name or path.stem
    from tinyedge_quantize.recipes import ALIASES, RECIPES

    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    types = "|".join(sorted((*RECIPES, *ALIASES), key=len, reverse=True))
    return re.sub(rf"[-._]({types})$", "", stem, flags=re.IGNORECASE) or stem


def convert_with_progress(
    checkpoint: Path,
    target: Path,
    type_name: str,
    wishes: Wishes | None = None,
    *,
    threads: int | None = None,
    quiet: bool = False,
    observer: Observer | None = None,
) -> ConversionReport:
    """Converts with a bar of the output's bytes on a terminal."""
    from tinyedge_quantize.convert import convert

    with byte_progress(f"{type_name} {target.name}", quiet=quiet) as bar:
        return convert(checkpoint, target, type_name, wishes, threads=threads, progress=bar, observer=observer)


def report_line(report: ConversionReport) -> str:
    """What was done, in one line for stderr."""
    more = f" and {len(report.paths) - 1} more" if len(report.paths) > 1 else ""
    return (
        f"{printable(str(report.path))}{more}: {format_bytes(report.bytes)} ({report.bytes:,} bytes), {report.type}, "
        f"{report.bits_per_weight:.2f} bits per weight, {format_count(report.parameters)} parameters, "
        f"from {format_bytes(report.source_bytes)} {report.layout} in {format_seconds(report.seconds)}"
    )


def describe_report(report: ConversionReport) -> dict[str, Any]:
    """The report of a conversion for --json."""
    return {
        "path": str(report.path),
        "paths": [str(path) for path in report.paths],
        "type": report.type,
        "layout": report.layout,
        "parameters": report.parameters,
        "source_bytes": report.source_bytes,
        "bytes": report.bytes,
        "bits_per_weight": round(report.bits_per_weight, 4),
        "seconds": round(report.seconds, 3),
        "tensor_types": report.type_counts,
        "warnings": list(report.warnings),
    }


def describe_plan(source: Source, plan: QuantPlan) -> dict[str, Any]:
    """The plan for --json and the table."""
    return {
        "checkpoint": str(source.path),
        "layout": source.layout,
        "type": plan.recipe.name,
        "parameters": plan.parameters,
        "source_bytes": source.source_bytes,
        "bytes": plan.total_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "tensor_types": plan.type_counts,
        "tensors": [
            {
                "name": tensor.name,
                "source": tensor.source.name,
                "shape": list(tensor.shape),
                "source_type": tensor.source.dtype,
                "type": tensor.ggml_type,
                "bytes": tensor.bytes,
            }
            for tensor in plan.tensors
        ],
        "warnings": list(plan.warnings),
    }


def _print_plan(plan: dict[str, Any]) -> None:
    width = max(len(tensor["name"]) for tensor in plan["tensors"])
    print_line(f"{'tensor':<{width}}  {'shape':>14}  {'from':>5}  {'to':>5}  {'bytes':>12}")
    for tensor in plan["tensors"]:
        shape, name = " x ".join(map(str, tensor["shape"])), printable(tensor["name"])
        print_line(f"{name:<{width}}  {shape:>14}  {tensor['source_type']:>5}  {tensor['type']:>5}  {tensor['bytes']:>12,}")
    counts = ", ".join(f"{count} {name}" for name, count in plan["tensor_types"].items())
    print_line(f"{len(plan['tensors'])} tensors ({counts}), {format_count(plan['parameters'])} parameters")
    print_line(
        f"{plan['type']} file: {plan['bytes']:,} bytes ({format_bytes(plan['bytes'])}), "
        f"{plan['bits_per_weight']:.2f} bits per weight, from {format_bytes(plan['source_bytes'])}"
    )
    for file in plan["files"] if len(plan["files"]) > 1 else ():
        print_line(f"{printable(file['path'])}: {file['bytes']:,} bytes")
    for warning in plan["warnings"]:
        status(f"note: {printable(warning, 400)}")


def _list_types(json_output: bool) -> None:
    from tinyedge.advice import SHAPES
    from tinyedge_quantize.recipes import ModelShape
    from tinyedge_quantize.type_table import type_table

    shape = next(each for each in SHAPES if each.name.startswith("TinyLlama"))
    rows = type_table(shape.tensors, ModelShape(layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads))
    if json_output:
        listed = [
            {"type": row.name} | {key: value for key, value in dataclasses.asdict(row).items() if key != "name"} for row in rows
        ]
        print_json({"model": shape.name, "types": listed})
        return
    print_line(f"type     mostly    bits   {shape.name}  error of a weight")
    for row in rows:
        remark = "needs --imatrix" if row.needs_imatrix else row.note
        sizes = f"{row.bits:>5.2f}  {format_bytes(row.bytes):>15}  {row.error:>17.2%}"
        print_line(f"{row.name:<8} {row.mostly:<8} {sizes}  {remark}".rstrip())


def _self_check(json_output: bool) -> None:
    from tinyedge_quantize.selfcheck import check_kernels

    results = check_kernels(slow=True)
    if json_output:
        print_json({"types": [{"type": r.type, "error": r.error, "bound": r.bound} for r in results]})
        return
    print_line("type             relative RMS error   bound")
    for result in results:
        print_line(f"{result.type:<16} {result.error:>18.5f}   {result.bound:.5f}")
    print_line("the installed quantization kernels are within their bounds")
