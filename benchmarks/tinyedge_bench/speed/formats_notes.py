"""The notes below a table of speeds: what to doubt of single cases, alike ones together, then what holds for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinyedge_bench.result_files import Document
from tinyedge_bench.speed.doubts import row_title
from tinyedge_bench.speed.formats_cells import file_text, line_text, number, objects, several_files

_NAMED = 3  # cases by name that get the same note
_CACHED = "the processor's caches hold much of the model: GB/s has no share of what main memory could give"


def notes(document: Document) -> list[str]:
    """All notes, each once: those on cases, those on whole models and peers, those on the machine."""
    return list(dict.fromkeys([*row_notes(document), *_machine_notes(document)]))


def row_notes(document: Document) -> list[str]:
    """The warnings of the rows: those of single cases, each with the cases that have it, before the others."""
    named = several_files(document.results)
    of_cases: dict[str, list[str]] = {}
    others: list[str] = []
    for row in document.results:
        title = row_title(row)
        shown = line_text(f"{file_text(row)}: {title}" if named else title, 120)
        for warning in _texts(row, "warnings"):
            case, separator, sentence = warning.partition(f"{title}: ")
            if separator and not case:
                of_cases.setdefault(line_text(sentence), []).append(shown)
            else:
                others.append(line_text(warning))
        for word in _texts(row, "throttled"):
            of_cases.setdefault(f"throttled ({line_text(word)})", []).append(shown)
    told = [f"{_listed(cases, len(document.results))}: {sentence}" for sentence, cases in of_cases.items()]
    return list(dict.fromkeys([*told, *others]))


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    value = row.get(key)
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else []


def _listed(cases: Sequence[str], count: int) -> str:
    """The cases by name, or how many; `count` is that of all rows."""
    if len(cases) <= _NAMED:
        return "; ".join(cases)
    if len(cases) == count:
        return f"all {count} tests"
    return f"{len(cases)} tests ({'; '.join(cases[:_NAMED])}, ...)"


def _machine_notes(document: Document) -> Iterator[str]:
    """Why a figure is not there."""
    ceilings = document.more.get("ceilings")
    if isinstance(ceilings, Mapping) and ceilings.get("bandwidth") and any(map(_from_caches, document.results)):
        yield _CACHED
    for load in objects(document.more.get("loads")):
        if load.get("cold_note"):
            yield f"cold load: {line_text(load['cold_note'])}"
    for row in document.results:
        if row.get("energy_note") and row.get("engine", "tinyedge") == "tinyedge":
            yield f"energy: {line_text(row['energy_note'])}"


def _from_caches(row: Mapping[str, Any]) -> bool:
    """Whether that is why the row's bytes per second have no share: a GPU's own memory is not measured."""
    rate, share = number(row, "bytes_per_s"), number(row, "bandwidth_share")
    return row.get("backends") == "cpu" and rate is not None and share is None
