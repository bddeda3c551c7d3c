"""The boards that wheels are built for, and the processors that qemu can stand in with: the rows of boards.toml.

A board is data, so that adding one is adding a table. What is wrong in that file is our own mistake and is raised as a
ValueError that names the row and the field; what a user asks for and nobody has is a BoardError.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any, TypeVar

from tinyedge.errors import BoardError

_toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # tomli is what became tomllib

TRIPLES = ("aarch64-linux-gnu", "arm-linux-gnueabihf", "x86_64-linux-gnu", "aarch64-macos", "native")
OLDEST_PYTHON = (3, 10)
_MAX_NAME = 60  # what a user typed, shown and compared up to this length
_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A board or computer, with the system it comes with.

    triple: processor and system it is built for, one of TRIPLES. toolchain: "zig" (cross-compiled) or "native" (by the
    machine's own compiler). layout: "variants" (one wheel for all processors of the triple) or "single". cpu: zig's -mcpu for
    a single build. emulate: qemu-user processors it is proven on. features: the kernel's words for its instructions. glibc:
    "" without one. pythons: the system's own versions, the default first; empty where any will do. ram: sizes sold, "512M",
    "4G". bandwidth: of its memory in GB/s, None when it differs. model, quantization, context: what to run on it. cmake:
    further -D options of its build.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    triple: str
    toolchain: str
    layout: str
    cpu: str
    cores: str
    emulate: tuple[str, ...] = ()
    features: tuple[str, ...]
    os: str
    glibc: str
    pythons: tuple[str, ...]
    ram: tuple[str, ...]
    bandwidth: float | None = None
    bandwidth_source: str
    model: str = "TinyLlama-1.1B"
    quantization: str
    context: int
    cmake: tuple[str, ...] = ()
    note: str = ""

    def python(self, version: str | None = None) -> str:
        """`3.11`: the version asked for, by default the first of the board's system, or the running one where any will do.

        Raises BoardError when the board's system does not have it.
        """
        if version is None:
            return self.pythons[0] if self.pythons else f"{sys.version_info.major}.{sys.version_info.minor}"
        found = re.fullmatch(r"(3\.\d{1,2})(\.\d{1,3})?", version.strip(), re.ASCII)
        if found is None:
            raise BoardError(f"{version[:_MAX_NAME]!r} is not a version of Python", "give it as in --python 3.11")
        wanted = found[1]
        if not self.pythons and tuple(map(int, wanted.split("."))) < OLDEST_PYTHON:
            raise BoardError(f"tinyedge does not run on Python {wanted}", "use Python 3.10 or newer")
        if self.pythons and wanted not in self.pythons:
            choice = alternatives([f"--python {each}" for each in self.pythons])
            raise BoardError(f"{self.name} has no Python {wanted} ({self.os})", f"use {choice}")
        return wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedCpu:
    """A processor of qemu-user (`name` is its -cpu).

    features: the kernel's words, as programs see them there. variant: the module of the universal wheel that ggml maps on it,
    `armv8.2_2`; "" for a triple that has no universal wheel.
    """

    name: str
    triple: str
    features: tuple[str, ...]
    variant: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything in boards.toml, checked: the rows by name in the file's order, and the board of each key of a name."""

    boards: Mapping[str, Board]
    emulated: Mapping[str, EmulatedCpu]
    keys: Mapping[str, Board]


def boards() -> tuple[Board, ...]:
    """All boards, in the order of boards.toml."""
    return tuple(_catalogue().boards.values())


def find_board(name: str) -> Board:
    """The board of this name, title or alias, whatever its case, blanks and punctuation.

    Raises BoardError that names the nearest ones.
    """
    keys = _catalogue().keys
    key = _key(name[:_MAX_NAME])
    if len(name) <= _MAX_NAME and key in keys:
        return keys[key]
    near = dict.fromkeys(keys[each].name for each in difflib.get_close_matches(key, keys, n=2 * _SHOWN_NAMES, cutoff=0.6))
    guess = f"did you mean {alternatives(list(near)[:_SHOWN_NAMES])}? " if near else ""
    problem = f"no board is named {name[:_MAX_NAME]!r}" if key else "a board has to be named"
    raise BoardError(problem, f"{guess}`tinyedge boards` lists them all")


def find_boards(names: str) -> tuple[Board, ...]:
    """The boards of a list like `rpi4,rpi5`, each once, in the order asked for. Raises BoardError."""
    return tuple(dict.fromkeys(find_board(name) for name in names.split(",")))


def emulated_cpu(name: str) -> EmulatedCpu:
    """The qemu-user processor of this name; it is our own mistake (KeyError) when there is none."""
    return _catalogue().emulated[name]


