"""The options of `run` and `chat` that say how a text is generated, and the values they make."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyedge.errors import GrammarError
from tinyedge.sampling import Sampling

MAX_LOGPROBS = 100
_MAX_FILE_BYTES = 1 << 20  # a grammar or schema of a megabyte would take minutes to follow
_BIAS = re.compile(r"(\d+)([+-])(\d+(?:\.\d*)?|\.\d+|inf)")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def _option(*names: str, text: str, default: str | None = None, metavar: str | None = None) -> Any:
    """An option that is None unless given, so that the model's own default can take its place."""
    return typer.Option(*names, help=f"{text} [{default}]" if default else text, metavar=metavar)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """What was given on the command line; None for what was not."""

    temp: Annotated[float | None, _option("--temp", text="Temperature; 0 always takes the likeliest token.", default="0.8")] = (
        None
    )
    dynatemp_range: Annotated[float | None, _option("--dynatemp-range", text="Vary the temperature by this, with entropy.")] = (
        None
    )
    dynatemp_exp: Annotated[float | None, _option("--dynatemp-exp", text="How entropy maps to it.", default="1")] = None
    top_k: Annotated[int | None, _option("--top-k", text="Draw from the K likeliest tokens; 0 for all.", default="40")] = None
    top_p: Annotated[float | None, _option("--top-p", text="Draw from the likeliest that add up to P.", default="0.95")] = None
    min_p: Annotated[
        float | None, _option("--min-p", text="Drop tokens less likely than P times the likeliest.", default="0.05")
    ] = None
    typical: Annotated[float | None, _option("--typical", text="Keep the P most typical; 1 is off.", default="1")] = None
    top_nsigma: Annotated[float | None, _option("--top-nsigma", text="Keep logits within N sigma of the best; -1 is off.")] = (
        None
    )
    xtc_probability: Annotated[
        float | None, _option("--xtc-probability", text="Chance to drop the top choices.", default="0")
    ] = None
    xtc_threshold: Annotated[float | None, _option("--xtc-threshold", text="What XTC calls a top choice.", default="0.1")] = (
        None
    )
    dry_multiplier: Annotated[float | None, _option("--dry-multiplier", text="Strength of DRY; 0 is off.", default="0")] = None
    dry_base: Annotated[float | None, _option("--dry-base", text="How DRY grows with length.", default="1.75")] = None
    dry_allowed_length: Annotated[
        int | None, _option("--dry-allowed-length", text="Repeats up to this stay free.", default="2")
    ] = None
    dry_penalty_last_n: Annotated[int | None, _option("--dry-penalty-last-n", text="DRY looks back so far.", default="64")] = (
        None
    )
    dry_sequence_breaker: Annotated[
        list[str] | None,
        _option(
            "--dry-sequence-breaker",
            text=r"Where repeats end; several, or none. \n is a line end.",
            metavar="TEXT",
        ),
    ] = None
    repeat_penalty: Annotated[
        float | None, _option("--repeat-penalty", text="Above 1 discourages repetition.", default="1")
    ] = None
    repeat_last_n: Annotated[int | None, _option("--repeat-last-n", text="The penalties look back so far.", default="64")] = (
        None
    )
    presence_penalty: Annotated[float | None, _option("--presence-penalty", text="For having come at all.", default="0")] = None
    frequency_penalty: Annotated[float | None, _option("--frequency-penalty", text="For each time it came.", default="0")] = (
        None
    )
    mirostat: Annotated[int | None, _option("--mirostat", text="1 or 2; replaces the others; 0 is off.", default="0")] = None
    mirostat_lr: Annotated[float | None, _option("--mirostat-lr", text="Mirostat's learning rate.", default="0.1")] = None
    mirostat_ent: Annotated[float | None, _option("--mirostat-ent", text="Mirostat's target entropy.", default="5")] = None
    logit_bias: Annotated[
        list[str] | None,
        _option("--logit-bias", text="15043+1 favours token 15043, 15043-inf forbids it.", metavar="TOKEN(+/-)BIAS"),
    ] = None
    seed: Annotated[int | None, _option("--seed", text="Same seed, same text.", default="random, and reported")] = None
    stop: Annotated[
        list[str] | None, _option("--stop", text=r"End before this text; several. \n is a line end.", metavar="TEXT")
    ] = None
    json_schema: Annotated[str | None, _option("--json-schema", text="Answer in JSON of this schema.", metavar="FILE|TEXT")] = (
        None
    )
    grammar: Annotated[str | None, _option("--grammar", text="Answer as this GBNF grammar says.", metavar="FILE")] = None
    logprobs: Annotated[
        int, typer.Option("--logprobs", min=0, max=MAX_LOGPROBS, help="Report the N likeliest tokens each time.")
    ] = 0

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(_unescaped(text) for text in self.stop or ())


