"""The report of a generation: what it read and how fast, beside what the machine's memory allows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyedge.cli.output import format_bytes, format_seconds, printable

if TYPE_CHECKING:
    from tinyedge.backends import LoadPlan
    from tinyedge.ceiling import TokenBytes
    from tinyedge.generation import Speed, TokenLikelihood
    from tinyedge.machine.bandwidth import Bandwidth
    from tinyedge.machine.energy import Energy
    from tinyedge.machine.throttle_watch import RunConditions
    from tinyedge.model_facts import ModelFacts

STOP_WORDS = {
    "end": "the model ended the text",
    "stop": "ended at a stop string",
    "length": "stopped at -n",
    "context": "the context is full; --ctx raises it",
    "interrupted": "interrupted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One generation and what is known of the machine during it.

    `drafting` says whether guessing ahead was asked for, `speedup` what it brought by the drafter's own account.
    """

    facts: ModelFacts
    plan: LoadPlan
    seed: int
    speed: Speed
    conditions: RunConditions | None = None
    energy: Energy | None = None
    drafting: bool = False
    speedup: float | None = None

    @property
    def read(self) -> TokenBytes:
        """What one step of the generation read."""
        from tinyedge.ceiling import bytes_per_token

        return bytes_per_token(self.facts, round(self.speed.mean_depth), self.plan.kv_type)

    @property
    def bytes_per_s(self) -> float | None:
        """The rate at which weights and KV cache were read during generation."""
        speed = self.speed
        return self.read.total * speed.steps / speed.steps_s if speed.steps_s else None

    @property
    def bandwidth(self) -> Bandwidth | None:
        """What the main memory was measured to give; None when it never was, or when a GPU's memory counts."""
        from tinyedge.machine.bandwidth import kept_bandwidth

        return kept_bandwidth() if self.plan.backend == "cpu" else None

    @property
    def in_memory(self) -> bool:
        """Whether the weights are too large for a processor's caches, so that reading them is bound by memory."""
        return self.read.total >= 256 << 20

    def lines(self) -> list[str]:
        """The report in plain words."""
        speed, plan = self.speed, self.plan
        reused = f", {speed.reused_tokens} of them from the cache" if speed.reused_tokens else ""
        prompt = f"prompt {_tokens(speed.prompt_tokens)}{reused}{_rate(speed.prompt_tokens_per_s)}"
        first = "" if speed.ttft_s is None else f", first token after {format_seconds(speed.ttft_s)}"
        made = f"generated {_tokens(speed.generated_tokens)}{_rate(speed.generated_tokens_per_s)}"
        lines = [
            f"{prompt}{first}; {made}; {STOP_WORDS[speed.stop_reason]}",
            f"loaded in {format_seconds(speed.load_s)}, peak memory {format_bytes(speed.peak_rss_bytes)}; {plan.backend}, "
            f"threads {plan.threads}, context {plan.context}, seed {self.seed}",
        ]
        lines += [self._reading()] if speed.steps else []
        lines += [self._drafts()] if self.drafting else []
        if self.energy is not None:
            lines.append(_energy_line(self.energy, speed))
        if self.conditions is not None and self.conditions.note:
            lines.append(f"warning: {printable(self.conditions.note, 400)}")
        return lines

    def _reading(self) -> str:
        rate = self.bytes_per_s or 0.0
        bandwidth = self.bandwidth
        text = (
            f"read {format_bytes(self.read.weights)} of weights and {format_bytes(self.read.kv)} of KV cache a step: "
            f"{_rate_of_bytes(rate)}"
        )
        if not self.in_memory or self.plan.backend != "cpu":
            return text
        if bandwidth is None:
            return f"{text}; `tinyedge devices` measures what this memory could give"
        return f"{text}, {rate / bandwidth.best:.0%} of the {bandwidth.best / 1e9:.1f} GB/s that this memory gives"

    def _drafts(self) -> str:
        speed = self.speed
        if not speed.drafted_tokens:
            return "drafted nothing: the text gave no occasion, or it would have cost more than it brings"
        share = speed.accepted_tokens / speed.drafted_tokens
        gain = "" if self.speedup is None else f", {self.speedup:.2f} times the speed of plain decoding"
        return f"drafted {_tokens(speed.drafted_tokens)}, {share:.0%} of them accepted{gain}"

    def as_object(self) -> dict[str, Any]:
        """The figures for --json; None where nothing was measured."""
        speed, plan, read, bandwidth = self.speed, self.plan, self.read, self.bandwidth
        rate = self.bytes_per_s
        return {
            "stop_reason": speed.stop_reason,
            "type": self.facts.file_type,
            "backend": plan.backend,
            "device": plan.device.description,
            "threads": plan.threads,
            "context": plan.context,
            "kv_type": plan.kv_type,
            "steps_to_fit": list(plan.steps),
            "warnings": list(plan.warnings),
            "load_s": speed.load_s,
            "prompt_tokens": speed.prompt_tokens,
            "reused_tokens": speed.reused_tokens,
            "prompt_tokens_per_s": speed.prompt_tokens_per_s,
            "ttft_s": speed.ttft_s,
            "generated_tokens": speed.generated_tokens,
            "generated_tokens_per_s": speed.generated_tokens_per_s,
            "steps": speed.steps,
            "weight_bytes_per_step": read.weights,
            "kv_bytes_per_step": read.kv,
            "bytes_per_s": rate,
            "memory_bytes_per_s": bandwidth.best if bandwidth else None,
            "memory_share": rate / bandwidth.best if bandwidth and rate and self.in_memory else None,
            "drafted_tokens": speed.drafted_tokens,
            "accepted_tokens": speed.accepted_tokens,
            "draft_speedup": self.speedup,
            "peak_rss_bytes": speed.peak_rss_bytes,
            "model_bytes": self.facts.file_bytes,
            "throttling": list(self.conditions.flags) if self.conditions else None,
            "temperature_max_c": self.conditions.temperature_max_c if self.conditions else None,
            "energy": asdict(self.energy) if self.energy else None,
            "joules_per_token": self.energy.per_token(speed.generated_tokens) if self.energy else None,
            "seed": self.seed,
        }


