"""Engines that ran the same cases beside tinyedge: the same ratios as `tinyedge bench compare RESULTS --peer ENGINE` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tinyedge_bench.report.names import distinct_labels
from tinyedge_bench.report.page_parts import Section, Table, decimal
from tinyedge_bench.report.plots import MOST_STRIPS, Strip, StripPlot
from tinyedge_bench.report.rows import SpeedCase
from tinyedge_bench.speed.compare_ratio import FEW, Ratio, ratios

_OURS = "tinyedge"
_MOST_PAIRS = 200
_CONFIDENCE = 0.95
_INTRO = (
    "Same file, same tokens, same threads. The ratio is tinyedge's speed divided by the other engine's: above 1, tinyedge is "
    "faster. The two took turns: it is the median of the ratios of each round, which is not that of the medians."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A case that tinyedge and another engine ran."""

    name: str
    ours: SpeedCase
    theirs: SpeedCase

    @property
    def paired(self) -> bool:
        """Whether there are rounds: a run of each."""
        return len(self.ours.samples) == len(self.theirs.samples)

    @property
    def single(self) -> tuple[float, ...]:
        """The ratio of each round; without rounds, of each run of ours to the median of theirs."""
        if self.paired:
            return tuple(a / b for a, b in zip(self.ours.samples, self.theirs.samples, strict=True))
        return tuple(sample / median(self.theirs.samples) for sample in self.ours.samples)


def peer_section(cases: Sequence[SpeedCase]) -> Section:
    """tinyedge's speed divided by each other engine's, in the cases that both ran."""
    found = _pairs(cases)
    engines = list(dict.fromkeys(pair.theirs.engine for pair in found))
    groups = []
    for engine in engines:
        pairs = [pair for pair in found if pair.theirs.engine == engine]
        # One call for an engine, as `bench compare` does: intervals depend a little on what was resampled before.
        samples = [(pair.theirs.samples, pair.ours.samples) for pair in pairs]
        groups.append((engine, pairs, ratios(samples, _CONFIDENCE, paired=True)))
    if not found:
        return Section(title="Beside other engines")
    return Section(
        title="Beside other engines",
        intro=_INTRO + _reading(found),
        plots=[_plot(groups)],
        tables=[_table(groups)],
    )


def _pairs(cases: Sequence[SpeedCase]) -> list[_Pair]:
    groups: dict[tuple[str, ...], dict[str, SpeedCase]] = {}
    for case in cases:
        key = tuple(value for trait, value in case.traits.items() if trait not in ("engine", "batch"))
        groups.setdefault(key, {}).setdefault(case.engine, case)
    shared = [group for group in groups.values() if _OURS in group and len(group) > 1]
    names = distinct_labels(
        [{k: v for k, v in group[_OURS].traits.items() if k not in ("engine", "batch")} for group in shared]
    )
    pairs = [
        _Pair(name=name, ours=group[_OURS], theirs=theirs)
        for name, group in zip(names, shared, strict=True)
        for engine, theirs in group.items()
        if engine != _OURS
    ]
    return pairs[:_MOST_PAIRS]


def _reading(found: Sequence[_Pair]) -> str:
    """What else to know of these ratios."""
    runs = min(min(len(pair.ours.samples), len(pair.theirs.samples)) for pair in found)
    apart = "" if all(pair.paired for pair in found) else " Where the runs are not as many, it is the ratio of the medians."
    few = f" With fewer than {FEW} runs an interval is narrower than it says." if 1 < runs < FEW else ""
    return apart + few


_Groups = Sequence[tuple[str, Sequence[_Pair], Sequence[Ratio]]]


def _plot(groups: _Groups) -> StripPlot:
    several = len({pair.name for _, pairs, _ in groups for pair in pairs}) > 1
    strips = [
        Strip(
            name=f"{engine} · {pair.name}" if several else engine,
            middle=ratio.value,
            value=f"{ratio.value:.3f}",
            samples=pair.single,
            series=at,
        )
        for at, (engine, pairs, found) in enumerate(groups)
        for pair, ratio in zip(pairs, found, strict=False)
    ]
    more = f" The first {MOST_STRIPS} of {len(strips)}; the table has more." if len(strips) > MOST_STRIPS else ""
    return StripPlot(
        name="peers",
        title="tinyedge's speed ÷ the other engine's",
        description=f"Each dot is one round, the bar their median. Right of the line tinyedge is faster. "
        f"The axis does not begin at 0.{more}",
        x_label="tinyedge ÷ the other engine",
        strips=strips,
        reference=1.0,
        from_zero=False,
    )


def _table(groups: _Groups) -> Table:
    rows = []
    for engine, pairs, found in groups:
        for pair, ratio in zip(pairs, found, strict=False):
            ours, theirs = pair.ours, pair.theirs
            runs = str(len(ours.samples)) if pair.paired else f"{len(ours.samples)}, {len(theirs.samples)}"
            rows.append(
                (
                    *(
                        pair.name,
                        f"{engine} {theirs.engine_version}".strip(),
                        decimal(ours.median, 4),
                        decimal(theirs.median, 4),
                    ),
                    *(runs if pair.paired else f"{runs} (not in rounds)", f"{ratio.value:.3f}", _interval(ratio), ratio.told),
                )
            )
        if len(pairs) > 1:
            mean = found[-1]
            rows.append(
                (f"geometric mean of {len(pairs)}", engine, "", "", "", f"{mean.value:.3f}", _interval(mean), mean.told)
            )
    head = ("case", "engine", "tinyedge's tokens/s", "its tokens/s", "runs", "ratio", "95 % interval", "told")
    return Table(caption="tinyedge's speed ÷ the other engine's", head=head, rows=rows, words=("case", "engine", "told"))


def _interval(ratio: Ratio) -> str:
    return "" if ratio.low is None else f"{ratio.low:.3f}–{ratio.high:.3f}"
