"""Which of a sweep's cases a model can run here, in groups that share its weights; and why it cannot run the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tinyedge.backends import Request, choose
from tinyedge.errors import MemoryFitError, PromptError, TinyEdgeError
from tinyedge.load_plan import LoadPlan, Machine
from tinyedge.model_facts import ModelFacts
from tinyedge_bench.speed.cases import Case
from tinyedge_bench.speed.runs import context_tokens
from tinyedge_bench.speed.sweep import Sweep, cases

_FEWER = "ask for fewer tokens, less depth or fewer sequences"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The cases of one model on one backend, with the plan of each."""

    path: Path
    facts: ModelFacts
    plans: dict[Case, LoadPlan]

    @property
    def plan(self) -> LoadPlan:
        """How the weights are loaded."""
        return next(iter(self.plans.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Impossible:
    """A case that cannot be run, `backend` being the word that was asked for."""

    case: Case
    backend: str
    error: TinyEdgeError


def groups(
    path: Path, facts: ModelFacts, sweep: Sweep, backends: tuple[str, ...], gpu_layers: int | None, machine: Machine
) -> tuple[list[Group], list[Impossible]]:
    """The sweep's cases on each of `backends` (or auto) that fit the model's context and this machine's memory; the rest."""
    found: dict[str, Group] = {}
    failed = []
    for word, case in _asked(sweep, backends):
        try:
            plan = _plan(facts, case, word, gpu_layers, machine)
        except TinyEdgeError as error:
            failed.append(Impossible(case=case, backend=word, error=error))
            continue
        group = found.setdefault(plan.backend, Group(path=path, facts=facts, plans={}))
        group.plans.setdefault(replace(case, backend=plan.backend), plan)
    return list(found.values()), failed


def _asked(sweep: Sweep, backends: tuple[str, ...]) -> Iterator[tuple[str, Case]]:
    return ((word, case) for word in backends for case in cases(sweep, word))


def _plan(facts: ModelFacts, case: Case, backend: str, gpu_layers: int | None, machine: Machine) -> LoadPlan:
    """How the case is run. Raises BackendError, MemoryFitError, NativeError, and PromptError for a context that is too long."""
    positions = case.positions // case.sequences
    request = Request(
        backend=backend,
        gpu_layers=gpu_layers,
        context=context_tokens(positions, case.sequences),
        threads=case.threads,
        kv_type=case.kv_type,
        strict=True,
    )
    too_long = facts.context > 0 and positions > facts.context
    try:
        plan = choose(facts, request, machine)
    except MemoryFitError as error:
        if not too_long:
            offers_other_options = "--ctx" in error.remedy  # which are those of other commands
            raise MemoryFitError(error.problem, _FEWER if offers_other_options else error.remedy) from None
    if too_long:
        raise PromptError(
            f"{positions} tokens do not fit the context of {facts.context} that the model was trained on",
            "ask for fewer tokens or less depth",
        )
    return plan
