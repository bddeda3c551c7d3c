"""`tinyedge plan`: whether a model fits a machine, this one or another, how it would be loaded, and what it would take."""

from __future__ import annotations

import platform
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.load_options import LoadOptions
from tinyedge.cli.models import CACHE_TYPE
from tinyedge.cli.option_groups import with_option_groups
from tinyedge.cli.output import format_bytes, print_json, print_line, printable

if TYPE_CHECKING:
    from tinyedge.backends import Request
    from tinyedge.cli.plan_report import Answer, Place, PlannedModel
    from tinyedge_targets.boards import Board

_EXAMPLES = """\b
Examples:
  tinyedge plan model.gguf
  tinyedge plan model.gguf --board rpi4 --ram 2G
  tinyedge plan ./checkpoint -t Q4_K_M --ram 1G --ctx 1024 --json
"""


@with_option_groups
def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a checkpoint folder or file, or `demo`.")],
    load: LoadOptions,
    board: Annotated[
        str | None, typer.Option("--board", metavar="NAME", help="Plan for this board (`tinyedge boards` lists them).")
    ] = None,
    ram: Annotated[
        str | None, typer.Option("--ram", metavar="SIZE", help="Plan for a machine with so much memory, like 1G.")
    ] = None,
    type_name: Annotated[
        str, typer.Option("-t", "--type", metavar="TYPE", help="What a checkpoint is to be quantized to.")
    ] = CACHE_TYPE,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say whether a model fits a machine, with which settings, and how fast it will be; exit code 13 when it does not fit."""
    from tinyedge.cli.plan_lines import report_lines
    from tinyedge.cli.plan_report import report

    request = load.request()
    places = _places(board, ram)
    wanted = _planned_model(model, type_name)
    answers = [_answer(wanted, request, place) for place in places]
    chosen = _smallest_that_serves(answers)
    described = report(wanted, request, chosen, answers)
    if json:
        print_json(described)
    else:
        for line in report_lines(described, shutil.get_terminal_size((100, 24)).columns):
            print_line(line)
    if chosen.refusal is not None:
        raise chosen.refusal


plan.__doc__ = f"{plan.__doc__}\n\n{_EXAMPLES}"


def _planned_model(argument: str, type_name: str) -> PlannedModel:
    """The facts of the GGUF file at `argument`, or of the file that the checkpoint there would become."""
    from tinyedge.cli.models import demo_checkpoint, named_path
    from tinyedge.cli.plan_report import PlannedModel
    from tinyedge.gguf_file import is_gguf, parse_header
    from tinyedge.gguf_split import read_model
    from tinyedge.model_facts import check_runnable, describe_model

    path = named_path(argument, "MODEL") or demo_checkpoint()
    if path.is_file() and (is_gguf(path) or path.suffix.lower() == ".gguf"):
        gguf = read_model(path)
        check_runnable(gguf)
        return PlannedModel(argument=argument, facts=describe_model(gguf))
    from tinyedge_quantize.checkpoint import open_checkpoint
    from tinyedge_quantize.convert import plan_conversion
    from tinyedge_quantize.recipes import find_recipe

    recipe = find_recipe(type_name)
    with open_checkpoint(path) as checkpoint:
        made = plan_conversion(checkpoint, recipe)
        gguf = parse_header(made.whole.header, path, made.total_bytes)
    check_runnable(gguf)
    return PlannedModel(argument=argument, facts=describe_model(gguf), quantize=recipe.name, checkpoint=path)


def _places(board_name: str | None, ram: str | None) -> list[Place]:
    """The machines to plan for: this one, one with memory `ram`, or a board with that or with every memory it is sold with."""
    from tinyedge.other_machine import parse_size

    try:
        sizes = [] if ram is None else [parse_size(ram)]
    except ValueError as error:
        raise typer.BadParameter(printable(str(error)), param_hint="--ram") from error
    if board_name is None:
        return [_like_this(sizes[0])] if sizes else [_here()]
    from tinyedge_targets.boards import find_board

    board = find_board(board_name)
    if board.triple == "native":
        raise typer.BadParameter(
            f"the parts of {board.name} are not known: plan on that machine, without --board", param_hint="--board"
        )
    sizes = sizes or [parse_size(size) for size in board.ram]
    if not sizes:
        raise typer.BadParameter(f"{board.name} may have any memory: say how much with --ram", param_hint="--ram")
    return [_of_board(board, size) for size in sizes]


def _here() -> Place:
    from tinyedge.advice import EFFICIENCY
    from tinyedge.backends import this_machine
    from tinyedge.cli.plan_report import Place
    from tinyedge.machine.bandwidth import kept_bandwidth
    from tinyedge.other_machine import SpeedShare

    found = kept_bandwidth()
    return Place(
        name="this one",
        machine=this_machine(),
        bandwidth=found.best if found else None,
        share=SpeedShare(*EFFICIENCY),
        basis=f"{found.best / 1e9:.1f} GB/s measured here"
        if found
        else "`tinyedge devices` measures this memory's speed first",
        here=True,
    )


def _like_this(total: int) -> Place:
    """A machine with this one's processor, another memory, and no GPU."""
    from tinyedge.cli.plan_report import Place
    from tinyedge.machine.cpu import cpu_facts
    from tinyedge.other_machine import SYSTEMS, other_machine

    system, cpu = SYSTEMS["board"], cpu_facts()
    named = replace(cpu, name=cpu.name or "CPU")
    return Place(
        name=f"{format_bytes(total)} of memory and this machine's processor",
        machine=other_machine(total, system, architecture=platform.machine(), features=None, cpu=named),
        memory_bytes=total,
        reserve=system.reason(total),
        basis="the speed of its memory is not known; --board names a board whose is",
    )


