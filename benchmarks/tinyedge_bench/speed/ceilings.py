"""What the machine could do at most: its memory's bandwidth and its matrix rate, and the share of them that a case reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge.ceiling import bytes_per_token, kv_bytes_per_token
from tinyedge.model_facts import ModelFacts
from tinyedge_bench.speed.cases import Case

if TYPE_CHECKING:
    from tinyedge.machine.bandwidth import Bandwidth
    from tinyedge.machine.matrix_rate import MatrixRate

# A model of so many last-level caches is read from memory but for an eighth at most (machine/bandwidth.py measures so too).
_CACHES = 8
_UNKNOWN_CACHE = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The rates of this machine: of main memory, and of the backends by their words. None is what is not known.

    `cache_bytes` are those of the processor's last-level caches.
    """

    bandwidth: Bandwidth | None = None
    cache_bytes: int = 0
    matrix: dict[str, MatrixRate] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        rates = None if self.bandwidth is None else self.bandwidth.by_threads
        return {
            "bandwidth": None if rates is None else {str(count): rate for count, rate in rates.items()},
            "matrix": {
                backend: {str(count): dict(by_type) for count, by_type in found.flops.items()}
                for backend, found in self.matrix.items()
            }
            or None,
        }

    def shares(self, facts: ModelFacts, case: Case, seconds: float) -> dict[str, float | None]:
        """The rates of a case that takes `seconds`, and their shares: what the columns of contract "speed" are called.

        Only pure generation tells of the bandwidth and only a pure prompt of the matrix rate. There is no share of the
        bandwidth where caches help to read a small model, nor of a GPU's own memory, which is not measured.
        """
        told: dict[str, float | None] = dict.fromkeys(("bytes_per_s", "bandwidth_share", "flops", "matrix_share"))
        if not case.prompt:
            step = step_bytes(facts, case)
            rate = told["bytes_per_s"] = step * case.generate / seconds
            in_memory = case.backend == "cpu" and step >= _CACHES * self.cache_bytes
            if self.bandwidth is not None and in_memory:
                told["bandwidth_share"] = rate / self.bandwidth.at(case.threads)
        elif not case.generate:
            flops = told["flops"] = prompt_operations(facts, case) / seconds
            if case.backend in self.matrix:
                told["matrix_share"] = flops / self.matrix[case.backend].best(case.threads)
        return told


def step_bytes(facts: ModelFacts, case: Case) -> float:
    """What one step of generation reads: the weights once for all texts, and each text's cache at its mean length."""
    middle = case.depth + case.prompt + (case.generate - 1) / 2
    return bytes_per_token(facts, 0).weights + case.sequences * middle * kv_bytes_per_token(facts, case.kv_type)


def prompt_operations(facts: ModelFacts, case: Case) -> float:
    """The floating-point operations of processing all prompts of the case."""
    from tinyedge.ceiling import prompt_flops

    return case.sequences * prompt_flops(facts, case.prompt, case.depth)


def this_ceilings(cases: Iterable[Case], tell: Callable[[str], None]) -> Ceilings:
    """The ceilings for `cases`: those kept on this machine, else measured now, which `tell` is told before."""
    from tinyedge.machine.bandwidth import kept_bandwidth, last_level_cache, this_bandwidth
    from tinyedge.machine.cpu import cpu_facts
    from tinyedge.machine.matrix_rate import this_matrix_rate

    if kept_bandwidth() is None:
        tell("measuring how fast this machine reads memory, once; --no-ceilings leaves it out")
    matrix: dict[str, MatrixRate] = {}
    wanted = dict.fromkeys((case.backend, case.threads) for case in cases if case.prompt and not case.generate)
    for backend, threads in wanted:
        if this_matrix_rate(backend, threads=threads, measure=False) is None and backend not in matrix:
            tell(f"measuring how fast {backend} multiplies matrices, once; --no-ceilings leaves it out")
        if (found := this_matrix_rate(backend, threads=threads)) is not None:
            matrix[backend] = found
    cache_bytes = last_level_cache(Path("/"), cpu_facts().allowed) or _UNKNOWN_CACHE
    return Ceilings(bandwidth=this_bandwidth(), cache_bytes=cache_bytes, matrix=matrix)
