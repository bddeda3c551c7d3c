"""Adapters from strangers: each fault is one sentence of ours, at once, and nothing is written."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_saves
from lora_adapters import CONFIG, PREFIX, Matrices, pair, write_adapter_folder
from packed_checkpoints import write_safetensors

from tinyedge.cli.models import demo_checkpoint
from tinyedge.errors import AdapterError, TinyEdgeError, UnsafePickleError, WeightValueError
from tinyedge_quantize.checkpoint import open_checkpoint
from tinyedge_quantize.containers.safetensors_file import read_safetensors
from tinyedge_quantize.convert import Wishes, convert
from tinyedge_quantize.lora import merge_into, merged, open_adapter, parse_adapter_option
from tinyedge_quantize.tensors import WeightFile

QUERY = "model.layers.0.self_attn.q_proj"


def plain() -> Matrices:
    return pair(QUERY, 256, 256)


def merge(*folders: Path) -> None:
    """Opens the demo model with these adapters, as `quantize --lora` does before anything is written."""
    with open_checkpoint(demo_checkpoint(), adapters=[(folder, 1.0) for folder in folders]):
        pass


def refused(folder: Path, pattern: str) -> None:
    with pytest.raises(AdapterError, match=pattern) as caught:
        merge(folder)
    assert caught.value.exit_code == 26
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["IA3", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADALORA", "LOHA", "LOKR", "OFT", "VERA", ["LORA"], 7, {}]
)
def test_other_kinds_of_adapters_are_named(kind: Any, tmp_path: Path) -> None:
    refused(write_adapter_folder(tmp_path / "a", plain(), peft_type=kind), "is an adapter of type .* where LoRA is supported")


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_replication": [[0, 2], [1, 3]]},
        {"target_parameters": ["experts.up"]},
        {"trainable_token_indices": [1, 2]},
        {"alora_invocation_tokens": [5]},
        {"use_qalora": True},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
    ],
)
def test_variants_that_cannot_be_merged_are_named(changes: dict[str, Any], tmp_path: Path) -> None:
    key = next(iter(changes))
    named = "changes the base's weights" if key == "init_lora_weights" else key
    refused(write_adapter_folder(tmp_path / "a", plain(), **changes), named)


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
@pytest.mark.parametrize("value", [0, -4, 1e300, 10**400, "4", True, [4], None, math.inf])
def test_numbers_that_are_none_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    refused(write_adapter_folder(tmp_path / "a", plain(), **{key: value}), f"{key} in adapter_config.json is")


@pytest.mark.parametrize("text", ["", "[]", "{", "nul", '{"r": 1e999999}', "[" * 100_000, "\udcff", '"LORA"'])
def test_a_configuration_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "a", plain())
    (folder / "adapter_config.json").write_text(text, errors="surrogateescape")
    refused(folder, "adapter_config.json")


def test_missing_parts_are_named(tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "a", plain())
    (folder / "adapter_config.json").unlink()
    refused(folder, "adapter_config.json is missing")
    folder = write_adapter_folder(tmp_path / "b", plain())
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "holds no adapter weights")
    refused(tmp_path / "c", "there is no adapter")
    os.mkfifo(folder / "adapter_model.bin")
    refused(folder, "holds no adapter weights")


WRONG_TENSORS: dict[str, tuple[Callable[[Matrices], Any], str]] = {
    "no B": (lambda m: m.pop(f"{PREFIX}{QUERY}.lora_B.weight"), "one A and one B"),
    "another rank": (lambda m: m.update(pair(QUERY, 256, 256, 5)), "says rank 4"),
    "ranks that differ": (lambda m: m.update({f"{PREFIX}{QUERY}.lora_A.weight": np.ones((3, 256), np.float32)}), "rank 4"),
    "a vector": (lambda m: m.update({f"{PREFIX}{QUERY}.lora_A.weight": np.ones(256, np.float32)}), "no linear layer"),
    "a convolution": (lambda m: m.update({f"{PREFIX}{QUERY}.lora_A.weight": np.ones((4, 256, 1, 1), np.float32)}), "no linear"),
    "nothing in it": (lambda m: m.update({f"{PREFIX}{QUERY}.lora_A.weight": np.ones((4, 0), np.float32)}), "no weight of an"),
    "two adapters": (lambda m: m.update({f"{PREFIX}{QUERY}.lora_A.b.weight": np.ones((4, 256), np.float32)}), "twice"),
    "short lengths": (lambda m: m.update({f"{PREFIX}{QUERY}.lora_magnitude_vector": np.ones(9, np.float32)}), "256 outputs"),
    "no tensors": (lambda m: m.clear(), "holds no tensors"),
    "an endless name": (lambda m: m.update({"x" * 100_000: np.ones(9, np.float32)}), "no weight of an adapter"),
}


@pytest.mark.parametrize("fault", WRONG_TENSORS)
def test_tensors_that_contradict_each_other_are_refused(fault: str, tmp_path: Path) -> None:
    change, pattern = WRONG_TENSORS[fault]
    matrices = plain()
    change(matrices)
    refused(write_adapter_folder(tmp_path / "a", matrices), pattern)


def test_a_dora_without_magnitudes_is_refused(tmp_path: Path) -> None:
    """PEFT warns and takes the lengths of the base's rows, which were not trained; magnitudes of no DoRA it leaves out."""
    refused(write_adapter_folder(tmp_path / "a", plain(), use_dora=True), r"no lora_magnitude_vector for .* is a DoRA")
    dora = plain() | {f"{PREFIX}{QUERY}.lora_magnitude_vector": np.ones(256, np.float32)}
    merge(write_adapter_folder(tmp_path / "b", dora, use_dora=True))
    some = dora | pair("model.layers.1.self_attn.q_proj", 256, 256)
    refused(write_adapter_folder(tmp_path / "c", some, use_dora=True), r"no lora_magnitude_vector for 'model\.layers\.1")
    refused(
        write_adapter_folder(tmp_path / "d", some, use_dora=False), r"a lora_magnitude_vector for 'model\.layers\.0.*no DoRA"
    )


