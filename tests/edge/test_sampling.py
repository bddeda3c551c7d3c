"""Sampling values: what has a meaning, what the model's file says, and what the command line makes of its options."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from tinyedge.cli.load_options import LoadOptions
from tinyedge.cli.option_groups import with_option_groups
from tinyedge.cli.sampling_options import SamplingOptions, sampling_of
from tinyedge.errors import GrammarError
from tinyedge.fitting import KV_TYPES
from tinyedge.sampling import SAMPLERS, Sampling
from tinyedge.structured.json_schema import grammar_of_schema


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("temperature", -0.1, "the temperature must be from 0 to 100, not -0.1"),
        ("dynatemp_range", math.inf, "the dynamic temperature range must be from 0 to 100, not inf"),
        ("dynatemp_exponent", -1.0, "the dynamic temperature exponent must be"),
        ("top_k", -1, "top-k must be 0 (no limit) or more"),
        ("top_p", 0.0, "top-p must be above 0 and at most 1, not 0"),
        ("min_p", 1.5, "min-p must be from 0 to 1"),
        ("typical_p", 0.0, "typical-p must be above 0"),
        ("top_n_sigma", -2.0, "top-n-sigma must be from -1 (off) to 1000"),
        ("xtc_probability", 1.1, "the XTC probability must be from 0 to 1"),
        ("xtc_threshold", -0.1, "the XTC threshold must be from 0 to 1"),
        ("dry_multiplier", -1.0, "the DRY multiplier must be"),
        ("dry_base", 0.5, "the DRY base must be from 1"),
        ("dry_allowed_length", -1, "the DRY allowed length must be"),
        ("dry_last", 1 << 30, "the DRY window must be from 0 to 1048576 tokens"),
        ("dry_sequence_breakers", ("",), "a DRY sequence breaker must have 1 to 40 bytes, not 0"),
        ("dry_sequence_breakers", ("é" * 21,), "a DRY sequence breaker must have 1 to 40 bytes, not 42"),
        ("dry_sequence_breakers", ("a",) * 65, "65 DRY sequence breakers"),
        ("repeat_penalty", 0.0, "the repeat penalty must be above 0"),
        ("frequency_penalty", math.nan, "the frequency penalty must be"),
        ("presence_penalty", 101.0, "the presence penalty must be"),
        ("repeat_last", -1, "the repeat window must be from 0"),
        ("mirostat", 3, "mirostat must be 0 (off), 1 or 2, not 3"),
        ("mirostat_tau", -1.0, "the mirostat target entropy must be"),
        ("mirostat_eta", 11.0, "the mirostat learning rate must be"),
        ("logit_bias", {-1: 1.0}, "a logit bias must be for a token from 0"),
        ("logit_bias", {1: math.inf}, "the logit bias of token 1 must be within 1e+06 of zero, or -inf, not inf"),
        ("seed", 2**32 - 1, "the seed must be from 0 to 4294967294"),
        ("samplers", ("top_k", "nonsense"), "there is no sampler 'nonsense'"),
    ],
)
def test_a_value_without_meaning_is_refused_in_one_sentence(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        replace(Sampling(), **{name: value})
    assert sentence in str(caught.value)


def test_the_file_s_defaults_come_before_ours() -> None:
    metadata: dict[str, object] = {
        "general.sampling.temp": 0.60000002384185791,  # 0.6 as float32
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": "1.05",
        "general.sampling.penalty_last_n": -1,
        "general.sampling.mirostat": 2,
        "general.sampling.sequence": "Top-K;nucleus;temp;infill;top-k",
        "general.name": "x",
    }
    assert Sampling.defaults_of(metadata) == {
        "temperature": 0.6,
        "top_k": 20,
        "repeat_penalty": 1.05,
        "repeat_last": 0,
        "mirostat": 2,
        "samplers": ("top_k", "top_p", "temperature"),
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, -5.0, True, "x", "9" * 500, None, [1], b"1"])
def test_what_a_hostile_file_says_is_passed_over(value: object) -> None:
    keys = ("top_p", "min_p", "xtc_probability", "mirostat_tau", "penalty_repeat", "mirostat")
    assert Sampling.defaults_of({f"general.sampling.{key}": value for key in keys}) == {}
    assert Sampling.defaults_of({"general.sampling.sequence": value}) == {}


def test_every_name_of_llama_cpp_is_known() -> None:
    """The general.sampling keys of gguf-py, the other implementation of the format."""
    constants = pytest.importorskip("gguf.constants")
    general = vars(constants.Keys.General)
    keys = {value for name, value in general.items() if name.startswith("SAMPLING_")}
    if not keys:
        pytest.skip("this gguf has no such keys yet")
    known = {"general.sampling.sequence"} | {f"general.sampling.{key}" for key in _metadata_names()}
    assert keys == known


def _metadata_names() -> set[str]:
    from tinyedge import sampling

    return set(sampling._METADATA)


@pytest.mark.parametrize(
    ("values", "back"),
    [
        ({}, False),
        ({"repeat_penalty": 1.1}, True),
        ({"repeat_penalty": 1.1, "repeat_last": 0}, False),
        ({"presence_penalty": -0.5}, True),
        ({"dry_multiplier": 0.8}, True),
        ({"dry_multiplier": 0.8, "samplers": ("top_k",)}, False),
        ({"repeat_penalty": 1.1, "mirostat": 1}, False),
    ],
)
def test_the_prompt_matters_to_the_sampler_only_with_penalties(values: dict[str, Any], back: bool) -> None:
    assert Sampling(**values).looks_back is back


def run_options(*arguments: str) -> tuple[int, str, list[tuple[Sampling, SamplingOptions]]]:
    """The exit code, what was printed, and what a command got from these arguments."""
    got: list[tuple[Sampling, SamplingOptions]] = []

    @with_option_groups
    def command(
        model: Annotated[str, typer.Argument()],
        sampling: SamplingOptions,
        extra: Annotated[int, typer.Option("--extra")] = 1,
    ) -> None:
        """The text of the help."""
        assert (model, extra) == ("m", 5)
        got.append((sampling_of(sampling, {"general.sampling.top_k": 7}, 100), sampling))

    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(command)
    result = CliRunner().invoke(app, ["m", "--extra", "5", *arguments])
    return result.exit_code, result.output, got


OPTIONS: list[tuple[list[str], dict[str, Any]]] = [
    (["--temp", "0.2"], {"temperature": 0.2}),
    (["--dynatemp-range", "0.3", "--dynatemp-exp", "2"], {"dynatemp_range": 0.3, "dynatemp_exponent": 2.0}),
    (["--top-k", "3"], {"top_k": 3}),
    (["--top-p", "0.5"], {"top_p": 0.5}),
    (["--min-p", "0.1"], {"min_p": 0.1}),
    (["--typical", "0.4"], {"typical_p": 0.4}),
    (["--top-nsigma", "1.5"], {"top_n_sigma": 1.5}),
    (["--xtc-probability", "0.5", "--xtc-threshold", "0.2"], {"xtc_probability": 0.5, "xtc_threshold": 0.2}),
    (
        ["--dry-multiplier", "0.8", "--dry-base", "2", "--dry-allowed-length", "3", "--dry-penalty-last-n", "99"],
        {"dry_multiplier": 0.8, "dry_base": 2.0, "dry_allowed_length": 3, "dry_last": 99},
    ),
    (["--dry-sequence-breaker", r"\n", "--dry-sequence-breaker", r"a\\n"], {"dry_sequence_breakers": ("\n", r"a\n")}),
    (["--dry-sequence-breaker", "none"], {"dry_sequence_breakers": ()}),
    (["--repeat-penalty", "1.2", "--repeat-last-n", "9"], {"repeat_penalty": 1.2, "repeat_last": 9}),
    (["--presence-penalty", "0.1", "--frequency-penalty", "0.2"], {"presence_penalty": 0.1, "frequency_penalty": 0.2}),
    (
        ["--mirostat", "1", "--mirostat-lr", "0.2", "--mirostat-ent", "4"],
        {"mirostat": 1, "mirostat_eta": 0.2, "mirostat_tau": 4.0},
    ),
    (["--logit-bias", "5+1.5", "--logit-bias", "6-inf"], {"logit_bias": {5: 1.5, 6: -math.inf}}),
]


@pytest.mark.parametrize(("arguments", "expected"), OPTIONS, ids=[row[0][0] for row in OPTIONS])
def test_an_option_sets_its_value(arguments: list[str], expected: dict[str, Any]) -> None:
    code, output, [(sampling, _)] = run_options("--seed", "4", *arguments)
    assert (code, output) == (0, "")
    assert sampling == Sampling(**({"top_k": 7, "seed": 4} | expected))


def test_every_value_has_an_option() -> None:
    named = {name for _, expected in OPTIONS for name in expected} | {"seed", "grammar", "samplers"}
    assert named == {field.name for field in fields(Sampling)}


def test_without_a_seed_there_is_a_random_one() -> None:
    seeds = {run_options()[2][0][0].seed for _ in range(5)}
    assert len(seeds) > 1


def test_stop_strings_and_logprobs_come_along() -> None:
    _, _, [(_, options)] = run_options("--stop", r"\nUser:", "--stop", "###", "--logprobs", "3")
    assert options.stops == ("\nUser:", "###")
    assert options.logprobs == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temp", "-1"], "the temperature must be from 0 to 100, not -1"),
        (["--mirostat", "7"], "mirostat must be 0 (off), 1 or 2"),
        (["--logit-bias", "abc"], "a logit bias is a token, a sign and a number"),
        (["--logit-bias", "5+inf"], "the logit bias of token 5"),
        (["--logit-bias", "5+" + "9" * 60], "the logit bias of token 5"),
        (["--logit-bias", "9" * 5000 + "+1"], "a logit bias is a token"),
        (["--logit-bias", "100+1"], "a logit bias for token 100 and the model's tokens are 0 to 99"),
        (["--stop", ""], "a stop string must have 1 to"),
        (["--logprobs", "101"], "101"),
        (["--grammar", "x", "--json-schema", "{}"], "not both"),
        (["--dry-sequence-breaker", ""], "a DRY sequence breaker must have 1 to 40 bytes"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], sentence: str) -> None:
    code, output, got = run_options(*arguments)
    assert (code, got) == (2, [])
    assert sentence in " ".join(output.split())


def test_a_grammar_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gbnf"
    path.write_bytes(b"\xef\xbb\xbf" + b'root ::= "a"\n')
    assert sampling_of(SamplingOptions(grammar=str(path))).grammar == 'root ::= "a"\n'


@pytest.mark.parametrize("option", ["grammar", "json_schema"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read"), (b"\xff", "not UTF-8 at byte 0"), (b"x" * ((1 << 20) + 1), "larger than 1 MiB")],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, option: str, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
    for name in (str(path), str(tmp_path)) if content is None else (str(path),):
        with pytest.raises(GrammarError, match=sentence):
            sampling_of(SamplingOptions(**{option: name}))


def test_a_schema_is_a_text_or_a_value() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    sampling = Sampling.of_schema(schema, temperature=0.0)
    assert sampling == Sampling(grammar=grammar_of_schema(json.dumps(schema)), temperature=0.0)
    assert sampling == Sampling.of_schema(json.dumps(schema), temperature=0.0)


@pytest.mark.parametrize(
    "schema",
    [{"const": {1, 2}}, {"const": math.nan}, {"type": "nothing"}, "{", "[]"],
    ids=["set", "nan", "type", "text", "list"],
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(GrammarError):
        Sampling.of_schema(schema)


def test_the_help_names_every_kv_type() -> None:
    kv = get_type_hints(LoadOptions, include_extras=True)["kv"].__metadata__[0]
    assert set(kv.help.removeprefix("KV cache: ").rstrip(".").upper().split(", ")) == set(KV_TYPES)


def test_the_order_is_that_of_llama_cpp() -> None:
    """`samplers` of common_params_sampling in common/common.h."""
    assert SAMPLERS == ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
