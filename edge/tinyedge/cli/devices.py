"""`tinyedge devices`: what this machine is, what the installed llama.cpp makes of it, and the wheel that would suit it."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.output import format_bytes, print_json, print_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinyedge.cpu_features import CpuFeatures
    from tinyedge.devices import Hardware, MachineReport
    from tinyedge_targets.boards import Board

_LABEL_WIDTH = 14
_TRIPLES = {"aarch64": "aarch64-linux-gnu", "arm": "arm-linux-gnueabihf"}  # of boards, which a device tree names
_GENERIC = {"aarch64": "aarch64", "arm": "armv7"}
_NATIVE = "native"


def devices(
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show this machine's CPU, what the installed llama.cpp uses of it, and the wheel to build when it does not fit.

    Ends with exit code 14 when the installed llama.cpp cannot run here. Example: tinyedge devices
    """
    from tinyedge.devices import CANNOT_RUN, MISSING, machine_report
    from tinyedge.errors import NativeError
    from tinyedge_targets.boards import boards

    report = machine_report()
    found = describe(report, boards())
    if json:
        print_json(found)
    else:
        for line in report_lines(found):
            print_line(line)
    if report.verdict.state in (CANNOT_RUN, MISSING):
        raise typer.Exit(NativeError.exit_code)


def describe(report: MachineReport, boards: Iterable[Board]) -> dict[str, Any]:
    """Everything `devices` knows, as the object that --json prints."""
    build, cpu, cores = report.build, report.cpu, report.cores
    board = board_name(report.hardware, cpu, boards)
    return {
        "board": {"name": board, "model": report.hardware.model, "compatible": list(report.hardware.compatible)},
        "cpu": {
            "architecture": cpu.architecture,
            "model": cpu.model,
            "level": cpu.level,
            "emulated": cpu.emulated,
            "features": None if cpu.words is None else list(cpu.words),
            "cores": {
                "logical": cores.logical,
                "physical": cores.physical,
                "performance": cores.performance,
                "quota": cores.quota,
                "threads": cores.threads,
                "reason": cores.reason,
            },
        },
        "memory": {"total_bytes": report.memory_total, "available_bytes": report.memory_available},
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


def wheel_command(report: MachineReport, board: str) -> str | None:
    """The command that builds the wheel for this machine; None when what is installed fits."""
    from tinyedge.devices import FITS, SLOWER

    if report.verdict.state == FITS:
        return None
    wheel = report.build.wheel
    # None of the variants uses all of this CPU, so another wheel of the same variants would not either.
    if report.verdict.state == SLOWER and wheel is not None and wheel.layout == "variants":
        board = _NATIVE
    return f"tinyedge wheel --board {board}"


def board_name(hardware: Hardware, cpu: CpuFeatures, boards: Iterable[Board]) -> str:
    """The row of boards.toml that describes this machine best: the board itself, or else the kind of its CPU."""
    known = {board.name: board for board in boards}
    triple = _TRIPLES.get(cpu.architecture)
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
    generic = f"mac-{apple[1].lower()}" if apple else cpu.level or _GENERIC.get(cpu.architecture, _NATIVE)
    return generic if generic in known else _NATIVE


def _keys(board: Board) -> list[str]:
    """What a device tree may call the board: the parts of a title like `RK3588: Orange Pi 5, Rock 5`, and its aliases."""
    return list(filter(None, map(_words, (*re.split(r"[:,]", board.title), *board.aliases))))


def _contains(text: str, key: str) -> bool:
    """Whether the words of `key` stand in `text`: `raspberry pi 4` does in "Raspberry Pi 4 Model B", not in that of a 400."""
    return f" {key} " in f" {_words(text)} "


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9+]+", text.lower()))


def report_lines(found: dict[str, Any]) -> list[str]:
    """The report for a person."""
    rows = [*_machine_rows(found), *_build_rows(found["build"])]
    lines = [f"{label:<{_LABEL_WIDTH}} {value}" for label, value in rows]
    if found["devices"]:
        lines += ["", *_device_table(found["devices"])]
    if found["features"]:
        lines += ["", *_feature_table(found["features"])]
    return [*lines, "", *_verdict_lines(found)]