@pytest.mark.parametrize("key", ["use_dora", "use_rslora", "ensure_weight_tying"])
@pytest.mark.parametrize("value", ["yes", "false", 1, [True]])
def test_switches_are_true_or_false(key: str, value: Any, tmp_path: Path) -> None:
    refused(write_adapter_folder(tmp_path / "a", plain(), **{key: value}), f"{key} in .* where true or false is expected")


def test_a_module_that_was_trained_but_not_saved_is_refused(tmp_path: Path) -> None:
    """PEFT fails with a KeyError; a name that no module of a language model has is of no account."""
    refused(write_adapter_folder(tmp_path / "a", plain(), modules_to_save=["lm_head"]), "lacks the weights of 'lm_head'")
    norm = plain() | {f"{PREFIX}model.norm.weight": np.ones(256, np.float32)}
    missing = write_adapter_folder(tmp_path / "b", norm, modules_to_save=["norm", "embed_tokens"])
    refused(missing, "lacks the weights of 'embed_tokens', which .* take the name out of modules_to_save")
    for names in (["norm"], ["model.norm", "classifier", "score"], [], None):
        merge(write_adapter_folder(tmp_path / "c", norm, modules_to_save=names))
    for names in ("norm", [["norm"]], {"norm": 1}, ["norm"] * 5000, 7):
        refused(write_adapter_folder(tmp_path / "d", norm, modules_to_save=names), "modules_to_save in .* is .* where names")


def test_an_adapter_for_another_base_names_its_first_mismatch(tmp_path: Path) -> None:
    deeper = write_adapter_folder(tmp_path / "deeper", plain() | pair("model.layers.7.mlp.up_proj", 512, 256))
    refused(deeper, r"adapts 'model\.layers\.7\.mlp\.up_proj\.weight', which this model does not have")
    wider = write_adapter_folder(tmp_path / "wider", pair("model.layers.1.mlp.up_proj", 1024, 256))
    refused(wider, r"'model\.layers\.1\.mlp\.up_proj\.weight' of shape \(1024, 256\) where this model has \(512, 256\)")
    turned = write_adapter_folder(tmp_path / "turned", pair("model.layers.1.mlp.up_proj", 256, 512))
    refused(turned, r"of shape \(256, 512\) where this model has \(512, 256\)")
    grown = plain() | {f"{PREFIX}model.embed_tokens.weight": np.ones((4100, 256), np.float32)}
    refused(write_adapter_folder(tmp_path / "grown", grown), r"\(4100, 256\) where this model has \(4096, 256\)")


