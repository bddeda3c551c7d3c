"""`tinyedge devices`: what this machine is, what the installed llama.cpp makes of it, and the wheel that would suit it."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.output import print_json, print_line, status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinyedge.machine.bandwidth import Bandwidth
    from tinyedge.machine.cpu_features import CpuFeatures
    from tinyedge.machine.devices import Hardware, MachineReport
    from tinyedge_targets.boards import Board

TRIPLES = {"aarch64": "aarch64-linux-gnu", "arm": "arm-linux-gnueabihf"}  # of boards, which a device tree names
_GENERIC = {"aarch64": "aarch64", "arm": "armv7"}
NATIVE = "native"


def devices(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="What to advise on: a GGUF file, a checkpoint, or a size like 1.1B.",
            show_default="TinyLlama",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure how fast memory is read, once: two seconds.")
    ] = True,
    again: Annotated[bool, typer.Option("--again", help="Measure it again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what this machine is, what the installed llama.cpp uses of it, and which model type runs how fast.

    Names the wheel to build when the installed one does not fit, and the command to run. Ends with exit code 14 when the
    installed llama.cpp cannot run here. Example: tinyedge devices
    """
    from tinyedge.advice import advise
    from tinyedge.cli.advise import advice_lines, describe_advice, subject
    from tinyedge.cli.device_lines import report_lines
    from tinyedge.errors import NativeError
    from tinyedge.machine.bandwidth import this_bandwidth
    from tinyedge.machine.devices import CANNOT_RUN, MISSING, machine_report
    from tinyedge_targets.boards import boards

    if again and not measure:
        raise typer.BadParameter("--again and --no-measure exclude each other")
    about = subject(model)
    report = machine_report()
    if measure and not report.cpu.emulated and (again or report.bandwidth is None):
        status("measuring how fast this machine reads memory")
        report = replace(report, bandwidth=this_bandwidth(again=again))
    rate = report.bandwidth.best if report.bandwidth else None
    found = describe(report, boards())
    free = report.memory.available
    advice = advise(about.models, free, rate, report.cache_bytes)
    runs = report.verdict.state not in (CANNOT_RUN, MISSING)
    found["advice"] = describe_advice(about, advice, free, runs=runs)
    if json:
        print_json(found)
    else:
        for line in [*report_lines(found), "", *advice_lines(found["advice"])]:
            print_line(line)
        if any(device.type in ("gpu", "igpu") for device in report.build.devices):
            print_line("the speeds are those of the CPU; a GPU with room for the model is faster")
    if not runs:
        raise typer.Exit(NativeError.exit_code)


def describe(report: MachineReport, boards: Iterable[Board]) -> dict[str, Any]:
    """Everything `devices` knows, as the object that --json prints."""
    build, cpu, cores, memory = report.build, report.cpu, report.cores, report.memory
    board = board_name(report.hardware, cpu, boards)
    return {
        "board": {"name": board, "model": report.hardware.model, "compatible": list(report.hardware.compatible)},
        "cpu": {
            "architecture": cpu.architecture,
            "model": cpu.model,
            "level": cpu.level,
            "emulated": cpu.emulated,
            "cache_bytes": report.cache_bytes,
            "features": None if cpu.words is None else list(cpu.words),
            "cores": {
                "online": cores.online,
                "allowed": list(cores.allowed),
                "logical": cores.logical,
                "physical": cores.physical,
                "performance": cores.performance,
                "efficiency": cores.efficiency,
                "performance_cpus": list(cores.performance_cpus),
                "quota": cores.quota,
                "threads": cores.threads,
                "reason": cores.reason,
            },
        },
        "memory": {
            "total_bytes": memory.total,
            "available_bytes": memory.available,
            "swap_total_bytes": memory.swap_total,
            "swap_free_bytes": memory.swap_free,
            "zram_total_bytes": memory.zram_total,
            "cgroup_limit_bytes": memory.cgroup_limit,
        },
        "sensors": asdict(report.sensors),
        "bandwidth": _bandwidth_object(report.bandwidth),
        "build": {
            "llama_cpp_python": build.version,
            "llama_cpp": build.llama_cpp,
            "ggml": build.ggml,
            "ggml_commit": build.ggml_commit,
            "cpu_library": build.cpu_library,
            "variant": build.variant,
            "features": build.features,
            "backends": list(build.backends),
            "wheel": asdict(build.wheel) if build.wheel else None,
            "wheel_problem": build.wheel_problem,
            "signal": build.signal,
            "problem": build.problem,
        },
        "features": [asdict(use) for use in report.features],
        "devices": [asdict(device) for device in build.devices],
        "verdict": asdict(report.verdict) | {"command": wheel_command(report, board)},
    }


def _bandwidth_object(bandwidth: Bandwidth | None) -> dict[str, Any] | None:
    if bandwidth is None:
        return None
    return {
        "best_bytes_per_s": bandwidth.best,
        "threads": bandwidth.threads,
        "bytes_per_s_by_threads": {str(count): rate for count, rate in bandwidth.by_threads.items()},
        "measured_at": bandwidth.measured_at,
    }


def wheel_command(report: MachineReport, board: str) -> str | None:
    """The command that builds the wheel for this machine; None when what is installed fits."""
    from tinyedge.machine.devices import FITS, SLOWER

    if report.verdict.state == FITS:
        return None
    wheel = report.build.wheel
    # None of the variants uses all of this CPU, so another wheel of the same variants would not either.
    if report.verdict.state == SLOWER and wheel is not None and wheel.layout == "variants":
        board = NATIVE
    return f"tinyedge wheel --board {board}"


def board_name(hardware: Hardware, cpu: CpuFeatures, boards: Iterable[Board]) -> str:
    """The row of boards.toml that describes this machine best: the board itself, or else the kind of its CPU."""
    known = {board.name: board for board in boards}
    triple = TRIPLES.get(cpu.architecture)
    texts = (hardware.model, *hardware.compatible)
    matches = [
        (len(key), board.name)
        for board in known.values()
        if board.triple == triple
        for key in _keys(board)
        if any(_contains(text, key) for text in texts)
    ]
    if matches:
        return max(matches)[1]
    apple = re.match(r"Apple (M\d+)", cpu.model)
    generic = f"mac-{apple[1].lower()}" if apple else cpu.level or _GENERIC.get(cpu.architecture, NATIVE)
    return generic if generic in known else NATIVE


def _keys(board: Board) -> list[str]:
    """What a device tree may call the board: the parts of a title like `RK3588: Orange Pi 5, Rock 5`, and its aliases."""
    return list(filter(None, map(_words, (*re.split(r"[:,]", board.title), *board.aliases))))


def _contains(text: str, key: str) -> bool:
    """Whether the words of `key` stand in `text`: `raspberry pi 4` does in "Raspberry Pi 4 Model B", not in that of a 400."""
    return f" {key} " in f" {_words(text)} "


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9+]+", text.lower()))
