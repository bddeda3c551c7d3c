"""Engines that ran the same cases side by side: how many times as fast each is as the first, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from tinyedge_bench.report.names import distinct_labels
from tinyedge_bench.report.page_parts import Section, Table, decimal
from tinyedge_bench.report.plots import MOST_STRIPS, Strip, StripPlot
from tinyedge_bench.report.rows import SpeedCase
from tinyedge_bench.speed.compare_ratio import ratios

_FEWEST_RUNS = 3  # below which there is no interval
_MOST_GROUPS = 100


def peer_section(cases: Sequence[SpeedCase]) -> Section:
    """The cases that more than one engine ran, each engine's speed divided by tinyedge's median."""
    groups: dict[tuple[str, ...], dict[str, SpeedCase]] = {}
    for case in cases:
        key = tuple(value for trait, value in case.traits.items() if trait not in ("engine", "batch"))
        groups.setdefault(key, {}).setdefault(case.engine, case)
    shared = [_ours_first(list(group.values())) for group in groups.values() if len(group) > 1][:_MOST_GROUPS]
    if not shared:
        return Section(title="Beside other engines")
    names = distinct_labels([{k: v for k, v in group[0].traits.items() if k != "engine"} for group in shared])
    engines = list(dict.fromkeys(case.engine for group in shared for case in group))
    strips = [
        Strip(
            name=f"{case.engine} · {name}" if len(shared) > 1 else case.engine,
            middle=case.median / group[0].median,
            value=f"{case.median / group[0].median:.3f}",
            samples=[sample / group[0].median for sample in case.samples],
            series=engines.index(case.engine),
        )
        for name, group in zip(names, shared, strict=True)
        for case in group
    ]
    first = shared[0][0].engine
    more = f" The first {MOST_STRIPS} of {len(strips)}; the table has more." if len(strips) > MOST_STRIPS else ""
    plot = StripPlot(
        name="peers",
        title=f"Speed beside {first}'s",
        description=f"Each dot is one run divided by {first}'s median, the bar the median. The axis does not begin at 0.{more}",
        x_label=f"times {first}'s median",
        strips=strips,
        reference=1.0,
        from_zero=False,
    )
    return Section(
        title="Beside other engines",
        intro="Same file, same tokens, same threads.",
        plots=[plot],
        tables=[_table(names, shared)],
    )


def _ours_first(group: list[SpeedCase]) -> list[SpeedCase]:
    return sorted(group, key=lambda case: case.engine != "tinyedge")


def _table(names: Sequence[str], shared: Sequence[Sequence[SpeedCase]]) -> Table:
    first = shared[0][0].engine
    rows = []
    for name, group in zip(names, shared, strict=True):
        for case in group:
            ratio = ratios([(group[0].samples, case.samples)], 0.95, paired=False)[0]
            enough = case is not group[0] and min(len(case.samples), len(group[0].samples)) >= _FEWEST_RUNS
            interval = f"{ratio.low:.3f}–{ratio.high:.3f}" if enough else ""
            rows.append(
                (
                    *(name, f"{case.engine} {case.engine_version}".strip(), decimal(case.median, 4)),
                    f"{decimal(min(case.samples), 4)}–{decimal(max(case.samples), 4)}",
                    *(str(len(case.samples)), f"{case.median / group[0].median:.3f}", interval),
                )
            )
    head = ("case", "engine", "median tokens/s", "least–most", "runs", f"times {first}'s", "95 % interval")
    return Table(caption="The same cases by several engines", head=head, rows=rows, words=("case", "engine"))
