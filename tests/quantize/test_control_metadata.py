"""What the options do to metadata, against llama.cpp's quantizer and converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from quantize_reference import Family, llama_quantize

from tinyedge.gguf_file import GGUFFile, read_gguf
from tinyedge_quantize.controls.metadata import final_metadata, read_description
from tinyedge_quantize.controls.options import parse_override, parse_overrides
from tinyedge_quantize.controls.values import ControlError, Controls
from tinyedge_quantize.imatrix.importance import Imatrix, SquareSums
from tinyedge_quantize.metadata import MetadataEntry, float32, int32s, string, uint32
from tinyedge_quantize.recipes import RECIPES

SMALL = Family(layers=2)
_TYPES = {"u32": "uint32", "f32": "float32", "str": "string", "bool": "bool"}


def entries(file: GGUFFile) -> dict[str, MetadataEntry]:
    """A file's metadata without arrays."""
    return {
        key: MetadataEntry(_TYPES[kind], file.metadata[key])
        for key, kind in file.value_types.items()
        if not kind.startswith("arr")
    }


def test_layers_that_metadata_lists_one_by_one_are_not_pruned() -> None:
    metadata = {"gemma3.attention.sliding_window_pattern": int32s([1, 0, 1]), "tokenizer.ggml.tokens": int32s([1, 2, 3])}
    with pytest.raises(ControlError, match=r"sliding_window_pattern has a value for each of the 3"):
        final_metadata(metadata, Controls(prune_layers=(1,)), architecture="gemma3", layers=3)
    final_metadata(metadata, Controls(prune_layers=(1,)), architecture="llama", layers=3)


OVERRIDES = [
    "llama.context_length=int:4096",
    "general.file_type=int:-7",
    "llama.rope.freq_base=float:1e6",
    "tokenizer.ggml.add_bos_token=bool:true",
    "general.name=str:a name: with = and ü",
    "llama.context_length=int:2048",
    "mine.empty=str:",
]


def test_overrides_are_written_as_llama_quantize_writes_them(tmp_path: Path) -> None:
    """Same keys, types and values in the same order, with layers pruned and an importance matrix named."""
    source = SMALL.write(tmp_path / "source.gguf")
    sums = {name: SquareSums(weights, np.ones(1, np.int64)) for name, weights in SMALL.importance().items()}
    imatrix = Imatrix(Path("i" * 130), sums, ("wiki.txt", "other.txt"), 12, 512)
    ours = Controls(overrides=parse_overrides(OVERRIDES), prune_layers=(1,), imatrix=imatrix)
    about_imatrix = {
        "quantize.imatrix.file": string("i" * 127),
        "quantize.imatrix.dataset": string("wiki.txt"),
        "quantize.imatrix.entries_count": uint32(len(sums)),
        "quantize.imatrix.chunks_count": uint32(12),
    }
    theirs = Controls(overrides={**ours.overrides, **about_imatrix}, prune_layers=(1,), imatrix=imatrix)
    assert llama_quantize(source, tmp_path / "theirs.gguf", RECIPES["Q4_K_M"].file_type, theirs) == 0
    before = entries(read_gguf(source))
    del before["general.file_type"]
    before |= {"general.quantization_version": uint32(2), "general.file_type": uint32(RECIPES["Q4_K_M"].file_type)}
    after = final_metadata(before, ours, architecture="llama", layers=2)
    expected = entries(read_gguf(tmp_path / "theirs.gguf"))
    assert [(key, each.type) for key, each in after.items()] == [(key, each.type) for key, each in expected.items()]
    for key, entry in after.items():
        assert np.float32(entry.value) == expected[key].value if entry.type == "float32" else entry == expected[key], key


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a",
            "a=1",
            "=int:1",
            "a=int:",
            "a=int:1x",
            "a=int:4294967296",
            "a=float:",
            "a=float:x",
            "a=float:nan",
            "a=float:1e39",
        ),
        *("a=bool:True", "a=u32:1", "a=int:٣", "k" * 128 + "=int:1", "a=str:\udcff", "a\udcff=int:1"),
    ],
)
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(ControlError, match="--override-kv"):
        parse_override(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("general.architecture=str:gpt2", "says how the file is built"),
        ("general.alignment=int:64", "says how the file is built"),
        ("split.count=int:2", "says how the file is built"),
        ("llama.block_count=str:many", "is of type int in this model and not str"),
        ("llama.rope.freq_base=int:10000", "is of type float in this model and not int"),
    ],
)
def test_overrides_that_would_break_the_file(text: str, problem: str) -> None:
    metadata = {"llama.block_count": uint32(2), "llama.rope.freq_base": float32(1e4)}
    with pytest.raises(ControlError, match=problem):
        final_metadata(metadata, Controls(overrides=parse_overrides([text])), architecture="llama", layers=2)


