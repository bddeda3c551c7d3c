"""How long a model takes to load, from the disk and from the page cache, and the most memory it takes: in child processes.

Loading is from opening the file until the first token is decoded; starting Python and finding llama.cpp's devices is not
counted. A process of its own has nothing mapped already and a peak of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tinyedge.errors import NativeError
from tinyedge.gguf_split import read_model, read_parts
from tinyedge.load_plan import LoadPlan
from tinyedge.model_facts import describe_model
from tinyedge_bench.speed.cases import Case
from tinyedge_bench.speed.page_cache import forget

_WARM_RUNS = 3
_SECONDS = 900  # a gigabyte from a slow SD card takes two minutes
# Isolated: a module in the current folder, which may be a downloaded model's, must not be imported.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tinyedge_bench.speed.loads import child; child(sys.argv[2])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Seconds and bytes; `cold_s` is None where the page cache could not be dropped, for the reason in `cold_note`."""

    cold_s: float | None
    cold_note: str
    warm_s: float
    peak_memory_bytes: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_load(path: Path, plan: LoadPlan, cases: Sequence[Case]) -> Load:
    """Loads the model of the GGUF file at `path` as `plan` says; the peak is with the largest of `cases`, its context whole.

    No process may have the file mapped meanwhile, or nothing is cold. Raises NativeError when a child fails.
    """
    note = forget(part.path for part in read_parts(path))
    first = _run(path, plan, None)
    largest = max(cases, key=lambda case: case.positions)
    warm = [_run(path, plan, None)["load_s"] for _ in range(_WARM_RUNS)]
    peak = _run(path, plan, largest)["peak_memory_bytes"]
    return Load(
        cold_s=None if note else first["load_s"], cold_note=note, warm_s=statistics.median(warm), peak_memory_bytes=peak
    )


def _run(path: Path, plan: LoadPlan, case: Case | None) -> dict[str, Any]:
    """What a child says that loads the model and, if there is a case, reads its depth and prompt and makes a token."""
    order = {
        "path": str(path),
        "backend": plan.backend,
        "gpu_layers": plan.gpu_layers,
        "threads": plan.threads,
        "case": None if case is None else asdict(case),
    }
    command = [sys.executable, "-I", "-c", _CHILD, json.dumps([entry for entry in sys.path if entry]), json.dumps(order)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise NativeError(f"{path.name} was not loaded in {_SECONDS} seconds") from None
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise NativeError(f"a process that only loads {path.name} ended with {done.returncode}") from None
    if "error" in told:
        raise NativeError(f"{path.name} could not be loaded in a process of its own ({told['error']})")
    return told


def child(order: str) -> None:
    """Loads the model as `order`, JSON of `_run`, says and prints what was measured, as JSON."""
    from tinyedge.errors import TinyEdgeError

    try:
        told = _measured(json.loads(order))
    except TinyEdgeError as error:
        told = {"error": error.problem}
    print(json.dumps(told))


def _measured(order: dict[str, Any]) -> dict[str, Any]:
    from tinyedge.backends import Request, choose, this_machine
    from tinyedge.engine import context_settings
    from tinyedge.generation import peak_rss_bytes
    from tinyedge.native.context import Context
    from tinyedge_bench.speed.runs import Runs, open_model

    path = Path(order["path"])
    facts = describe_model(read_model(path))
    request = Request(backend=order["backend"], gpu_layers=order["gpu_layers"], threads=order["threads"], context=256)
    plan = choose(facts, request, this_machine())
    begun = perf_counter()
    with open_model(path, plan) as model:
        with Context(model, context_settings(plan)) as context:
            context.decode(model.bos or 0)
            context.wait()
            load_s = perf_counter() - begun
        if order["case"] is not None:
            case = Case(**order["case"])
            with Runs(model, facts, plan, [case]) as runs:
                runs.prepare(case)
        return {"load_s": load_s, "peak_memory_bytes": peak_rss_bytes()}
