"""What stands below a table of speeds: loads, ceilings, published figures, what is missing, what to doubt, the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from tinyedge_bench.result_files import Document
from tinyedge_bench.speed.cases import threads_text
from tinyedge_bench.speed.formats_cells import cell_text, line_text, markdown_table, number, objects
from tinyedge_bench.speed.formats_notes import notes

_PUBLISHED = ("board", "model", "type", "engine", "test")  # of a published figure, the columns with text


def below(document: Document) -> Iterator[list[str]]:
    """Blocks of lines, those that have nothing to tell empty."""
    yield _loads(objects(document.more.get("loads")))
    yield _ceilings(document.more.get("ceilings"))
    yield _references(objects(document.more.get("references")))
    if document.missing:
        yield ["Missing:", "", *(f"- {line_text(each.what)}: {line_text(each.reason)}" for each in document.missing)]
    if told := notes(document):
        yield ["Notes:", "", *(f"- {note}" for note in told)]
    yield [_origin(document)]


def _loads(loads: Sequence[Mapping[str, Any]]) -> list[str]:
    """Seconds to load each model from the disk and from the page cache, and the most memory it took."""
    if not loads:
        return []
    rows = []
    for load in loads:
        cold, warm, peak = (number(load, key) for key in ("cold_s", "warm_s", "peak_memory_bytes"))
        rows.append(
            [
                cell_text(PurePath(str(load.get("model_filename"))).name, 40),
                cell_text(load.get("backends")).upper(),
                "" if cold is None else f"{cold:.3f} s",
                "" if warm is None else f"{warm:.3f} s",
                "" if peak is None else f"{peak / 2**20:.0f} MiB",
            ]
        )
    return markdown_table(("load", "backend", "cold", "warm", "peak memory"), rows)


def _ceilings(ceilings: Any) -> list[str]:
    """What was measured that no program can exceed here."""
    if not isinstance(ceilings, Mapping):
        return []
    told = [
        f"- reading memory, {threads_text(cell_text(n, 8))}: {rate / 1e9:.1f} GB/s"
        for n, rate in _numbers(ceilings.get("bandwidth")).items()
    ]
    matrix = ceilings.get("matrix")
    for backend, by_threads in matrix.items() if isinstance(matrix, Mapping) else ():
        for n, types in by_threads.items() if isinstance(by_threads, Mapping) else ():
            rates = ", ".join(f"{cell_text(name, 12)} {rate / 1e9:.0f}" for name, rate in _numbers(types).items())
            told += (
                [f"- multiplying matrices, {cell_text(backend, 12)}, {threads_text(cell_text(n, 8))}: {rates} GFLOP/s"]
                if rates
                else []
            )
    return ["Ceilings measured here:", "", *told] if told else []


def _numbers(value: Any) -> dict[Any, float]:
    """Those values of an object that are numbers."""
    if not isinstance(value, Mapping):
        return {}
    return {key: found for key in value if (found := number(value, key)) is not None}


def _references(references: Sequence[Mapping[str, Any]]) -> list[str]:
    """Published figures, plainly apart from what was measured."""
    if not references:
        return []
    sources = list(dict.fromkeys((line_text(each.get("source")), line_text(each.get("url"))) for each in references))
    rows = []
    for each in references:
        speed = number(each, "tokens_per_s")
        place = sources.index((line_text(each.get("source")), line_text(each.get("url")))) + 1
        texts = [cell_text(each.get(key), 30) for key in _PUBLISHED]
        rows.append([*texts, "" if speed is None else f"{speed:g}", f"[{place}]"])
    return [
        "Published elsewhere, not measured here:",
        "",
        *markdown_table((*_PUBLISHED, "t/s", "from"), rows),
        "",
        *(f"{place}. {source}: {url}" for place, (source, url) in enumerate(sources, 1)),
    ]


def _origin(document: Document) -> str:
    """The machine, the versions and the date."""
    machine, build = document.machine, document.build
    cores, memory = number(machine, "physical_cores"), number(machine, "memory_bytes")
    told = [line_text(machine.get("cpu") or machine.get("architecture"), 60)]
    told += [f"{cores:.0f} physical cores"] if cores else []
    told += [f"{memory / 2**30:.1f} GiB of memory"] if memory else []
    known = (("tinyedge", "tinyedge"), ("llama-cpp-python", "llama_cpp_python"), ("ggml", "ggml"), ("llama.cpp", "llama.cpp"))
    versions = [f"{name} {line_text(build[key], 40)}" for name, key in known if build.get(key)]
    parts = (", ".join(each for each in told if each), ", ".join(versions), line_text(document.date, 40))
    return "; ".join(part for part in parts if part)
