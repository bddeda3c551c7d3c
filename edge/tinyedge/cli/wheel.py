"""`tinyedge wheel`: a llama-cpp-python wheel for a board, cross-compiled here and proven under emulation of its processor."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tinyedge.cli.output import (
    flush,
    format_bytes,
    format_seconds,
    on_terminal,
    print_json,
    print_line,
    printable,
    status,
)
from tinyedge.errors import NotEmulatedError, ProofError, TinyEdgeError

if TYPE_CHECKING:
    from tinyedge_targets.build import Progress
    from tinyedge_targets.bundle import Bundle
    from tinyedge_targets.proof import Proof
    from tinyedge_targets.wheels import BuiltWheel

_DEFAULT_MODEL = "demo"
_LOG_SECONDS = 60.0  # between two lines about the same stage where no bar can be drawn

_EXAMPLES = """\b
Examples:
  tinyedge wheel --board rpi4
  tinyedge wheel --board rpi4,rpi5,rk3588 -o wheels
  tinyedge wheel --board rpi5 --single --bundle model.gguf
  tinyedge wheel verify wheels/llama_cpp_python-*.whl --board rpi4
"""


class _WheelGroup(TyperGroup):
    """Lets `--bundle` stand alone, for the demo model, or before the name of a model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for index, argument in enumerate(args):
            alone = index + 1 == len(args) or args[index + 1].startswith("-")
            if argument == "--bundle" and alone:
                args = [*args[: index + 1], _DEFAULT_MODEL, *args[index + 1 :]]
                break
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_WheelGroup,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build a llama-cpp-python wheel for a board on this machine, and prove it under emulation of the board's processor.",
)