# Our option -> the field of Sampling, where the names differ.
_FIELDS = {
    "temp": "temperature",
    "dynatemp_exp": "dynatemp_exponent",
    "typical": "typical_p",
    "top_nsigma": "top_n_sigma",
    "dry_penalty_last_n": "dry_last",
    "repeat_last_n": "repeat_last",
    "mirostat_lr": "mirostat_eta",
    "mirostat_ent": "mirostat_tau",
}
_READ_APART = {"dry_sequence_breaker", "logit_bias", "seed", "stop", "json_schema", "grammar", "logprobs"}


def sampling_of(
    options: SamplingOptions, metadata: Mapping[str, object] | None = None, vocabulary: int | None = None
) -> Sampling:
    """The sampling that the options ask for: over the defaults of the file with this `metadata`, with a random seed if none.

    A value without meaning is wrong usage. Raises GrammarError for a schema or grammar that cannot be used.
    """
    values = Sampling.defaults_of(metadata or {})
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in _READ_APART and value is not None:
            values[_FIELDS.get(field.name, field.name)] = value
    if options.dry_sequence_breaker:
        breakers = tuple(_unescaped(text) for text in options.dry_sequence_breaker)
        values["dry_sequence_breakers"] = () if breakers == ("none",) else breakers
    values["logit_bias"] = _biases(options.logit_bias or [])
    # The secrets module would cost 10 ms to import.
    values["seed"] = int.from_bytes(os.urandom(4), "little") >> 1 if options.seed is None else options.seed
    values["grammar"] = _grammar(options)
    _check_stops(options.stops)
    try:
        sampling = Sampling(**values)
        if vocabulary is not None:
            sampling.check_vocabulary(vocabulary)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return sampling


def _check_stops(stops: tuple[str, ...]) -> None:
    from tinyedge.stops import StopMatcher

    try:
        StopMatcher(stops)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _unescaped(text: str) -> str:
    return re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], text)


def _biases(texts: list[str]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for text in texts:
        match = _BIAS.fullmatch(text)
        if match is None or len(text) > 64:
            raise typer.BadParameter(f"a logit bias is a token, a sign and a number, as in 15043-1.5, not {text[:40]!r}")
        biases[int(match[1])] = float(match[2] + match[3])
    return biases


def _grammar(options: SamplingOptions) -> str | None:
    """The GBNF text of --json-schema or --grammar, checked."""
    if options.json_schema is not None and options.grammar is not None:
        raise typer.BadParameter("give --json-schema or --grammar, not both")
    if options.grammar is not None:
        from tinyedge.structured.grammar import check_grammar

        text = _read(options.grammar, "--grammar")
        check_grammar(text)
        return text
    if options.json_schema is not None:
        from tinyedge.structured.json_schema import grammar_of_schema

        given = options.json_schema
        return grammar_of_schema(given if _is_json(given) else _read(given, "--json-schema"))
    return None


def _is_json(text: str) -> bool:
    """Whether this is a schema and no file name: an object, or one of the two schemas that are none."""
    return text.lstrip()[:1] == "{" or text.strip() in ("true", "false")


def _read(name: str, option: str) -> str:
    remedy = f"check the name given with {option}"
    try:
        with Path(name).open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise GrammarError(f"{name} cannot be read ({reason})", remedy) from error
    if len(raw) > _MAX_FILE_BYTES:
        raise GrammarError(f"{name} is larger than {_MAX_FILE_BYTES >> 20} MiB, too large to follow", remedy)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GrammarError(f"{name} is not UTF-8 at byte {error.start}", "convert it to UTF-8") from error
