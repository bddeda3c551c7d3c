"""Large tokenizer.json files: read in parts with the same content, and without holding their text several times."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from family_tokenizers import tokenizer_json, write_tokenizer
from tokenizer_folders import byte_level, put

from tinyedge_quantize.tokenizer import large_json, read_tokenizer
from tinyedge_quantize.tokenizer.large_json import Merges, parse_tokenizer_json


@pytest.fixture(autouse=True)
def every_file_counts_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "_SMALL", 0)


def content(data: bytes) -> Any:
    """What is read, the merges as a list; None for what is no JSON."""
    try:
        value = parse_tokenizer_json(data)
    except ValueError:
        return None
    if isinstance(value, dict) and isinstance(value.get("model"), dict) and isinstance(value["model"].get("merges"), Merges):
        value["model"]["merges"] = list(value["model"]["merges"])
    return value


def plainly(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except ValueError:
        return None


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("kind", ["gemma-spm", "llama3", "smollm"])
def test_the_usual_form_is_read_in_parts_with_the_same_content(kind: str, escaped: bool, indent: int | None) -> None:
    data = json.dumps(tokenizer_json(kind), ensure_ascii=escaped, indent=indent).encode()
    assert isinstance(parse_tokenizer_json(data)["model"]["merges"], Merges)
    assert content(data) == plainly(data)


VOCAB = {"a": 0, 'b"': 1, "\\": 2, "merges": 3, "vocab": 4, "\U0001f680": 5, "]": 6, "},": 7}
UNUSUAL: dict[str, Any] = {
    "merges outside the model": {"merges": [], "model": {"vocab": {"a": 0}}},
    "vocabulary outside the model": {"vocab": {"a": 0}, "model": {"merges": []}},
    "deeper in the model": {"model": {"inner": {"vocab": {"a": 0}, "merges": []}}},
    "twice": {"model": {"vocab": {"a": 0}, "merges": []}, "other": {"merges": ["a b"]}},
    "a unigram": {"model": {"type": "Unigram", "vocab": [["a", -1.0]]}},
    "fractions": {"model": {"vocab": {"a": 0.5}, "merges": []}},
    "negative": {"model": {"vocab": {"a": -1}, "merges": []}},
    "huge": {"model": {"vocab": {"a": 10**30}, "merges": []}},
    "three in a merge": {"model": {"vocab": {"a": 0}, "merges": [["a", "b", "c"]]}},
    "no model": {"vocab": {}, "merges": []},
    "a list": [1, 2],
    "placeholders": {"model": {"vocab": "\0vocab", "merges": "\0merges"}, "vocab": {"a": 0}, "merges": []},
    "empty": {"model": {"vocab": {}, "merges": []}},
    "odd texts": {"model": {"vocab": VOCAB, "merges": ["a ]", ["\\", '"'], ['"merges": [', "}"]]}},
}


@pytest.mark.parametrize("case", UNUSUAL)
@pytest.mark.parametrize("separators", [(",", ":"), (" ,\n", "\t: ")])
def test_unusual_forms_are_read_as_json_reads_them(case: str, separators: tuple[str, str]) -> None:
    data = json.dumps(UNUSUAL[case], separators=separators).encode()
    assert content(data) == plainly(data)


def test_repeated_keys_and_damage_are_read_as_json_reads_them() -> None:
    for text in (
        '{"model": {"vocab": {"a": 0, "a": 1}, "merges": []}}',
        '{"model": {"vocab": {"a": 0}, "vocab": {"b": 1}, "merges": []}}',
        '{"model": {"vocab": {"a": 00}, "merges": []}}',
        '{"model": {"vocab": {"a": 0,}, "merges": []}}',
        '{"model": {"vocab": {"a": 0}, "merges": ["a b",]}}',
        '{"model": {"vocab": {"\\x": 0}, "merges": []}}',
        '{"model": {"vocab": {"a\n": 0}, "merges": ["\n"]}}',
        '{"model": {"vocab": {"a": 0}, "merges": ["a b"',
    ):
        assert content(text.encode()) == plainly(text.encode()), text
    data = json.dumps(byte_level(["ab", "cd"]), ensure_ascii=False).encode()
    random_source = random.Random(11)
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(random_source.randint(1, 3)):
            at = random_source.randrange(len(damaged))
            if random_source.random() < 0.5:
                damaged[at] = random_source.choice(b'"\\{}[],: 0a\xff')
            else:
                del damaged[at : at + random_source.randint(1, 3)]
        assert content(bytes(damaged)) == plainly(bytes(damaged))


@pytest.mark.parametrize(("kind", "vocabulary"), [("llama3", "llama"), ("gemma-fast", "gemma"), ("gemma-spm", "gemma")])
def test_a_tokenizer_is_the_same_either_way(
    tmp_path: Path, kind: str, vocabulary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_tokenizer(tmp_path, kind)
    in_parts = read_tokenizer(tmp_path, rows, {}, vocabulary=vocabulary)
    monkeypatch.setattr(large_json, "_SMALL", 2**40)
    assert read_tokenizer(tmp_path, rows, {}, vocabulary=vocabulary) == in_parts


def test_memory_is_a_few_times_the_file(tmp_path: Path) -> None:
    """A text with an emoji takes four bytes for each character in Python, and a pair of texts takes two hundred."""
    words = [f"{first}{second}\U0001f680" for first in range(150) for second in range(100, 200)]
    merges = [[word[:1], word[1:]] for word in words] * 4
    described = byte_level(model={"vocab": {word: row for row, word in enumerate(words)}, "merges": merges})
    put(tmp_path, "tokenizer.json", json.dumps(described, ensure_ascii=False, indent=2))
    data = (tmp_path / "tokenizer.json").read_bytes()
    peaks = []
    for parse in (parse_tokenizer_json, plainly):
        tracemalloc.start()
        assert parse(data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 2.5 * len(data) < 5 * len(data) < peaks[1]
