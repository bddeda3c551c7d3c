"""All cases of a sweep on all models, round by round: in each round every case once, every peer in turn with us.

What heats or loads the machine for a while so weighs on all cases alike; in llama-bench's order, all runs of one case and
then the next, one of them would bear it. Models, and backends of a model, come one after the other: rarely is there memory
for the weights of all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tinyedge import __version__
from tinyedge.backends import this_machine
from tinyedge.errors import TinyEdgeError
from tinyedge.model_probe import runnable_facts
from tinyedge_bench.peers import Peer, open_peer
from tinyedge_bench.result_files import Document, Missing, measured_here
from tinyedge_bench.speed.cases import Case, threads_text
from tinyedge_bench.speed.ceilings import Ceilings, this_ceilings
from tinyedge_bench.speed.conditions import Sensors
from tinyedge_bench.speed.cooling import Cooling
from tinyedge_bench.speed.groups import Group, Impossible, groups
from tinyedge_bench.speed.loads import measure_load
from tinyedge_bench.speed.references import references_for
from tinyedge_bench.speed.rows import Engine, Subject, Timed, row
from tinyedge_bench.speed.runs import Runs, Sample, open_model, settle
from tinyedge_bench.speed.sweep import Sweep, order

_OURS = Engine(name="tinyedge", version=__version__, ours=True)

_NAMED = 3  # cases by name where many fail for the same reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure. `backends` are words of --backend, `peers` what --peer names."""

    runs: int = 5
    backends: tuple[str, ...] = ("auto",)
    gpu_layers: int | None = None
    peers: tuple[str, ...] = ()
    cooling: Cooling | None = None
    ceilings: bool = True
    loads: bool = True


