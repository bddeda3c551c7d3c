"""The README's tables of what `tinyedge quantize` takes and makes, from the tables that it works by."""

from __future__ import annotations

from tinyedge.advice import SHAPES
from tinyedge_quantize.architectures import ARCHITECTURES
from tinyedge_quantize.layouts import LAYOUTS
from tinyedge_quantize.quantized import METHODS
from tinyedge_quantize.recipes import ModelShape
from tinyedge_quantize.type_table import type_table


def families() -> str:
    """The model families and the classes of transformers that they answer to."""
    rows = ["| family | classes | llama.cpp's name |", "|---|---|---|"]
    rows += [
        f"| {row.family} | {', '.join(f'`{name}`' for name in (*row.classes, *row.base_classes))} | {row.gguf_name} |"
        for row in sorted(ARCHITECTURES, key=lambda row: row.family)
    ]
    return "\n".join(rows) + "\n"


def inputs() -> str:
    """The forms a model may come in."""
    rows = ["| from | what of it |", "|---|---|"]
    rows += [f"| {layout.project} | {layout.files} |" for layout in reversed(LAYOUTS)]
    rows += [f"| Hugging Face, packed as {method.name} | {method.reads} |" for method in METHODS]
    rows.append("| a LoRA, rsLoRA or DoRA adapter | `--lora DIR[:SCALE]`, merged on the way in; several |")
    rows.append("| GGUF, also in parts | F32, F16, BF16 and Q8_0 to any type; other types with `--allow-requantize` |")
    return "\n".join(rows) + "\n"


def types() -> str:
    """The types with the size they give a TinyLlama and the error of their main type."""
    shape = next(each for each in SHAPES if each.name.startswith("TinyLlama"))
    model = ModelShape(layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads)
    rows = [f"| type | mostly | bits per weight | {shape.name} | error of a weight | |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {row.name} | {row.mostly} | {row.bits:.2f} | {row.bytes / 2**20:,.0f} MiB | {row.error:.2%} "
        f"| {'needs an importance matrix' if row.needs_imatrix else row.note} |"
        for row in type_table(shape.tensors, model)
    ]
    return "\n".join(rows) + "\n"
