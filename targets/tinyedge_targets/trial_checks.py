"""Judges what a trial reported, step by step, against what the CPU should give and what this machine's own llama.cpp gave.

The report comes from a process that a stranger's library may have taken over, so it is read as hostile input.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from tinyedge_targets.checks import Check
from tinyedge_targets.trial import MARK, POSITIONS, TYPES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Kullback-Leibler divergence of the wheel's next-token distribution from this machine's, in nats. Right kernels stay below 5e-4
# on average and 1.2e-3 at the worst place: they round the activations to 8 bits, and the last bit of a float decides where.
# Without that, in F16, it is below 5e-6.
MEAN_DIVERGENCE = 1e-3
WORST_DIVERGENCE = 1e-2
# Of the bytes of a quantized model: the search for scales adds up in the order that the compiler chose, and near-ties fall
# otherwise. 0.4 % differ between x86 and ARM, and 0.3 % between two x86 builds of other flags.
DIFFERING_BYTES = 0.01

# The words that ggml's choice of a CPU module depends on (ggml-cpu/arch/arm/cpu-feats.cpp), and those of 32-bit ARM.
_DECISIVE_FEATURES = frozenset({"asimd", "asimddp", "asimdhp", "sve", "sve2", "i8mm", "sme", "neon", "vfpv4"})

_MODULE = re.compile(r"libggml-cpu-?(.*?)\.(?:so|dylib).*")

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a trial is compared with.

    `features` are the kernel's words for the CPU and `variant` the module that ggml should choose of `variants`, those in the
    wheel; empty where any will do. `reference` are the results of this machine's own llama.cpp.
    """

    variant: str = ""
    variants: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    reference: Results


def read_results(stdout: str) -> Results:
    """The steps that a trial reported, by name; of the logits one for each type, `logits Q4_0`. Other lines are passed over."""
    results: Results = {}
    for line in stdout.splitlines():
        if line.startswith(MARK):
            try:
                report = json.loads(line[len(MARK) :])
            except (ValueError, RecursionError):
                continue
            if isinstance(report, dict) and isinstance(report.get("step"), str):
                name = report["step"]
                results[f"{name} {report.get('type')}" if name == "logits" else name] = report
    return results


def judge(step: str, results: Results, expected: Expected, failure: str) -> tuple[Check, ...]:
    """The checks of a `step`. Where it is missing, `failure` says how the process ended ("" when it ended well)."""
    title, judge_step = _JUDGES[step]
    if not all(name in results for name in (_logit_steps() if step == "logits" else (step,))):
        return (Check(name=title, passed=False, detail=failure or "the trial ended without a word on it"),)
    try:
        return tuple(judge_step(results, expected))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return (Check(name=title, passed=False, detail=f"its report cannot be read ({type(error).__name__})"),)


def one_line(value: object) -> str:
    """What a stranger's process said, as one printable line."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value)[:1000]).strip()


def mapped_variants(results: Results) -> tuple[str, ...]:
    """The CPU modules that were mapped: ("armv8.0_1",); ("",) for a wheel that has one for all."""
    mapped = results.get("library", {}).get("mapped", [])
    names = [str(name) for name in mapped if str(name).startswith("libggml-cpu")] if isinstance(mapped, list) else []
    return tuple(one_line(_MODULE.sub(r"\1", name)) for name in names[:20])


def divergence(reference: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The Kullback-Leibler divergence of softmax(other) from softmax(reference) in nats, for each row of logits."""
    import numpy as np

    def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        shifted = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float64)

    ours, theirs = log_softmax(reference), log_softmax(other)
    return np.asarray((np.exp(ours) * (ours - theirs)).sum(axis=1), np.float64)


def divergences(results: Results, reference: Results) -> dict[str, tuple[float, float]]:
    """The mean and the worst divergence of each type, empty when the logits are missing or not to be read."""
    found = {}
    for name, step in zip(TYPES, _logit_steps(), strict=True):
        try:
            rows = divergence(_logits(reference[step]), _logits(results[step]))
        except (LookupError, TypeError, ValueError, OverflowError):
            return {}
        found[name] = (float(rows.mean()), float(rows.max()))
    return found


def _logit_steps() -> tuple[str, ...]:
    return tuple(f"logits {name}" for name in TYPES)


