"""The cases that a sweep's lists make together, and the order in which each round runs them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from tinyedge_bench.speed.cases import Case

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What `tinyedge bench` was asked for, every option a list. `pairs` are tests of a prompt and what follows it in one.

    0 in `prompts` and `generates` asks for nothing. `kv_types` are names like F16.
    """

    prompts: tuple[int, ...] = (512,)
    generates: tuple[int, ...] = (128,)
    pairs: tuple[tuple[int, int], ...] = ()
    depths: tuple[int, ...] = (0,)
    threads: tuple[int, ...]
    kv_types: tuple[str, ...] = ("F16",)
    sequences: tuple[int, ...] = (1,)

    @property
    def tests(self) -> tuple[tuple[int, int], ...]:
        """Prompt and generated tokens of each test, in llama-bench's order: prompts, generation, both."""
        all_tests = [*((count, 0) for count in self.prompts), *((0, count) for count in self.generates), *self.pairs]
        return tuple(dict.fromkeys(test for test in all_tests if any(test)))


def cases(sweep: Sweep, backend: str) -> tuple[Case, ...]:
    """Every combination once, in the order of llama-bench's table: KV type, threads, sequences, depth, test."""
    combinations = product(sweep.kv_types, sweep.threads, sweep.sequences, sweep.depths, sweep.tests)
    return tuple(
        dict.fromkeys(
            Case(
                prompt=prompt,
                generate=generate,
                depth=depth,
                sequences=sequences,
                threads=threads,
                kv_type=kv_type,
                backend=backend,
            )
            for kv_type, threads, sequences, depth, (prompt, generate) in combinations
        )
    )


def order(items: Sequence[_T], round_number: int) -> list[_T]:
    """`items` as round `round_number` (from 0) runs them: every second round backwards, every pair of rounds one further.

    ABC CBA BCA ACB CAB BAC: what drifts steadily over two rounds weighs on all alike, and nobody always follows the same one.
    """
    if not items:
        return []
    start = round_number // 2 % len(items)
    turned = [*items[start:], *items[:start]]
    return turned[::-1] if round_number % 2 else turned
