"""Registers the commands and maps every error to one sentence and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tinyedge.cli import (
    bench,
    bench_compare,
    boards,
    chat,
    demo,
    devices,
    eval_sweep,
    evaluate,
    hub,
    imatrix,
    inspect,
    lora,
    output,
    plan,
    quantize,
    report,
    run,
    signals,
    tune,
    verify,
    wheel,
)
from tinyedge.cli.option_groups import USAGE_ERROR, with_metavars
from tinyedge.cli.output import print_line, printable, status
from tinyedge.errors import OutputError, TinyEdgeError

EXIT_USAGE = 2

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF)
_SYSTEM_REMEDIES = {
    errno.EACCES: "check its permissions, or run as a user who may read and write it",
    errno.EPERM: "check its permissions, or run as a user who may read and write it",
    errno.ENAMETOOLONG: "check the name: no file can have one as long",
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space on that disk",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EIO: "check the disk: it failed to read or write",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "free some memory",
}


class _Commands(TyperGroup):
    """Commands of one word, some of which have others of two beside them: `bench` and `bench compare`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        words = " ".join(args[:2])
        if len(args) > 1 and self.get_command(ctx, words) is not None:
            return super().resolve_command(ctx, [words, *args[2:]])
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: rich would take half of the time `tinyedge --help` may take.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a PyTorch checkpoint to tokens per second on a small device. Try: tinyedge demo",
)
for _name, _command, _summary in (
    ("quantize", quantize.quantize, "Turn a PyTorch checkpoint into a quantized GGUF file."),
    ("run", run.run, "Generate text with a model."),
    ("chat", chat.chat, "Hold a conversation with a model."),
    ("tune", tune.tune, "Measure which settings are fastest here; keep them."),
    ("imatrix", imatrix.imatrix, "Measure which weights matter, for better small files."),
    ("lora", lora.lora, "Turn a LoRA adapter into a GGUF adapter for run time."),
    ("verify", verify.verify, "Check a GGUF file, also against what it was made from."),
    ("demo", demo.demo, "Quantize and run the small model that comes along."),
    ("inspect", inspect.inspect, "Show what is in a model and the memory it needs."),
    ("bench", bench.bench, "Measure tokens per second as llama-bench does."),
    ("bench compare", bench_compare.compare, "Compare two files of results, with an interval."),
    ("eval", evaluate.evaluate, "Measure how well models predict a text, or answer."),
    ("eval sweep", eval_sweep.eval_sweep, "Quantize to many types; measure size, quality, speed."),
    ("report", report.report, "Make a page of tables and plots from results."),
    ("devices", devices.devices, "Show this machine and what llama.cpp uses of it."),
    ("plan", plan.plan, "Say whether a model fits a machine, and how fast it is."),
    ("pull", hub.pull, "Download a model from the Hugging Face hub."),
    ("ls", hub.ls, "List the models on this machine."),
    ("rm", hub.rm, "Delete a model that was downloaded or cached."),
    ("boards", boards.boards, "List the boards that `tinyedge wheel` builds for."),
):
    app.command(_name, short_help=_summary)(with_metavars(_command))
app.add_typer(wheel.app, name="wheel", short_help="Build a llama-cpp-python wheel for a board.")


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
    output.prepare_streams()
    signals.raise_errors()
    try:
        code = _run(debug="--debug" in sys.argv)
    except KeyboardInterrupt:
        signals.leave_at_once()
        status("interrupted")
        code = signals.EXIT_INTERRUPTED
    finally:
        signals.leave_at_once()
    sys.exit(code)


def _run(*, debug: bool) -> int:
    """Runs the command that the arguments name; the exit code."""
    try:
        # Not in standalone mode, in which an interrupt would leave with a code of its own.
        code = app(args=[argument for argument in sys.argv[1:] if argument != "--debug"], standalone_mode=False)
        output.flush()
    except Exception as error:
        return _explain(error, debug=debug)
    if code == signals.EXIT_INTERRUPTED:  # typer's answer to KeyboardInterrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _explain(error: Exception, *, debug: bool) -> int:
    """Says what went wrong in one sentence; the exit code."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):  # an older typer's answer
        raise KeyboardInterrupt from error
    if isinstance(error, USAGE_ERROR):
        usage: Any = error
        text = io.StringIO()
        usage.show(text)
        status(text.getvalue().rstrip("\n"))
        return EXIT_USAGE
    if isinstance(error, BrokenPipeError):
        # The reader of our output went away, as `| head` does.
        output.give_up(sys.stdout)
        return 1
    if debug:
        status("".join(traceback.format_exception(error)))
    if isinstance(error, OSError):
        if error.filename is None and error.errno in _CANNOT_WRITE:
            output.give_up(sys.stdout)  # what is still buffered would fail once more at exit
        error = _of_the_system(error)
    if isinstance(error, TinyEdgeError):
        status(f"error: {printable(str(error), 600)}")
        return error.exit_code
    problem = printable(f"{type(error).__name__}: {error}", 300)
    status(f"error: tinyedge failed unexpectedly ({problem}); run it again with --debug and report what it shows")
    return 1


def _of_the_system(error: OSError) -> TinyEdgeError:
    """What the operating system refused, in our words."""
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(error.filename, (str, bytes)):
        reason = f"{os.fsdecode(error.filename)}: {reason}"
    elif error.errno in _CANNOT_WRITE:
        return OutputError(f"the output cannot be written ({reason})", "send it to a file on a disk with room")
    return TinyEdgeError(reason, _SYSTEM_REMEDIES.get(error.errno or 0, "check the path and try again"))
