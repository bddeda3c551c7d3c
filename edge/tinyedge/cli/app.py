"""Registers the commands and maps every error to one sentence and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from tinyedge.cli import bench, demo, inspect, quantize, run
from tinyedge.cli.output import print_line, status
from tinyedge.errors import TinyEdgeError

EXIT_INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a PyTorch checkpoint to tokens per second on a small device. Try: tinyedge demo",
)
app.command("quantize")(quantize.quantize)
app.command("run")(run.run)
app.command("demo")(demo.demo)
app.command("inspect")(inspect.inspect)
app.command("bench")(bench.bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tinyedge.version import version_lines

        for line in version_lines():
            print_line(line)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Name the versions and compiled backends."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    del version
    context.obj = {"debug": debug}


def main() -> None:
    """The `tinyedge` command. Exit codes: see tinyedge.errors; 2 wrong usage, 130 interrupted."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        sys.argv.insert(1, "--debug")
    try:
        app()
    except KeyboardInterrupt:
        status("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except TinyEdgeError as error:
        if debug:
            traceback.print_exc()
        status(f"error: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        status(
            f"error: tinyedge failed unexpectedly ({type(error).__name__}: {error}); run it again with --debug and report it"
        )
        sys.exit(1)
