"""Sizes and colours of the plots: of each role a light one, drawn with, and a dark one for the page's style sheet."""

from __future__ import annotations

WIDTH = 360  # points; on a phone of 360 pixels text of TEXT points then is 12 pixels high
TEXT = 14
MOST_SERIES = 8

# Each at least 4.5:1 against the page behind it, light and dark; told apart in the common kinds of colour blindness by
# lightness and, beside that, by the mark. Hexadecimal and all different, so that `drawing` can find them in an SVG again.
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#59636e", "#a3adb8"),
    "grid": ("#d5dae0", "#3a424c"),
    "series-0": ("#0b62ab", "#6cb6ff"),
    "series-1": ("#b5450b", "#ff9e64"),
    "series-2": ("#00725c", "#4fd1a8"),
    "series-3": ("#963a7b", "#e79bd0"),
    "series-4": ("#775a01", "#e0c050"),
    "series-5": ("#5a55cf", "#aba8ff"),
    "series-6": ("#3d6a02", "#a3d160"),
    "series-7": ("#a8243c", "#ff8f9d"),
}


def light(role: str) -> str:
    """The colour of a role on a light page."""
    return PALETTE[role][0]


def series_colour(index: int) -> str:
    """The light colour of a series by its place."""
    return light(f"series-{index % MOST_SERIES}")
