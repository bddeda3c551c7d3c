"""`tinyedge demo`: the whole path on the small checkpoint in the package, so that it can be seen anywhere without a network."""

from __future__ import annotations

from typing import Annotated

import typer

PROMPT = "Once upon a time there was a little girl who"
# A seed whose text is shown in the README; any other works as well.
SEED = 7


def demo(
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="How the story begins.")] = PROMPT,
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=1, help="Most tokens to generate.")] = 160,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same story.")] = SEED,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Quantize the small checkpoint that comes with tinyedge, load it on the best backend, and tell a story.

    Example: tinyedge demo -p "The wolf said"
    """
    from tempfile import TemporaryDirectory

    from tinyedge.backends import Request
    from tinyedge.cli.models import demo_checkpoint
    from tinyedge.cli.output import status
    from tinyedge.cli.quantize import convert_with_progress, output_path, report_line
    from tinyedge.cli.run import Generation, generate
    from tinyedge.cli.sampling_options import SamplingOptions, sampling_of

    sampling = sampling_of(SamplingOptions(temp=0.7, top_p=0.9, repeat_penalty=1.1, seed=seed))
    checkpoint = demo_checkpoint()
    with TemporaryDirectory(prefix="tinyedge-demo-") as folder:
        status("1. quantize: a PyTorch checkpoint becomes a Q4_K_M GGUF file")
        from pathlib import Path

        report = convert_with_progress(checkpoint, output_path(checkpoint, Path(folder), "Q4_K_M"), "Q4_K_M")
        status(f"   {report_line(report).replace(f'{folder}/', '', 1)}")
        status("2. run: that file on the best backend of this machine")
        wanted = Generation(prompt=prompt, sampling=lambda _: sampling, max_tokens=tokens, verbose=verbose, echo=True)
        generate(report.path, Request(), wanted)
    status("The file was made for this run only; keep one of your own with: tinyedge quantize CHECKPOINT")
