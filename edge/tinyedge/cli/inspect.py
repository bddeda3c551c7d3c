"""`tinyedge inspect`: what is in a model, and what memory it takes, without loading it.

Everything printed comes from a file that may be hostile, so every string goes through `printable`.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.option_groups import within
from tinyedge.cli.output import MAX_TOKENS, format_bytes, format_count, print_json, print_line, printable

if TYPE_CHECKING:
    from tinyedge.gguf_file import GGUFFile
    from tinyedge.gguf_values import Value
    from tinyedge.model_facts import ModelFacts
    from tinyedge_quantize.checkpoint import Checkpoint
    from tinyedge_quantize.plan import QuantPlan

_LABEL_WIDTH = 14
_SHOWN_ELEMENTS = 8


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A GGUF file, or a checkpoint's folder or file.")],
    context: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            callback=within(1, MAX_TOKENS),
            help="Context for the memory figures.",
            show_default="the model's, up to 8192",
        ),
    ] = None,
    type_name: Annotated[
        str, typer.Option("-t", "--type", metavar="TYPE", help="What to assume a checkpoint is quantized to.")
    ] = "Q4_K_M",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show a model's metadata, tensor types, size and memory needs; reads no weights.

    Example: tinyedge inspect TinyLlama-1.1B-Chat-v1.0-Q4_K_M.gguf --ctx 2048
    """
    from tinyedge.cli.models import demo_checkpoint, named_path
    from tinyedge.gguf_file import is_gguf
    from tinyedge.gguf_split import read_model

    source = named_path(path, "PATH") or demo_checkpoint()
    if source.is_file() and (is_gguf(source) or source.suffix.lower() == ".gguf"):
        report = describe(read_model(source), context)
    else:
        report = _describe_checkpoint(source, type_name, context)
    if json:
        print_json(report)
        return
    for line in report_lines(report, shutil.get_terminal_size().columns):
        print_line(line)


def describe(gguf: GGUFFile, context: int | None) -> dict[str, Any]:
    """Everything `inspect` knows about a GGUF file, as the object that --json prints."""
    from tinyedge.errors import TinyEdgeError
    from tinyedge.model_facts import check_runnable, describe_model

    facts = describe_model(gguf)
    try:
        check_runnable(gguf)
        problem = None
    except TinyEdgeError as error:
        problem = error.problem
    return {
        "path": str(gguf.path),
        "format": f"GGUF {gguf.version}",
        "runnable": problem is None,
        "problem": problem,
        **_facts_object(facts),
        "memory": _memory_object(facts, context),
        "metadata": {key: _json_value(value) for key, value in gguf.metadata.items()},
        "tensors": [
            {"name": tensor.name, "shape": list(tensor.shape), "type": tensor.type.name, "bytes": tensor.bytes}
            for tensor in gguf.tensors
        ],
    }


def _describe_checkpoint(path: Path, type_name: str, context: int | None) -> dict[str, Any]:
    """The GGUF file that a checkpoint would become, with the checkpoint's own facts beside it."""
    from tinyedge.gguf_file import parse_header
    from tinyedge_quantize.checkpoint import open_checkpoint
    from tinyedge_quantize.convert import plan_conversion
    from tinyedge_quantize.provenance import SOURCE_HASHES
    from tinyedge_quantize.recipes import find_recipe

    recipe = find_recipe(type_name)
    with open_checkpoint(path) as checkpoint:
        plan = plan_conversion(checkpoint, recipe)
        report = describe(parse_header(plan.whole.header, path, plan.total_bytes), context)
        del report["metadata"][SOURCE_HASHES]  # known only when the weights are read
        return report | {"format": "checkpoint", "checkpoint": _checkpoint_object(checkpoint, plan)}


def _checkpoint_object(checkpoint: Checkpoint, plan: QuantPlan) -> dict[str, Any]:
    tensors = Counter(tensor.source.dtype for tensor in plan.tensors)
    elements: Counter[str] = Counter()
    for tensor in plan.tensors:
        elements[tensor.source.dtype] += tensor.elements
    return {
        "layout": checkpoint.arranged.layout,
        "bytes": checkpoint.source_bytes,
        "files": len(checkpoint.files),
        "tensor_types": [{"type": name, "tensors": tensors[name], "elements": count} for name, count in elements.most_common()],
    }


def _facts_object(facts: ModelFacts) -> dict[str, Any]:
    return {
        "architecture": facts.architecture,
        "name": facts.name,
        "type": facts.file_type,
        "parameters": facts.parameters,
        "bits_per_weight": round(facts.bits_per_weight, 4),
        "file_bytes": facts.file_bytes,
        "weight_bytes": facts.weight_bytes,
        "layers": facts.layers,
        "hidden": facts.hidden,
        "ffn": facts.ffn,
        "heads": facts.heads,
        "kv_heads": facts.kv_heads,
        "head_dim": facts.head_dim_k,
        "experts": facts.experts,
        "vocabulary": facts.vocabulary,
        "tokenizer": facts.tokenizer,
        "context": facts.context,
        "chat_template": facts.chat_template,
        "tensor_types": [
            {"type": row.type.name, "tensors": row.tensors, "elements": row.elements, "bytes": row.bytes}
            for row in facts.tensor_types
        ],
    }


