"""Log-likelihoods of many continuations at once are those of each one alone, with what they share read once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import EvaluationError
from tinyedge.native.sequences import SequenceContext
from tinyedge_bench.quality import likelihood
from tinyedge_bench.quality.likelihood import Continuation, Likelihood, Scorer
from tinyedge_bench.quality.models import OpenModel, open_model
from tinyedge_bench.quality.shared_prefixes import arrange, groups
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

CONTEXT = 128


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenModel]:
    """The demo checkpoint in float32, without the half precision of the KV cache and of flash attention."""
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(demo_tokenizer().parent, path, "F32")
    with open_model(path, threads=1, backend="cpu", context=CONTEXT) as model:
        yield replace(model, plan=replace(model.plan, kv_type="F32", flash="off"))


def drawn(size: int) -> list[Continuation]:
    """Questions of several answers: some begin alike, so do some answers, and some texts are the beginning of another."""
    draw = random.Random(size)

    def tokens(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, size) for _ in range(draw.randint(least, most)))

    opening, requests = (1, *tokens(30, 30)), []
    for number in range(9):
        context, start = (opening if number % 3 else (1,)) + tokens(3, 20), tokens(2, 2)
        requests += [Continuation(context, (start if answer % 2 else ()) + tokens(1, 9)) for answer in range(4)]
        requests.append(Continuation(context, start))
    requests += [Continuation(opening, (token,)) for token in range(3, 8)]
    requests += [Continuation(tokens(200, 200), tokens(9, 9)), Continuation((1,), tokens(CONTEXT, CONTEXT)), requests[0]]
    draw.shuffle(requests)
    return requests


def one_by_one(model: OpenModel, requests: Sequence[Continuation]) -> list[Likelihood]:
    """Each request alone in an empty context, in the plainest way."""
    settings = likelihood.context_settings(model.plan, outputs=CONTEXT)
    answers = []
    with SequenceContext(model.model, replace(settings, context=CONTEXT, batch=CONTEXT)) as context:
        for request in requests:
            context.clear()
            text = (request.context + request.tokens)[-(CONTEXT + 1) :]
            count = len(text) - 1
            logits = context.read(text[:-1], range(count), [0] * count, [True] * count).astype(np.float64)
            rows, tokens = logits[-len(request.tokens) :], list(request.tokens)
            shares = rows[range(len(tokens)), tokens] - np.logaddexp.reduce(rows, axis=1)
            answers.append(Likelihood(float(shares.sum()), bool((rows.argmax(axis=1) == tokens).all())))
    return answers


@pytest.mark.parametrize("batch", [512, 24])
def test_together_as_one_by_one(demo: OpenModel, batch: int) -> None:
    requests = drawn(demo.model.vocabulary_size)
    expected = one_by_one(demo, requests)
    seen: list[tuple[int, int]] = []
    with Scorer(demo.model, demo.plan, context=CONTEXT, batch=batch) as scorer:
        found = scorer.score(requests, lambda done, total: seen.append((done, total)))
        assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=1e-4)
        assert [each.greedy for each in found] == [each.greedy for each in expected]
        assert seen == sorted(seen)
        assert seen[-1] == (len(requests), len(requests))
        alone = sum(min(CONTEXT, len(each.context) + len(each.tokens) - 1) for each in requests)
        assert scorer.read_tokens < 0.5 * alone
        again = scorer.score(requests[::-1])[::-1]  # upon what the cache holds from before
        assert [each.logprob for each in again] == pytest.approx([each.logprob for each in expected], abs=1e-4)


def test_what_is_shared_is_read_once(demo: OpenModel) -> None:
    opening, question = tuple(range(1, 61)), tuple(range(300, 320))
    with Scorer(demo.model, demo.plan, context=CONTEXT) as scorer:
        scorer.score([Continuation(opening + question, (400 + answer, 500)) for answer in range(4)])
        assert scorer.read_tokens == 80 + 4
        scorer.score([Continuation(opening + question[::-1], (token,)) for token in (7, 8, 9)])
        assert scorer.read_tokens == 84 + 20  # the opening is there already, and the three wait for the same row
        scorer.score([Continuation(opening + question[::-1], (7,))])
        assert scorer.read_tokens == 104 + 1  # the row is computed again


def test_few_rows_of_logits_at_a_time(demo: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = drawn(demo.model.vocabulary_size)
    expected = one_by_one(demo, requests)
    monkeypatch.setattr(likelihood, "_SIDE_BY_SIDE", 5)
    monkeypatch.setattr(likelihood, "_LOGITS_BYTES", 0)
    with Scorer(demo.model, demo.plan, context=CONTEXT) as scorer:
        found = scorer.score(requests)
    assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=1e-4)


def test_a_cache_that_cannot_be_cut_is_begun_anew(demo: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the states of recurrent models: all of a text is forgotten or nothing."""
    requests = drawn(demo.model.vocabulary_size)
    expected = one_by_one(demo, requests)
    forget = SequenceContext.forget
    monkeypatch.setattr(SequenceContext, "forget", lambda self, text, start=0: False if start else forget(self, text))
    with Scorer(demo.model, demo.plan, context=CONTEXT) as scorer:
        for _ in range(2):
            found = scorer.score(requests)
            assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=1e-4)
        longer = [Continuation((1, 7, 8, 9), (4,)), Continuation((1, 7, 8, 9, 10), (5,)), Continuation((1, 7, 11), (6, 4))]
        found = scorer.score(longer[:1]) + scorer.score(longer[1:])
        expected = one_by_one(demo, longer)
        assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=1e-4)


