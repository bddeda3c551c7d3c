"""Where the results of `tinyedge bench` go: which format, which file, and that nothing else is lost there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tinyedge.cli.output import printable, status, write_text
from tinyedge.errors import OutputError, ResultFileError, TinyEdgeError

if TYPE_CHECKING:
    from tinyedge_bench.result_files import Document

FORMATS = ("md", "json", "jsonl", "csv", "sqlite")
_SUFFIXES = {f".{name}": name for name in FORMATS} | {".sqlite3": "sqlite", ".db": "sqlite", ".markdown": "md"}
_HEAD_BYTES = 4096


def wanted_format(format_name: str | None, output: Path | None, *, json: bool) -> str:
    """The format that the options ask for: the one named, else that of the file's suffix, else md. Or wrong usage."""
    if json and format_name not in (None, "json"):
        raise typer.BadParameter(f"--json and --format {format_name} contradict each other", param_hint="--json")
    if output == Path("-"):
        raise typer.BadParameter("without it results go to standard output; name a file", param_hint="-o")
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
    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} does not exist", "make it first or choose another path with -o")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {output.parent} is not writable")
    if not output.exists():
        return
    if not output.is_file():
        raise OutputError(f"{output} is not a regular file")
    if not output.stat().st_size:
        return
    try:
        _read_former(output, format_name)
    except ResultFileError as error:
        raise OutputError(error.problem, "choose another path with -o, or remove it first") from None
    except OSError as error:
        raise OutputError(f"{output} is there already and cannot be read ({error.strerror})") from error


def _read_former(output: Path, format_name: str) -> None:
    """Raises ResultFileError unless the file holds results in that format, as far as the formats can be told apart."""
    from tinyedge_bench.speed.formats_sqlite import require_results
    from tinyedge_bench.speed.formats_table import is_markdown
    from tinyedge_bench.speed.read_speed import read_documents

    if format_name == "sqlite":
        require_results(output)
    elif format_name == "md":
        with output.open("rb") as file:
            fits = is_markdown(file.read(_HEAD_BYTES).decode("utf-8", "replace"))
        if not fits:
            raise ResultFileError(f"{output} is there already and holds no table of speeds")
    else:
        read_documents(output)


def give(document: Document, format_name: str, output: Path | None) -> None:
    """Prints the results, as a table for people where they also go to a file. Raises OutputError, ResultFileError.

    When the file cannot be written, as on a disk that became full meanwhile, what belongs there is printed instead.
    """
    from tinyedge_bench.speed.formats import render

    if output is None:
        if format_name == "md":
            _show(document)
        else:
            write_text(render(document, format_name), now=True)
            _tell(document)
        return
    try:
        write(document, format_name, output)
    except (TinyEdgeError, OSError):
        write_text(render(document, "json" if format_name == "sqlite" else format_name), now=True)
        raise
    _show(document)


def _show(document: Document) -> None:
    """The tables for people, no wider than a terminal where that can be had."""
    from tinyedge_bench.speed.formats_table import markdown

    on_screen = sys.stdout is not None and sys.stdout.isatty()
    write_text(markdown(document, shutil.get_terminal_size().columns if on_screen else None), now=True)


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
    status(
        f"{'added' if format_name == 'sqlite' else 'wrote'} {count} row{'s' if count != 1 else ''} to {printable(str(output))}"
    )


def _tell(document: Document) -> None:
    """What a person must know of the results, where what is printed is for programs."""
    from tinyedge_bench.speed.formats_notes import row_notes

    for note in row_notes(document):
        status(f"note: {printable(note, 600)}")
    for each in document.missing:
        status(f"missing: {printable(each.what)}: {printable(each.reason, 400)}")
