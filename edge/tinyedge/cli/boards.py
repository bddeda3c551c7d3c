"""`tinyedge boards`: what wheels can be built for, and what is known of each board."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.output import print_json, print_line, printable

if TYPE_CHECKING:
    from tinyedge_targets.boards import Board

_LABEL_WIDTH = 11
_COLUMNS = 120  # where there is no terminal whose width counts
_NARROWEST = 12  # of the titles
_UNEMULATED = {"native": "the machine itself", "zig": "nothing: static checks only"}
_COMMON_MODEL = "TinyLlama-1.1B"
# The kernel's words that decide which of ggml's kernels run, in its terms; a base is shown where nothing is beyond it.
_SIMD = {
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "sme": "SME",
    "avx2": "AVX2",
    "avx512f": "AVX-512",
}
_SIMD_BASE = {"asimd": "NEON", "neon": "NEON", "sse4_2": "SSE4.2"}
_HEAD = ("name", "board", "cores", "SIMD", "RAM", "GB/s", "run")
_BOARD, _BANDWIDTH = 1, 5  # the columns that may be cut and that is aligned to the right


def boards(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One board: everything known of it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the boards that `tinyedge wheel` builds for, with memory bandwidth and what to run on them.

    Example: tinyedge boards rpi4
    """
    from tinyedge_targets import boards as targets

    if name is not None:
        board = targets.find_board(name)
        if json:
            print_json(asdict(board))
            return
        lines = board_lines(board, _columns())
    else:
        rows = targets.boards()
        if json:
            print_json({"boards": [asdict(row) for row in rows]})
            return
        lines = table_lines(rows, _columns())
    for line in lines:
        print_line(line)


def _columns() -> int:
    return shutil.get_terminal_size((_COLUMNS, 24)).columns


def table_lines(rows: tuple[Board, ...], columns: int) -> list[str]:
    """A table in groups of one system each; the titles are cut to keep it within `columns`, but not below 12 characters."""
    cells = {row: _cells(row) for row in rows}
    widths = [max(map(len, column)) for column in zip(_HEAD, *cells.values(), strict=True)]
    excess = sum(widths) + 2 * (len(widths) - 1) - columns
    widths[_BOARD] = min(widths[_BOARD], max(_NARROWEST, widths[_BOARD] - excess))
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(_system(row), []).append(_line(cells[row], widths))
    lines = [_line(_HEAD, widths)]
    for system, group in groups.items():
        lines += ["", f"{system}:", *group]
    smaller = ", ".join(dict.fromkeys(row.model for row in rows if row.model != _COMMON_MODEL))
    lines += ["", f"run: type and context for {_COMMON_MODEL} (* {smaller}) on the smallest memory sold"]
    return [*lines, "One board with its sources: tinyedge boards NAME. Its wheel: tinyedge wheel --board NAME"]


def _cells(board: Board) -> tuple[str, ...]:
    beyond, base = ([words[word] for word in board.features if word in words] for words in (_SIMD, _SIMD_BASE))
    return (
        board.name,
        board.title.removesuffix(", 32 bit").replace("Raspberry Pi", "Pi"),
        re.sub(r"Cortex-| \d\.\d+( GHz)?| or newer", "", board.cores),
        " ".join(beyond or base) or "-",
        _sizes(board),
        "-" if board.bandwidth is None else f"{board.bandwidth:.1f}",
        f"{board.quantization} {board.context}" + ("" if board.model == _COMMON_MODEL else "*"),
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    shown = [printable(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)]
    shown[_BANDWIDTH] = cells[_BANDWIDTH].rjust(widths[_BANDWIDTH])
    return "  ".join(shown).rstrip()


def _system(board: Board) -> str:
    """`Raspberry Pi OS 13 (trixie), 64 bit: glibc 2.41, Python 3.13`."""
    from tinyedge_targets.boards import alternatives

    facts = [f"glibc {board.glibc}"] if board.glibc else []
    facts.append(f"Python {alternatives(list(board.pythons)) if board.pythons else '3.10 or newer, of your choice'}")
    return f"{board.os}: {', '.join(facts)}"


def _sizes(board: Board) -> str:
    """`1-8G`, `512M`; `-` where they differ."""
    if len(board.ram) < 2:
        return "".join(board.ram) or "-"
    return f"{board.ram[0].removesuffix('G')}-{board.ram[-1]}"


def board_lines(board: Board, columns: int) -> list[str]:
    """All facts of one board, lines of at most `columns` characters where words allow it."""
    from tinyedge_targets.boards import emulated_cpu

    bandwidth = "" if board.bandwidth is None else f"{board.bandwidth:g} GB/s: "
    cpus = [emulated_cpu(name) for name in board.emulate]
    proofs = [f"{cpu.name} (variant {cpu.variant})" if board.layout == "variants" else cpu.name for cpu in cpus]
    facts = (
        ("name", board.name + (f" (also {', '.join(board.aliases)})" if board.aliases else "")),
        ("board", board.title),
        ("cores", board.cores),
        ("features", " ".join(board.features) or "those it has"),
        ("memory", "; ".join(filter(None, (", ".join(board.ram), bandwidth + board.bandwidth_source)))),
        ("run", f"{board.model} as {board.quantization} with a context of {board.context}"),
        ("system", _system(board)),
        ("build", _build(board)),
        ("proven on", f"qemu's {', '.join(proofs)}" if proofs else _UNEMULATED[board.toolchain]),
        ("note", board.note),
        ("wheel", f"tinyedge wheel --board {board.name}"),
    )
    return [line for label, value in facts if value for line in _wrapped(label, value, columns)]


def _build(board: Board) -> str:
    if board.toolchain == "native":
        return " ".join(("on the machine itself, by its own compiler", *(f"with {option}" for option in board.cmake)))
    if board.layout == "variants":
        return f"{board.triple}, one wheel for every CPU (ggml picks its variant at start); with --single {board.cpu} alone"
    return f"{board.triple}, for {board.cpu}"


def _wrapped(label: str, value: str, columns: int) -> list[str]:
    width = max(columns - _LABEL_WIDTH - 1, 40)
    first, *others = textwrap.wrap(value, width, break_long_words=False, break_on_hyphens=False)
    return [f"{label:<{_LABEL_WIDTH}} {first}", *(" " * (_LABEL_WIDTH + 1) + line for line in others)]