def test_after_an_interruption_nothing_is_built_on_what_was_half_read(demo: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = drawn(demo.model.vocabulary_size)
    expected = one_by_one(demo, requests)
    read = SequenceContext.read
    with Scorer(demo.model, demo.plan, context=CONTEXT) as scorer:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(SequenceContext, "read", lambda *given: (read(*given), (_ for _ in ()).throw(KeyboardInterrupt))[1])
            scorer.score(requests)
        found = scorer.score(requests)
    assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=1e-4)


def test_recurrent_states(tmp_path: Path) -> None:
    from test_hostile_runtime import mamba_file

    with open_model(mamba_file(tmp_path / "mamba.gguf"), threads=1, backend="cpu", context=CONTEXT) as model:
        requests = drawn(model.model.vocabulary_size)
        expected = one_by_one(model, requests)
        with Scorer(model.model, model.plan, context=CONTEXT) as scorer:
            for _ in range(2):
                found = scorer.score(requests)
                assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=1e-4)
            alone = sum(min(CONTEXT, len(each.context) + len(each.tokens) - 1) for each in requests)
            assert scorer.read_tokens < 2 * 0.6 * alone


def test_edges(demo: OpenModel) -> None:
    with Scorer(demo.model, demo.plan, context=CONTEXT) as scorer:
        assert scorer.score([]) == []
        assert scorer.score([Continuation((1,), ())]) == [Likelihood(0.0, True)]
        with pytest.raises(EvaluationError, match="an answer has 129 tokens and the context 128"):
            scorer.score([Continuation((1,), (5,) * 129)])
        with pytest.raises(ValueError, match="at least one token"):
            scorer.score([Continuation((), (5,))])


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    parts = tiny_parts()
    path = write(tmp_path / "tiny.gguf", parts)
    with open_model(path, threads=1, backend="cpu", context=16) as model, Scorer(model.model, model.plan, context=16) as scorer:
        scorer._native.read = lambda *_: np.full((1, model.model.vocabulary_size), np.nan, dtype=np.float32)  # type: ignore[method-assign]
        with pytest.raises(EvaluationError, match="no numbers"):
            scorer.score([Continuation((1,), (2,))])


def test_texts_depart_where_they_differ() -> None:
    first, second, third, fourth = arrange([(1, 2, 3), (1, 2, 3, 4), (1, 2, 5, 6), (7,)])
    assert first.branches == {3: [second], 2: [third], 0: [fourth]}
    assert [text.start for text in (first, second, third, fourth)] == [0, 3, 2, 0]
    third.want(1, 9, 5)
    third.want(2, 9, 6)
    assert (first.wanted, third.wanted) == ({1: [(9, 5)]}, {2: [(9, 6)]})
    assert (first.stop, third.stop) == (2, 4)


def test_groups_hold_what_the_cache_has_room_for() -> None:
    texts = {9: (1, 2, 3), 4: (1, 2, 4), 7: (1, 2, 3), 5: (8, 8), 6: (1, 2, 3, 9)}
    assert list(groups(texts, tokens=100, branches=100)) == [[9, 7, 6, 4, 5]]
    assert list(groups(texts, tokens=5, branches=100)) == [[9, 7, 6, 4], [5]]
    assert list(groups(texts, tokens=4, branches=100)) == [[9, 7, 6], [4], [5]]
    assert list(groups(texts, tokens=100, branches=2)) == [[9, 7, 6], [4, 5]]
    assert list(groups({}, tokens=1, branches=1)) == []
