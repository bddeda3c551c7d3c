"""`tinyedge lora`: a PEFT adapter becomes a GGUF file that `run` and `chat` apply with --lora."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyedge.cli.output import format_bytes, print_json, printable, status

_TYPES = ("F32", "F16", "BF16")


def lora(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of a PEFT adapter, or its weight file.")],
    base: Annotated[
        Path, typer.Option("--base", metavar="CHECKPOINT", help="The model it was trained on; its config.json is enough.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT.gguf", help="GGUF file or folder.", show_default="ADAPTER-TYPE.gguf"),
    ] = None,
    type_name: Annotated[str, typer.Option("--type", "-t", metavar="[F32|F16|BF16]", help="Type of the matrices.")] = "F32",
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Turn a PEFT LoRA adapter into a GGUF file for use at run time.

    Reads LoRA and rsLoRA adapters as PEFT, Unsloth and TRL save them. DoRA and whole trained layers must be merged into
    the weights instead: tinyedge quantize BASE --lora ADAPTER.

    \b
    Example:
      tinyedge lora my-adapter --base TinyLlama-1.1B -o my.gguf
    """
    wanted = type_name.upper()
    if wanted not in _TYPES:
        raise typer.BadParameter(f"{printable(type_name)} is none of {', '.join(_TYPES)}", param_hint="--type")
    from tinyedge.cli.quantize import output_path
    from tinyedge_quantize.lora import open_adapter
    from tinyedge_quantize.lora.adapter_gguf import base_config, write_adapter

    _require_checkpoint(base)
    target = output_path(adapter, output, wanted)
    _require_no_loss(target)
    with open_adapter(adapter) as opened:
        written = write_adapter(opened, base_config(base), target, wanted)
    if json_output:
        print_json(
            {
                "path": str(written.path),
                "kind": written.kind,
                "architecture": written.architecture,
                "type": written.type,
                "alpha": written.alpha,
                "modules": written.modules,
                "bytes": written.bytes,
            }
        )
        return
    status(
        f"{printable(str(written.path))}: {format_bytes(written.bytes)}, {written.kind} for {written.modules} modules of a "
        f"{written.architecture} model, {written.type}; use it with --lora {printable(str(written.path))}"
    )


def _require_checkpoint(base: Path) -> None:
    """Raises CheckpointError when `base` is a GGUF file, which no longer says how the checkpoint's tensors were called."""
    from tinyedge.errors import CheckpointError
    from tinyedge.gguf_file import is_gguf

    if is_gguf(base):
        raise CheckpointError(f"{base} is a GGUF file", "give the checkpoint it was made from, of which config.json is enough")


def _require_no_loss(path: Path) -> None:
    """Raises OutputError when `path` is a GGUF file of another kind, which would be lost."""
    from tinyedge.errors import GGUFError, ModelNotFoundError, OutputError
    from tinyedge.gguf_file import read_gguf

    try:
        kind = read_gguf(path).metadata.get("general.type", "model")
    except (GGUFError, ModelNotFoundError):  # what is no GGUF file `write_adapter` refuses, and a damaged one is no loss
        return
    if kind != "adapter":
        what = "a model" if kind == "model" else "a GGUF file of another kind"
        raise OutputError(f"{path} is {what} and would be lost", "name another file with -o")
