"""Two measurements side by side: which cases are the same, how their speeds compare, and what else differs.

Cases are the same when model (type and number of parameters), engine, backend, threads, KV cache types and test are. What is
one thing throughout the first measurement and another throughout the second, such as 4 threads and 8, is taken for what is
compared: it does not keep cases apart, and it is told. The test is never that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from statistics import fmean, median
from typing import Any

from tinyedge.errors import ResultFileError
from tinyedge_bench.result_files import Document
from tinyedge_bench.speed.compare_ratio import FEW, RESAMPLES, Ratio, ratios
from tinyedge_bench.speed.read_speed import SpeedRow, read_documents, speed_rows

OURS = "tinyedge"

_Field = Callable[[SpeedRow], Any]

_TEST: dict[str, _Field] = {"test": lambda row: (row.prompt, row.generate, row.depth, row.sequences)}
_IDENTITY: dict[str, _Field] = {
    "model": lambda row: (row.model_type, row.model_n_params),
    "engine": lambda row: row.engine,
    "backend": lambda row: row.backend,
    "threads": lambda row: row.threads,
    "KV cache": lambda row: (row.type_k, row.type_v),
}
# What tells cases apart only where the others do not.
_SETTINGS: dict[str, _Field] = {
    "file": lambda row: PurePath(row.model_filename).name,
    "batch": lambda row: (row.batch, row.ubatch),
    "GPU layers": lambda row: row.gpu_layers,
    "flash attention": lambda row: row.flash_attn,
}
_MACHINE = (("cpu", "processor"), ("architecture", "architecture"), ("physical_cores", "cores"), ("cpu_quota", "CPU quota"))
_BUILD = (
    ("tinyedge", "tinyedge"),
    ("llama_cpp_python", "llama-cpp-python"),
    ("ggml", "ggml"),
    ("ggml_commit", "ggml's commit"),
)


@dataclass(frozen=True, slots=True)
class ComparedCase:
    """A case that both measurements have; the ratio is the second's speed to the first's."""

    first: SpeedRow
    second: SpeedRow
    ratio: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two measurements tell together; `differences` and `notes` are sentences on how to read it.

    `basis` says what a ratio is, where it is not the ratio of the medians of two files.
    """

    cases: tuple[ComparedCase, ...]
    mean: Ratio
    only_first: tuple[SpeedRow, ...]
    only_second: tuple[SpeedRow, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    confidence: float
    basis: str = ""
    resamples: int = RESAMPLES

    def below(self, limit: float) -> tuple[ComparedCase, ...]:
        """The cases whose ratio is below `limit`, whether noise could explain it or not."""
        return tuple(case for case in self.cases if case.ratio.value < limit)

    def surely_below(self, limit: float) -> tuple[ComparedCase, ...]:
        """Those whose whole interval is."""
        return tuple(case for case in self.below(limit) if case.ratio.high is not None and case.ratio.high < limit)


def compare_files(first: Path, second: Path, confidence: float = 0.95) -> Comparison:
    """The newest measurements of two files. Raises ResultFileError, OSError."""
    (old, old_notes), (new, new_notes) = _newest(first), _newest(second)
    compared = _compare(speed_rows(old, first), speed_rows(new, second), f"{first} and {second}", confidence, paired=False)
    return replace(
        compared,
        differences=(*compared.differences, *_all_apart(old, new)),
        notes=(*old_notes, *new_notes, *compared.notes),
    )


def compare_last(path: Path, confidence: float = 0.95) -> Comparison:
    """The newest measurement in a file with the one before it. Raises ResultFileError, OSError."""
    found = _by_age(path)
    rows = speed_rows(found[-1], path)
    if len(found) < 2:
        raise ResultFileError(f"{path} holds one measurement", "give a second file, or --peer ENGINE")
    old, new = found[-2:]
    where = f"the last two measurements of {path}"
    compared = _compare(speed_rows(old, path), rows, where, confidence, paired=False)
    basis = f"A was measured {old.date or 'at no known date'}, B {new.date or 'at no known date'}: the last 2 of {len(found)}"
    return replace(compared, differences=(*compared.differences, *_all_apart(old, new)), basis=basis)


def compare_peer(path: Path, peer: str, confidence: float = 0.95) -> Comparison:
    """Our speeds to those of engine `peer` in the newest measurement of one file, run by run: the two took turns.

    Raises ResultFileError, OSError.
    """
    document, notes = _newest(path)
    rows = speed_rows(document, path)
    theirs = tuple(row for row in rows if row.engine == peer)
    if not theirs:
        others = sorted({row.engine for row in rows} - {OURS})
        held = f"it holds {', '.join(others)}" if others else "measure with --peer to have one"
        raise ResultFileError(f"{path} holds no results of {peer}", held)
    ours = tuple(row for row in rows if row.engine == OURS)
    if not ours:
        raise ResultFileError(f"{path} holds no results of {OURS}")
    compared = _compare(theirs, ours, str(path), confidence, paired=True)
    told = tuple(each for each in compared.differences if not each.startswith("engine "))
    return replace(compared, differences=told, notes=(*notes, *compared.notes), basis=_peer_basis(compared.cases))


def _peer_basis(cases: Sequence[ComparedCase]) -> str:
    """What the ratios are; of a case of which one has fewer runs than the other there are no rounds."""
    apart = sum(len(_samples(case.first)) != len(_samples(case.second)) for case in cases)
    if apart == len(cases):
        return "a ratio is that of the medians: the two have unlike numbers of runs"
    of_rounds = "the two took turns: a ratio is the median of the rounds' ratios, which is not the ratio of the medians"
    return f"{of_rounds}, but where one has fewer runs" if apart else of_rounds


def _newest(path: Path) -> tuple[Document, tuple[str, ...]]:
    """The newest speed measurement in a file, and a note where there are older ones."""
    speeds = _by_age(path)
    newest = speeds[-1]
    if len(speeds) == 1:
        return newest, ()
    return newest, (f"{path} holds {len(speeds)} measurements, of which the newest is taken ({newest.date or 'no date'})",)


def _by_age(path: Path) -> list[Document]:
    """The speed measurements in a file, the newest last; those of other kinds where there is none."""
    documents = read_documents(path)
    speeds = [document for document in documents if document.kind == "speed"] or list(documents)
    return sorted(speeds, key=lambda document: document.date)


def _compare(
    first: Sequence[SpeedRow], second: Sequence[SpeedRow], where: str, confidence: float, *, paired: bool
) -> Comparison:
    fields, differences = _telling(first, second, _IDENTITY)
    if _ambiguous(first, fields) or _ambiguous(second, fields):
        fields |= _telling(first, second, _SETTINGS)[0]
    old, new = _by_case(first, fields), _by_case(second, fields)
    both = [key for key in old if key in new]
    if not both:
        raise ResultFileError(f"{where} have no case in common", "measure the same tests on the same models and threads")
    found = ratios([(_samples(old[key]), _samples(new[key])) for key in both], confidence, paired=paired)
    cases = tuple(ComparedCase(old[key], new[key], ratio) for key, ratio in zip(both, found[:-1], strict=True))
    return Comparison(
        cases=cases,
        mean=found[-1],
        only_first=tuple(row for key, row in old.items() if key not in new),
        only_second=tuple(row for key, row in new.items() if key not in old),
        differences=tuple(differences),
        notes=tuple(_notes(cases, confidence)),
        confidence=confidence,
    )


def _telling(
    first: Sequence[SpeedRow], second: Sequence[SpeedRow], fields: Mapping[str, _Field]
) -> tuple[dict[str, _Field], list[str]]:
    """The fields that tell cases apart, the test first, and sentences on those that are what is compared."""
    kept, differences = dict(_TEST), []
    for name, field in fields.items():
        old, new = {field(row) for row in first}, {field(row) for row in second}
        if len(old) == len(new) == 1 and old != new:
            differences.append(f"{name} differs: {_told(old.pop())} and {_told(new.pop())}")
        else:
            kept[name] = field
    return kept, differences


def _told(value: Any) -> str:
    return ", ".join(str(each) for each in value if each) if isinstance(value, tuple) else str(value)


def _key(row: SpeedRow, fields: Mapping[str, _Field]) -> tuple[Any, ...]:
    return tuple(field(row) for field in fields.values())


def _ambiguous(rows: Sequence[SpeedRow], fields: Mapping[str, _Field]) -> bool:
    return len({_key(row, fields) for row in rows}) < len(rows)


def _by_case(rows: Sequence[SpeedRow], fields: Mapping[str, _Field]) -> dict[tuple[Any, ...], SpeedRow]:
    """The rows by what tells them apart; the runs of a case that was measured twice are put together."""
    groups: dict[tuple[Any, ...], list[SpeedRow]] = {}
    for row in rows:
        groups.setdefault(_key(row, fields), []).append(row)
    return {key: _together(group) for key, group in groups.items()}


def _together(rows: Sequence[SpeedRow]) -> SpeedRow:
    if len(rows) == 1:
        return rows[0]
    samples = tuple(sample for row in rows for sample in _samples(row))
    return replace(rows[0], samples=samples, mean=fmean(samples), median=median(samples))


def _samples(row: SpeedRow) -> tuple[float, ...]:
    """The runs, or their mean as one where that is all there is."""
    return row.samples or (row.mean,)


def _all_apart(old: Document, new: Document) -> tuple[str, ...]:
    """Sentences on how machine and versions differ."""
    return _apart(old.machine, new.machine, _MACHINE) + _apart(old.build, new.build, _BUILD)


def _apart(old: Mapping[str, Any], new: Mapping[str, Any], keys: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Sentences on the facts that both measurements have and that differ."""
    return tuple(
        f"{name} differs: {old[key]} and {new[key]}"
        for key, name in keys
        if old.get(key) is not None and new.get(key) is not None and old[key] != new[key]
    )


def _notes(cases: Sequence[ComparedCase], confidence: float) -> list[str]:
    """What to doubt."""
    notes = []
    runs = [min(len(case.first.samples), len(case.second.samples)) for case in cases]
    if min(runs) < 2:
        notes.append(f"a case of one run, or of a mean alone, has no interval; measure with -r {FEW} or more and keep json")
    elif min(runs) < FEW:
        notes.append(f"with fewer than {FEW} runs an interval is narrower than it says; measure with -r {FEW} or more")
    if len(cases) >= 10 and min(runs) > 1:
        notes.append(f"of {len(cases)} cases about {len(cases) * (1 - confidence):.1f} would differ by chance alone")
    return notes
