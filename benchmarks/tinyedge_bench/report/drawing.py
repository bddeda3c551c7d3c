"""Plots as SVG for the page and as PNG, by matplotlib, which is an extra: `pip install "tinyedge-llm[bench]"`.

Both forms come from the same figure. The same plot gives the same bytes: no date, no random identifier, matplotlib's defaults
whatever the user's own matplotlibrc says, and the font that comes with matplotlib for the layout.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tinyedge.errors import ResultFileError
from tinyedge_bench.report.look import PALETTE, TEXT, WIDTH, light
from tinyedge_bench.report.plots import Plot

PNG_MARK = "tinyedge report"
_POINTS_PER_INCH = 72
_COLOURS = {shades[0]: "currentColor" if role == "ink" else f"var(--{role})" for role, shades in PALETTE.items()}
_COLOUR = re.compile("|".join(_COLOURS))
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_SETTINGS: dict[str, Any] = {
    "axes.edgecolor": light("muted"),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": light("ink"),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "font.size": TEXT,
    "grid.color": light("grid"),
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "tinyedge",
    "text.color": light("ink"),
    "text.parse_math": False,  # a file name may hold a dollar sign
    "text.usetex": False,
    "xtick.color": light("muted"),
    "xtick.labelcolor": light("ink"),
    "ytick.color": light("muted"),
    "ytick.labelcolor": light("ink"),
}


def require_matplotlib() -> None:
    """Raises ResultFileError, with what helps, when matplotlib is not there or finds no home folder for its settings."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ResultFileError(
            "the plots of a report need matplotlib, which is not installed",
            'install it with `pip install "tinyedge-llm[bench]"`, or use --terminal',
        ) from error
    except RuntimeError as error:
        raise ResultFileError(
            "matplotlib, which draws the plots of a report, finds no home folder for its settings",
            "set MPLCONFIGDIR to a folder you can write, or use --terminal",
        ) from error


def svg(plot: Plot) -> str:
    """The plot as an `svg` element for an HTML page, coloured by the page's style sheet.

    Its groups of marks have the classes `samples`, `middles`, `front`, `bandwidth` and `matrix`.
    """
    written = io.BytesIO()
    with _drawn(plot) as figure:
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(ET.fromstring(written.getvalue()), plot)


def png(plot: Plot) -> bytes:
    """The plot as a picture of twice its size, with its title."""
    written = io.BytesIO()
    with _drawn(plot) as figure:
        figure.suptitle(plot.title, fontsize=TEXT + 1)
        figure.savefig(written, format="png", dpi=2 * _POINTS_PER_INCH, metadata={"Software": PNG_MARK})
    return written.getvalue()


@contextmanager
def _drawn(plot: Plot) -> Iterator[Any]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that the font lacks; rcdefaults about old settings
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(_SETTINGS)
        figure = Figure(figsize=(WIDTH / _POINTS_PER_INCH, plot.height / _POINTS_PER_INCH))
        plot.draw(figure.add_subplot())
        yield figure


def _for_page(root: ET.Element, plot: Plot) -> str:
    """matplotlib's document as an element of a page: no namespaces, identifiers of its own, colours of the page."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    for parent in list(root.iter()):
        for child in [each for each in parent if each.tag in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        for key in list(element.attrib):
            element.set(key.rpartition("}")[2], _page_value(element.attrib.pop(key), key.rpartition("}")[2], plot.name))
        name = element.get("id", "").removeprefix(f"{plot.name}-")
        if name.startswith("data-"):
            element.set("class", name.removeprefix("data-"))
            del element.attrib["id"]
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "plot", "role": "img", "id": plot.name, "aria-labelledby": f"{plot.name}-t {plot.name}-d"}
    for at, (tag, words) in enumerate((("title", plot.title), ("desc", plot.description))):
        element = ET.Element(tag, {"id": f"{plot.name}-{tag[0]}"})
        element.text = words
        root.insert(at, element)
    return ET.tostring(root, encoding="unicode")


def _page_value(value: str, key: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}"
    if key == "clip-path":
        return _REFERENCE.sub(rf"url(#{name}-\1)", value)
    if key != "style":
        return value
    kept = (part for part in value.split(";") if not part.strip().startswith("font-family"))
    styled = re.sub(r"font: (?:(\w+) )?([\d.]+px)[^;]*", r"font-size: \2", ";".join(kept))
    return _COLOUR.sub(lambda found: _COLOURS[found[0]], styled)
