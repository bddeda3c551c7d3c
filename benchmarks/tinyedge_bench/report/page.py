"""The report as one HTML page that needs nothing else: no network, no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from tinyedge_bench.report.checked_values import count, number, text
from tinyedge_bench.report.look import PALETTE
from tinyedge_bench.report.names import distinct_labels
from tinyedge_bench.report.page_parts import Link, Section, Table, decimal
from tinyedge_bench.report.plots import Plot
from tinyedge_bench.report.quality_sections import quality_sections
from tinyedge_bench.report.rows import MOST_ROWS, speed_cases
from tinyedge_bench.report.sources import Sources
from tinyedge_bench.report.speed_sections import speed_sections
from tinyedge_bench.result_files import Document

GENERATOR = '<meta name="generator" content="tinyedge report">'
_MOST_ITEMS = 100
_MOST_CASES = 8  # named for one sentence
_LONGEST_VERSION = 40
# Nothing may be fetched or run, even if a text slipped through as an element.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def sections(sources: Sources) -> list[Section]:
    """The sections for which there is something to show, in the order of the page."""
    speed = sources.of_kinds("speed")
    found = [
        Section(title="What was measured", tables=[_origin(sources)], items=_builds(sources)),
        Section(title="What is missing", items=_missing(sources)),
        *speed_sections(speed),
        *quality_sections(sources.of_kinds("quality", "sweep")),
        Section(title="Published figures", intro=_PUBLISHED, tables=[_references(sources)]),
        Section(title="What to doubt", items=_doubts(sources)),
    ]
    return [section for section in found if section]


def plots(found: Sequence[Section]) -> list[Plot]:
    """Every plot of the sections."""
    return [plot for section in found for plot in section.plots]


def page(title: str, found: Sequence[Section]) -> str:
    """The HTML of the sections."""
    shown = escape(text(title, 200))
    links = "".join(f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in found)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><title>{shown}</title>\n<style>{_style()}</style></head>\n'
        f'<body><header><h1>{shown}</h1><nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main>'
        + "\n".join(section.html() for section in found)
        + "</main></body></html>\n"
    )


def _style() -> str:
    """The style sheet, with the colours of the plots as variables for light and dark."""
    light, dark = ("".join(f"--{role}:{shades[i]};" for role, shades in PALETTE.items()) for i in (0, 1))
    rules = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"


def _origin(sources: Sources) -> Table:
    rows = [
        (
            *(name, document.kind, _moment(document.date), text(document.machine.get("cpu"))),
            *(text(document.machine.get("architecture"), 20), text(document.machine.get("physical_cores"), 6)),
            decimal((number(document.machine, "memory_bytes") or 0) / 2**30 or None),
            str(len(document.results)) + (f" (the first {MOST_ROWS} shown)" if len(document.results) > MOST_ROWS else ""),
        )
        for name, document in sources.documents
    ]
    head = ("results", "kind", "date", "processor", "architecture", "cores", "memory, GiB", "rows")
    words = ("results", "kind", "date", "processor", "architecture")
    return Table(caption="The machine of each file of results", head=head, rows=rows, words=words)


def _builds(sources: Sources) -> list[str]:
    """System and versions, in a line for each file of results."""
    told = [
        (name, ", ".join(filter(None, (text(document.machine.get("system")), _versions(document.build)))))
        for name, document in sources.documents
    ]
    return _bounded([f"{name}: {words}" if name else words for name, words in told if words])


def _versions(build: Mapping[str, Any]) -> str:
    """What is short enough for a version: llama.cpp's list of processor features is kept beside them."""
    named = [(text(key, 24), text(value)) for key, value in list(build.items())[:12]]
    return ", ".join(f"{key} {value}" for key, value in named if 0 < len(value) <= _LONGEST_VERSION)


def _moment(date: str) -> str:
    """`2026-01-31 12:00 UTC` of what `measured_here` wrote; any other date as it is."""
    found = text(date, 40)
    return f"{found[:10]} {found[11:16]} UTC" if found.endswith("+00:00") and len(found) == 25 else found


def _missing(sources: Sources) -> list[str]:
    named = [
        f"{f'{name}: ' if name else ''}{text(each.what)}: {text(each.reason, 400)}"
        for name, document in sources.documents
        for each in document.missing[:_MOST_ITEMS]
    ]
    return _bounded([*sources.unreadable, *named])


def _doubts(sources: Sources) -> list[str]:
    """Each sentence of a file once, with the cases it was said of."""
    return _bounded([each for name, document in sources.of_kinds("speed") for each in _doubts_of(name, document)])


def _doubts_of(name: str, document: Document) -> list[str]:
    cases = speed_cases(document, name)
    labels = distinct_labels([case.traits for case in cases])
    said: dict[str, list[str]] = {}
    for label, case in zip(labels, cases, strict=True):
        for warning in dict.fromkeys(case.warnings):
            said.setdefault(warning, []).append(label)
    return [f"{f'{name}: ' if name else ''}{warning}{_of_cases(concerned, len(cases))}" for warning, concerned in said.items()]


def _of_cases(labels: list[str], of: int) -> str:
    """Of which of the cases something was said, where there is more than one."""
    if of < 2:
        return ""
    if len(labels) == of:
        return f" (all {of} cases)"
    more = f" and {len(labels) - _MOST_CASES} more" if len(labels) > _MOST_CASES else ""
    return f" ({', '.join(labels[:_MOST_CASES])}{more})"


def _bounded(items: list[str]) -> list[str]:
    more = len(items) - _MOST_ITEMS
    return items if more <= 0 else [*items[:_MOST_ITEMS], f"and {more} more"]


_PUBLISHED = "Measured by others, on other machines, as the source says; not part of what was measured here."


def _references(sources: Sources) -> Table:
    rows = []
    for _, document in sources.of_kinds("speed"):
        references = document.more.get("references")
        for each in references[:_MOST_ITEMS] if isinstance(references, list) else ():
            if isinstance(each, dict) and count(each, "tokens_per_s"):
                board, model, kind, test = (text(each.get(key)) for key in ("board", "model", "type", "test"))
                source = Link(text(each.get("source"), 200), text(each.get("url"), 500))
                rows.append((board, model, kind, test, decimal(number(each, "tokens_per_s"), 4), source))
    head = ("board", "model", "type", "test", "tokens/s", "source")
    unique = list(dict.fromkeys(rows))
    return Table(caption="Published tokens/s", head=head, rows=unique, words=("board", "model", "type", "test", "source"))