def _logits(report: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """(positions, vocabulary); raises ValueError for another number of bytes or a value that is not finite."""
    import numpy as np

    flat = np.frombuffer(base64.b64decode(report["logits"], validate=True), "<f4")
    if not np.isfinite(flat).all():
        raise ValueError("logits that are not finite")
    return flat.reshape(POSITIONS, int(report["vocabulary"])).astype(np.float64)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _library(results: Results, expected: Expected) -> list[Check]:
    checks = [Check(name="loads", passed=True, detail=one_line(results["library"]["system_info"]))]
    if expected.variants:
        mapped = mapped_variants(results)
        wanted = expected.variant if expected.variant in expected.variants else ""
        found = f"{' and '.join(mapped) or 'none'} of {len(expected.variants)}"
        checks.append(
            Check(
                name="CPU module",
                passed=mapped == (wanted,) if wanted else len(mapped) == 1,
                detail=found + (f", expected {wanted}" if wanted else ""),
            )
        )
    if expected.features:
        there = {str(word) for word in results["library"]["features"]} & _DECISIVE_FEATURES
        wanted_features = set(expected.features) & _DECISIVE_FEATURES
        wrong = {"not seen": wanted_features - there, "seen too": there - wanted_features}
        notes = [f"{what}: {', '.join(sorted(words))}" for what, words in wrong.items() if words]
        checks.append(
            Check(name="CPU features", passed=not notes, detail="; ".join([", ".join(sorted(wanted_features)), *notes]))
        )
    return checks


def _kernels(results: Results, _expected: Expected) -> list[Check]:
    shares = {str(name): float(error) / float(bound) for name, (error, bound) in results["kernels"]["errors"].items()}
    worst = max(shares, key=lambda name: shares[name])
    return [
        Check(
            name="quantization kernels",
            passed=all(share <= 1 for share in shares.values()),
            detail=f"{len(shares)} types; {one_line(worst)} comes nearest to its bound, {shares[worst]:.1%} of it",
        )
    ]


def _logits_check(results: Results, expected: Expected) -> list[Check]:
    found = divergences(results, expected.reference)
    mean_type = max(found, key=lambda name: found[name][0])
    worst_type = max(found, key=lambda name: found[name][1])
    mean, worst = found[mean_type][0], found[worst_type][1]
    return [
        Check(
            name="logits",
            passed=mean <= MEAN_DIVERGENCE and worst <= WORST_DIVERGENCE,
            detail=f"KL divergence from this machine's at {POSITIONS} places of {len(found)} types: "
            f"mean {mean:.1e} ({mean_type}; at most {MEAN_DIVERGENCE:g}), "
            f"worst {worst:.1e} ({worst_type}; at most {WORST_DIVERGENCE:g})",
        )
    ]


def _text(results: Results, expected: Expected) -> list[Check]:
    text, here = _string(results["text"]["text"]), _string(expected.reference["text"]["text"])
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(text, here, strict=False))))
    like = "as here" if text == here else f"as here for {same} letters, then a near-tie falls otherwise"
    count = int(results["text"]["tokens"])
    return [
        Check(
            name="demo model",
            passed=count > 0 and bool(text.strip()),
            detail=f"{count} tokens, {like}: {one_line(text)[:80]}",
        )
    ]


def _quantize(results: Results, _expected: Expected) -> list[Check]:
    size, here, differing = (int(results["quantize"][key]) for key in ("bytes", "expected_bytes", "differing"))
    share = differing / size
    if size != here:
        found = f"{size} bytes, {here} here"
    elif differing:
        found = f"{share:.2%} of {size} bytes other than here, at most {DIFFERING_BYTES:.0%}"
    else:
        found = f"{size} bytes, all as here"
    return [Check(name="quantizes the demo", passed=size == here and share <= DIFFERING_BYTES, detail=found)]


def _plain(results: Results, _expected: Expected) -> list[Check]:
    text = one_line(_string(results["plain"]["text"]))
    return [
        Check(
            name="plain llama_cpp.Llama",
            passed=bool(text),
            detail=f"generates: {text[:80]}" if text else "generates nothing",
        )
    ]


_JUDGES: Mapping[str, tuple[str, Callable[[Results, Expected], list[Check]]]] = {
    "library": ("loads", _library),
    "kernels": ("quantization kernels", _kernels),
    "logits": ("logits", _logits_check),
    "text": ("demo model", _text),
    "quantize": ("quantizes the demo", _quantize),
    "plain": ("plain llama_cpp.Llama", _plain),
}
