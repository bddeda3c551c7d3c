"""Registers the commands and maps every error to one sentence and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any

import typer

from tinyedge.cli import bench, demo, inspect, quantize, run
from tinyedge.cli.output import print_line, printable, status
from tinyedge.errors import TinyEdgeError

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_USAGE = 2

# click's UsageError, from whichever click this typer uses: newer ones carry their own.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: rich would take half of the time `tinyedge --help` may take.
    rich_markup_mode=None,
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
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Name the versions and compiled backends."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    del version, debug  # main() looks for --debug itself, since it may stand behind the command


def main() -> None:
    """The `tinyedge` command. Exit codes: see tinyedge.errors; 2 wrong usage, 130 interrupted, 143 terminated."""
    debug = "--debug" in sys.argv
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # Not in standalone mode, in which an interrupt would leave with a code of its own.
        code = app(args=[argument for argument in sys.argv[1:] if argument != "--debug"], standalone_mode=False)
    except Exception as error:
        sys.exit(_explain(error, debug=debug))
    except KeyboardInterrupt:
        status("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """Ends as an exception does, so that what was half done is taken back."""
    sys.exit(EXIT_TERMINATED)


def _explain(error: Exception, *, debug: bool) -> int:
    """Says what went wrong in one sentence; the exit code."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        status("interrupted")
        return EXIT_INTERRUPTED
    if isinstance(error, USAGE_ERROR):
        usage: Any = error
        usage.show()
        return EXIT_USAGE
    if isinstance(error, BrokenPipeError):
        # The reader of our output went away, as `| head` does; the rest of it must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if debug:
        traceback.print_exception(error)
    if isinstance(error, TinyEdgeError):
        status(f"error: {printable(str(error), 600)}")
        return error.exit_code
    problem = printable(f"{type(error).__name__}: {error}", 300)
    status(f"error: tinyedge failed unexpectedly ({problem}); run it again with --debug and report what it shows")
    return 1
