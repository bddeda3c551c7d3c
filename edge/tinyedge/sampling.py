"""How the next token is chosen: a value that the user, the model file and llama.cpp's defaults make together.

Names, defaults and the order of the steps are those of llama.cpp: `common_params_sampling` in common/common.h and
`common_sampler_init` in common/sampling.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyedge.errors import GrammarError

_INT32_MAX = 2**31 - 1  # what the C functions take
_MAX_WINDOW = 1 << 20  # tokens; llama.cpp allocates the whole window at once
_MAX_BIAS = 1e6  # keeps sums of logits finite in float32
_MAX_BREAKERS = 64
_MAX_BREAKER_BYTES = 40  # llama.cpp cuts longer ones, perhaps within a character

# The steps of the chain in llama.cpp's order; mirostat takes the place of them all.
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
_OTHER_NAMES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"}

# general.sampling.* in a GGUF file -> our field; common_init_sampler_from_model in common/common.cpp.
_METADATA = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temp": "temperature",
    "penalty_last_n": "repeat_last",
    "penalty_repeat": "repeat_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
_WHOLE = {"top_k", "repeat_last", "mirostat"}
_NEGATIVE_MEANS_OFF = {"top_k", "repeat_last", "temperature"}  # llama.cpp takes anything below zero for zero here


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; llama.cpp's own defaults. Temperature 0 takes the likeliest token.

    The `seed` is 0 unless given: the same prompt gives the same text every time; take another seed for another text.
    `logit_bias` adds to the logits of tokens, minus infinity forbids one. `repeat_last` and `dry_last` are windows in
    tokens over prompt and answer. `grammar` is GBNF text that the answer follows; `of_schema` makes one. `samplers` is the
    order of the steps.
    Raises ValueError, one sentence, for a value that has no meaning.
    """

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last: int = 64
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int = 0
    grammar: str | None = None
    samplers: tuple[str, ...] = SAMPLERS

    def __post_init__(self) -> None:
        window = f"must be from 0 to {_MAX_WINDOW} tokens"
        rules = (
            (0.0 <= self.temperature <= 100.0, "the temperature must be from 0 to 100", self.temperature),
            (0.0 <= self.dynatemp_range <= 100.0, "the dynamic temperature range must be from 0 to 100", self.dynatemp_range),
            (
                0.0 <= self.dynatemp_exponent <= 100.0,
                "the dynamic temperature exponent must be from 0 to 100",
                self.dynatemp_exponent,
            ),
            (0 <= self.top_k <= _INT32_MAX, f"top-k must be 0 (no limit) or more, at most {_INT32_MAX}", self.top_k),
            (0.0 < self.top_p <= 1.0, "top-p must be above 0 and at most 1", self.top_p),
            (0.0 <= self.min_p <= 1.0, "min-p must be from 0 to 1", self.min_p),
            (0.0 < self.typical_p <= 1.0, "typical-p must be above 0 and at most 1", self.typical_p),
            (-1.0 <= self.top_n_sigma <= 1000.0, "top-n-sigma must be from -1 (off) to 1000", self.top_n_sigma),
            (0.0 <= self.xtc_probability <= 1.0, "the XTC probability must be from 0 to 1", self.xtc_probability),
            (0.0 <= self.xtc_threshold <= 1.0, "the XTC threshold must be from 0 to 1", self.xtc_threshold),
            (0.0 <= self.dry_multiplier <= 100.0, "the DRY multiplier must be from 0 to 100", self.dry_multiplier),
            (1.0 <= self.dry_base <= 100.0, "the DRY base must be from 1 to 100", self.dry_base),
            (0 <= self.dry_allowed_length <= _MAX_WINDOW, f"the DRY allowed length {window}", self.dry_allowed_length),
            (0 <= self.dry_last <= _MAX_WINDOW, f"the DRY window {window}", self.dry_last),
            (0.0 < self.repeat_penalty <= 10.0, "the repeat penalty must be above 0 and at most 10", self.repeat_penalty),
            (
                -100.0 <= self.frequency_penalty <= 100.0,
                "the frequency penalty must be from -100 to 100",
                self.frequency_penalty,
            ),
            (-100.0 <= self.presence_penalty <= 100.0, "the presence penalty must be from -100 to 100", self.presence_penalty),
            (0 <= self.repeat_last <= _MAX_WINDOW, f"the repeat window {window}", self.repeat_last),
            (self.mirostat in (0, 1, 2), "mirostat must be 0 (off), 1 or 2", self.mirostat),
            (0.0 <= self.mirostat_tau <= 100.0, "the mirostat target entropy must be from 0 to 100", self.mirostat_tau),
            (0.0 <= self.mirostat_eta <= 10.0, "the mirostat learning rate must be from 0 to 10", self.mirostat_eta),
            (0 <= self.seed < 2**32 - 1, f"the seed must be from 0 to {2**32 - 2}", self.seed),
        )
        for holds, rule, value in rules:
            if not holds:
                raise ValueError(f"{rule}, not {_shown(value)}")
        self._check_lists()

    def _check_lists(self) -> None:
        for token, bias in self.logit_bias.items():
            if not 0 <= token <= _INT32_MAX:
                raise ValueError(f"a logit bias must be for a token from 0 to {_INT32_MAX}, not {_shown(token)}")
            if not (abs(bias) <= _MAX_BIAS or bias == -math.inf):
                raise ValueError(
                    f"the logit bias of token {token} must be within {_MAX_BIAS:g} of zero, or -inf, not {_shown(bias)}"
                )
        if len(self.dry_sequence_breakers) > _MAX_BREAKERS:
            raise ValueError(
                f"there are {len(self.dry_sequence_breakers)} DRY sequence breakers and at most {_MAX_BREAKERS} may be"
            )
        for breaker in self.dry_sequence_breakers:
            size = len(breaker.encode("utf-8", "surrogatepass"))
            if not 0 < size <= _MAX_BREAKER_BYTES:
                raise ValueError(f"a DRY sequence breaker must have 1 to {_MAX_BREAKER_BYTES} bytes, not {size}")
            if "\0" in breaker:
                raise ValueError("a DRY sequence breaker must not hold the character NUL")
        for name in self.samplers:
            if name not in SAMPLERS:
                raise ValueError(f"there is no sampler {name[:40]!r}: there are {', '.join(SAMPLERS)}")

    @property
    def looks_back(self) -> bool:
        """Whether what was said before, the prompt too, changes what comes next: the sampler must be told of it."""
        penalties = self.repeat_last > 0 and (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) != (
            1.0,
            0.0,
            0.0,
        )
        dry = self.dry_last > 0 and self.dry_multiplier > 0
        acting = {name for name, acts in (("penalties", penalties), ("dry", dry)) if acts}
        return not self.mirostat and not acting.isdisjoint(self.samplers)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, with nothing in the chain that could remove it first."""
        undrawn = not self.mirostat and self.temperature == 0.0 and self.dynatemp_range == 0.0
        unchanged = self.typical_p == 1.0 and (self.xtc_probability == 0.0 or self.xtc_threshold > 0.5)
        return undrawn and unchanged and self.samplers == SAMPLERS

    def check_vocabulary(self, size: int) -> None:
        """Raises ValueError when a logit bias names a token that a vocabulary of `size` tokens does not have."""
        for token in self.logit_bias:
            if token >= size:
                raise ValueError(f"there is a logit bias for token {token} and the model's tokens are 0 to {size - 1}")

    @classmethod
    def of_schema(cls, schema: str | Mapping[str, Any], **fields: Any) -> Sampling:
        """A sampling whose texts are JSON that satisfies `schema`: JSON text, or what `json.loads` makes of it.

        `fields` are those of Sampling. Raises GrammarError for what is no schema or no grammar can follow.
        """
        import json

        from tinyedge.structured.json_schema import grammar_of_schema

        try:
            text = schema if isinstance(schema, str) else json.dumps(dict(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise GrammarError(f"the schema cannot be written as JSON ({error})") from error
        return cls(grammar=grammar_of_schema(text), **fields)

    @classmethod
    def defaults_of(cls, metadata: Mapping[str, object]) -> dict[str, Any]:
        """The fields that the general.sampling.* keys of a GGUF file set, to be overridden by what the user wants.

        A value that is no number or has no meaning is passed over: it is the file's, not the user's.
        """
        found: dict[str, Any] = {}
        for key, name in _METADATA.items():
            number = _number(metadata.get(f"general.sampling.{key}"))
            if number is None:
                continue
            value = max(number, 0.0) if name in _NEGATIVE_MEANS_OFF else number
            entry: dict[str, Any] = {name: int(value) if name in _WHOLE else value}
            try:
                cls(**entry)
            except ValueError:
                continue
            found |= entry
        order = _known_samplers(metadata.get("general.sampling.sequence"))
        return found | {"samplers": order} if order else found


def _number(value: object) -> float | None:
    """A finite number from the file, also one written as text; float32 values as they were meant (0.9, not 0.899999976)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
        return float(f"{number:.7g}") if math.isfinite(number) else None
    except (ValueError, OverflowError):
        return None


def _known_samplers(sequence: object) -> tuple[str, ...]:
    """The steps of `top_k;top-p;temp` as we name them; those that we do not have are left out, as llama.cpp does."""
    if not isinstance(sequence, str):
        return ()
    spelled = {name.replace("_", ""): name for name in SAMPLERS} | _OTHER_NAMES
    names = (name.strip().lower().replace("_", "").replace("-", "") for name in sequence[:1000].split(";"))
    return tuple(dict.fromkeys(spelled[name] for name in names if name in spelled))


def _shown(value: float) -> str:
    """A number for an error message, one of hundreds of digits cut."""
    text = str(value) if isinstance(value, int) else f"{value:g}"
    return text if len(text) <= 24 else f"{text[:24]}..."