def _of_board(board: Board, total: int) -> Place:
    from tinyedge.cli.plan_report import Place
    from tinyedge.other_machine import SYSTEMS, cores_of, other_machine, speed_share

    processor, _, kind = board.triple.partition("-")
    metal = kind == "macos"
    system = SYSTEMS["macos" if metal else "desktop" if processor == "x86_64" else "board"]
    machine = other_machine(
        total, system, architecture=processor, features=board.features, cpu=cores_of(board.cores), metal=metal
    )
    return Place(
        name=f"{board.title}, {format_bytes(total)}",
        machine=machine,
        memory_bytes=total,
        reserve=system.reason(total),
        bandwidth=board.bandwidth * 1e9 if board.bandwidth else None,
        share=speed_share(processor, board.features, metal=metal),
        basis=f"{board.bandwidth:g} GB/s: {board.bandwidth_source}" if board.bandwidth else "its memory's speed is not known",
    )


def _answer(model: PlannedModel, request: Request, place: Place) -> Answer:
    from tinyedge.backends import choose
    from tinyedge.cli.plan_report import Answer
    from tinyedge.errors import BackendError, MemoryFitError
    from tinyedge.tuned import tuned_plan

    decide = tuned_plan if place.here else choose
    try:
        return Answer(place=place, plan=decide(model.facts, request, place.machine))
    except MemoryFitError as error:
        remedy = error.remedy if place.here else error.remedy.replace("free some memory or ", "take more memory or ")
        return Answer(place=place, refusal=MemoryFitError(error.problem, remedy))
    except BackendError as error:
        if place.here:
            raise
        raise BackendError(f"{place.name} has no {request.backend} device to plan with", "leave --backend out") from error


def _smallest_that_serves(answers: list[Answer]) -> Answer:
    """The first machine on which nothing has to be given up, else the first that holds the model, else the last."""
    whole = (answer for answer in answers if answer.plan is not None and not answer.plan.steps)
    holding = (answer for answer in answers if answer.plan is not None)
    return next(whole, None) or next(holding, None) or answers[-1]