def test_a_module_under_two_names_is_refused(tmp_path: Path) -> None:
    both = plain() | pair(QUERY.removeprefix("model."), 256, 256)
    refused(write_adapter_folder(tmp_path / "a", both), r"adapts 'model\.layers\.0\.self_attn\.q_proj\.weight' twice")


def test_two_adapters_cannot_both_have_a_layer_of_their_own(tmp_path: Path) -> None:
    own = plain() | {f"{PREFIX}model.norm.weight": np.ones(256, np.float32)}
    folders = [write_adapter_folder(tmp_path / name, own) for name in "ab"]
    with pytest.raises(AdapterError, match=r"model\.norm\.weight.*which .*b changes too"):
        merge(*folders)
    whole = write_adapter_folder(tmp_path / "whole", {f"{PREFIX}{QUERY}.weight": np.ones((256, 256), np.float32)})
    with pytest.raises(AdapterError, match=r"q_proj\.weight.*changes too"):
        merge(write_adapter_folder(tmp_path / "c", plain()), whole)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*b",
        "(?=(a+))a*b",
        r"(.*)\1",
        "(.*)(.*)(.*)(.*)(.*)x",
        ".*.*.*.*.*x",
        "a?" * 40 + "a" * 40,
        "(a|aa)" * 40,
        "(((a?){9}){9}){9}",
        "x" * 5000,
        "(?P<n>a)(?P=n)",
    ],
)
def test_a_pattern_that_could_take_for_ever_is_refused_at_once(pattern: str, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "a", pair("a" * 60, 256, 256), alpha_pattern={pattern: 3})
    begin = time.perf_counter()
    refused(folder, "alpha_pattern in adapter_config.json")
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("pattern", ["(", "[", "a{5,1}", "*", "a**", "a{99999999999}", ")", r"\p", "(" * 900])
def test_a_pattern_that_is_no_regular_expression_is_refused(pattern: str, tmp_path: Path) -> None:
    refused(write_adapter_folder(tmp_path / "a", plain(), rank_pattern={pattern: 4}), "rank_pattern in adapter_config.json")


@pytest.mark.parametrize("table", [[1], "a", {"a": "b"}, {"a": 10**400}, {"a": -1}, {str(n): 1 for n in range(20_000)}])
def test_a_table_of_patterns_that_is_none_is_refused(table: Any, tmp_path: Path) -> None:
    refused(write_adapter_folder(tmp_path / "a", plain(), rank_pattern=table), "no table of positive numbers")


