"""Speculative decoding against plain decoding, on the trained demo model and a tiny seeded one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

import tinyedge
from tinyedge import exactness
from tinyedge.draft_length import DraftLength
from tinyedge.lookup import LookupDrafter
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.lead import Leads
from tinyedge.native.model import Model
from tinyedge.native.sampler import Sampler
from tinyedge.sampling import Sampling
from tinyedge.speculation import Drafter, Speculator
from tinyedge_quantize.convert import convert

ROWS = 17
CONTEXT = 448
GREEDY = Sampling(temperature=0.0)
PROMPTS = (
    "Once upon a time",
    "The cat sat on the mat. The cat sat on the mat. The cat",
    "Tom and his dad went to the park. Tom",
    "One day a big bear found a small",
    '"Hello," said the fish. "Hello," said the',
    "a b c a b c a b c",
)


class EveryDraft(DraftLength):
    """Decodes whatever is guessed."""

    def wanted(self, limit: int) -> int:
        return max(0, limit)

    def worth(self, length: int, _sureness: int) -> int:
        return length


class Oracle:
    """Guesses the continuation that it is given, some of its tokens replaced by another."""

    sureness = 0

    def __init__(self, tokens: Sequence[int], wrong: Sequence[int] = ()) -> None:
        self._tokens = [5 if place in wrong else token for place, token in enumerate(tokens)]

    def propose(self, tokens: Sequence[int], limit: int) -> list[int]:
        return self._tokens[len(tokens) : len(tokens) + limit]

    def close(self) -> None:
        pass


@pytest.fixture(scope="module", params=["Q4_K_M", "F16"])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(Path(tinyedge.__file__).parent / "demo", path, request.param)
    with Model(path) as model:
        yield model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())) as model:
        yield model


def context_of(model: Model, context: int = CONTEXT, kv_type: str = "F16") -> Context:
    return Context(model, ContextSettings(context=context, threads=1, outputs=ROWS, kv_type=kv_type))


def plain(model: Model, context: Context, prompt: Sequence[int], sampling: Sampling, count: int) -> list[int]:
    """What single steps give."""
    context.clear()
    context.decode_all(prompt)
    drawn: list[int] = []
    with Sampler(model, sampling) as sampler:
        drawn.append(sampler.sample(context))
        while len(drawn) < count and not model.ends_generation(drawn[-1]):
            context.decode(drawn[-1])
            drawn.append(sampler.sample(context))
    return drawn


def speculated(
    model: Model,
    speculator: Speculator,
    context: Context,
    prompt: Sequence[int],
    sampling: Sampling,
    count: int,
) -> list[int]:
    """What steps of the speculator give; the KV cache is checked to hold what is said to be in it."""
    context.clear()
    context.decode_all(prompt)
    cached = list(prompt)
    with Sampler(model, sampling) as sampler:
        drawn = [sampler.sample(context)]
        while len(drawn) < count and not model.ends_generation(drawn[-1]):
            drawn += speculator.step(cached, drawn[-1], sampler, count - len(drawn) - 1)
            assert cached == [*prompt, *drawn[:-1]]
    return drawn


def eagerly(context: Context, drafter: Drafter, *, exact: bool = True) -> Speculator:
    return Speculator(context, drafter, exact=exact, length=EveryDraft())


def test_greedy_text_is_that_of_plain_decoding_however_much_is_drafted(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "_CALM", 0)
    drafted = accepted = 0
    with context_of(demo) as context:
        for text in PROMPTS[1:5]:
            prompt = demo.tokenize(text)
            expected = plain(demo, context, prompt, GREEDY, 200)
            speculator = eagerly(context, LookupDrafter())
            assert speculated(demo, speculator, context, prompt, GREEDY, 200) == expected
            drafted, accepted = drafted + speculator.drafted, accepted + speculator.accepted
    assert drafted > 500
    assert 100 < accepted < drafted


def test_without_exactness_rounding_decides_ties_now_and_then(tmp_path: Path) -> None:
    """What the tests of exactness would not see on a machine whose kernels round alike however many tokens a pass has."""
    path = tmp_path / "demo.gguf"
    convert(Path(tinyedge.__file__).parent / "demo", path, "Q4_K_M")
    with Model(path) as model, context_of(model) as context:
        for text in PROMPTS:
            prompt = model.tokenize(text)
            expected = plain(model, context, prompt, GREEDY, 200)
            speculator = eagerly(context, Oracle([*prompt, *expected]), exact=False)
            found = speculated(model, speculator, context, prompt, GREEDY, 200)
            assert len(found) == len(expected)
            if found != expected:
                return
    pytest.skip("passes of several tokens compute here exactly what single steps do")


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0, repeat_penalty=1.3),
        Sampling(temperature=0.0, frequency_penalty=0.5, presence_penalty=0.2),
        Sampling(temperature=0.0, dry_multiplier=0.8),
        Sampling(temperature=0.0, logit_bias={300: 3.0, 400: -math.inf}),
        Sampling(temperature=0.0, grammar='root ::= ([a-z]+ [ .,\\n])+ "!"'),
        Sampling(temperature=0.0, typical_p=0.5),
    ],
    ids=["repeat", "frequency", "dry", "bias", "grammar", "typical"],
)
def test_greedy_text_with_other_steps_in_the_chain_is_that_of_plain_decoding(
    demo: Model, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    monkeypatch.setattr(exactness, "_CALM", 0)
    with context_of(demo) as context:
        for text in PROMPTS[:2]:
            prompt = demo.tokenize(text)
            expected = plain(demo, context, prompt, sampling, 80)
            speculator = eagerly(context, Oracle([*prompt, *expected], wrong=range(20, 150, 7)))
            assert speculated(demo, speculator, context, prompt, sampling, 80) == expected
            assert speculator.drafted > 0


@pytest.mark.parametrize("wrong", [(), range(30, 500, 5), range(500)])
def test_the_rows_of_a_pass_are_counted_as_drafted_and_accepted(tiny: Model, wrong: Sequence[int]) -> None:
    prompt = tiny.tokenize("ab")
    with context_of(tiny, 128, "Q8_0") as context:
        expected = plain(tiny, context, prompt, GREEDY, 100)
        speculator = eagerly(context, Oracle([*prompt, *expected], wrong), exact=False)
        found = speculated(tiny, speculator, context, prompt, GREEDY, 100)
    assert len(found) >= min(100, len(expected))
    if wrong == range(500):
        assert speculator.accepted == 0 < speculator.drafted
    elif not wrong and found == expected:
        assert speculator.accepted == speculator.drafted > 0


def test_sampled_text_has_the_distribution_of_plain_decoding(tiny: Model) -> None:
    """The third token, drawn in the row after two guesses, over many seeds: what differs is within what chance allows."""
    prompt, runs = tiny.tokenize("ab"), 800
    counts: list[Counter[int]] = [Counter(), Counter()]
    with context_of(tiny, 64) as context:
        for seed in range(runs):
            warm = Sampling(temperature=0.05, top_k=12, top_p=1.0, min_p=0.0, seed=seed)
            expected = plain(tiny, context, prompt, warm, 3)
            other = plain(
                tiny, context, prompt, Sampling(temperature=0.05, top_k=12, top_p=1.0, min_p=0.0, seed=seed + runs), 3
            )
            speculator = eagerly(context, Oracle([*prompt, *expected, 7, 8]))
            found = speculated(tiny, speculator, context, prompt, other_seed(warm, runs), 3)
            counts[0][other[-1]] += 1
            counts[1][found[-1]] += 1
    assert len(counts[0]) > 3
    distance = sum(abs(counts[0][token] - counts[1][token]) for token in counts[0] | counts[1]) / (2 * runs)
    assert distance < 0.02  # the same seeds draw the same tokens but for rounding


def other_seed(sampling: Sampling, offset: int) -> Sampling:
    return Sampling(temperature=sampling.temperature, top_k=12, top_p=1.0, min_p=0.0, seed=sampling.seed + offset)


def test_a_guess_outside_the_vocabulary_is_not_decoded(tiny: Model) -> None:
    prompt = tiny.tokenize("ab")
    with context_of(tiny, 64) as context:
        expected = plain(tiny, context, prompt, GREEDY, 20)
        for bad in (-1, tiny.vocabulary_size, 2**40):
            speculator = eagerly(context, Oracle([*prompt, expected[0], bad, bad, *[bad] * 60]))
            assert speculated(tiny, speculator, context, prompt, GREEDY, 20) == expected


def test_nothing_is_drafted_beyond_the_limit(tiny: Model) -> None:
    prompt = tiny.tokenize("ab")
    with context_of(tiny, 64) as context, Sampler(tiny, GREEDY) as sampler:
        context.decode_all(prompt)
        cached, token = list(prompt), sampler.sample(context)
        speculator = eagerly(context, Oracle([5] * 64))
        for limit in (-2, 0, 1, 3):
            before = speculator.drafted
            token = speculator.step(cached, token, sampler, limit)[-1]
            assert speculator.drafted - before <= max(limit, 0)


class Stopping(Context):
    """A context in which Ctrl-C comes after so many decodes."""

    left = 10**9

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def decode(self, token: int) -> None:
        super().decode(token)
        self._count()

    def decode_rows(self, tokens: Sequence[int]) -> None:
        super().decode_rows(tokens)
        self._count()


@pytest.mark.parametrize("left", range(12))
def test_an_interrupted_step_leaves_a_cache_that_begins_with_what_it_is_said_to_hold(
    tiny: Model, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactness, "_FIRST_DIFFERENCE", 1.0)  # doubts nearly everything, so that much is done again
    monkeypatch.setattr(exactness, "_CALM", 0)
    prompt = tiny.tokenize("ab")
    settings = ContextSettings(context=64, threads=1, outputs=ROWS)
    with context_of(tiny, 64) as reference, Stopping(tiny, settings) as context, Sampler(tiny, GREEDY) as sampler:
        expected = plain(tiny, reference, prompt, GREEDY, 40)
        context.decode_all(prompt)
        cached, drawn = list(prompt), [sampler.sample(context)]
        speculator = eagerly(context, Oracle([*prompt, *expected], wrong=range(0, 64, 6)))
        context.left = left
        with pytest.raises(KeyboardInterrupt):
            while True:
                drawn += speculator.step(cached, drawn[-1], sampler, 6)
        context.left = 10**9
        assert cached == [*prompt, *expected][: len(cached)]
        assert context.remove(len(cached))
        context.decode([*prompt, *expected][len(cached)])
        with Sampler(tiny, GREEDY) as fresh:
            assert fresh.sample(context) == expected[len(cached) - len(prompt) + 1]


def test_after_an_interruption_the_same_speculator_goes_on(tiny: Model) -> None:
    prompt = tiny.tokenize("ab")
    with Stopping(tiny, ContextSettings(context=64, threads=1, outputs=ROWS)) as context:
        expected = plain(tiny, context, prompt, GREEDY, 30)
        speculator = eagerly(context, Oracle([*prompt, *expected]))
        context.left = 2
        with pytest.raises(KeyboardInterrupt):
            speculated(tiny, speculator, context, prompt, GREEDY, 30)
        context.left = 10**9
        assert speculated(tiny, speculator, context, prompt, GREEDY, 30) == expected


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Timed(Context):
    """A context whose passes take made-up times: 1 second, and 0.1 for each further token."""

    def __init__(self, model: Model, settings: ContextSettings, clock: Clock) -> None:
        super().__init__(model, settings)
        self._clock = clock

    def decode(self, token: int) -> None:
        super().decode(token)
        self._clock.seconds += 1.0

    def decode_rows(self, tokens: Sequence[int]) -> None:
        super().decode_rows(tokens)
        self._clock.seconds += 0.9 + 0.1 * len(tokens)


@pytest.mark.parametrize(("right", "least", "most"), [(True, 3.0, 7.0), (False, 0.9, 1.0)])
def test_the_speedup_is_that_of_the_clock(tiny: Model, right: bool, least: float, most: float) -> None:
    prompt, clock = tiny.tokenize("ab"), Clock()
    with Timed(tiny, ContextSettings(context=512, threads=1, outputs=ROWS, kv_type="Q8_0"), clock) as context:
        expected = plain(tiny, context, prompt, GREEDY, 300)
        guesses = [*prompt, *expected] if right else [5] * 400
        speculator = Speculator(context, Oracle(guesses), exact=False, clock=clock)
        began = clock.seconds
        found = speculated(tiny, speculator, context, prompt, GREEDY, 300)
        taken = clock.seconds - began
    assert least < (speculator.speedup or 0.0) <= most
    assert speculator.speedup == pytest.approx((len(found) - 1) / taken, rel=0.1)


def test_there_is_no_speedup_before_a_step(tiny: Model) -> None:
    with context_of(tiny, 64) as context:
        assert Speculator(context, LookupDrafter()).speedup is None


def test_the_lead_is_the_gap_between_the_first_two_in_standard_deviations(tiny: Model) -> None:
    with context_of(tiny, 64) as context, Sampler(tiny, GREEDY) as sampler:
        context.decode_all(tiny.tokenize("ab"))
        logits = list(context.logits())
        mean = sum(logits) / len(logits)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in logits) / len(logits))
        first, second = sorted(logits)[:-3:-1]
        lead = Leads(context, sampler).of(-1)
        assert lead.share == pytest.approx((first - second) / deviation, rel=1e-4)
        assert list(lead.logits) == logits


def test_the_lead_is_seen_after_the_samplers_biases_and_under_its_grammar(tiny: Model) -> None:
    prompt = tiny.tokenize("ab")
    with context_of(tiny, 64) as context:
        context.decode_all(prompt)
        best = max(range(tiny.vocabulary_size), key=list(context.logits()).__getitem__)
        with Sampler(tiny, Sampling(temperature=0.0, logit_bias={best: 1e4})) as raised:
            assert Leads(context, raised).of(-1).share > 100.0
        letter = tiny.piece(best).decode("utf-8", "replace")
        other = "y" if letter.strip() == "z" else "z"
        with Sampler(tiny, Sampling(temperature=0.0, grammar=f'root ::= "{other}"+')) as bound:
            assert Leads(context, bound).of(-1).share == 0.0
