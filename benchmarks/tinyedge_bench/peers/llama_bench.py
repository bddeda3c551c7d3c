"""llama.cpp's own benchmark program.

A sample is one run of `llama-bench -r 1`: it loads the model, warms up (the whole prompt, one generated token), fills the
cache to the depth, and times its own calls to llama_decode over random tokens, without tokenizing and without sampling
(tools/llama-bench/llama-bench.cpp, `test_prompt` and `test_gen`). Threads, KV type and backend are the case's; batch sizes
and flash attention are its defaults. Several sequences are measured with llama-batched-bench, where it is in the same folder.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tinyedge.backends import BY_WORD
from tinyedge.errors import PeerError
from tinyedge.model_facts import ModelFacts
from tinyedge_bench.peers.llama_batched_bench import NAME as BATCHED
from tinyedge_bench.peers.llama_batched_bench import batched_arguments, batched_seconds
from tinyedge_bench.peers.peer import patience_s, quoted
from tinyedge_bench.peers.program import run_program
from tinyedge_bench.speed.cases import Case, threads_text

NAME = "llama-bench"
_WHERE = "give the program or its folder as --peer llama-bench=PATH, or leave --peer out"
_HELP_S = 60.0
_HELPERS = {"CPU", "BLAS", "RPC"}  # names of its "backends" that are not a GPU's
_OTHER_NAMES = {"metal": {"MTL", "Metal"}}


def open_peer(value: str, model: Path, facts: ModelFacts) -> LlamaBench:
    """`value` is the program, the folder that holds it, or nothing where it is on PATH. Raises PeerError."""
    return LlamaBench(_program(value), model, facts)


class LlamaBench:
    """A llama-bench that loads the GGUF file `model`, which is tried at once. Raises PeerError."""

    name = NAME
    notes: tuple[str, ...] = ()

    def __init__(self, program: str, model: Path, facts: ModelFacts) -> None:
        if "," in str(model.absolute()):
            raise PeerError(f"{NAME} takes a comma in a path for two paths: {quoted(str(model))}", "rename it")
        self._program = program
        self._batched = Path(program).with_name(BATCHED)
        self._model = model.absolute()
        self._facts = facts
        options = run_program(NAME, [program, "--help"], _HELP_S)
        if "--n-depth" not in options:
            raise PeerError(f"{quoted(program)} is not a llama-bench, or one from before it knew --n-depth", _WHERE)
        self._chooses_device = "--device" in options
        row = self._run(["-p", "1", "-n", "0", "-ngl", "0"], patience_s(facts.weight_bytes, 2))
        self.version = quoted(f"{row.get('build_commit')} ({row.get('build_number')})")
        self._backends = {name.strip() for name in str(row.get("backends", "")).split(",")}

    def supports(self, case: Case) -> str | None:
        if case.sequences > 1 and not self._batched.is_file():
            return "llama-bench measures one sequence only, and llama-batched-bench is not beside it"
        if case.sequences > 1 and case.prompt and case.depth:
            return "llama-batched-bench has no depth before a prompt"
        if case.backend != "cpu" and not self._backends & _OTHER_NAMES.get(case.backend, {BY_WORD[case.backend].title}):
            return f"this llama-bench was built for {', '.join(sorted(map(quoted, self._backends)))} only"
        if case.backend == "cpu" and self._backends - _HELPERS and not self._chooses_device:
            return "this llama-bench would use the GPU for prompts, and is too old for --device none"
        return None

    def sample(self, case: Case) -> float:
        arguments = ["-t", str(case.threads), "-ctk", case.kv_type.lower(), "-ctv", case.kv_type.lower(), *self._where(case)]
        patience = patience_s(self._facts.weight_bytes, case.positions + case.prompt + 1)
        if case.sequences > 1:
            arguments = ["-m", str(self._model), *arguments, *batched_arguments(case)]
            return batched_seconds(self._batched, arguments, case, patience)
        row = self._run([*arguments, "-d", str(case.depth), *_test(case)], patience)
        nanoseconds = row.get("samples_ns")
        asked = {"n_prompt": case.prompt, "n_gen": case.generate, "n_depth": case.depth, "n_threads": case.threads}
        if any(row.get(key) != count for key, count in asked.items()):
            raise PeerError(f"{NAME} measured another test than {case.name} with {threads_text(case.threads)}", _WHERE)
        if not (isinstance(nanoseconds, list) and len(nanoseconds) == 1 and _is_time(nanoseconds[0])):
            raise PeerError(f"{NAME} gave no time for {case.name}", _WHERE)
        return float(nanoseconds[0]) / 1e9

    def close(self) -> None:
        """Nothing: every run ends by itself."""

    def _where(self, case: Case) -> list[str]:
        """All layers on the GPU or none; and not even a prompt's matrices on it where the CPU is asked for."""
        if case.backend != "cpu":
            return ["-ngl", "99"]
        return ["-ngl", "0", *(["-dev", "none"] if self._chooses_device else [])]

    def _run(self, arguments: list[str], timeout_s: float) -> dict[str, Any]:
        """The one row of its JSON output."""
        command = [self._program, "-m", str(self._model), *arguments, "-r", "1", "-o", "json"]
        output = run_program(NAME, command, timeout_s)
        try:
            rows = json.loads(output)
        except (ValueError, RecursionError) as error:
            raise PeerError(f"{NAME} printed something else than JSON: {quoted(output)}", _WHERE) from error
        if not (isinstance(rows, list) and len(rows) == 1 and isinstance(rows[0], dict)):
            raise PeerError(f"{NAME} printed something else than the row of one test", _WHERE)
        return rows[0]


def _test(case: Case) -> list[str]:
    """Its options for the case's one test."""
    if case.prompt and case.generate:
        return ["-p", "0", "-n", "0", "-pg", f"{case.prompt},{case.generate}"]
    return ["-p", str(case.prompt), "-n", str(case.generate)]


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e15


def _program(value: str) -> str:
    """The program's path. A name without a folder is looked for on PATH, as a shell does."""
    path = Path(value).expanduser() if value else Path(NAME)
    if path.is_dir():
        path = path / NAME
    elif path.name == str(path):
        found = shutil.which(str(path))
        if found is None and not path.exists():
            raise PeerError(f"{quoted(str(path))} is not on PATH", _WHERE)
        path = Path(found) if found else path
    if not path.is_file():
        raise PeerError(f"there is no program {quoted(str(path))}", _WHERE)
    if not os.access(path, os.X_OK):
        raise PeerError(f"{quoted(str(path))} is not executable", _WHERE)
    return str(path.absolute())
