"""`tinyedge imatrix`: what matters in a model, measured while it reads a text, for better small files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyedge.cli.imatrix_collection import Wanted, check_output, collect
from tinyedge.cli.imatrix_lines import describe, describe_statistics, statistics_lines, summary_line
from tinyedge.cli.option_groups import within
from tinyedge.cli.output import MAX_TOKENS, print_json, print_line, status

_EXAMPLES = """\b
Examples:
  tinyedge imatrix model-f16.gguf --text calibration.txt -o imatrix.gguf
  tinyedge imatrix demo --text story.txt --chunks 100 --ctx 256
  tinyedge imatrix --in-file a.gguf --in-file b.dat -o both.gguf
  tinyedge imatrix imatrix.gguf --show
"""
DEFAULT_OUTPUT = Path("imatrix.gguf")


def imatrix(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A GGUF file, a checkpoint, a pulled name, or `demo`.", show_default=False),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="The text to read, like what the model will be used for; - is stdin."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write.", show_default="imatrix.gguf")
    ] = None,
    chunks: Annotated[
        int | None, typer.Option("--chunks", callback=within(1, MAX_TOKENS), help="Most chunks to read.", show_default="all")
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", callback=within(16, MAX_TOKENS), help="Tokens per chunk.", show_default="512, or the model's context"
        ),
    ] = None,
    in_file: Annotated[
        list[Path] | None,
        typer.Option("--in-file", metavar="FILE", help="Add an imatrix that is there already, .gguf or .dat; several."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the statistics of each tensor and layer.")] = False,
    process_output: Annotated[bool, typer.Option("--process-output", help="Collect for output.weight too.")] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Take names of special tokens in the text for these.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Go on with what the output holds of the same, or begin anew.")
    ] = True,
    save_every: Annotated[
        int, typer.Option("--save-every", callback=within(1, MAX_TOKENS), help="Chunks between two savings.")
    ] = 10,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=512, help="CPU threads.", show_default="performance cores")
    ] = None,
    backend: Annotated[str, typer.Option("--backend", metavar="[auto|cpu|cuda|metal]", help="Where to run.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Measure which weights matter while a model reads a text, for `tinyedge quantize --imatrix`.

    Writes llama.cpp's imatrix format. Stopped, it goes on where it was when it is called again.
    """
    from tinyedge.native import log
    from tinyedge_quantize.imatrix.file import merge, read_imatrix, write_imatrix

    given = [] if in_file is None else list(in_file)
    if text is not None:
        if model is None:
            raise typer.BadParameter("give the model that is to read the text", param_hint="MODEL")
        log.set_verbose(verbose)
        wanted = Wanted(
            text=text,
            output=output or DEFAULT_OUTPUT,
            chunks=chunks,
            context=ctx,
            threads=threads,
            backend=backend,
            process_output=process_output,
            parse_special=parse_special,
            save_every=save_every,
            resume=resume,
            quiet=json,
        )
        report = collect(model, given, wanted)
        if show:
            report |= describe_statistics(read_imatrix(wanted.output))
        _tell(report, json=json, show=show)
        return
    if show and model is not None:
        given.insert(0, Path(model))
    elif model is not None or not given:
        raise typer.BadParameter("give a text for the model to read, or files to merge with --in-file", param_hint="--text")
    imatrices = [read_imatrix(path) for path in given]
    sizes = (each.chunk_size for each in imatrices)
    found = merge(imatrices, output or DEFAULT_OUTPUT, ctx or next(filter(None, sizes), 512))
    writes = output is not None or not show
    source = found if writes or len(given) > 1 else imatrices[0]
    report = describe(source) | {"merged": [str(path) for path in given]}
    if writes:
        check_output(found.path, overwrite=not resume or any(_same_file(path, found.path) for path in given))
        write_imatrix(found, found.path)
    elif source is found:
        report["path"] = None  # it is nowhere as a file
    _tell(report | (describe_statistics(found) if show else {}), json=json, show=show, written=writes)


imatrix.__doc__ = f"{inspect.cleandoc(imatrix.__doc__ or '')}\n\n{_EXAMPLES}"


def _same_file(first: Path, second: Path) -> bool:
    return second.exists() and first.samefile(second)


def _tell(report: dict[str, Any], *, json: bool, show: bool, written: bool = True) -> None:
    if json:
        print_json(report)
        return
    if show:
        for line in statistics_lines(report):
            print_line(line)
    if written:
        status(summary_line(report))
    if report.get("warning"):
        status(f"note: {report['warning']}")
