"""The sections about speed: by threads, depth and type, beside the peers, under the ceilings, and every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tinyedge_bench.report.ceilings import ceiling_section
from tinyedge_bench.report.checked_values import count, number, text
from tinyedge_bench.report.look import MOST_SERIES
from tinyedge_bench.report.names import distinct_labels
from tinyedge_bench.report.page_parts import Section, Table, decimal, mebibytes, millions, percent, seconds
from tinyedge_bench.report.peers import peer_section
from tinyedge_bench.report.plots import MOST_STRIPS, LinePlot, Plot, Series, Strip, StripPlot
from tinyedge_bench.report.rows import SpeedCase, speed_cases
from tinyedge_bench.result_files import Document

_MOST_DOCUMENTS = 8  # whose samples are drawn
_PHASES = ("prompt", "generation", "prompt and generation")


def speed_sections(documents: Sequence[tuple[str, Document]]) -> list[Section]:
    """The sections of all speed documents together, each document with its short name."""
    cases = [case for name, document in documents for case in speed_cases(document, name)]
    ours = [case for case in cases if case.engine == "tinyedge"] or cases
    return [
        Section(
            title="Speed by threads",
            intro="The line joins medians; each dot is one run.",
            plots=_lines(ours, "threads", "threads", lambda case: case.threads),
        ),
        Section(
            title="Speed by context depth",
            intro="How fast it still is with so many tokens before. The line joins medians; each dot is one run.",
            plots=_lines(ours, "depth", "tokens in the context before", lambda case: case.case.depth),
        ),
        Section(title="Speed by model and type", plots=_by_model(ours)),
        peer_section(cases),
        ceiling_section(documents),
        Section(title="Every sample", plots=_every_sample(documents), tables=[_cases_table(cases)]),
        Section(title="Loading and memory", tables=[_loads(documents)]),
        Section(title="Temperature, clock and energy", tables=[_conditions(cases)]),
    ]


def _lines(cases: Sequence[SpeedCase], by: str, x_label: str, place: Callable[[SpeedCase], int]) -> list[Plot]:
    """A plot per phase of the tokens/s over what `place` says, of the series in which that changes."""
    plots: list[Plot] = []
    for phase in _PHASES:
        groups: dict[tuple[str, ...], dict[int, SpeedCase]] = {}
        for case in cases:
            if case.phase == phase and place(case) >= (1 if by == "threads" else 0):
                key = tuple(value for trait, value in case.traits.items() if trait != by)
                groups.setdefault(key, {})[place(case)] = case
        changing = [[group[at] for at in sorted(group)] for group in groups.values() if len(group) > 1]
        if not changing:
            continue
        names = distinct_labels([{k: v for k, v in group[0].traits.items() if k != by} for group in changing])
        series = [
            Series(
                name=name,
                places=[place(case) for case in group],
                middles=[case.median for case in group],
                samples=[case.samples for case in group],
            )
            for name, group in zip(names, changing, strict=True)
        ]
        more = f" {len(series) - MOST_SERIES} more series are in the table." if len(series) > MOST_SERIES else ""
        plots.append(
            LinePlot(
                name=f"speed-by-{by}-{phase.replace(' ', '-')}",
                title=f"{phase.capitalize()} speed by {by}",
                description=f"{_subject(changing)}{more}",
                x_label=x_label,
                y_label="tokens/s",
                series=series,
            )
        )
    return plots


def _subject(groups: Iterable[Sequence[SpeedCase]]) -> str:
    """What is the same in all of a plot: `tiny-Q4_K_M.gguf, pp512, cpu.`"""
    found = [case for group in groups for case in group]
    same = [trait for trait in ("model", "test", "backend") if len({case.traits[trait] for case in found}) == 1]
    return f"{', '.join(found[0].traits[trait] for trait in same if found[0].traits[trait])}." if same else ""


def _by_model(cases: Sequence[SpeedCase]) -> list[Plot]:
    """A strip of models per phase, under the conditions in which most models were measured."""
    plots: list[Plot] = []
    for phase in _PHASES:
        groups: dict[tuple[str, ...], dict[str, SpeedCase]] = {}
        for case in cases:
            if case.phase == phase:
                key = tuple(value for trait, value in case.traits.items() if trait != "model")
                groups.setdefault(key, {})[case.model] = case
        group = max(groups.values(), key=lambda each: (len(each), next(iter(each.values())).threads), default={})
        if len(group) < 2:
            continue
        first = next(iter(group.values()))
        conditions = f"{first.traits['test']}, depth {first.case.depth}, {first.traits['threads']}, {first.backend or 'cpu'}"
        plots.append(
            StripPlot(
                name=f"speed-by-model-{phase.replace(' ', '-')}",
                title=f"{phase.capitalize()} speed by model",
                description=f"{conditions}. Each dot is one run, the bar the median.{_left_out(len(group))}",
                x_label="tokens/s",
                strips=_strips(list(group.values()), distinct_labels([{"model": name} for name in group]), [first.engine]),
            )
        )
    return plots


def _strips(cases: Sequence[SpeedCase], names: Sequence[str], engines: Sequence[str]) -> list[Strip]:
    return [
        Strip(
            name=name,
            middle=case.median,
            value=decimal(case.median),
            samples=case.samples,
            series=engines.index(case.engine),
        )
        for name, case in zip(names, cases, strict=True)
    ]


def _left_out(found: int) -> str:
    return f" The first {MOST_STRIPS} of {found}; the table has more." if found > MOST_STRIPS else ""


def _every_sample(documents: Sequence[tuple[str, Document]]) -> list[Plot]:
    """A strip of all cases per document and phase, engines by their colour."""
    plots: list[Plot] = []
    for i, (name, document) in enumerate(documents[:_MOST_DOCUMENTS]):
        cases = speed_cases(document, name)
        engines = list(dict.fromkeys(case.engine for case in cases))
        for phase in _PHASES:
            found = [case for case in cases if case.phase == phase]
            if found:
                labels = distinct_labels([case.traits for case in found])
                plots.append(
                    StripPlot(
                        name=f"every-sample-{phase.replace(' ', '-')}-{i + 1}",
                        title=f"{phase.capitalize()}: every run{f' of {name}' if name else ''}",
                        description=f"Each dot is one run, the bar the median.{_left_out(len(found))}",
                        x_label="tokens/s",
                        strips=_strips(found, labels, engines),
                    )
                )
    return plots


def _cases_table(cases: Sequence[SpeedCase]) -> Table:
    head = (
        *("results", "model", "weights, MiB", "params, M", "engine", "backend", "threads", "KV", "batch", "test"),
        *("median tokens/s", "mean ± sd", "least–most", "runs", "first token"),
        *("GB/s", "of bandwidth", "GFLOP/s", "of matrix rate", "doubts"),
    )
    rows = [
        (
            *(
                case.source,
                case.model,
                mebibytes(case.size),
                millions(case.params),
                f"{case.engine} {case.engine_version}".strip(),
            ),
            *(case.backend, str(case.threads or ""), case.kv, _batch(case), case.case.name, decimal(case.median, 4)),
            f"{decimal(case.mean, 4)} ± {decimal(case.deviation)}",
            f"{decimal(min(case.samples), 4)}–{decimal(max(case.samples), 4)}",
            *(str(len(case.samples)), seconds(case.first_token_s)),
            *(decimal(_giga(case.bytes_per_s)), percent(case.bandwidth_share)),
            *(decimal(_giga(case.flops)), percent(case.matrix_share), str(len(case.warnings) or "")),
        )
        for case in cases
    ]
    words = ("results", "model", "engine", "backend", "test")
    return Table(caption="All cases, with llama-bench's names", head=head, rows=rows, words=words, once=head[1:9])


def _batch(case: SpeedCase) -> str:
    return f"{case.batch}/{case.micro_batch}" if case.batch else ""


def _giga(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def _loads(documents: Sequence[tuple[str, Document]]) -> Table:
    loads = [(name, load) for name, document in documents for load in _objects(document.more.get("loads"))]
    rows = [
        (
            *(name, text(load.get("model_filename")), text(load.get("backends"), 20)),
            *(seconds(number(load, "cold_s")), seconds(number(load, "warm_s")), mebibytes(count(load, "peak_memory_bytes"))),
            text(load.get("cold_note"), 200),
        )
        for name, load in loads
    ]
    head = ("results", "model", "backend", "load, cold", "load, warm", "most memory, MiB", "about the cold load")
    return Table(
        caption="Time to load and most memory",
        head=head,
        rows=rows,
        words=("results", "model", "backend", "about the cold load"),
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value[:200] if isinstance(each, dict)] if isinstance(value, list) else []


def _conditions(cases: Sequence[SpeedCase]) -> Table:
    known = [case for case in cases if case.temperature or case.clock or case.throttled or case.energy_j is not None]
    rows = [
        (
            *(case.source, case.model, case.case.name, str(case.threads or "")),
            *(
                _passage(case.temperature),
                _passage(case.clock),
                ", ".join(case.throttled),
                decimal(case.energy_j),
                "" if case.energy_j is None else case.energy_note,
            ),
        )
        for case in known
    ]
    head = (
        *("results", "model", "test", "threads", "°C before → most → after", "MHz before → least → after"),
        *("throttled", "J per token", "about the energy"),
    )
    words = ("results", "model", "test", "throttled", "about the energy")
    return Table(caption="The machine before, during and after", head=head, rows=rows, words=words)


def _passage(values: Sequence[float | None]) -> str:
    return " → ".join("?" if value is None else f"{value:.0f}" for value in values)
