"""Where `tinyedge eval` leaves what it measured: standard output, and a file of results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tinyedge.cli.evaluate_lines import notes, table_lines
from tinyedge.cli.output import print_json, print_line, printable, status
from tinyedge.errors import OutputError, ResultFileError

if TYPE_CHECKING:
    from tinyedge_bench.result_files import Document


def check_output(path: Path) -> None:
    """Raises OutputError unless `path` can be written and holds nothing but older results."""
    from tinyedge_bench.result_files import read_json_document

    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist", "make it first or choose another path with -o")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {path.parent} is not writable")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file")
    try:
        if path.exists() and path.stat().st_size:
            read_json_document(path)
    except (ResultFileError, OSError) as error:
        raise OutputError(f"{path} is there already and holds no results ({error})", "choose another path with -o") from None


def show(document: Document, output: Path | None, *, as_json: bool, plot: bool) -> None:
    """Writes the results to `output`, and shows them: as JSON, or as a table with a plot below it."""
    if output is not None:
        _write(document, output)
    if as_json:
        print_json(document.as_json())
        return
    for line in table_lines(document):
        print_line(line)
    if plot:
        from tinyedge_bench.report.terminal import progress_plot

        drawn = progress_plot(document)
        print_line(f"\n{drawn}" if drawn else "")
    for line in notes(document):
        status(printable(line, 600))


def _write(document: Document, path: Path) -> None:
    from tinyedge_quantize.output_file import new_file

    text = json.dumps(document.as_json(), indent=2, allow_nan=False) + "\n"
    with new_file(path) as file:
        file.write_at(text.encode("utf-8"), 0)
