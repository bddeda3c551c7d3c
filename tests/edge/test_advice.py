"""Advice: bytes per token that agree with the file, types that fit, and commands that can be typed as they stand."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.advice import _BITS, EFFICIENCY, SHAPES, TINYLLAMA, Shape, advise, nearest_shape, scaled
from tinyedge.ceiling import TokenBytes, bytes_per_token, kv_bytes_per_token
from tinyedge.cli.advise import advice_lines, describe_advice, parameter_count, subject
from tinyedge.gguf_file import read_gguf
from tinyedge.memory import memory_needed
from tinyedge.model_facts import ModelFacts, describe_model

GIB = 1 << 30


def tinyllama(kind: str) -> ModelFacts:
    return next(facts for facts in subject(None).models if facts.file_type == kind)


# llama.cpp's own figure for its Q4_K_M of TinyLlama 1.1B is 636.18 MiB of tensors with 1.10 B parameters (llama-bench).
def test_the_table_weighs_tinyllama_as_llama_cpp_does() -> None:
    facts = tinyllama("Q4_K_M")
    assert round(facts.weight_bytes / (1 << 20), 2) == 636.18
    assert facts.parameters == 1_100_048_384


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("SmolLM2-135M", 0.1345),
        ("SmolLM2-360M", 0.3618),
        ("Qwen2.5-0.5B", 0.4940),
        ("TinyLlama-1.1B", 1.1000),
        ("SmolLM2-1.7B", 1.7114),
        ("Llama-3.2-3B", 3.2127),
        ("Phi-3-mini-3.8B", 3.8211),
        ("Mistral-7B", 7.2480),
        ("Llama-3.1-8B", 8.0303),
        ("Llama-2-13B", 13.0159),
        ("Llama-3.1-70B", 70.5537),
    ],
)
def test_the_shapes_have_as_many_parameters_as_published(name: str, billions: float) -> None:
    shape = next(shape for shape in SHAPES if shape.name == name)
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=1e-4)


def test_a_token_reads_all_weights_but_the_embedding_and_the_cache_before_it() -> None:
    facts = tinyllama("Q4_K_M")
    embedding = 32000 * 2048 // 256 * 144  # Q4_K
    read = bytes_per_token(facts, 0)
    assert read == TokenBytes(facts.weight_bytes - embedding + 2048 // 256 * 144, 0)
    assert kv_bytes_per_token(facts, "F16") == 22 * 2 * 4 * 64 * 2
    assert kv_bytes_per_token(facts, "Q8_0") == 22 * 2 * 4 * 64 // 32 * 34
    assert bytes_per_token(facts, 2048) == TokenBytes(read.weights, 2048 * 22528)
    # 0.63 GB a token: 50 GB/s make 79 tokens/s at the beginning and 74 with a full context.
    assert bytes_per_token(facts, 0).ceiling(50e9) == pytest.approx(79.34, abs=0.01)
    assert bytes_per_token(facts, 2048).ceiling(50e9) == pytest.approx(73.93, abs=0.01)


def test_a_tied_embedding_is_read_as_the_output() -> None:
    facts = replace(tinyllama("Q8_0"), tied_bytes=1)
    assert bytes_per_token(facts, 0).weights == facts.weight_bytes


def test_of_experts_only_those_used_are_read() -> None:
    facts = replace(tinyllama("Q8_0"), experts=8, experts_used=2, tied_bytes=1)
    assert bytes_per_token(replace(facts, expert_bytes=800_000), 0).weights == facts.weight_bytes - 600_000
    for broken in ({"experts": 0}, {"experts_used": 9}):
        assert bytes_per_token(replace(facts, expert_bytes=800_000, **broken), 0).weights == facts.weight_bytes


def test_a_header_that_says_nothing_makes_no_ceiling() -> None:
    facts = replace(tinyllama("Q8_0"), embedding_type="", weight_bytes=0, key_width=0, value_width=0)
    assert bytes_per_token(facts, 100).ceiling(50e9) == 0.0


def test_the_bytes_per_token_of_a_file_are_those_of_its_tensors(tmp_path: Path) -> None:
    gguf = read_gguf(write(tmp_path / "tiny.gguf", tiny_parts()))
    facts = describe_model(gguf)
    assert describe_model(gguf).expert_bytes == 0
    embedding = gguf.tensor["token_embd.weight"]
    others = sum(tensor.bytes for tensor in gguf.tensors) - embedding.bytes
    tied = "output.weight" not in gguf.tensor
    row = (
        embedding.bytes // embedding.shape[-1]
        if embedding.shape[-1] == facts.vocabulary
        else embedding.bytes // facts.vocabulary
    )
    assert bytes_per_token(facts, 0).weights == others + (embedding.bytes if tied else row)


def test_the_best_type_that_is_quick_enough_is_taken() -> None:
    fast = advise(subject(None).models, 8 * GIB, 30e9)
    assert fast.chosen is not None and fast.chosen.type == "Q8_0"
    assert [option.type for option in fast.options] == ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
    middling = advise(subject(None).models, 8 * GIB, 14e9)
    assert middling.chosen is not None and middling.chosen.type == "Q5_K_M"
    assert middling.chosen.low is not None and middling.chosen.low >= 10
    slow = advise(subject(None).models, 8 * GIB, 4e9)
    assert slow.chosen is not None and slow.chosen.type == "Q4_K_M"


def test_little_memory_means_a_smaller_type_then_a_shorter_context_then_none() -> None:
    models = subject(None).models
    small = advise(models, memory_needed(tinyllama("Q3_K_M"), 2048).total_bytes, 4e9)
    assert small.chosen is not None and (small.chosen.type, small.chosen.context) == ("Q3_K_M", 2048)
    smaller = advise(models, memory_needed(tinyllama("Q2_K"), 1024).total_bytes, 4e9)
    assert smaller.chosen is not None and (smaller.chosen.type, smaller.chosen.context) == ("Q2_K", 1024)
    assert "longest context" in smaller.reason
    none = advise(models, 300 << 20, 4e9)
    assert none.chosen is None and not any(option.fits for option in none.options)


def test_what_is_said_to_fit_does_fit() -> None:
    for mib in range(400, 1600, 50):
        for option in advise(subject(None).models, mib << 20, None).options:
            assert option.fits == (option.need.total_bytes <= mib << 20)
            assert option.context <= 2048


def test_speeds_are_a_share_of_the_ceiling_and_absent_without_a_bandwidth() -> None:
    option = advise(subject(None).models, 8 * GIB, 30e9).options[3]
    assert option.ceiling is not None and option.ceiling == bytes_per_token(tinyllama("Q4_K_M"), 512).ceiling(30e9)
    assert (option.low, option.high) == (EFFICIENCY[0] * option.ceiling, EFFICIENCY[1] * option.ceiling)
    unknown = advise(subject(None).models, 8 * GIB, None)
    assert unknown.options[0].ceiling is unknown.options[0].low is None
    assert unknown.chosen is not None and unknown.chosen.type == "Q4_K_M"
    assert "not measured" in unknown.reason


def test_no_ceiling_is_given_for_what_the_caches_hold() -> None:
    option = advise(subject("demo").models, 8 * GIB, 30e9, cache_bytes=32 << 20).options[0]
    assert option.cached and option.ceiling is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1.1B", 1_100_000_000),
        ("360m", 360_000_000),
        ("7B", 7 * 10**9),
        ("0B", None),
        ("1.1", None),
        ("9999B", 9999 * 10**9),
        ("99999B", None),
        ("٣B", None),
        ("model.gguf", None),
        ("", None),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, count: int | None) -> None:
    assert parameter_count(text) == count


def test_another_size_takes_the_nearest_shape_and_its_own_weights() -> None:
    assert nearest_shape(1_000_000_000) is TINYLLAMA
    assert nearest_shape(10**13).name == "Llama-3.1-70B"
    half = scaled(tinyllama("Q4_K_M"), TINYLLAMA.parameters // 2)
    assert half.bits_per_weight == pytest.approx(tinyllama("Q4_K_M").bits_per_weight)
    about = subject("2.5B")
    assert about.models[0].parameters == 2_500_000_000 and "Llama-3.2-3B" in about.title


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_bits_of_the_table_are_just_above_those_of_every_shape(shape: Shape) -> None:
    uneven = shape.hidden % 256 != 0
    for facts in subject(
        f"{shape.parameters // 10**6}M" if shape.parameters < 10**9 else f"{shape.parameters / 1e9:.1f}B"
    ).models:
        assert facts.layers == shape.layers
        assert 0.8 * _BITS[facts.file_type][uneven] < facts.bits_per_weight <= _BITS[facts.file_type][uneven]


def test_the_advice_says_what_its_speeds_are_for() -> None:
    about = subject(None)
    head = advice_lines(describe_advice(about, advise(about.models, 8 * GIB, 30e9), 8 * GIB))[0]
    assert head == "advice for     TinyLlama-1.1B (1.10 B parameters; 8.0 GiB free; speeds with 512 tokens in use)"


def test_the_command_for_a_checkpoint_makes_and_runs_the_file(tmp_path: Path) -> None:
    import shutil

    import tinyedge

    source = tmp_path / "a {b} 'c'"
    shutil.copytree(Path(tinyedge.__file__).parent / "demo", source)
    about = subject(str(source))
    told = describe_advice(about, advise(about.models, 8 * GIB, None), 8 * GIB)
    words = shlex.split(told["command"])
    target = "a_b_c_-Q4_K_M.gguf"
    assert words == [
        "tinyedge",
        "quantize",
        str(source),
        "-t",
        "Q4_K_M",
        "-o",
        target,
        "&&",
        "tinyedge",
        "run",
        target,
        "--ctx",
        "512",
    ]
    quantize = [sys.executable, "-m", *words[:7]]
    subprocess.run(quantize, cwd=tmp_path, check=True, capture_output=True)
    written = describe_model(read_gguf(tmp_path / target))
    planned = next(facts for facts in about.models if facts.file_type == "Q4_K_M")
    assert (written.weight_bytes, written.bits_per_weight) == (planned.weight_bytes, planned.bits_per_weight)


def test_a_gguf_file_is_judged_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", tiny_parts())
    command = [sys.executable, "-m", "tinyedge", "devices", str(path), "--no-measure", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["advice"]
    assert len(told["types"]) == 1 and told["type"] == told["types"][0]["type"]
    assert told["command"] == f"tinyedge run {path} --ctx {told['context']}"


@pytest.mark.parametrize(("arguments", "code"), [(["absent.gguf"], 16), (["--again", "--no-measure"], 2), ([""], 2)])
def test_what_cannot_be_advised_on_is_refused(arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-m", "tinyedge", "devices", *arguments], capture_output=True, text=True)
    assert done.returncode == code and done.stdout == ""


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 64)
    done = subprocess.run([sys.executable, "-m", "tinyedge", "devices", str(path)], capture_output=True, text=True)
    assert done.returncode == 11 and done.stdout == ""
