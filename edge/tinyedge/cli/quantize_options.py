"""The options of `tinyedge quantize` beside source, target and type: how the conversion differs from the plain one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tinyedge_quantize.controls.values import Controls
    from tinyedge_quantize.convert import Wishes


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """A group for `option_groups`; every default asks for nothing."""

    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help="Importance matrix, from `tinyedge imatrix`.")
    ] = None
    lora: Annotated[
        list[str] | None, typer.Option("--lora", metavar="DIR[:SCALE]", help="Merge this LoRA adapter; repeatable.")
    ] = None
    tensor_type: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", metavar="REGEX=TYPE", help="Type of the tensors whose name matches; repeatable."),
    ] = None
    tensor_type_file: Annotated[
        list[Path] | None,
        typer.Option("--tensor-type-file", metavar="FILE", help="The same from a file, separated by white space; # comments."),
    ] = None
    output_tensor_type: Annotated[
        str | None, typer.Option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")
    ] = None
    token_embedding_type: Annotated[
        str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
    ] = None
    pure: Annotated[bool, typer.Option("--pure", help="One type for all, no mix.")] = False
    leave_output: Annotated[bool, typer.Option("--leave-output", help="Do not quantize output.weight.")] = False
    prune_layers: Annotated[
        str | None, typer.Option("--prune-layers", metavar="N,N-N", help="Drop these layers, counted from 0.")
    ] = None
    override_kv: Annotated[
        list[str] | None,
        typer.Option("--override-kv", metavar="KEY=KIND:VALUE", help="Set metadata; KIND int, float, bool, str; repeatable."),
    ] = None
    metadata: Annotated[
        Path | None, typer.Option("--metadata", metavar="FILE", help="JSON that describes the model: general.name and so on.")
    ] = None
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize what is quantized already; it says what that costs.")
    ] = False
    split_max_size: Annotated[
        str | None, typer.Option("--split-max-size", metavar="SIZE", help="Several files of at most 500M, 2G, ... each.")
    ] = None
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="NAME", help="For Lit-GPT without a config: [code_]tiny_LLaMA_1b, tiny_LLaMA_120M."),
    ] = None
    pre_tokenizer: Annotated[
        str | None, typer.Option("--pre-tokenizer", metavar="NAME", help="Name a pre-tokenizer that is not recognised.")
    ] = None

    def wishes(self) -> Wishes:
        """The conversion that the options ask for; raises a TinyEdgeError naming an option that cannot be used."""
        from tinyedge_quantize.controls.words import recipe_words
        from tinyedge_quantize.convert import Wishes
        from tinyedge_quantize.lora import parse_adapter_option
        from tinyedge_quantize.splits import parse_size

        controls = self._controls()
        return Wishes(
            config_name=self.config,
            pre_tokenizer=self.pre_tokenizer,
            adapters=[parse_adapter_option(text) for text in self.lora or ()],
            controls=controls,
            split_max_bytes=parse_size(self.split_max_size) if self.split_max_size else None,
            options=(*recipe_words(controls), *self._words()),
        )

    def _controls(self) -> Controls:
        from tinyedge_quantize.controls.options import make_controls
        from tinyedge_quantize.imatrix.file import read_imatrix

        return make_controls(
            tensor_types=self.tensor_type or (),
            tensor_type_files=self.tensor_type_file or (),
            output_tensor_type=self.output_tensor_type,
            token_embedding_type=self.token_embedding_type,
            pure=self.pure,
            leave_output=self.leave_output,
            prune_layers=self.prune_layers,
            overrides=self.override_kv or (),
            metadata_file=self.metadata,
            imatrix=read_imatrix(self.imatrix) if self.imatrix else None,
            allow_requantize=self.allow_requantize,
        )

    def _words(self) -> Iterator[str]:
        """The options that are no controls, as they would be typed, folders by their names alone."""
        for text in self.lora or ():
            yield f"--lora {shlex.quote(Path(text).name)}"
        for name in ("split_max_size", "config", "pre_tokenizer"):
            value: str | None = getattr(self, name)
            if value is not None:
                yield f"--{name.replace('_', '-')} {shlex.quote(value)}"
