"""The operations of a prompt equal those that torch counts in transformers' Llama, and a step's bytes those of its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tinyedge.ceiling import bytes_per_token, kv_bytes_per_token, prompt_flops, step_bytes
from tinyedge.cli.advise import subject
from tinyedge.model_facts import ModelFacts


def tinyllama(kind: str) -> ModelFacts:
    return next(facts for facts in subject(None).models if facts.file_type == kind)


def small_llama(*, tied: bool) -> tuple[Any, ModelFacts]:
    """A Llama of transformers and the facts that a file of it has, less its norms."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    matrices = sum(weights.numel() for weights in model.parameters() if weights.dim() == 2)
    kv_width = 3 * 2 * 8
    facts = replace(
        tinyllama("Q8_0"),
        parameters=matrices,
        layers=3,
        hidden=64,
        heads=8,
        kv_heads=2,
        vocabulary=300,
        key_width=kv_width,
        value_width=kv_width,
        tied_bytes=1 if tied else 0,
    )
    return model, facts


@pytest.mark.torch
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("tokens", "depth"), [(1, 0), (37, 0), (5, 20)])
def test_a_prompt_takes_the_operations_that_torch_counts(tokens: int, depth: int, tied: bool) -> None:
    """Token by token through transformers' cache, where nothing is computed that is masked."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    model, facts = small_llama(tied=tied)
    text = torch.arange(depth + tokens).unsqueeze(0)
    cache = model(text[:, :depth]).past_key_values if depth else None
    counted = 0
    with torch.no_grad():
        for place in range(depth, depth + tokens):
            with FlopCounterMode(display=False) as counter:
                cache = model(text[:, place : place + 1], past_key_values=cache, use_cache=True).past_key_values
            parts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
            counted += counter.get_total_flops() - parts.get("LlamaForCausalLM.model.rotary_emb", 0)
            if place < depth + tokens - 1:
                counted -= parts["LlamaForCausalLM.lm_head"] + parts["LlamaForCausalLM.model.layers.2.mlp"]
    assert prompt_flops(facts, tokens, depth) == counted


def test_a_prompt_of_tinyllama_takes_two_operations_a_weight_and_those_of_attention() -> None:
    facts = tinyllama("Q4_K_M")
    layers, feed_forward = 22 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 5632), 3 * 2048 * 5632
    attention = 22 * 2 * 2 * 2048 * (512 * 513 // 2)
    expected = 2 * (512 * layers - 511 * feed_forward + 32000 * 2048) + attention
    assert prompt_flops(facts, 512) == pytest.approx(expected, rel=2e-4)  # the norms
    assert prompt_flops(facts, 512, 1000) - prompt_flops(facts, 512) == 22 * 2 * 2 * 2048 * 512 * 1000
    assert prompt_flops(facts, 0) == prompt_flops(facts, -1) == 0


def test_the_parts_of_a_prompt_add_up_but_for_the_logits_between() -> None:
    facts = tinyllama("Q8_0")
    again = 2 * (32000 * 2048 + 3 * 2048 * 5632)
    parts = prompt_flops(facts, 100) + prompt_flops(facts, 28, 100)
    assert parts - again == pytest.approx(prompt_flops(facts, 128), rel=1e-6)


def test_of_experts_those_used_count() -> None:
    dense = tinyllama("Q8_0")
    half = replace(dense, experts=8, experts_used=4, expert_bytes=dense.weight_bytes // 2)
    difference = prompt_flops(dense, 256) - prompt_flops(half, 256)
    assert difference == pytest.approx(2 * dense.parameters / 4 * (256 - 255 / 22), rel=1e-3)
    assert prompt_flops(replace(half, experts_used=9), 256) == prompt_flops(dense, 256)


@pytest.mark.parametrize(
    "unknown", [{"layers": 0}, {"parameters": 0}, {"kv_heads": 0}, {"weight_bytes": 0}, {"vocabulary": 1 << 40}]
)
def test_a_header_that_does_not_tell_breaks_nothing(unknown: dict[str, int]) -> None:
    assert prompt_flops(replace(tinyllama("Q8_0"), **unknown), 128) >= 0


def test_sequences_side_by_side_read_the_weights_once_and_a_cache_each() -> None:
    facts = tinyllama("Q8_0")
    one, four = bytes_per_token(facts, 100), step_bytes(facts, 100, sequences=4)
    assert step_bytes(facts, 100) == one
    assert four.kv == 4 * one.kv == 4 * 100 * kv_bytes_per_token(facts, "F16")
    assert four.weights - one.weights == 3 * 2048 // 32 * 34  # a row of the embedding each


def test_more_sequences_use_more_experts() -> None:
    facts = replace(tinyllama("Q8_0"), experts=8, experts_used=2, expert_bytes=800_000, tied_bytes=1)
    unread = [facts.weight_bytes - step_bytes(facts, 0, sequences=count).weights for count in (1, 2, 64)]
    assert unread == pytest.approx([600_000, 450_000, 0], abs=1)
