"""Runs `trial.py` with a wheel, under emulation or natively, and gives what came of it as checks."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinyedge.errors import NativeError
from tinyedge_targets import emulation
from tinyedge_targets.checks import Check
from tinyedge_targets.emulation import Finished, Root
from tinyedge_targets.trial import MARK, QUANTIZED
from tinyedge_targets.trial_checks import Expected, Results, divergences, judge, mapped_variants, one_line, read_results

TOKENS = 16
_SECONDS = 900
_STEPS = ("library", "kernels", "logits", "text")
# What a user of the wheel writes who has never heard of us.
_PLAIN = f"""
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=128, n_threads=1, n_threads_batch=1, verbose=False)
text = model.create_completion("Once upon a time", max_tokens=4, temperature=0.0)["choices"][0]["text"]
print({MARK!r} + json.dumps({{"step": "plain", "text": text}}))
"""
# Packages of this installation that a trial needs and Debian has not.
_OURS = ("tinyedge", "tinyedge_quantize", "tinyedge_targets", "gguf")

Run = Callable[[Sequence[str]], Finished]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a wheel did on one CPU: a qemu model, or `native` for this machine's own.

    `variant` is the CPU module that ggml chose, "" if the wheel has but one. `divergence` maps a type to its mean and its worst
    over the places. `seconds` is what the whole trial took here, `tokens_per_s` what generation reached: under emulation
    neither says anything about a board.
    """

    cpu: str
    checks: tuple[Check, ...]
    seconds: float
    variant: str = ""
    system_info: str = ""
    text: str = ""
    tokens_per_s: float | None = None
    divergence: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    @property
    def failure(self) -> str:
        """The first check that does not hold, in one line; empty when all do."""
        return next((f"{check.name}: {check.detail}" for check in self.checks if not check.passed), "")

    @property
    def summary(self) -> str:
        """One line: the failure, or what it ran with and how near its logits came to this machine's."""
        if self.failure:
            return self.failure
        nearness = max((mean for mean, _ in self.divergence.values()), default=0.0)
        chosen = f"{self.variant}, " if self.variant else ""
        return f"{chosen}{len(self.checks)} checks hold, logits within KL {nearness:.1e}, {self.seconds:.0f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """A temporary folder: the wheel unpacked, our own sources, the demo models, and this machine's results on them."""

    folder: Path
    wheel: Path
    sources: Path
    models: Path
    reference: Results

    def expected(self, variant: str = "", features: tuple[str, ...] = ()) -> Expected:
        """What a trial here is compared with, on a CPU of these `features` for which ggml should choose `variant`."""
        paths = self.wheel.glob("llama_cpp/lib/libggml-cpu-*.so")
        variants = tuple(sorted(path.name[len("libggml-cpu-") : -len(".so")] for path in paths))
        return Expected(variant=variant, variants=variants, features=features, reference=self.reference)


def make_workplace(folder: Path, wheel: Path) -> Workplace:
    """Fills `folder` for trials of the wheel that was unpacked into `wheel`.

    The models are made and the reference is computed by a process of this Python with the llama.cpp that is installed here.
    Raises NativeError when that one fails.
    """
    models, sources = folder / "models", folder / "sources"
    models.mkdir()
    for package in _OURS:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        for found in spec.submodule_search_locations or ():
            shutil.copytree(found, sources / package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    _reference(["make", str(models)], folder)
    results = read_results(_reference(["run", str(models), "--steps", "logits", "text"], folder).stdout)
    return Workplace(folder=folder, wheel=wheel, sources=sources, models=models, reference=results)


def emulated_trial(place: Workplace, root: Root, cpu: str, expected: Expected, *, first: bool) -> Trial:
    """The trial on a CPU model of qemu; the `first` of a wheel quantizes too, which is the same code on every CPU."""
    variables = {"PYTHONPATH": f"{place.sources}:{place.wheel}"}  # in this order: no wheel may stand in for the trial

    def run(arguments: Sequence[str]) -> Finished:
        return emulation.run(root, cpu, arguments, folder=place.folder, env=variables, timeout=_SECONDS)

    return _trial(place, cpu, expected, run, (*_STEPS, "quantize") if first else _STEPS)


def native_trial(place: Workplace, expected: Expected) -> Trial:
    """The trial on this machine itself, by this Python with the packages that are installed here."""
    variables = _host_variables([str(place.sources), str(place.wheel)])

    def run(arguments: Sequence[str]) -> Finished:
        return emulation.run_here([sys.executable, *arguments], variables, folder=place.folder, timeout=_SECONDS)

    return _trial(place, "native", expected, run, (*_STEPS, "quantize"))


def _trial(place: Workplace, cpu: str, expected: Expected, run: Run, steps: tuple[str, ...]) -> Trial:
    arguments = ["-X", "faulthandler", "-m", "tinyedge_targets.trial", "run", str(place.models), "--tokens", str(TOKENS)]
    done = run([*arguments, "--steps", *steps])
    results, seconds = read_results(done.stdout), done.seconds
    checks: list[Check] = []
    for step in steps:
        checks += judge(step, results, expected, done.failure)
        if step not in {name.partition(" ")[0] for name in results}:
            break
    else:
        plain = run(["-X", "faulthandler", "-c", _PLAIN, str(place.models / f"{QUANTIZED}.gguf")])
        said = read_results(plain.stdout)
        checks += judge("plain", said, expected, plain.failure)
        checks += [_ended(each) for each in (done, plain) if each.failure and (each is done or "plain" in said)]
        seconds += plain.seconds
    text = results.get("text", {})
    speed = text.get("tokens_per_s")
    return Trial(
        cpu=cpu,
        checks=tuple(checks),
        seconds=seconds,
        variant=", ".join(mapped_variants(results)),
        system_info=one_line(results.get("library", {}).get("system_info", "")),
        text=one_line(text.get("text", "")),
        tokens_per_s=speed if isinstance(speed, float) and math.isfinite(speed) else None,
        divergence=divergences(results, place.reference),
    )


def _ended(done: Finished) -> Check:
    """For a process that did all it should and then did not end well."""
    return Check(name="ends", passed=False, detail=done.failure)


def _reference(arguments: Sequence[str], folder: Path) -> Finished:
    command = [sys.executable, "-m", "tinyedge_targets.trial", *arguments]
    done = emulation.run_here(command, _host_variables([]), folder=folder, timeout=_SECONDS)
    if done.failure:
        raise NativeError(
            f"the llama.cpp installed here, which the wheel is compared with, failed: {done.failure}",
            "`tinyedge devices` says what is wrong with it",
        )
    return done


def _host_variables(first: Sequence[str]) -> dict[str, str]:
    path = [*first, *(entry for entry in sys.path if entry)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