def _silent(*_: object) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what goes on: `note` a sentence, `running` the runs done, all of them, and what runs now."""

    note: Callable[[str], None] = _silent
    running: Callable[[int, int, str], None] = _silent


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """A case by an engine: what to do before a run, and the run. An error ends all turns of the same `fate`."""

    timed: Timed
    title: str
    fate: Hashable
    prepare: Callable[[], None]
    run: Callable[[], Sample]


@dataclass(slots=True)
class Measurement:
    """Measures when `run` is called; `document` gives what there is by then, also after an interruption.

    `typed` are the names that the user gave to models whose files are called otherwise, such as `demo`.
    """

    sweep: Sweep
    options: Options
    models: list[Path] = field(default_factory=list)
    typed: dict[Path, str] = field(default_factory=dict)
    listener: Listener = field(default_factory=Listener)
    full_rounds: int = 0
    _missing: list[Missing] = field(default_factory=list)
    _first_error: Exception | None = None
    _rows: list[tuple[Timed, Subject]] = field(default_factory=list)
    _loads: list[dict[str, Any]] = field(default_factory=list)
    _ceilings: Ceilings = field(default_factory=Ceilings)
    _sensors: Sensors = field(default_factory=Sensors)
    _ended: set[Hashable] = field(default_factory=set)
    _said: set[str] = field(default_factory=set)
    _done: int = 0
    _total: int = 0

    def run(self) -> None:
        """Measures all that can be; the rest is named in the document. Raises the first error when nothing could be."""
        found = [group for path in self.models for group in self._groups(path)]
        all_cases = [case for group in found for case in group.plans]
        if all_cases and self.options.ceilings:
            self._ceilings = this_ceilings(all_cases, self._say)
        self._total = len(all_cases) * self.options.runs
        for group in found:
            try:
                self._measure(group)
            except (TinyEdgeError, OSError) as error:
                self.miss(f"{self._name(group.path)} on {group.plan.backend}", error)
        if self._first_error is not None and not any(timed.samples for timed, _ in self._rows):
            raise self._first_error

    def document(self) -> Document:
        """The results so far."""
        results = [row(timed, subject, self._ceilings) for timed, subject in self._rows if timed.samples]
        models = {(subject.facts.parameters, subject.facts.file_type) for _, subject in self._rows}
        published = dict.fromkeys(each for model in sorted(models) for each in references_for(*model))
        more = {
            "ceilings": self._ceilings.as_json(),
            "loads": list(self._loads),
            "references": [each.as_object() for each in published],
            "typed": {self._filename(path): name for path, name in self.typed.items()},
        }
        return measured_here("speed", results, list(dict.fromkeys(self._missing)), more)

    def miss(self, what: str, error: TinyEdgeError | OSError) -> None:
        """Notes that `what` gives no result."""
        self._first_error = self._first_error or error
        reason = error.problem if isinstance(error, TinyEdgeError) else (error.strerror or str(error))
        self._missing.append(Missing(what=what, reason=reason))

    def _say(self, text: str) -> None:
        """Tells the listener what was not said before."""
        if text not in self._said:
            self._said.add(text)
            self.listener.note(text)

    def _groups(self, path: Path) -> list[Group]:
        try:
            facts = runnable_facts(path)
        except (TinyEdgeError, OSError) as error:
            self.miss(self._name(path), error)
            return []
        found, failed = groups(path, facts, self.sweep, self.options.backends, self.options.gpu_layers, this_machine())
        alike: dict[str, list[Impossible]] = {}
        for each in failed:
            alike.setdefault(each.error.problem, []).append(each)
        for together in alike.values():
            titles = [self._title(each.case, each.backend) for each in together]
            self.miss(f"{self._name(path)}: {_listed(titles)}", together[0].error)
        return found

    def _measure(self, group: Group) -> None:
        self._ended.clear()
        self._say(group.plan.reason.partition(";")[0])
        if self.options.loads:
            self._load(group)
        with ExitStack() as stack:
            peers = list(self._open_peers(group, stack))
            model = stack.enter_context(open_model(group.path, group.plan))
            runs = stack.enter_context(Runs(model, group.facts, group.plan, group.plans))
            subject = Subject(filename=self._filename(group.path), description=model.description, facts=group.facts)
            supported = {id(peer): self._supported(peer, group) for peer in peers}
            for peer in peers:
                stack.callback(self._note_peer, peer, subject)
            turns = [
                list(self._turns(case, group, subject, runs, [peer for peer in peers if case in supported[id(peer)]]))
                for case in group.plans
            ]
            self._total += (sum(map(len, turns)) - len(turns)) * self.options.runs
            for number in range(self.options.runs):
                for engines in order(turns, number):
                    for turn in order(engines, number):
                        self._take(turn)
                self.full_rounds += 1

    def _load(self, group: Group) -> None:
        name = self._name(group.path)
        self.listener.running(self._done, self._total, f"loading {name}")
        try:
            found = measure_load(group.path, group.plan, list(group.plans))
        except (TinyEdgeError, OSError) as error:
            self.miss(f"{name}: loading on {group.plan.backend}", error)
            return
        self._loads.append({"model_filename": self._filename(group.path), "backends": group.plan.backend, **found.as_json()})

    def _open_peers(self, group: Group, stack: ExitStack) -> Iterator[Peer]:
        for argument in self.options.peers:
            try:
                peer = open_peer(argument, group.path, group.facts)
            except (TinyEdgeError, OSError) as error:
                self.miss(self._peer_title(argument.partition("=")[0], group), error)
                continue
            stack.callback(peer.close)
            yield peer

    def _turns(self, case: Case, group: Group, subject: Subject, runs: Runs, peers: Sequence[Peer]) -> Iterator[_Turn]:
        """The case by us, then by each of the peers."""
        plan = group.plans[case]
        ours = Timed(case=case, engine=_OURS, batch=plan.batch, gpu_layers=plan.gpu_layers)
        self._rows.append((ours, subject))
        yield _Turn(
            timed=ours,
            title=f"{self._name(group.path)}: {self._title(case, case.backend)}",
            fate=case,
            prepare=partial(runs.prepare, case),
            run=partial(runs.timed, case),
        )
        for peer in peers:
            engine = Engine(name=peer.name, version=peer.version)
            theirs = Timed(case=case, engine=engine, batch=plan.batch, gpu_layers=plan.gpu_layers)
            self._rows.append((theirs, subject))
            yield _Turn(
                timed=theirs,
                title=self._peer_title(peer.name, group),
                fate=id(peer),
                prepare=settle,
                run=partial(_sample_of, peer, case),
            )

    def _supported(self, peer: Peer, group: Group) -> set[Case]:
        """The cases of the group that the peer can run; why not the others is noted."""
        found: set[Case] = set()
        refused: dict[str, list[str]] = {}
        for case in group.plans:
            try:
                why_not = peer.supports(case)
            except TinyEdgeError as error:
                self.miss(self._peer_title(peer.name, group), error)
                return set()
            if why_not is None:
                found.add(case)
            else:
                refused.setdefault(why_not, []).append(self._title(case, case.backend))
        for reason, titles in refused.items():
            what = f"{self._peer_title(peer.name, group)}: {_listed(titles)}"
            self._missing.append(Missing(what=what, reason=reason))
        return found

    def _take(self, turn: _Turn) -> None:
        """One run, unless an error has ended these."""
        case, engine = turn.timed.case, turn.timed.engine
        self.listener.running(self._done, self._total, case.name if engine.ours else f"{case.name}, {engine.name}")
        self._done += 1
        if turn.fate in self._ended:
            return
        try:
            if self.options.cooling is not None:
                self.options.cooling.wait(self._say)
            turn.prepare()
            turn.timed.add(*self._sensors.during(turn.run))
        except (TinyEdgeError, OSError) as error:
            self._ended.add(turn.fate)
            self.miss(turn.title, error)

    def _note_peer(self, peer: Peer, subject: Subject) -> None:
        """Hands what a reader must know of the peer's figures to its rows."""
        for timed, of in self._rows:
            if of is subject and timed.engine.name == peer.name:
                timed.notes = tuple(dict.fromkeys((*timed.notes, *peer.notes)))

    def _title(self, case: Case, backend: str) -> str:
        """The case with what tells it from the sweep's others."""
        parts = (
            (True, case.name),
            (len(self.sweep.threads) > 1, threads_text(case.threads)),
            (len(self.sweep.kv_types) > 1, f"{case.kv_type.lower()} cache"),
            (self.options.backends != ("auto",), backend),
        )
        return ", ".join(text for told, text in parts if told)

    def _peer_title(self, name: str, group: Group) -> str:
        return f"peer {name} for {self._name(group.path)}" if len(self.models) > 1 else f"peer {name}"

    def _name(self, path: Path) -> str:
        """What the user calls the model."""
        return self.typed.get(path) or self._filename(path)

    def _filename(self, path: Path) -> str:
        """The file's name; its path where another model has the same name."""
        return str(path) if sum(each.name == path.name for each in self.models) > 1 else path.name


def _sample_of(peer: Peer, case: Case) -> Sample:
    return Sample(peer.sample(case))


def _listed(titles: Sequence[str]) -> str:
    more = f" and {len(titles) - _NAMED} more" if len(titles) > _NAMED else ""
    return "; ".join(titles[:_NAMED]) + more
