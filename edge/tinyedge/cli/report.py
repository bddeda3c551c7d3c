"""`tinyedge report`: results as one page with tables and plots, as pictures, or as plots in the terminal."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyedge.cli.output import format_bytes, print_line, printable, status

if TYPE_CHECKING:
    from tinyedge_bench.report.sources import Sources

_EXAMPLES = """\b
Examples:
  tinyedge report bench.json
  tinyedge report bench.json eval.json sweep.json -o report.html --title "Pi 5"
  tinyedge report bench.json --png pictures
  tinyedge report sweep.json --terminal
"""
DEFAULT_OUTPUT = Path("report.html")


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...",
            help="Files that `tinyedge bench`, `eval`, `eval sweep` or llama-bench wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The page to write.", show_default="report.html")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="DIR", help="Write each plot as a PNG file there; a page only with -o.")
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Show the main plots here, without matplotlib; a page only with -o.")
    ] = False,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="The heading of the page.")] = "tinyedge: measurements",
) -> None:
    """Turn files of results into one page that needs no network: tables, plots, what is missing and what to doubt.

    A file that cannot be read is named and left out. The plots need matplotlib: pip install "tinyedge-llm[bench]".
    """
    from tinyedge_bench.report.sources import read_sources

    sources = read_sources(results)
    for sentence in sources.unreadable:
        status(f"note: left out: {printable(sentence, 600)}")
    if terminal:
        _show(sources)
    page_path = output or (None if terminal or png is not None else DEFAULT_OUTPUT)
    if page_path is not None or png is not None:
        _write(sources, page_path, png, title)


report.__doc__ = f"{inspect.cleandoc(report.__doc__ or '')}\n\n{_EXAMPLES}"


def _show(sources: Sources) -> None:
    from tinyedge_bench.report.terminal import progress_plot, size_quality_plot, speed_bars

    forms = {"speed": (speed_bars,), "quality": (progress_plot, size_quality_plot), "sweep": (size_quality_plot,)}
    shown = 0
    for name, document in sources.documents:
        for text in filter(None, (form(document) for form in forms[document.kind])):
            if shown:
                print_line()
            print_line(f"{name}: {text}" if name else text)
            shown += 1
    if not shown:
        status("note: the results hold nothing that a terminal can plot")


def _write(sources: Sources, page_path: Path | None, png: Path | None, title: str) -> None:
    from tinyedge_bench.report.drawing import require_matplotlib
    from tinyedge_bench.report.files import check_page, write_page, write_pictures
    from tinyedge_bench.report.page import page, plots, sections

    require_matplotlib()
    if page_path is not None:
        check_page(page_path)
    found = sections(sources)
    if page_path is not None:
        size = write_page(page_path, page(title, found))
        count = len(sources.documents)
        status(
            f"wrote {printable(str(page_path))}: {count} file{'s' * (count != 1)} of results, {len(plots(found))} plots, "
            f"{format_bytes(size)}"
        )
    if png is not None:
        written = write_pictures(png, plots(found))
        status(f"wrote {len(written)} PNG files to {printable(str(png))}")
