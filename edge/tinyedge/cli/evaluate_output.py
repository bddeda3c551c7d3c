"""Where `tinyedge eval` and `tinyedge eval sweep` leave what they measured: standard output, and a file of results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tinyedge.cli.output import print_json, print_line, printable, status
from tinyedge.errors import OutputError, ResultFileError

if TYPE_CHECKING:
    from tinyedge_bench.result_files import Document

_ANOTHER = "choose another path with -o"
# What our tables begin with, by suffix and kind of results.
_BEGINNINGS = {
    ".csv": {"quality": b"model_filename,", "sweep": b"type,bits_per_weight,"},
    ".md": {"quality": b"| model ", "sweep": b"| type "},
}


def check_output(path: Path, kind: str) -> None:
    """Raises OutputError unless `path` can be written and holds nothing but older results of this kind.

    A suffix that names no format is wrong usage.
    """
    from tinyedge_bench.result_files import read_json_document

    suffix = path.suffix.lower()
    if suffix not in (".json", *_BEGINNINGS):
        raise typer.BadParameter(
            f"the suffix of {path.name!r:.60} names no format; give FILE.json, FILE.csv or FILE.md", param_hint="-o"
        )
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist", "make it first or choose another path with -o")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {path.parent} is not writable")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file")
    if not path.exists() or not path.stat().st_size:
        return
    if suffix != ".json":
        beginning = _BEGINNINGS[suffix][kind]
        with path.open("rb") as file:
            if file.read(len(beginning)) != beginning:
                raise OutputError(f"{path} is there already and holds no such table", _ANOTHER)
        return
    try:
        held = read_json_document(path).kind
    except (ResultFileError, OSError) as error:
        raise OutputError(f"{path} is there already and holds no results ({error})", _ANOTHER) from None
    if held != kind:
        raise OutputError(f"{path} is there already and holds results of another kind ({held}, not {kind})", _ANOTHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a document is shown to people: the lines of its table, its plot (empty where there is none), lines for stderr."""

    table: Callable[[Document], list[str]]
    plot: Callable[[Document], str]
    notes: Callable[[Document], Iterable[str]]


def show(document: Document, form: Form, output: Path | None, *, as_json: bool, plot: bool) -> None:
    """Writes the results to `output`, and shows them: as JSON, or as a table with a plot below it. Raises OutputError."""
    if output is not None:
        _write(_text(document, form, output.suffix.lower()), output)
    if as_json:
        print_json(document.as_json())
        return
    for line in form.table(document):
        print_line(line)
    drawn = form.plot(document) if plot else ""
    if drawn:
        print_line(f"\n{drawn}")
    if plot and not drawn:
        status("note: there is nothing to plot with fewer than two models that have figures")
    for line in form.notes(document):
        status(printable(line, 600))


def _text(document: Document, form: Form, suffix: str) -> str:
    from tinyedge.cli.evaluate_csv import csv_text

    if suffix == ".csv":
        return csv_text(document)
    if suffix == ".md":
        return "".join(f"{line}\n" for line in form.table(document))
    return json.dumps(document.as_json(), indent=2, allow_nan=False) + "\n"


def _write(text: str, path: Path) -> None:
    from tinyedge_quantize.output_file import new_file

    with new_file(path) as file:
        file.write_at(text.encode("utf-8"), 0)
