"""Texts continued side by side: the same as one at a time, and as the engine's own greedy text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tinyedge.engine import Engine
from tinyedge.sampling import Sampling
from tinyedge_bench.harness.generation import Choice, Continuing, Generator
from tinyedge_bench.quality.models import OpenModel, open_model
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

PROMPTS = ("Once upon a time", "The king said to his son:", "In the middle of the forest there lived", "It was a", "Winter")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(demo_tokenizer().parent, path, "F32")
    return path


@pytest.fixture(scope="module")
def opened(demo: Path) -> Iterator[OpenModel]:
    with open_model(demo, threads=1, backend="cpu", context=256) as model:
        yield model


def _texts(opened: OpenModel, requests: list[Continuing], sequences: int, context: int = 256) -> list[str]:
    with Generator(opened.model, opened.plan, context=context, sequences=sequences) as generator:
        found = dict(generator.texts(requests))
    return [found[index] for index in range(len(requests))]


def _request(opened: OpenModel, prompt: str, **wishes: object) -> Continuing:
    return Continuing(tokens=tuple(opened.model.tokenize(prompt)), **({"most": 12} | wishes))  # type: ignore[arg-type]


def test_greedy_texts_are_the_engines_however_many_run_side_by_side(demo: Path, opened: OpenModel) -> None:
    with Engine.open(demo) as engine:
        expected = [
            "".join(chunk.text for chunk in engine.stream(prompt, Sampling(temperature=0.0), max_tokens=12))
            for prompt in PROMPTS
        ]
    requests = [_request(opened, prompt) for prompt in PROMPTS]
    for sequences in (1, 2, 8):
        assert _texts(opened, requests, sequences) == expected


def test_a_text_ends_before_its_stop_string_wherever_in_a_token_that_begins(opened: OpenModel) -> None:
    (whole,) = _texts(opened, [_request(opened, PROMPTS[0])], 1)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    assert _texts(opened, [_request(opened, PROMPTS[0], stops=("no such", stop))], 2) == [whole[: whole.index(stop)]]


def test_each_text_has_its_own_length_and_a_long_one_is_cut_from_the_left(opened: OpenModel) -> None:
    tokens = opened.model.tokenize(" and then the old man went home" * 80)
    requests = [Continuing(tokens=tuple(tokens), most=10), Continuing(tokens=tuple(tokens[-54:]), most=10)]
    long, short = _texts(opened, requests, 2, context=64)
    assert long == short
    assert len(opened.model.tokenize(_texts(opened, [_request(opened, "It was a", most=1)], 1)[0], add_special=False)) <= 2


def test_a_draw_depends_on_the_seed_and_the_place_of_the_request_alone(opened: OpenModel) -> None:
    warm = Choice(temperature=1.0, seed=5)
    requests = [_request(opened, prompt, choice=warm) for prompt in (PROMPTS[0], PROMPTS[0], PROMPTS[1])]
    once = _texts(opened, requests, 1)
    assert once == _texts(opened, requests, 1)
    assert once[0] != once[1]
    assert once != _texts(opened, [_request(opened, PROMPTS[0], choice=Choice(temperature=1.0, seed=6)), *requests[1:]], 1)


def test_draws_have_the_probabilities_of_the_temperature() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    for choice, expected in (
        (Choice(temperature=1.0), [0.5, 0.3, 0.15, 0.05]),
        (Choice(temperature=0.5), np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        (Choice(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0]),
        (Choice(temperature=1.0, top_p=0.79), [0.625, 0.375, 0, 0]),
        (Choice(temperature=1.0, top_p=0.0), [1, 0, 0, 0]),
        (Choice(), [1, 0, 0, 0]),
    ):
        random = np.random.default_rng(3)
        counts = np.bincount([choice.token(logits, random) for _ in range(4000)], minlength=4)
        assert counts / 4000 == pytest.approx(np.asarray(expected), abs=0.03)