def report_object(path: Path, text: str, likelihoods: tuple[TokenLikelihood, ...], report: Report) -> dict[str, Any]:
    """What `run --json` prints."""
    logprobs = [asdict(each) for each in likelihoods]
    return {"text": text, "model": str(path), **({"logprobs": logprobs} if logprobs else {}), **report.as_object()}


def likelihood_lines(likelihoods: tuple[TokenLikelihood, ...]) -> list[str]:
    """A line for each token: the text, the logarithm of its probability, and the likeliest tokens in its place."""
    return [
        f"{_quoted(place.drawn.text):<16} {place.drawn.logprob:8.3f}   "
        + "  ".join(f"{_quoted(each.text)} {each.logprob:.3f}" for each in place.top)
        for place in likelihoods
    ]


def _quoted(text: str) -> str:
    return f'"{printable(text, 30)}"'


def _energy_line(energy: Energy, speed: Speed) -> str:
    per_token = energy.per_token(speed.generated_tokens)
    if per_token is None or energy.watts is None:
        return f"energy: not measured: {printable(energy.reason or 'no token was generated', 300)}"
    source = printable(energy.source, 60)
    return f"energy: {per_token:.2f} J per generated token, the prompt included, {energy.watts:.1f} W by {source}"


def _rate_of_bytes(rate: float) -> str:
    return f"{rate / 1e9:.1f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.0f} MB/s"


def _tokens(count: int) -> str:
    return f"{count} token" + ("s" if count != 1 else "")


def _rate(rate: float | None) -> str:
    return "" if rate is None else f" at {rate:.1f} tokens/s"