def _memory_object(facts: ModelFacts, context: int | None) -> dict[str, Any]:
    from tinyedge.backends import DEFAULT_CONTEXT_LIMIT
    from tinyedge.memory import free_memory_bytes, largest_context_that_fits, memory_needed

    context = context or min(facts.context or DEFAULT_CONTEXT_LIMIT, DEFAULT_CONTEXT_LIMIT)
    need, free = memory_needed(facts, context), free_memory_bytes()
    return {
        "context": context,
        "weights_bytes": need.weights_bytes,
        "kv_bytes": need.kv_bytes,
        "compute_bytes": need.compute_bytes,
        "total_bytes": need.total_bytes,
        "free_bytes": free,
        "fits": need.total_bytes <= free,
        "largest_context_that_fits": largest_context_that_fits(facts, free),
    }


def _json_value(value: Value) -> Any:
    """A metadata value for JSON, which knows no NaN; a long array becomes its type, length and first elements."""
    from tinyedge.gguf_values import GGUFArray

    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if not isinstance(value, GGUFArray):
        return value
    first = [_json_value(element) for element in value.head(_SHOWN_ELEMENTS)]
    if len(value) <= _SHOWN_ELEMENTS:
        return first
    return {"type": value.element_type, "count": len(value), "first": first}


def report_lines(report: dict[str, Any], columns: int) -> list[str]:
    """The report for a person, lines of at most `columns` characters."""
    lines = [*_summary(report), "", *_type_table(report), "", *_memory_lines(report["memory"]), ""]
    lines.append("metadata, as quantized:" if "checkpoint" in report else "metadata:")
    width = min(max((len(printable(key)) for key in report["metadata"]), default=0), max(columns // 2, 20))
    for key, value in report["metadata"].items():
        name = printable(key, width)
        lines.append(f"  {name:<{width}}  {_human_value(value, max(columns - width - 4, 20))}")
    return lines


def _summary(report: dict[str, Any]) -> list[str]:
    rows = [("path", printable(report["path"]))]
    if source := report.get("checkpoint"):
        types = ", ".join(f"{row['tensors']} {row['type']}" for row in source["tensor_types"])
        rows.append(("checkpoint", f"{printable(source['layout'])}, {format_bytes(source['bytes'])}, {types} tensors"))
        rows.append(("quantized", f"{report['type']}, {report['file_bytes']:,} bytes ({format_bytes(report['file_bytes'])})"))
    else:
        rows.append(("file", f"{report['format']}, {report['file_bytes']:,} bytes ({format_bytes(report['file_bytes'])})"))
        rows.append(("type", report["type"]))
    rows += [
        ("name", printable(report["name"], 60) or "-"),
        ("architecture", printable(report["architecture"], 60) or "-"),
        ("parameters", f"{format_count(report['parameters'])}, {report['bits_per_weight']:.2f} bits each"),
        ("layers", f"{report['layers']}, hidden {report['hidden']}, feed-forward {report['ffn']}"),
        ("heads", f"{report['heads']}, {report['kv_heads']} for keys and values, {report['head_dim']} wide"),
        ("vocabulary", f"{report['vocabulary']} tokens, tokenizer {printable(report['tokenizer'], 40) or '-'}"),
        ("context", f"{report['context']} tokens"),
        ("chat template", "yes" if report["chat_template"] else "no"),
        ("llama.cpp", "can run it" if report["runnable"] else f"cannot run it: {printable(report['problem'], 300)}"),
    ]
    if report["experts"]:
        rows.insert(-4, ("experts", str(report["experts"])))
    return [f"{label:<{_LABEL_WIDTH}} {value}" for label, value in rows]


def _type_table(report: dict[str, Any]) -> list[str]:
    lines = [f"{'tensor type':<{_LABEL_WIDTH}} {'tensors':>7} {'values':>15} {'bytes':>15} {'bits each':>10}"]
    for row in report["tensor_types"]:
        bits = 8 * row["bytes"] / row["elements"]
        lines.append(
            f"{row['type']:<{_LABEL_WIDTH}} {row['tensors']:>7} {row['elements']:>15,} {row['bytes']:>15,} {bits:>10.2f}"
        )
    return lines


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    parts = (
        ("weights", "weights_bytes"),
        ("KV cache, F16", "kv_bytes"),
        ("compute", "compute_bytes"),
        ("together", "total_bytes"),
    )
    lines = [f"memory at a context of {memory['context']} tokens:"]
    lines += [f"  {label:<{_LABEL_WIDTH}} {format_bytes(memory[key]):>10}" for label, key in parts]
    free = f"  {'free now':<{_LABEL_WIDTH}} {format_bytes(memory['free_bytes']):>10}"
    largest = memory["largest_context_that_fits"]
    if memory["fits"]:
        return [*lines, f"{free}, it fits"]
    return [*lines, free + (f", a context of {largest} fits" if largest else ", no context fits")]


def _human_value(value: Any, limit: int) -> str:
    if isinstance(value, dict):
        first = ", ".join(printable(str(element), 24) for element in value["first"])
        return printable(f"{value['count']} {value['type']}: {first}, ...", limit)
    if isinstance(value, list):
        return printable(", ".join(map(str, value)), limit)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.7g}"
    return printable(str(value), limit)
