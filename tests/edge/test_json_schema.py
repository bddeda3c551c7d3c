"""Texts of schema grammars, drawn hot from a model that knows nothing, against the jsonschema package."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import GrammarError
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model
from tinyedge.native.sampler import Sampler
from tinyedge.sampling import Sampling
from tinyedge.structured.json_schema import grammar_of_schema

VOCABULARY = 312
NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}, "required": ["v"]}
CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}, "tail": {"type": "boolean"}}, "required": ["kind", "tail"]}

SCHEMAS: list[Any] = [
    True,
    {},
    {"type": "null"},
    {"type": ["boolean", "null"]},
    {"type": "integer"},
    {"type": "number"},
    {"type": "string"},
    {"type": "array"},
    {"type": "object"},
    {"const": {"a": [1, 2.5, 'x\n"\\é\u0007', None, True]}},
    {"enum": ["red", "green", "", "\ud83d", 'q"\\', 3, None, [1], {"b": 1}]},
    {"enum": [1, 2, "a", None, 5.0, 5.5, True], "type": "integer"},
    {"enum": [[1, 2], [1], [1, "a"]], "items": {"type": "integer"}, "minItems": 2},
    {"enum": [{"a": 1}, {"a": "x"}, {}], "required": ["a"], "properties": {"a": {"type": "string"}}},
    {"type": "integer", "minimum": -17, "maximum": 23},
    {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 1001},
    {"type": "integer", "minimum": 5, "exclusiveMinimum": True},
    {"type": "integer", "minimum": 0},
    {"type": "integer", "maximum": -3},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "minimum": 0.25, "maximum": 0.255},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    {"type": "number", "minimum": -2.5},
    {"type": "number", "maximum": -1e3},
    {"type": "number", "minimum": 1e-7, "maximum": 3e-7},
    {"type": "integer", "multipleOf": 7},
    {"type": "integer", "multipleOf": 125},
    {"type": "integer", "multipleOf": 10, "minimum": -35, "maximum": 60},
    {"allOf": [{"multipleOf": 4}, {"multipleOf": 6}]},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "maxLength": 0},
    {"type": "string", "minLength": 1100, "maxLength": 1103},
    {"type": "string", "pattern": "^[a-c]{2,3}-\\d+$"},
    {"type": "string", "pattern": "^(foo|ba[rz])?$"},
    {"type": "string", "pattern": '^"\\\\[^"\\n]*$'},
    {"type": "string", "pattern": "a{2}|^b+$"},
    {"type": "string", "pattern": "^[^\\w]\\S\\D.\\x41\\u0042[\\d-]$"},
    {"type": "string", "pattern": "^a?b*c+(?:de){0,2}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4", "maxLength": 15},
    {"type": "string", "format": "made-up"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 0},
    {"type": "array", "items": {"const": 0}, "minItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
    {
        "type": "array",
        "prefixItems": [{"const": 1}, {"const": 2}, {"const": 3}],
        "items": {"const": 9},
        "minItems": 2,
        "maxItems": 5,
    },
    {"type": "array", "prefixItems": [{"const": 1}, False, {"const": 3}]},
    {"items": {"type": "null"}, "maxItems": 3},
    {"type": "array", "items": False},
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}},
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["b"]},
    {"type": "object", "properties": {c: {"const": c} for c in "abcdef"}, "required": ["c", "e"]},
    {"type": "object", "properties": {"a": {"const": 1}}, "required": ["z"], "additionalProperties": {"type": "integer"}},
    {
        "type": "object",
        "properties": {"ab": {"const": 1}, "abc": {"const": 2}, "": {"const": 3}},
        "additionalProperties": {"type": "string"},
    },
    {"type": "object", "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "properties": {c: {"const": 1} for c in "abcd"}, "minProperties": 2, "maxProperties": 3},
    {"type": "object", "properties": {"a": False, "b": True}, "required": ["b"]},
    {"type": "object", "properties": {'q"\\\n\u2028': {"const": 1}}, "required": ['q"\\\n\u2028']},
    {"type": "object", "properties": {"a": {"const": 1}}, "unevaluatedProperties": False},
    {
        "allOf": [{"properties": {"a": True}}],
        "unevaluatedProperties": False,
        "type": "object",
        "properties": {"b": {"const": 1}},
    },
    {"allOf": [{"properties": {"a": {"const": 1}}, "unevaluatedProperties": False}, {"properties": {"b": True}}]},
    {"type": "array", "prefixItems": [{"const": 1}], "unevaluatedItems": False},
    {
        "properties": {"n": {"properties": {"m": {"items": {"const": "deep"}, "minItems": 1}}, "required": ["m"]}},
        "required": ["n"],
    },
    {"anyOf": [{"type": "integer", "minimum": 100}, {"type": "string", "maxLength": 2}]},
    {
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        "properties": {"a": {"const": 1}, "b": {"const": 2}},
        "type": "object",
    },
    {"oneOf": [CAT, DOG]},
    {"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "null"}}]},
    {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 10}], "minimum": 0},
    {
        "allOf": [
            {"properties": {"a": {"minimum": 3}}, "required": ["a"]},
            {"properties": {"a": {"type": "integer", "maximum": 5}}},
        ]
    },
    {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}}, {"required": ["b"], "properties": {"b": {"const": 2}}}]},
    {"allOf": [{"properties": {"a": {"const": 1}}, "additionalProperties": {"type": "integer"}}, {"properties": {"b": True}}]},
    {
        "allOf": [
            {"items": {"minimum": 3}, "minItems": 1},
            {"prefixItems": [{"maximum": 4}], "items": {"type": "integer"}, "maxItems": 3},
        ]
    },
    {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    {"$defs": {"a/b~c d": {"const": "found"}}, "$ref": "#/$defs/a~1b~0c%20d"},
    {
        "definitions": {"s": {"type": "string", "maxLength": 3}},
        "items": {"$ref": "#/definitions/s"},
        "type": "array",
        "maxItems": 4,
    },
    {"$id": "https://example.org/x", "$defs": {"s": {"const": 1}}, "$ref": "https://example.org/x#/$defs/s"},
    {"$defs": {"p": {"minLength": 2}}, "$ref": "#/$defs/p", "maxLength": 3, "type": "string"},
    {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
        "additionalProperties": False,
    },
    {"title": "x", "description": "y", "default": 3, "examples": [1], "$comment": "z", "type": "integer", "unknown": [1]},
    {"type": "null", "uniqueItems": False, "patternProperties": {}},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(write(tmp_path_factory.mktemp("schema") / "tiny.gguf", tiny_parts())) as model:
        yield model


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    with Context(model, ContextSettings(context=64, threads=1)) as context:
        context.decode(1)
        context.wait()
        yield context


def drawn(model: Model, context: Context, grammar: str, seed: int, limit: int) -> str | None:
    """A text of the grammar from random logits; None when it did not end by itself."""
    noise = np.random.default_rng(seed)
    closers = [model.tokenize(sign, add_special=False)[-1] for sign in '"]}']
    text = b""
    with Sampler(model, Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed, grammar=grammar)) as sampler:
        for step in range(limit):
            logits = noise.normal(0.0, 3.0, VOCABULARY)
            logits[closers] += 12.0 * (step / limit)  # so that most texts come to an end
            logits[2] += 12.0 * (step / limit)
            context.logits()[:] = logits.tolist()
            token = sampler.sample(context)
            if model.ends_generation(token):
                return text.decode("utf-8")
            text += model.piece(token)
    return None


def check(schema: Any, text: str) -> None:
    """Fails unless the text is JSON that the schema allows, by a validator of its own."""
    jsonschema = pytest.importorskip("jsonschema")
    value = json.loads(text)
    validator = jsonschema.Draft202012Validator
    if isinstance(schema, dict) and schema.get("exclusiveMinimum") is True:
        validator = jsonschema.Draft4Validator
    errors = list(validator(schema, format_checker=validator.FORMAT_CHECKER).iter_errors(value))
    assert not errors, (schema, text, errors[0].message)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_texts_satisfy_their_schema(model: Model, context: Context, schema: Any) -> None:
    grammar = grammar_of_schema(json.dumps(schema))
    limit = 1300 if "1100" in json.dumps(schema) else 150
    texts = [drawn(model, context, grammar, seed, limit) for seed in range(2 if limit > 150 else 8)]
    ended = [text for text in texts if text is not None]
    assert ended
    for text in ended:
        check(schema, text)


def any_schema(noise: random.Random, depth: int) -> Any:
    """A schema put together at random from what we follow."""
    kinds = ["integer", "number", "string", "const", "enum", "type"]
    kinds += ["array", "object", "object", "anyOf", "allOf", "ref"] if depth else []
    kind = noise.choice(kinds)
    few = noise.randint(0, 3)
    if kind in ("integer", "number"):
        low = noise.choice([-5, 0, 3, 1.5, -0.25, 99])
        bounds = {"minimum": low, "maximum": low + noise.choice([0, 1, 2.5, 40, 5000])}
        kept = {key: value for key, value in bounds.items() if noise.random() < 0.6}
        return {"type": kind, **kept}
    if kind == "string":
        least = noise.randint(0, 4)
        return noise.choice(
            [{"type": "string", "minLength": least, "maxLength": least + few}, {"type": "string", "pattern": "^[ab]+x?$"}]
        )
    if kind == "const":
        return {"const": noise.choice([1, "a", None, [1, "b"], {"k": False}])}
    if kind == "enum":
        return {"enum": noise.sample([1, 2.5, "a", "bc", None, True, [], {}], few + 1)}
    if kind == "type":
        return {"type": noise.sample(["null", "boolean", "integer", "string"], noise.randint(1, 2))}
    if kind == "array":
        least = noise.randint(0, 2)
        return {"type": "array", "items": any_schema(noise, depth - 1), "minItems": least, "maxItems": least + few}
    if kind == "object":
        names = noise.sample(["a", "ab", "b", "c d"], few)
        schema: dict[str, Any] = {"type": "object", "properties": {name: any_schema(noise, depth - 1) for name in names}}
        schema["required"] = [name for name in names if noise.random() < 0.5]
        if noise.random() < 0.4:
            schema["additionalProperties"] = noise.choice([False, any_schema(noise, 0)])
        return schema
    if kind == "ref":
        return {"$ref": "#/$defs/leaf"}
    return {kind: [any_schema(noise, depth - 1) for _ in range(noise.randint(1, 2 if kind == "allOf" else 3))]}


def test_texts_satisfy_random_schemas(model: Model, context: Context) -> None:
    noise = random.Random(20)
    followed = ended = 0
    for seed in range(250):
        schema = {"$defs": {"leaf": any_schema(noise, 0)}, "allOf": [any_schema(noise, 3)]}
        try:
            grammar = grammar_of_schema(json.dumps(schema))
        except GrammarError as error:
            assert "no JSON value" in error.problem or "cannot follow" in error.problem or "cannot be followed" in error.problem
            continue
        followed += 1
        text = drawn(model, context, grammar, seed, 120)
        if text is not None:
            ended += 1
            check(schema, text)
    assert followed > 150 and ended > 120


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"enum": []},
        {"type": []},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 5},
        {"type": "number", "minimum": 1, "exclusiveMaximum": 1},
        {"type": "integer", "multipleOf": 10, "minimum": 11, "maximum": 19},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "array", "items": False, "minItems": 1},
        {"type": "array", "prefixItems": [False], "minItems": 1},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "object", "required": ["a", "b"], "maxProperties": 1},
        {"type": "object", "properties": {"a": True}, "additionalProperties": False, "minProperties": 2},
        {"type": "object", "properties": {"a": {"enum": ["x"], "type": "integer"}}, "required": ["a"]},
        {"const": 3, "type": "string"},
        {"const": True, "enum": [1]},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"anyOf": [False, {"type": "integer", "const": "a"}]},
        {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}}, "$ref": "#/$defs/n"},
    ],
    ids=json.dumps,
)
def test_what_nothing_satisfies_is_refused(schema: Any) -> None:
    with pytest.raises(GrammarError, match="no JSON value satisfies the schema") as caught:
        grammar_of_schema(json.dumps(schema))
    assert caught.value.exit_code == 24


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON at line 1, column 2"),
        ("", "not JSON"),
        ('"text"', "neither an object nor true or false"),
        ("[" * 100_000, "nested more than 100 deep"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested more than 100 deep"),
        ('{"minimum": 1e999}', "too large"),
        ('{"minimum": ' + "9" * 5000 + "}", "too large"),
        ('{"minimum": NaN}', "NaN"),
        ('{"minimum": "3"}', "minimum that is no number"),
        ('{"minLength": -1}', "minLength that is no count"),
        ('{"minItems": 1e300, "type": "array"}', "at most 100000"),
        ('{"minLength": 1000000, "type": "string"}', "at most 100000"),
        ('{"type": "text"}', "unknown type 'text'"),
        ('{"type": 3}', "unknown type '3'"),
        ('{"required": true}', "required that is no list"),
        ('{"properties": []}', "properties that are no object"),
        ('{"anyOf": {}}', "anyOf that is no list"),
        ('{"enum": 3}', "enum that is no list"),
        ('{"$ref": "https://example.org/schema.json"}', "nothing is fetched"),
        ('{"$ref": "file:///etc/passwd"}', "nothing is fetched"),
        ('{"$ref": "#/nowhere"}', "which is not there"),
        ('{"$ref": 3}', "a $ref that is no text"),
        ('{"$ref": "#"}', "refers to itself without end"),
        ('{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}', "without end"),
        ('{"not": {}}', "has not, which a grammar cannot follow"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('{"patternProperties": {"^a": {}}}', "patternProperties"),
        ('{"if": {}, "then": {}}', "has if,"),
        ('{"if": false, "else": false}', "has if,"),
        ('{"contains": false}', "has contains,"),
        ('{"propertyNames": false}', "has propertyNames,"),
        ('{"unevaluatedProperties": {"type": "integer"}}', "neither true nor false"),
        ('{"$ref": "#name"}', "refers to the name '#name'"),
        ('{"multipleOf": 0.1}', "no whole number"),
        ('{"multipleOf": 0}', "not above 0"),
        ('{"type": "integer", "multipleOf": 12345}', "multiples of 12345"),
        ('{"pattern": "(?=a)"}', "a group of a special kind"),
        ('{"pattern": "(a"}', "not closed"),
        ('{"pattern": "a\\\\1"}', "the escape \\1"),
        ('{"pattern": "a{5000}"}', "more than 1000 repetitions"),
        ('{"pattern": "(a*)*"}', "may be empty"),
        ('{"pattern": "' + "(" * 1000 + '"}', "nested more than"),
        ('{"type": "string", "pattern": "^a+$", "maxLength": 3}', "a length that it may miss"),
        ('{"allOf": [{"pattern": "a"}, {"pattern": "b"}]}', "two patterns"),
        ('{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "alternatives that overlap"),
        (json.dumps({"allOf": [{"anyOf": [{"minimum": i} for i in range(60)]}] * 4}), "combin"),
        ('{"properties": {"a": {"$id": "x"}}}', "an $id of its own"),
        ('{"enum": ["' + "x" * 400_000 + '"]}', "too large or too ambiguous"),
    ],
    ids=range(48),
)
def test_hostile_and_unsupported_schemas_are_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(GrammarError) as caught:
        grammar_of_schema(text)
    assert sentence in caught.value.problem
    assert len(caught.value.problem) < 400 and "\n" not in caught.value.problem
