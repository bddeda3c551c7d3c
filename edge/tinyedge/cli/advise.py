"""The advice of `tinyedge devices`: the types of a model side by side on this machine, and the command to run."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tinyedge.cli.device_lines import LABEL_WIDTH
from tinyedge.cli.output import format_bytes, format_count, printable

if TYPE_CHECKING:
    from pathlib import Path

    from tinyedge.advice import Advice
    from tinyedge.model_facts import ModelFacts

_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}
_MOST_PARAMETERS = 10**13


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is advised on: the facts of its file in each type, and the commands that get it, {type} being the type chosen."""

    title: str
    models: tuple[ModelFacts, ...]
    command: str


def subject(argument: str | None) -> Subject:
    """What `argument` means: a GGUF file, a checkpoint, a number of parameters like 1.1B; None is TinyLlama.

    Raises ModelNotFoundError and what reading the file raises.
    """
    from tinyedge.advice import TINYLLAMA, nearest_shape, scaled

    if argument is None:
        run = "tinyedge pull tinyllama:{type} && tinyedge run tinyllama:{type}"
        return Subject(title=TINYLLAMA.name, models=_shaped(TINYLLAMA.name), command=run)
    if (parameters := parameter_count(argument)) is not None:
        shape = nearest_shape(parameters)
        run = "tinyedge quantize CHECKPOINT -t {type} -o model-{type}.gguf && tinyedge run model-{type}.gguf"
        models = tuple(scaled(facts, parameters) for facts in _shaped(shape.name))
        title = f"a model shaped like {shape.name}"
        return Subject(title=title, models=models, command=run)
    return _file_subject(argument)


def parameter_count(text: str) -> int | None:
    """The number in `1.1B`, `360M`; None for anything else."""
    match = re.fullmatch(r"(\d{1,4}(?:\.\d{1,3})?)([KMB])", text, re.IGNORECASE | re.ASCII)
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    return count if 0 < count <= _MOST_PARAMETERS else None


def _shaped(name: str) -> tuple[ModelFacts, ...]:
    """The facts of the table's model of that name in each type, as llama.cpp's quantizer would choose them."""
    from tinyedge.advice import ADVISED_TYPES, SHAPES
    from tinyedge_quantize.recipes import RECIPES, ModelShape, choose_types

    shape = next(each for each in SHAPES if each.name == name)
    model = ModelShape(layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads)
    return tuple(shape.facts(kind, choose_types(RECIPES[kind], shape.tensors, model)) for kind in ADVISED_TYPES)


def _file_subject(argument: str) -> Subject:
    from tinyedge.cli.models import demo_checkpoint, named_path
    from tinyedge.gguf_file import is_gguf
    from tinyedge.gguf_split import read_model
    from tinyedge.model_facts import check_runnable, describe_model

    path = named_path(argument, "MODEL")
    source = path or demo_checkpoint()
    if source.is_file() and (is_gguf(source) or source.suffix.lower() == ".gguf"):
        gguf = read_model(source)
        check_runnable(gguf)
        facts = describe_model(gguf)
        return Subject(title=facts.name or source.name, models=(facts,), command=f"tinyedge run {_quoted(argument)}")
    stem = re.sub(r"[^\w.-]+", "_", source.resolve().stem) if path else "demo"
    target = f"{stem or 'model'}-{{type}}.gguf"
    name = _quoted(argument if path else str(source))
    run = f"tinyedge quantize {name} -t {{type}} -o {target} && tinyedge run {target}"
    return Subject(title=source.name, models=_planned(source), command=run)


def _planned(source: Path) -> tuple[ModelFacts, ...]:
    """The facts of the GGUF files that a checkpoint would become, from its header."""
    from tinyedge.advice import ADVISED_TYPES
    from tinyedge.gguf_file import parse_header
    from tinyedge.model_facts import describe_model
    from tinyedge_quantize.checkpoint import open_checkpoint
    from tinyedge_quantize.convert import plan_conversion
    from tinyedge_quantize.recipes import find_recipe

    with open_checkpoint(source) as checkpoint:
        plans = [plan_conversion(checkpoint, find_recipe(kind)) for kind in ADVISED_TYPES]
        return tuple(describe_model(parse_header(plan.whole.header, source, plan.total_bytes)) for plan in plans)


def _quoted(argument: str) -> str:
    """The argument for a shell, and for str.format."""
    return shlex.quote(argument).replace("{", "{{").replace("}", "}}")


def describe_advice(about: Subject, advice: Advice, free_bytes: int, *, runs: bool = True) -> dict[str, Any]:
    """The advice as the object that --json prints; speeds in tokens per second. No command where llama.cpp does not run."""
    from tinyedge.advice import EFFICIENCY

    chosen = advice.chosen
    return {
        "model": about.title,
        "parameters": about.models[0].parameters,
        "free_bytes": free_bytes,
        "depth": advice.depth,
        "share_of_ceiling": list(EFFICIENCY),
        "types": [
            {
                "type": option.type,
                "bits_per_weight": round(option.bits_per_weight, 3),
                "fits": option.fits,
                "context": option.context,
                "memory": asdict(option.need) | {"total_bytes": option.need.total_bytes},
                "ceiling_tokens_per_s": option.ceiling,
                "expected_tokens_per_s": None if option.low is None else [option.low, option.high],
            }
            for option in advice.options
        ],
        "type": chosen.type if chosen else None,
        "context": chosen.context if chosen else None,
        "reason": advice.reason,
        "command": f"{about.command.format(type=chosen.type)} --ctx {chosen.context}" if chosen and runs else None,
    }


def advice_lines(told: dict[str, Any]) -> list[str]:
    """The advice for a person."""
    head = f"{'type':<{LABEL_WIDTH}} {'bits':>5} {'memory':>9} {'context':>8} {'ceiling t/s':>12} {'expected t/s':>14}"
    size = format_count(told["parameters"])
    free = f"{format_bytes(told['free_bytes'])} free; speeds with {told['depth']} tokens in use"
    lines = [f"{'advice for':<{LABEL_WIDTH}} {printable(told['model'], 80)} ({size} parameters; {free})", head]
    lines += [_row(row, row["type"] == told["type"]) for row in told["types"]]
    take = f"{told['type']}: {told['reason']}" if told["type"] else told["reason"]
    lines.append(f"{'take':<{LABEL_WIDTH}} {take}")
    if any(row["expected_tokens_per_s"] for row in told["types"]):
        low, high = told["share_of_ceiling"]
        seen = f"{low:.0%} to {high:.0%} of the ceiling, as llama.cpp was seen to reach from a Raspberry Pi 4 to a server"
        lines.append(f"{'expected':<{LABEL_WIDTH}} {seen}")
    if told["command"]:
        lines.append(f"{'run':<{LABEL_WIDTH}} {printable(told['command'], 600)}")
    return lines


def _row(row: dict[str, Any], chosen: bool) -> str:
    ceiling, expected = _number(row["ceiling_tokens_per_s"]), _range(row["expected_tokens_per_s"])
    return (
        f"{row['type']:<{LABEL_WIDTH}} {row['bits_per_weight']:>5.2f} {format_bytes(row['memory']['total_bytes']):>9} "
        f"{row['context'] or 'too big':>8} {ceiling:>12} {expected:>14}{'  <-' if chosen else ''}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _range(values: list[float] | None) -> str:
    return "-" if values is None else f"{_number(values[0])} - {_number(values[1])}"
