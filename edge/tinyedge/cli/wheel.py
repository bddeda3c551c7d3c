"""`tinyedge wheel`: a llama-cpp-python wheel for a board, cross-compiled here and proven under emulation of its processor."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    from tinyedge_targets.boards import Board
    from tinyedge_targets.bundle import Bundle
    from tinyedge_targets.progress import Progress
    from tinyedge_targets.proof import Proof
    from tinyedge_targets.wheels import BuiltWheel

DEMO = "demo"

_EXAMPLES = """\b
Examples:
  tinyedge wheel --board rpi4
  tinyedge wheel --board rpi4,rpi5,rk3588 -o wheels
  tinyedge wheel --board rpi5 --single --bundle model.gguf
  tinyedge wheel verify wheels/llama_cpp_python-*.whl --board rpi4
"""


class _WheelGroup(TyperGroup):
    """Lets `--bundle` stand alone, for the demo model, or before a model's name; and knows a board without its --board."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for index, argument in enumerate(args):
            alone = index + 1 == len(args) or args[index + 1].startswith("-")
            if argument == "--bundle" and alone:
                args = [*args[: index + 1], DEMO, *args[index + 1 :]]
                break
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            name = printable(args[0])
            ctx.fail(f"there is no command {name}; to build for a board: tinyedge wheel --board {name}")
        return super().resolve_command(ctx, args)


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
        typer.Option(
            "--python",
            metavar="3.N",
            help="The board's Python, for the bundle and the trials.",
            show_default="its system's own",
        ),
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

    boards = find_boards(board)
    pythons = {each.name: each.python(python) for each in boards}
    require_tools()
    from tinyedge_targets.own_wheel import build_own_wheel
    from tinyedge_targets.wheels import make_wheels, staging_folder

    model = _bundled_model(bundle) if bundle is not None else None
    objects, bundles, failed = [], [], []
    with staging_folder(out) as staging:
        with _stages() as progress:
            made = make_wheels(boards, staging, single=single, version=version, progress=progress)
        for each in made:
            proof, wheel = _prove_and_deliver(each, pythons[each.boards[0].name], out, quiet=json)
            objects.append(_wheel_object(each, wheel, proof))
            if error := _shortfall(proof):
                failed.append(error)
            if wheel is not None and model is not None:
                bundles += [_bundle(wheel, target, pythons[target.name], model, out, quiet=json) for target in wheel.boards]
        own = build_own_wheel(staging)
        own = own.replace(out / own.name)
    if json:
        print_json({"wheels": objects, "tinyedge": str(own), "bundles": [_bundle_object(each) for each in bundles]})
    else:
        print_line(f"{own}: {format_bytes(own.stat().st_size)}, tinyedge itself, for every board")
        flush()
    if failed:
        raise failed[0]


def _prove_and_deliver(made: BuiltWheel, python: str, out: Path, *, quiet: bool) -> tuple[Proof, BuiltWheel | None]:
    """The proof, and the wheel in its place in `out`: None when it failed."""
    from tinyedge_targets.proof import prove
    from tinyedge_targets.wheels import deliver

    with _stages() as progress:
        proof = prove(made.path, made.boards, python=python, progress=progress)
    wheel = deliver(made, out) if proof.passed else None
    if not quiet:
        _print_proof(proof)
        if wheel is not None:
            _print_wheel(wheel)
    return proof, wheel


def _bundle(wheel: BuiltWheel, board: Board, python: str, model: tuple[Path, str], out: Path, *, quiet: bool) -> Bundle:
    """The archive for one board, with the model and the name it gets."""
    from tinyedge_targets.bundle import make_bundle

    path, name = model
    with _stages() as progress:
        made = make_bundle(board, python, wheel.path, path, out, model_name=name, progress=progress)
    if not quiet:
        _print_bundle(made)
    return made


def _bundled_model(argument: str) -> tuple[Path, str]:
    """The GGUF file that `--bundle` names, checked, and what to call it: in the cache its name is for the cache only."""
    from tinyedge.cli.models import CACHE_TYPE, named_path, resolve_model
    from tinyedge.model_probe import runnable_facts

    path = resolve_model(argument)
    runnable_facts(path)
    named = named_path(argument, "--bundle")
    if named is not None and path == named:
        return path, path.name
    return path, f"{DEMO if named is None else named.resolve().name}-{CACHE_TYPE}.gguf"


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

    boards = () if board is None else find_boards(board)
    with _stages() as progress:
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
        return ProofError(f"{name} failed its proof: {printable(proof.failures[0])}")
    if not proof.emulated:
        return NotEmulatedError(f"{name} is as it should be but was not run: {printable(proof.reason, 400)}", proof.remedy)
    return None


@contextmanager
def _stages() -> Iterator[Progress]:
    """A function that is told the stage, and how much of it is done; shown on stderr with the time each stage took."""
    bar = _stage_bar() if on_terminal() else None
    current = ""
    begun = monotonic()

    def finish() -> None:
        if not current:
            return
        took = format_seconds(monotonic() - begun)
        if bar is None:
            status(took)
        else:
            bar.remove_task(bar.task_ids[0])
            status(f"  {current} {took}")

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal current, begun
        if stage != current:
            finish()
            current, begun = stage, monotonic()
            if bar is None:
                status(f"  {stage} ", end="")
            else:
                bar.add_task(f"  {stage}", total=None, counts="")
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done, total=total or None, counts=f"{done}/{total}" if total else "")

    with bar or nullcontext():
        try:
            yield progress
        except BaseException:
            if bar is None and current:
                status("")  # the line that was begun
            raise
        finish()


def _stage_bar() -> Any:
    """rich's bar, which goes when it is done; its tasks have a field `counts`."""
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TextColumn("{task.fields[counts]}", markup=False),
        rich.TimeElapsedColumn(),
    )
    return rich.Progress(*columns, console=Console(stderr=True), transient=True, redirect_stderr=True)


def _print_wheel(made: BuiltWheel) -> None:
    built = f"built in {format_seconds(made.seconds)}" if made.seconds else "from the cache"
    names = ", ".join(board.name for board in made.boards)
    print_line(f"{made.path}: {format_bytes(made.size)}, {made.title}, {made.compiler}, {built}; for {names}")
    flush()  # before the stages on stderr go on


def _print_proof(proof: Proof) -> None:
    for check in proof.static:
        print_line(f"  {'ok  ' if check.passed else 'FAIL'} {check.name}: {printable(check.detail, 600)}")
    for trial in proof.trials:
        print_line(f"  {'ok  ' if trial.passed else 'FAIL'} {trial.cpu}: {printable(trial.summary, 600)}")
    print_line(f"{printable(proof.wheel.name)}: {printable(proof.verdict, 600)}")
    flush()


def _print_bundle(made: Bundle) -> None:
    print_line(
        f"{made.path}: {format_bytes(made.size)}, {made.board.title}, Python {made.python}, installs {len(made.files)} files"
    )
    print_line(f"  scp {made.path.name} USER@BOARD:   then there: tar -xf {made.path.name} && sh {made.folder}/install.sh")
    flush()


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


def _wheel_object(made: BuiltWheel, delivered: BuiltWheel | None, proof: Proof) -> dict[str, Any]:
    return {
        "path": str(delivered.path) if delivered else None,
        "bytes": (delivered or made).size,
        "boards": [board.name for board in made.boards],
        "build": made.title,
        "llama_cpp_python": made.version,
        "compiler": made.compiler,
        "build_seconds": round(made.seconds, 1),
        "host": f"{platform.system()} {platform.machine()}",
        "proof": proof.to_json(),
    }
