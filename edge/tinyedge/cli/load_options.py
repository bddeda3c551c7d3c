"""The options that say how a model is loaded, the same for every command that loads or plans one, and the request they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.option_groups import within
from tinyedge.cli.output import MAX_TOKENS, format_bytes, printable, status

if TYPE_CHECKING:
    from tinyedge.backends import LoadPlan, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """A group for `option_groups`; None leaves the choice to the plan."""

    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", callback=within(2, MAX_TOKENS), help="Context in tokens.", show_default="the model's, if it fits"
        ),
    ] = None
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            metavar="TYPE",
            help="KV cache: f16, q8_0, q4_0, bf16, f32, q4_1, q5_0, q5_1, iq4_nl.",
            show_default="f16, if it fits",
        ),
    ] = None
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=512, help="CPU threads.", show_default="performance cores")
    ] = None
    backend: Annotated[str, typer.Option("--backend", metavar="[auto|cpu|cuda|metal]", help="Where to run.")] = "auto"
    gpu_layers: Annotated[
        int | None, typer.Option("--gpu-layers", min=0, help="Layers on the GPU.", show_default="all that fit")
    ] = None
    flash_attn: Annotated[
        str, typer.Option("--flash-attn", metavar="[auto|on|off]", help="Flash attention; a quantized KV cache needs it.")
    ] = "auto"
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, max=65536, help="Prompt tokens computed at once.", show_default="512"),
    ] = None
    rope_scaling: Annotated[
        str | None,
        typer.Option("--rope-scaling", metavar="[linear|yarn]", help="Stretch the context beyond the trained one."),
    ] = None
    rope_scale: Annotated[
        float | None, typer.Option("--rope-scale", metavar="X", help="How many times.", show_default="as --ctx needs")
    ] = None
    mmap: Annotated[bool, typer.Option("--mmap/--no-mmap", help="Map the file into memory, or read all of it.")] = True
    mlock: Annotated[bool, typer.Option("--mlock", help="Keep the weights from being swapped out.")] = False
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what does not fit memory, where otherwise less is taken and said.")
    ] = False

    def request(self) -> Request:
        """The request that the options make. A value without meaning is wrong usage."""
        from tinyedge.backends import Request

        try:
            return Request(
                backend=self.backend,
                gpu_layers=self.gpu_layers,
                context=self.ctx,
                threads=self.threads,
                kv_type=None if self.kv is None else self.kv.upper(),
                batch=self.batch,
                flash=self.flash_attn,
                mmap=self.mmap,
                mlock=self.mlock,
                rope_scaling=self.rope_scaling,
                rope_scale=self.rope_scale,
                strict=self.strict,
            )
        except ValueError as error:
            raise typer.BadParameter(printable(str(error))) from error


def tell_locked(plan: LoadPlan, weight_bytes: int) -> None:
    """Says on stderr when --mlock was asked for and the system did not let all of the weights be locked."""
    from tinyedge.machine.memory_facts import locked_bytes

    locked = locked_bytes() if plan.mlock and plan.backend == "cpu" else None
    if locked is not None and locked < 0.9 * weight_bytes:
        status(
            f"warning: the system locked {format_bytes(locked)} of the {format_bytes(weight_bytes)} of weights; "
            "`ulimit -l` says how much it allows"
        )


def tell(plan: LoadPlan) -> None:
    """Says on stderr what was chosen and why, what was given up to fit memory, and what to beware of."""
    status(plan.reason)
    for step in plan.steps:
        status(f"to fit memory: {step}")
    for warning in plan.warnings:
        status(f"warning: {warning}")