def alternatives(words: list[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


@cache
def _catalogue() -> Catalogue:
    return read_catalogue((files(__package__) / "boards.toml").read_text(encoding="utf-8"))


def read_catalogue(text: str) -> Catalogue:
    """The boards and processors that `text` in the format of boards.toml describes.

    Raises ValueError that names the row and the field that is wrong.
    """
    tables: dict[str, dict[str, dict[str, Any]]] = _toml.loads(text)
    _expect(not tables.keys() - {"part", "board", "emulated"}, "boards.toml", "table", sorted(tables))
    parts, rows = tables.get("part", {}), tables.get("board", {})
    emulated = {name: _row(EmulatedCpu, name, row) for name, row in tables.get("emulated", {}).items()}
    for name in parts.keys() & rows.keys():
        _expect(False, name, "name of a part and of a board", name)
    found = {name: _row(Board, name, _merged(name, parts | rows, ())) for name in rows}
    for cpu in emulated.values():
        _expect(cpu.triple in TRIPLES, cpu.name, "triple", cpu.triple)
    for board in found.values():
        _check(board, emulated)
    return Catalogue(boards=found, emulated=emulated, keys=_keys(found))


def _merged(name: str, like: Mapping[str, dict[str, Any]], way: tuple[str, ...]) -> dict[str, Any]:
    """The row `name` of `like` with what it takes from those it is like; `way` are the rows before it, to notice a circle."""
    merged: dict[str, Any] = {}
    for other in like[name].get("like", []):
        _expect(other in like and other not in (*way, name), name, "like", other)
        inherited = _merged(other, like, (*way, name))
        merged |= {key: value for key, value in inherited.items() if key != "aliases"}
    return merged | {key: value for key, value in like[name].items() if key != "like"}


_Row = TypeVar("_Row", Board, EmulatedCpu)

# What a field of each type may be in TOML; `note` and the like are one line, as they are printed in one.
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str) and (value == "" or value.isprintable()),
    "int": lambda value: type(value) is int and value > 0,
    "float | None": lambda value: type(value) is float and value > 0,
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(isinstance(each, str) and each for each in value),
}


def _row(kind: type[_Row], name: str, row: dict[str, Any]) -> _Row:
    """The dataclass of a row, every field there and of its type."""
    known = {field.name: field for field in fields(kind)}
    _expect(not row.keys() - known.keys(), name, "unknown fields", sorted(row.keys() - known.keys()))
    values: dict[str, Any] = {"name": name}
    for key, field in known.items():
        if key in row:
            _expect(_FITS[str(field.type)](row[key]), name, key, row[key])
            values[key] = tuple(row[key]) if isinstance(row[key], list) else row[key]
        else:
            _expect(key == "name" or field.default is not MISSING, name, key, "missing")
    return kind(**values)


def _check(board: Board, emulated: Mapping[str, EmulatedCpu]) -> None:
    """What the fields of a board have to be beyond their types."""
    has_glibc = board.triple.endswith(("-gnu", "-gnueabihf"))
    python = re.compile(r"3\.\d{1,2}")
    rules = {
        "name": re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", board.name),
        "title": board.title,
        "triple": board.triple in TRIPLES,
        "toolchain": board.toolchain in ("zig", "native") and (board.toolchain == "native" or has_glibc),
        "layout": board.layout == "single" or (board.layout == "variants" and board.triple == "aarch64-linux-gnu"),
        "cpu": re.fullmatch(r"[a-z0-9_]+", board.cpu),
        "cores": board.cores,
        "emulate": all(name in emulated and emulated[name].triple == board.triple for name in board.emulate),
        "features": board.features or board.toolchain == "native",
        "os": board.os,
        "glibc": re.fullmatch(r"2\.\d\d" if has_glibc else "", board.glibc),
        "pythons": all(python.fullmatch(each) and int(each[2:]) >= OLDEST_PYTHON[1] for each in board.pythons)
        and bool(board.pythons) == has_glibc,
        "ram": all(re.fullmatch(r"[1-9]\d*[MG]", size) for size in board.ram),
        "bandwidth_source": board.bandwidth_source,
        "quantization": re.fullmatch(r"(Q\d_(K(_[SM])?|0)|F16|BF16)", board.quantization),
        "cmake": all(re.fullmatch(r"-D[A-Z0-9_]+=\S+", option) for option in board.cmake),
    }
    for field, good in rules.items():
        _expect(bool(good), board.name, field, getattr(board, field))


def _keys(found: Mapping[str, Board]) -> dict[str, Board]:
    """Every name, title and alias in the form they are compared in, each of one board only."""
    keys: dict[str, Board] = {}
    for board in found.values():
        for key in dict.fromkeys(map(_key, (board.name, board.title, *board.aliases))):
            _expect(key and key not in keys, board.name, "name, title or alias", key)
            keys[key] = board
    return keys


def _key(name: str) -> str:
    """`raspberrypi4` for `Raspberry Pi 4`: letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _expect(good: Any, row: str, field: str, found: object) -> None:
    if not good:
        raise ValueError(f"boards.toml: {row}: {field}: {found!r}")
