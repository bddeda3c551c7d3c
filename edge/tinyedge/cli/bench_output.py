"""Where the results of `tinyedge bench` go: which format, which file, and that nothing else is lost there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tinyedge.cli.output import status, write_text

if TYPE_CHECKING:
    from tinyedge_bench.result_files import Document

FORMATS = ("md", "json", "jsonl", "csv", "sqlite")
_SUFFIXES = {f".{name}": name for name in FORMATS} | {".sqlite3": "sqlite", ".db": "sqlite", ".markdown": "md"}


def wanted_format(format_name: str | None, output: Path | None, *, json: bool) -> str:
    """The format that the options ask for: the one named, else that of the file's suffix, else md. Or wrong usage."""
    if json and format_name not in (None, "json"):
        raise typer.BadParameter(f"--json and --format {format_name} contradict each other", param_hint="--json")
    name = "json" if json else format_name
    if name is not None and name not in FORMATS:
        raise typer.BadParameter(f"it is one of {', '.join(FORMATS)}", param_hint="--format")
    if name is None and output is not None:
        name = _SUFFIXES.get(output.suffix.lower())
        if name is None:
            raise typer.BadParameter(
                f"the suffix of {output.name!r:.60} names no format; give one of {', '.join(sorted(_SUFFIXES))}, or --format",
                param_hint="-o",
            )
    if name == "sqlite" and output is None:
        raise typer.BadParameter("a database needs a file: add -o FILE", param_hint="--format")
    return name or "md"


def check_output(output: Path, format_name: str) -> None:
    """Raises OutputError when results cannot be written to `output`, or something that is no result would be lost."""
    from tinyedge.errors import OutputError

    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} does not exist", "make it first or choose another path with -o")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {output.parent} is not writable")
    if not output.exists():
        return
    if not output.is_file():
        raise OutputError(f"{output} is not a regular file")
    if format_name == "sqlite":
        from tinyedge_bench.speed.formats_sqlite import MAGIC

        with output.open("rb") as file:
            fits = file.read(len(MAGIC)) in (b"", MAGIC)
    else:
        fits = _SUFFIXES.get(output.suffix.lower()) == format_name
    if not fits:
        raise OutputError(
            f"{output} is there already and is not a {format_name} file", "remove it first or choose another path with -o"
        )


def give(document: Document, format_name: str, output: Path | None) -> None:
    """Prints the results, as a table for people where they also go to a file. Raises OutputError, ResultFileError."""
    from tinyedge_bench.speed.formats import render

    if output is not None:
        write(document, format_name, output)
    write_text(render(document, "md" if output is not None else format_name), now=True)
    if output is None and format_name != "md":
        _tell(document)


def write(document: Document, format_name: str, output: Path) -> None:
    """Puts the results into the file, whole or not at all; a database is added to. Raises OutputError, ResultFileError."""
    from tinyedge_bench.speed.formats import append_sqlite, render
    from tinyedge_quantize.output_file import new_file

    if format_name == "sqlite":
        append_sqlite(document, output)
    else:
        with new_file(output) as file:
            file.write_at(render(document, format_name).encode("utf-8"), 0)
    count = len(document.results)
    status(f"{'added' if format_name == 'sqlite' else 'wrote'} {count} row{'s' if count != 1 else ''} to {output}")


def _tell(document: Document) -> None:
    """What a person must know of the results, where what is printed is for programs."""
    from tinyedge.cli.output import printable

    for row in document.results:
        for warning in row["warnings"]:
            status(f"note: {printable(warning, 400)}")
    for each in document.missing:
        status(f"missing: {printable(each.what)}: {printable(each.reason, 400)}")
