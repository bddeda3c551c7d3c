"""llama.cpp's benchmark of several sequences side by side, which llama-bench leaves to it.

A run loads the model, warms up with 16 tokens, and times llama_decode over random tokens (tools/batched-bench/
batched-bench.cpp): first the prompts of all sequences, then a token of every sequence at a time. A depth is those prompts
with their time left out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tinyedge.errors import PeerError
from tinyedge_bench.peers.peer import quoted
from tinyedge_bench.peers.program import run_program
from tinyedge_bench.speed.cases import Case, threads_text

NAME = "llama-batched-bench"
_REMEDY = "leave --peer llama-bench or --batch out"
# Its answer goes through the thread that writes llama.cpp's log, and on a busy machine the program ends before that wrote it.
_ATTEMPTS = 5
_NO_NUMBER = re.compile(r"(?<=: )-?(?:nan|inf)\b")  # the speed of no tokens


def batched_arguments(case: Case) -> list[str]:
    """Its options for the case, which has either a prompt or a depth; threads, backend and model are given beside."""
    tokens = ["-npp", str(case.prompt or case.depth), "-ntg", str(case.generate), "-npl", str(case.sequences)]
    return [*tokens, "-c", str(case.positions), "-tb", str(case.threads), "--output-format", "jsonl"]


def batched_seconds(program: Path, arguments: list[str], case: Case, timeout_s: float) -> float:
    """Seconds that the case took all its sequences. Raises PeerError."""
    output = ""
    for _ in range(_ATTEMPTS):
        output = output.strip() or run_program(NAME, [str(program), *arguments], timeout_s)
    row = _row(output)
    asked = {"pp": case.prompt or case.depth, "tg": case.generate, "pl": case.sequences, "n_threads": case.threads}
    if any(row.get(key) != count for key, count in asked.items()):
        raise PeerError(f"{NAME} measured another test than {case.name} with {threads_text(case.threads)}", _REMEDY)
    times = [row.get(key) for key, counts in (("t_pp", case.prompt), ("t_tg", case.generate)) if counts]
    numbers = [time for time in times if isinstance(time, float) and 0 < time < 1e6]
    if len(numbers) != len(times):
        raise PeerError(f"{NAME} gave no time for {case.name}", _REMEDY)
    return sum(numbers)


def _row(output: str) -> dict[str, Any]:
    """The one object among its lines."""
    rows = [line for line in output.splitlines() if line.startswith("{")]
    try:
        row = json.loads(_NO_NUMBER.sub("null", rows[0])) if len(rows) == 1 else None
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise PeerError(f"{NAME} printed something else than the row of one test: {quoted(output)}", _REMEDY)
    return row
