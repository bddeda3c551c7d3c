"""`tinyedge quantize`: a checkpoint becomes a GGUF file in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

if TYPE_CHECKING:
    from tinyedge_quantize.checkpoint import Checkpoint
    from tinyedge_quantize.convert import ConversionReport
    from tinyedge_quantize.plan import QuantPlan


def quantize(
    checkpoint: Annotated[Path | None, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder or file.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.gguf", help="Where to write (default: NAME-TYPE.gguf here).")
    ] = None,
    type_name: Annotated[
        str,
        typer.Option(
            "-t", "--type", metavar="TYPE", help="F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S Q4_0 Q3_K_M Q2_K."
        ),
    ] = "Q4_K_M",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the exact size; read no weights.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="NAME", help="For Lit-GPT without a config: [code_]tiny_LLaMA_1b, tiny_LLaMA_120M."),
    ] = None,
    pre_tokenizer: Annotated[
        str | None, typer.Option("--pre-tokenizer", metavar="NAME", help="Name a pre-tokenizer that is not recognised.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=512, help="Default: all processors allowed.")] = None,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Check the installed quantization kernels and stop.")
    ] = False,
) -> None:
    """Turn a PyTorch checkpoint into a quantized GGUF file in one pass.

    Reads Hugging Face, Lit-GPT, Meta and llama2.c checkpoints; needs no torch.

    Example: tinyedge quantize TinyLlama-1.1B-Chat-v1.0 -t Q4_K_M -o tinyllama-q4.gguf
    """
    if self_check:
        _self_check(json_output)
        return
    if checkpoint is None:
        raise typer.BadParameter("give a checkpoint's folder or file", param_hint="CHECKPOINT")
    from tinyedge_quantize.checkpoint import open_checkpoint
    from tinyedge_quantize.plan import make_plan
    from tinyedge_quantize.recipes import find_recipe

    recipe = find_recipe(type_name)
    if dry_run:
        with open_checkpoint(checkpoint, config) as opened:
            plan = make_plan(opened, recipe, pre_tokenizer)
            (print_json if json_output else _print_plan)(describe_plan(opened, plan))
        return
    target = output_path(checkpoint, output, recipe.name)
    report = convert_with_progress(
        checkpoint, target, recipe.name, config=config, pre_tokenizer=pre_tokenizer, threads=threads, quiet=json_output
    )
    if json_output:
        print_json(describe_report(report))
    else:
        status(report_line(report))


def output_path(checkpoint: Path, output: Path | None, type_name: str) -> Path:
    """Where the file goes: `output`, or NAME-TYPE.gguf in the folder `output` or here."""
    try:
        into_folder = output is None or output.is_dir()
    except OSError:  # a name too long to ask about; writing to it will say so
        into_folder = False
    if output is not None and not into_folder:
        return output
    resolved = checkpoint.resolve()
    name = resolved.name if resolved.is_dir() else resolved.stem if resolved.parent == Path() else resolved.parent.name
    return (output or Path()) / f"{name}-{type_name}.gguf"


def convert_with_progress(
    checkpoint: Path,
    target: Path,
    type_name: str,
    *,
    config: str | None = None,
    pre_tokenizer: str | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> ConversionReport:
    """Converts with a bar of the output's bytes on a terminal."""
    from tinyedge_quantize.convert import convert

    with byte_progress(f"{type_name} {target.name}", quiet=quiet) as bar:
        return convert(
            checkpoint, target, type_name, config_name=config, pre_tokenizer=pre_tokenizer, threads=threads, progress=bar
        )


def report_line(report: ConversionReport) -> str:
    """What was done, in one line for stderr."""
    return (
        f"{printable(str(report.path))}: {format_bytes(report.bytes)} ({report.bytes:,} bytes), {report.type}, "
        f"{report.bits_per_weight:.2f} bits per weight, {format_count(report.parameters)} parameters, "
        f"from {format_bytes(report.source_bytes)} {report.layout} in {format_seconds(report.seconds)}"
    )


def describe_report(report: ConversionReport) -> dict[str, Any]:
    """The report of a conversion for --json."""
    return {
        "path": str(report.path),
        "type": report.type,
        "layout": report.layout,
        "parameters": report.parameters,
        "source_bytes": report.source_bytes,
        "bytes": report.bytes,
        "bits_per_weight": round(report.bits_per_weight, 4),
        "seconds": round(report.seconds, 3),
        "tensor_types": report.type_counts,
    }


def describe_plan(checkpoint: Checkpoint, plan: QuantPlan) -> dict[str, Any]:
    """The plan for --json and the table."""
    return {
        "checkpoint": str(checkpoint.path),
        "layout": checkpoint.arranged.layout,
        "type": plan.recipe.name,
        "parameters": plan.parameters,
        "source_bytes": checkpoint.source_bytes,
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


def _self_check(json_output: bool) -> None:
    from tinyedge_quantize.selfcheck import check_kernels

    results = check_kernels()
    if json_output:
        print_json({"types": [{"type": r.type, "error": r.error, "bound": r.bound} for r in results]})
        return
    print_line("type     relative RMS error   bound")
    for result in results:
        print_line(f"{result.type:<8} {result.error:>18.5f}   {result.bound:.5f}")
    print_line("the installed quantization kernels are within their bounds")
