"""Writing a report: whole or not at all, over a former report only."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tinyedge.errors import OutputError
from tinyedge_bench.report.drawing import PNG_MARK, png
from tinyedge_bench.report.page import GENERATOR
from tinyedge_bench.report.plots import Plot
from tinyedge_quantize.output_file import new_file

_HEAD_BYTES = 1024


def check_page(path: Path) -> None:
    """Raises OutputError when a page may not be written to `path`: only a former report or an empty file is replaced."""
    _require_replaceable(path, GENERATOR.encode(), "a report")


def write_page(path: Path, html: str) -> int:
    """Writes the page; how many bytes that is. Raises OutputError, DiskSpaceError."""
    check_page(path)
    data = html.encode()
    with new_file(path) as file:
        file.write_at(data, 0)
    return len(data)


def write_pictures(folder: Path, plots: Sequence[Plot]) -> list[Path]:
    """Writes each plot to `folder`, made where it is missing, as NAME.png. Raises OutputError, DiskSpaceError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made ({error.strerror})", "choose another with --png") from error
    paths = [folder / f"{plot.name}.png" for plot in plots]
    for path in paths:
        _require_replaceable(path, PNG_MARK.encode(), "a picture of a report")
    for path, plot in zip(paths, plots, strict=True):
        with new_file(path) as file:
            file.write_at(png(plot), 0)
    return paths


def _require_replaceable(path: Path, mark: bytes, kind: str) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise OutputError(f"the folder {path.parent} does not exist", "make it first or choose another path") from None
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise OutputError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}", "choose another path")
    if not os.access(path, os.R_OK | os.W_OK):
        raise OutputError(f"{path} exists and may not be written", "choose another path")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head and mark not in head:
        raise OutputError(f"{path} exists and is not {kind}", "remove it first or choose another path")