DESCRIPTION: dict[str, Any] = {
    "general.name": "A name",
    "general.author": "Ünï",
    "general.size_label": "3M",
    "general.license.name": "mine",
    "general.sampling.temp": 0.5,
    "general.sampling.top_k": 40,
    "general.source.url": "https://example.org",
    "general.base_models": [{"name": "Base", "organization": "Org", "repo_url": "https://example.org/base"}, {"author": "X"}],
    "general.datasets": [{"name": "Data"}],
    "general.tags": ["one", "two"],
    "general.languages": ["en"],
}


class Writer(gguf.GGUFWriter):  # type: ignore[misc]
    """Collects what gguf's Metadata writes."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Any]] = []

    def add_key_value(self, key: str, val: Any, *_: Any, **__: Any) -> None:
        self.found.append((key, val))


def written_by_gguf(path: Path | None, card: dict[str, Any]) -> list[tuple[str, Any]]:
    """What convert_hf_to_gguf.py writes for a model with this card's fields and that --metadata file."""
    metadata = gguf.Metadata.load(path, None, None)
    for name, value in card.items():
        if getattr(metadata, name) is None:
            setattr(metadata, name, value)
    writer = Writer()
    metadata.set_gguf_meta_model(writer)
    return writer.found


@pytest.mark.parametrize("keys", [list(DESCRIPTION), ["general.tags"], ["general.sampling.temp", "general.base_models"]])
def test_a_description_is_that_of_the_converter(keys: list[str], tmp_path: Path) -> None:
    """Same keys, values and order, beside a model card that names more base models."""
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps({key: DESCRIPTION[key] for key in keys}))
    card: dict[str, Any] = {"name": "Card", "license": "mit", "url": "card", "languages": ["de"]}
    card["base_models"] = [{"name": "One"}, {"name": "Two"}, {"name": "Three"}]
    before = {"general.architecture": string("llama"), "general.type": string("model")}
    before |= {key: MetadataEntry("string", value) for key, value in written_by_gguf(None, card)}
    before["llama.block_count"] = uint32(2)
    after = final_metadata(before, Controls(metadata=read_description(path)), architecture="llama", layers=2)
    found = [(key, entry.value) for key, entry in after.items()]
    assert found[:2] == [("general.architecture", "llama"), ("general.type", "model")]
    assert found[2:-1] == written_by_gguf(path, card)
    assert found[-1] == ("llama.block_count", 2)


def test_a_licence_takes_the_place_of_the_model_cards(tmp_path: Path) -> None:
    """The converter takes it from the card alone; here it is written where the card's would be."""
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps({"general.license": "apache-2.0", "general.license.link": "https://example.org"}))
    expected = written_by_gguf(None, {"name": "Card", "license": "apache-2.0", "license_link": "https://example.org"})
    for card in ({"license": "mit"}, {}):
        before = {key: MetadataEntry("string", value) for key, value in written_by_gguf(None, {"name": "Card", **card})}
        after = final_metadata(before, Controls(metadata=read_description(path)), architecture="llama", layers=2)
        assert [(key, entry.value) for key, entry in after.items()] == expected


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("general.nmae", "did you mean general.name?"),
        ("General.Name", "did you mean general.name?"),
        ("author", "did you mean general.author?"),
        ("general.licence", "did you mean general.license?"),
        ("temp", "did you mean general.sampling.temp?"),
        ("general.base_model", "did you mean general.base_models?"),
        ("general.", "set it with --override-kv KEY=KIND:VALUE"),
        ("general." + "n" * 1_000_000, "set it with --override-kv KEY=KIND:VALUE"),
        ("llama.context_length", "set it with --override-kv KEY=KIND:VALUE"),
    ],
)
def test_unknown_keys_of_a_description(key: str, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps({key: "x"}))
    with pytest.raises(ControlError, match="which describes no model") as caught:
        read_description(path)
    assert caught.value.remedy == remedy


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"general.licence": "x"}', "has the key 'general.licence', which describes no model"),
        (b'{"general.name": 1}', "general.name is 1 where text is needed"),
        (b'{"general.name": null}', "general.name is None where text is needed"),
        (b'{"general.name": "\\ud800"}', "general.name is .* where valid UTF-8 is needed"),
        (b'{"general.sampling.temp": "hot"}', "general.sampling.temp is 'hot' where a number is needed"),
        (b'{"general.sampling.top_k": 1e300}', "general.sampling.top_k is 1e[+]300 where a whole number is needed"),
        (b'{"general.tags": "a"}', "general.tags is 'a' where a list of texts is needed"),
        (b'{"general.base_models": {}}', "general.base_models is an object of 0 where a list of objects is needed"),
        (b'{"general.base_models": [{"name": 3}]}', r"general.base_models\[0\].name is 3 where text is needed"),
    ],
)
def test_descriptions_that_cannot_be_written(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_bytes(content)
    with pytest.raises(ControlError, match=problem) as caught:
        read_description(path)
    assert caught.value.exit_code == 2