def test_pickles_run_nothing(tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "a", plain())
    (folder / "adapter_model.safetensors").unlink()
    call = torch_saves.named("os", "system") + pickle.MARK + torch_saves.text(f"touch {tmp_path / 'ran'}") + pickle.TUPLE
    torch_saves.save(folder / "adapter_model.bin", torch_saves.program(call + pickle.REDUCE))
    with pytest.raises(UnsafePickleError):
        merge(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    [f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight", f"{QUERY}.lora_magnitude_vector", "model.layers.1.mlp.up_proj.weight"],
)
def test_values_that_are_none_are_found_before_a_file_appears(name: str, value: float, tmp_path: Path) -> None:
    """The sentence names the adapter: the base's training is not at fault."""
    matrices = plain() | {
        f"{PREFIX}{QUERY}.lora_magnitude_vector": np.ones(256, np.float32),
        f"{PREFIX}model.layers.1.mlp.up_proj.weight": np.ones((512, 256), np.float32),
    }
    matrices[f"{PREFIX}{name}"].flat[77] = value
    folder = write_adapter_folder(tmp_path / "a", matrices)
    wanted = rf"a/adapter_model\.safetensors holds NaN or infinite values in '{name[:20]}.*checkpoint of the adapter"
    with pytest.raises(WeightValueError, match=wanted):
        convert(demo_checkpoint(), tmp_path / "out.gguf", "Q8_0", Wishes(adapters=[(folder, 1.0)]))
    assert not (tmp_path / "out.gguf").exists()


def test_a_scale_that_overflows_is_found_before_a_file_appears(tmp_path: Path) -> None:
    matrices = {name: values * np.float32(1e18) for name, values in plain().items()}
    folder = write_adapter_folder(tmp_path / "a", matrices, lora_alpha=1e8)
    with pytest.raises(WeightValueError, match=r"merging the adapter makes .* infinite or NaN; give it a smaller scale"):
        convert(demo_checkpoint(), tmp_path / "out.gguf", "F32", Wishes(adapters=[(folder, 1000.0)]))
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_that_is_cut_or_damaged_is_refused_in_our_words(tmp_path: Path) -> None:
    """Every length of the header, some of the data, and a thousand damaged bytes: an adapter or a sentence, never more."""
    folder = write_adapter_folder(tmp_path / "a", plain())
    file = folder / "adapter_model.safetensors"
    data = file.read_bytes()
    generator = random.Random(3)
    damaged = [data[:length] for length in (*range(0, 300, 7), len(data) - 1)]
    for _ in range(300):
        copy = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            copy[generator.randrange(400)] = generator.randrange(256)
        damaged.append(bytes(copy))
    for content in damaged:
        file.write_bytes(content)
        try:
            merge(folder)
        except TinyEdgeError as error:
            assert error.exit_code == 26, error


def test_a_configuration_of_random_values_is_refused_in_our_words(tmp_path: Path) -> None:
    generator = random.Random(4)
    values = [None, True, -1, 0, 4, 8, 1e9, "x", "LORA", [], [1], {}, {"q_proj": 4}, {".*": 1e308}, 2**70]
    keys = [*CONFIG, "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save", "layers_to_transform"]
    folder = write_adapter_folder(tmp_path / "a", plain())
    for _ in range(300):
        config = CONFIG | {generator.choice(keys): generator.choice(values) for _ in range(3)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        try:
            merge(folder)
        except TinyEdgeError as error:
            assert error.exit_code == 26, error


def test_a_base_in_another_order_of_rows_is_refused(tmp_path: Path) -> None:
    """Meta's rotary pairs lie side by side, and an adapter's rows are Hugging Face's."""
    folder = write_adapter_folder(tmp_path / "a", plain())
    with open_checkpoint(demo_checkpoint()) as checkpoint, open_adapter(folder) as adapter:
        arranged = replace(checkpoint.arranged, rotary="interleaved")
    with pytest.raises(AdapterError, match="Hugging Face form of the base"):
        merge_into(arranged, [adapter])


def test_a_base_that_keeps_integers_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "base.safetensors", {f"{QUERY}.weight": ("I8", np.ones((256, 256), np.int8))})
    tensors = read_safetensors(WeightFile(tmp_path / "base.safetensors"))
    with open_adapter(write_adapter_folder(tmp_path / "a", plain())) as adapter:
        pass
    with pytest.raises(AdapterError, match="keeps as I8"):
        merged(tensors, [adapter])


def test_the_option_takes_a_folder_with_or_without_a_scale(tmp_path: Path) -> None:
    folder, colon = tmp_path / "style", tmp_path / "style:0.5"
    folder.mkdir()
    assert parse_adapter_option(str(folder)) == (folder, 1.0)
    assert parse_adapter_option(f"{folder}:-0.25") == (folder, -0.25)
    colon.mkdir()
    assert parse_adapter_option(str(colon)) == (colon, 1.0)
    assert parse_adapter_option(f"{colon}:2") == (colon, 2.0)
    for scale in ("1", "+.5", "2.", "1e-2", "-1E2"):
        assert parse_adapter_option(f"{folder}:{scale}") == (folder, float(scale))
    for value in ("absent", "absent:1", ":1", "x" * 5000, "a\0b", "a\0b:1"):
        with pytest.raises(AdapterError, match=r"there is no adapter .*DIR:SCALE"):
            parse_adapter_option(value)
    for scale in ("nan", "inf", "-1001", "x", "", "1_0", "\u0661\u0660", "1 ", "0x1", "1e999"):
        with pytest.raises(AdapterError, match=r"the scale of .*style is .*a number within 1000 of zero"):
            parse_adapter_option(f"{folder}:{scale}")
    with pytest.raises(AdapterError, match="name is empty"):
        parse_adapter_option("")
    with pytest.raises(AdapterError, match="/dev/null is neither a folder nor a file"):
        parse_adapter_option("/dev/null:0.5")
    with pytest.raises(AdapterError, match="/dev/null is neither a folder nor a file"):
        open_adapter(Path("/dev/null"))