def _machine_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    board, cpu, memory = found["board"], found["cpu"], found["memory"]
    cores = cpu["cores"]
    kind = cpu["level"] or cpu["architecture"]
    model = printable(cpu["model"], 80) or ("emulated" if cpu["emulated"] else "unknown")
    words = "not told by this system" if cpu["features"] is None else " ".join(cpu["features"]) or "none that matter to ggml"
    quota = "" if cores["quota"] is None else f", a quota of {cores['quota']:g}"
    return [
        ("board", f"{printable(board['model'], 80) or '-'} ({board['name']})"),
        ("cpu", f"{model}, {kind}"),
        ("cores", f"{cores['logical']} usable{quota}; {cores['threads']} threads ({cores['reason']})"),
        ("features", words),
        ("memory", f"{format_bytes(memory['total_bytes'])}, {format_bytes(memory['available_bytes'])} available"),
    ]


def _build_rows(build: dict[str, Any]) -> list[tuple[str, str]]:
    if build["llama_cpp_python"] is None:
        return [("llama.cpp", "not installed")]
    versions = [f"llama-cpp-python {build['llama_cpp_python']}"]
    versions += [f"ggml {build['ggml']} ({build['ggml_commit']})"] if build["ggml"] else []
    rows = [("llama.cpp", printable(", ".join(versions)))]
    if wheel := build["wheel"]:
        kernels = f"{len(wheel['variants'])} CPU variants" if wheel["variants"] else f"for {wheel['cpu']} only"
        what = ", ".join(filter(None, (wheel["triple"], kernels, wheel["glibc"] and f"glibc {wheel['glibc']}")))
        rows += [
            ("wheel", printable(f"{what}; by {wheel['compiler']}")),
            ("flags", printable(" ".join(wheel["flags"])) or "none"),
        ]
    elif build["wheel_problem"]:
        rows.append(("wheel", printable(build["wheel_problem"])))
    if build["cpu_library"]:
        rows.append(("cpu kernels", printable(build["variant"] or build["cpu_library"])))
    if build["backends"]:
        rows.append(("backends", printable(", ".join(build["backends"]))))
    return rows


def _device_table(devices: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'device':<{_LABEL_WIDTH}} {'memory':>10} {'free':>10}  what it is"]
    for device in devices:
        total, free = format_bytes(device["memory_total"]), format_bytes(device["memory_free"])
        lines.append(
            f"{printable(device['name'], 14):<{_LABEL_WIDTH}} {total:>10} {free:>10}  {printable(device['description'])}"
        )
    return lines


def _feature_table(features: list[dict[str, Any]]) -> list[str]:
    """What the CPU has beside what the build uses, with a note where it matters that they differ."""
    lines = [f"{'ggml feature':<{_LABEL_WIDTH}} {'cpu':>4} {'build':>6}"]
    for row in features:
        note = "  not used" if row["cpu"] and row["speeds"] and not row["build"] else "" if row["cpu"] else "  missing here"
        lines.append(f"{row['name']:<{_LABEL_WIDTH}} {_yes(row['cpu']):>4} {_yes(row['build']):>6}{note}")
    return lines


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _verdict_lines(found: dict[str, Any]) -> list[str]:
    verdict = found["verdict"]
    words = {"fits": "the build fits: ", "slower": "the build runs, but ", "cannot run": "the build cannot run here: "}
    lines = [f"{'verdict':<{_LABEL_WIDTH}} {words.get(verdict['state'], '')}{printable(verdict['reason'], 600)}"]
    if verdict["command"]:
        place = ", on a laptop" if found["cpu"]["architecture"] in _TRIPLES and _NATIVE not in verdict["command"] else ""
        lines.append(f"{'remedy':<{_LABEL_WIDTH}} {verdict['command']}{place}")
    return lines
