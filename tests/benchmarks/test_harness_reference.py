"""The harness's answers for a GGUF file are those of its own class for transformers on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (pip install tinyedge-llm[eval])")
pytestmark = pytest.mark.torch

WORDS = "the old king went down to the river and saw a white bird that sang of winter snow while his two sons slept by the fire"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    from lm_eval.models.huggingface import HFLM

    from tinyedge_bench.harness import TinyedgeLM

    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(demo_tokenizer().parent, path, "F16")
    torch.set_num_threads(1)
    reference = HFLM(pretrained=str(demo_tokenizer().parent), dtype="float32", device="cpu", batch_size=4)
    with TinyedgeLM(path, threads=1, backend="cpu") as ours:
        yield ours, reference


def _text(words: int, step: int = 7) -> str:
    known = WORDS.split()
    return " ".join(known[(place * place * step + 3 * place) % len(known)] for place in range(words))


def _instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=index) for index, each in enumerate(arguments)]


def test_log_likelihoods_and_greediness_are_the_same(models: tuple[Any, Any]) -> None:
    """Where the two differ is left out: transformers 5 drops a space at the beginning of a text that SentencePiece keeps, and
    lm_eval 0.4.13 gives requests of the same tokens, cut in another place, the logits of the first (its cache of logits).
    """
    ours, reference = models
    pairs = [
        ("Once upon a time", " there was a little girl."),
        ("Once upon a time", " purple moose"),
        ("Once upon a time there was a", " king"),
        ("The cat sat on the ", "mat and slept."),
        ("", "The dog ran."),
        ("<s>The cat", " ran."),
        (_text(900), " and then the bird sang"),
        ("snow", _text(60)),
    ]
    found = ours.loglikelihood(_instances("loglikelihood", *pairs), disable_tqdm=True)
    expected = reference.loglikelihood(_instances("loglikelihood", *pairs), disable_tqdm=True)
    assert [each[0] for each in found] == pytest.approx([each[0] for each in expected], abs=1e-2, rel=1e-4)
    assert [each[1] for each in found] == [each[1] for each in expected]


def test_rolling_log_likelihoods_are_the_same_over_several_windows(models: tuple[Any, Any]) -> None:
    ours, reference = models
    texts = [(_text(20),), (_text(700),), (_text(1500, step=5),)]
    found = ours.loglikelihood_rolling(_instances("loglikelihood_rolling", *texts), disable_tqdm=True)
    expected = reference.loglikelihood_rolling(_instances("loglikelihood_rolling", *texts), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-2, rel=1e-4)


def test_greedy_texts_are_the_same(models: tuple[Any, Any]) -> None:
    ours, reference = models
    wishes: list[dict[str, Any]] = [
        {"until": ["."], "max_gen_toks": 24},
        {"until": ["the", "\n\n"], "max_gen_toks": 16},
        {"max_gen_toks": 8},
    ]
    requests = [(_text(5 + 60 * number, step=number + 2), wishes[number % 3]) for number in range(9)]
    found = ours.generate_until(_instances("generate_until", *requests), disable_tqdm=True)
    copies = [(text, dict(wish)) for text, wish in requests]  # the reference adds to the stop strings it is given
    expected = reference.generate_until(_instances("generate_until", *copies), disable_tqdm=True)
    assert found == expected
    assert any(found)