@app.callback()
def wheel(
    context: typer.Context,
    board: Annotated[
        str | None, typer.Option("--board", "-b", metavar="NAME[,NAME...]", help="Boards, as `tinyedge boards` names them.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the wheels go.")] = Path(),
    single: Annotated[bool, typer.Option("--single", help="For exactly that processor: smaller, and for no other.")] = False,
    version: Annotated[
        str | None,
        typer.Option("--llama-cpp-python", metavar="VERSION", help="The version to build.", show_default="the installed one"),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="3.N", help="The board's Python, for --bundle.", show_default="its system's own"),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            "--bundle",
            metavar="[MODEL]",
            help="Also one archive with all that the board needs: these wheels, their dependencies, MODEL (default: demo), "
            "an install script that works offline.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    if board is None:
        raise typer.BadParameter("name one or several; `tinyedge boards` lists them", param_hint="--board")
    from tinyedge_targets.boards import find_boards
    from tinyedge_targets.build import require_tools
    from tinyedge_targets.proof import prove
    from tinyedge_targets.wheels import make_wheels

    boards = find_boards(board)
    pythons = {each.name: each.python(python) for each in boards}
    require_tools()
    from tinyedge_targets.bundle import make_bundle
    from tinyedge_targets.own_wheel import build_own_wheel

    model = None
    if bundle is not None:
        from tinyedge.cli.models import resolve_model

        model = resolve_model(bundle, quiet=json)
    with _stages(quiet=json) as progress:
        made = make_wheels(boards, out, single=single, version=version, progress=progress)
        progress("tinyedge's own wheel", 0, 0)
        own = build_own_wheel(out)
    if not json:
        for each in made:
            _print_wheel(each)
        print_line(f"{own}: {format_bytes(own.stat().st_size)}, tinyedge itself, for every board")
    proofs = []
    for each in made:
        with _stages(quiet=json) as progress:
            proofs.append(prove(each.path, each.boards, python=pythons[each.boards[0].name], progress=progress))
        if not json:
            _print_proof(proofs[-1])
    failed = [error for proof in proofs if (error := _shortfall(proof)) is not None]
    bundles = []
    if model is not None and not any(isinstance(error, ProofError) for error in failed):
        for each in made:
            for target in each.boards:
                with _stages(quiet=json) as progress:
                    bundles.append(make_bundle(target, pythons[target.name], each.path, model, out, progress=progress))
                if not json:
                    _print_bundle(bundles[-1])
    if json:
        wheels = [_wheel_object(each, proof) for each, proof in zip(made, proofs, strict=True)]
        print_json({"wheels": wheels, "tinyedge": str(own), "bundles": [_bundle_object(each) for each in bundles]})
    if failed:
        raise failed[0]


@app.command(epilog="Example: tinyedge wheel verify llama_cpp_python-0.3.36+tinyedge-py3-none-manylinux2014_aarch64.whl")
def verify(
    path: Annotated[Path, typer.Argument(metavar="WHEEL", help="A wheel of llama-cpp-python, whoever built it.")],
    board: Annotated[
        str | None,
        typer.Option("--board", "-b", metavar="NAME[,NAME...]", help="Boards it must run on.", show_default="all of its kind"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Prove a wheel: what its files need and hold, and how it runs under emulation of each board's processor."""
    from tinyedge_targets.boards import find_boards
    from tinyedge_targets.proof import prove

    boards = find_boards(board) if board else ()
    with _stages(quiet=json) as progress:
        proof = prove(path, boards, progress=progress)
    if json:
        print_json(proof.to_json())
    else:
        _print_proof(proof)
    if (error := _shortfall(proof)) is not None:
        raise error


def _shortfall(proof: Proof) -> TinyEdgeError | None:
    """The error with which the command leaves: None for a wheel that is proven."""
    name = printable(proof.wheel.name)
    if not proof.passed:
        return ProofError(f"{name} failed its proof: {printable('; '.join(proof.failures), 300)}")
    if not proof.emulated:
        return NotEmulatedError(f"{name} was checked but not run: {printable(proof.reason)}")
    return None


@contextmanager
def _stages(*, quiet: bool) -> Iterator[Progress]:
    """A function that is told the stage, and how much of it is done; shown on stderr with the time each stage took."""
    current: str | None = None
    begun = said = monotonic()
    bar: Any = None

    def finish() -> None:
        if current is not None and not quiet and monotonic() - begun >= 0.1:
            status(f"  {current} {format_seconds(monotonic() - begun)}")

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal current, begun, said
        now = monotonic()
        if stage != current:
            finish()
            current, begun, said = stage, now, now
        if bar is not None:
            bar.update(bar.task_ids[0], description=stage, completed=done, total=total or None)
        elif not quiet and now - said > _LOG_SECONDS:
            said = now
            status(f"  {stage}: {done} of {total} after {format_seconds(now - begun)}")

    if quiet or not on_terminal():
        yield progress
    else:
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.TextColumn("  {task.description}", markup=False),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
        )
        with rich.Progress(*columns, console=Console(stderr=True), transient=True, redirect_stderr=True) as bar:
            bar.add_task("", total=None)
            yield progress
    finish()


def _print_wheel(made: BuiltWheel) -> None:
    built = f"built in {format_seconds(made.seconds)}" if made.seconds else "from the cache"
    names = ", ".join(board.name for board in made.boards)
    print_line(f"{made.path}: {format_bytes(made.size)}, {made.title}, {made.compiler}, {built}; for {names}")
    flush()  # before the stages on stderr go on


def _print_proof(proof: Proof) -> None:
    for check in proof.static:
        print_line(f"  {'ok  ' if check.passed else 'FAIL'} {check.name}: {printable(check.detail)}")
    for trial in proof.trials:
        print_line(f"  {'ok  ' if trial.passed else 'FAIL'} {trial.cpu}: {printable(trial.summary)}")
    print_line(f"{printable(proof.wheel.name)}: {printable(proof.verdict)}")
    flush()


def _print_bundle(made: Bundle) -> None:
    print_line(
        f"{made.path}: {format_bytes(made.size)}, {made.board.title}, Python {made.python}, installs {len(made.files)} files"
    )
    print_line(f"  scp {made.path.name} USER@BOARD:   then there: tar -xf {made.path.name} && sh {made.folder}/install.sh")


def _bundle_object(made: Bundle) -> dict[str, Any]:
    return {
        "path": str(made.path),
        "bytes": made.size,
        "board": made.board.name,
        "python": made.python,
        "glibc": made.glibc,
        "installed_bytes": made.installed_bytes,
        "files": dict(made.files),
    }


def _wheel_object(made: BuiltWheel, proof: Proof) -> dict[str, Any]:
    return {
        "path": str(made.path),
        "bytes": made.size,
        "boards": [board.name for board in made.boards],
        "build": made.title,
        "llama_cpp_python": made.version,
        "compiler": made.compiler,
        "build_seconds": round(made.seconds, 1),
        "host": f"{platform.system()} {platform.machine()}",
        "proof": proof.to_json(),
    }
