"""A model opened to be measured: checked, planned, its weights loaded; whoever measures makes the context that fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tinyedge.backends import Request, choose, this_machine
from tinyedge.errors import TinyEdgeError
from tinyedge.load_plan import LoadPlan
from tinyedge.model_facts import ModelFacts
from tinyedge.model_probe import runnable_facts
from tinyedge.native.model import Model

_FOREIGN_OPTIONS = ("--kv", "--batch")  # of `tinyedge run`, that errors recommend


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A GGUF file with its weights loaded as `plan` says. Closes itself at the end of a `with` block."""

    path: Path
    facts: ModelFacts
    plan: LoadPlan
    model: Model

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.model.close()


def open_model(
    path: Path, *, threads: int | None = None, backend: str = "auto", gpu_layers: int | None = None, context: int
) -> OpenModel:
    """The GGUF file at `path`, planned for `context` tokens in all and loaded.

    Raises what `runnable_facts` and `choose` raise for a file that cannot be run or does not fit, NativeError.
    """
    facts = runnable_facts(path)
    plan = plan_model(facts, threads=threads, backend=backend, gpu_layers=gpu_layers, context=context)
    return load_model(path, facts, plan)


def plan_model(
    facts: ModelFacts, *, threads: int | None = None, backend: str = "auto", gpu_layers: int | None = None, context: int
) -> LoadPlan:
    """The plan for `context` tokens in all, refused where they do not fit memory."""
    request = Request(context=context, threads=threads, backend=backend, gpu_layers=gpu_layers, strict=True)
    try:
        return choose(facts, request, this_machine())
    except TinyEdgeError as error:
        if any(option in error.remedy for option in _FOREIGN_OPTIONS):
            error.remedy = "take a smaller --ctx, or free memory"
        raise


def load_model(path: Path, facts: ModelFacts, plan: LoadPlan) -> OpenModel:
    """The weights of `path`, loaded as planned. Raises NativeError."""
    device = plan.device.name if plan.backend != "cpu" else None
    model = Model(path, device=device, gpu_layers=plan.gpu_layers, mmap=plan.mmap, mlock=plan.mlock)
    return OpenModel(path=path, facts=facts, plan=plan, model=model)
