"""Every step of the sampler chain against its published rule, written again in numpy, on one vector of logits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import GrammarError, NativeError
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model
from tinyedge.native.sampler import Candidates, Sampler
from tinyedge.sampling import Sampling

Weights = dict[int, float]

VOCABULARY = 312
LOGITS = np.random.default_rng(5).normal(0.0, 2.5, VOCABULARY).astype(np.float32)
# Nothing in the chain changes anything, but for the draw.
PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(write(tmp_path_factory.mktemp("sampler") / "tiny.gguf", tiny_parts())) as model:
        yield model


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    """A context whose logits are ours."""
    with Context(model, ContextSettings(context=64, threads=1)) as context:
        context.decode(1)
        context.wait()
        set_logits(context, LOGITS)
        yield context


def set_logits(context: Context, logits: Any) -> None:
    context.logits()[:] = logits.tolist()


def distribution(model: Model, sampling: Sampling, accepted: tuple[int, ...] = (), logits: Any = LOGITS) -> Weights:
    """The probabilities that the whole chain leaves to the last step, which draws."""
    with Sampler(model, sampling) as sampler:
        for token in accepted:
            sampler.accept(token)
        candidates = Candidates(VOCABULARY)
        values = (ctypes.c_float * VOCABULARY)(*logits.tolist())
        candidates.fill(values)
        candidates.apply(sampler.chain)
        array = candidates._array
        rows = [(array.data[i].id, array.data[i].p) for i in range(array.size)]
    return {token: p for token, p in rows if p > 0}


def softmax(logits: Any) -> Any:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def kept(tokens: Any, logits: Any = LOGITS, temperature: float = 1.0) -> Weights:
    """The probabilities of `tokens` alone."""
    return dict(zip((int(t) for t in tokens), softmax(logits[tokens] / temperature), strict=True))


def assert_same(found: Weights, expected: Weights) -> None:
    assert {token for token, p in expected.items() if p > 1e-6} <= found.keys()
    assert found.keys() <= expected.keys()
    for token, p in found.items():
        assert p == pytest.approx(expected[token], rel=1e-3, abs=1e-6)


BEST_FIRST = np.argsort(-LOGITS)
P = softmax(LOGITS)


def until(order: Any, enough: float, *, beyond: bool) -> Any:
    """The first of `order` whose probabilities come to `enough`, or beyond it."""
    sums = np.cumsum(P[order])
    return order[: int(np.argmax(sums > enough if beyond else sums >= enough)) + 1]


def typical(p: float) -> Any:
    """Meister et al. 2022: by how far the surprise of a token is from the entropy."""
    entropy = -(P * np.log(P)).sum()
    return until(np.argsort(np.abs(-np.log(P) - entropy)), p, beyond=True)


def dynamic_temperature(base: float, spread: float, exponent: float) -> float:
    entropy = -(P * np.log(P)).sum() / math.log(VOCABULARY)
    low, high = max(0.0, base - spread), base + spread
    return float(low + (high - low) * entropy**exponent)


RULES: list[tuple[str, dict[str, Any], Callable[[], Weights]]] = [
    ("nothing", {}, lambda: kept(BEST_FIRST)),
    ("temperature", {"temperature": 0.5}, lambda: kept(BEST_FIRST, temperature=0.5)),
    ("a tiny temperature", {"temperature": 1e-40}, lambda: kept(BEST_FIRST[:1])),
    (
        "dynamic temperature",
        {"temperature": 1.2, "dynatemp_range": 0.7, "dynatemp_exponent": 1.5},
        lambda: kept(BEST_FIRST, temperature=dynamic_temperature(1.2, 0.7, 1.5)),
    ),
    ("top-k", {"top_k": 7}, lambda: kept(BEST_FIRST[:7])),
    ("top-k beyond 128", {"top_k": 200}, lambda: kept(BEST_FIRST[:200])),
    ("top-p", {"top_p": 0.6}, lambda: kept(until(BEST_FIRST, 0.6, beyond=False))),
    ("min-p", {"min_p": 0.1}, lambda: kept(np.flatnonzero(0.1 * P.max() <= P))),
    ("typical", {"typical_p": 0.5}, lambda: kept(typical(0.5))),
    ("top-n-sigma", {"top_n_sigma": 1.0}, lambda: kept(np.flatnonzero(LOGITS.max() - LOGITS.std() <= LOGITS))),
    (
        "XTC",
        {"xtc_probability": 1.0, "xtc_threshold": 0.02},
        lambda: kept(BEST_FIRST[int((P >= 0.02).sum()) - 1 :]),
    ),
]


@pytest.mark.parametrize(("values", "expected"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
def test_a_step_follows_its_rule(model: Model, values: dict[str, Any], expected: Callable[[], Weights]) -> None:
    assert_same(distribution(model, replace(PLAIN, **values)), expected())


def test_the_steps_come_in_order(model: Model) -> None:
    """Top-k before top-p before min-p before the temperature: another order leaves other tokens."""
    found = distribution(model, replace(PLAIN, temperature=3.0, top_k=20, top_p=0.7, min_p=0.3))
    first = BEST_FIRST[:20]
    second = first[: int(np.argmax(np.cumsum(softmax(LOGITS[first])) >= 0.7)) + 1]
    third = second[LOGITS[second] >= LOGITS.max() + math.log(0.3)]
    assert_same(found, kept(third, temperature=3.0))


def test_penalties_look_at_the_last_tokens(model: Model) -> None:
    accepted = (9, 4, 4, 7, 4)
    window = accepted[-4:]
    found = distribution(
        model,
        replace(PLAIN, repeat_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.9, repeat_last=4),
        accepted,
    )
    logits = LOGITS.copy()
    for token in set(window):
        logits[token] = logits[token] / 1.3 if logits[token] > 0 else logits[token] * 1.3
        logits[token] -= window.count(token) * 0.4 + 0.9
    assert_same(found, kept(np.arange(VOCABULARY), logits))


@pytest.mark.parametrize("breakers", [(), ("d",)])
def test_dry_makes_the_continuation_of_a_repetition_less_likely(model: Model, breakers: tuple[str, ...]) -> None:
    """p-e-w's rule: multiplier * base ** (length of the repetition - allowed length); none across a sequence breaker."""
    a, b, c, d = (model.tokenize(letter, add_special=False)[-1] for letter in "abcd")
    accepted = (d, a, b, c, d, a, b)
    values = replace(PLAIN, dry_multiplier=0.8, dry_base=1.5, dry_allowed_length=2, dry_sequence_breakers=breakers)
    logits = LOGITS.copy()
    logits[c] -= 0.8 * 1.5 ** ((2 if breakers else 3) - 2)  # after "d a b" came c
    assert_same(distribution(model, values, accepted), kept(np.arange(VOCABULARY), logits))


def test_a_logit_bias_adds_and_forbids(model: Model) -> None:
    best = int(BEST_FIRST[0])
    logits = LOGITS.copy()
    logits[5] += 3.0
    others = np.delete(np.arange(VOCABULARY), best)
    assert_same(distribution(model, replace(PLAIN, logit_bias={5: 3.0, best: -math.inf})), kept(others, logits))


def mirostat_1(mu: float) -> Any:
    """Basu et al. 2021: Zipf's exponent from the 100 likeliest, then top-k for the wanted surprise."""
    p = P[BEST_FIRST][:100]
    t = np.log(np.arange(2, 101) / np.arange(1, 100))
    s = (t * np.log(p[:-1] / p[1:])).sum() / (t * t).sum()
    excess = s - 1
    k = int(((excess * 2.0**mu) / (1 - float(VOCABULARY) ** -excess)) ** (1 / s))
    return BEST_FIRST[: max(1, k)]


def mirostat_2(mu: float) -> Any:
    left = BEST_FIRST[-np.log2(P[BEST_FIRST]) <= mu]
    return left if len(left) else BEST_FIRST[:1]


@pytest.mark.parametrize(("version", "rule"), [(1, mirostat_1), (2, mirostat_2)])
def test_mirostat_follows_the_surprise_it_sees(
    model: Model, context: Context, version: int, rule: Callable[[float], Any]
) -> None:
    tau, eta = 3.0, 0.4
    mu = 2 * tau
    with Sampler(model, replace(PLAIN, mirostat=version, mirostat_tau=tau, mirostat_eta=eta, top_k=1)) as sampler:
        for _ in range(60):
            allowed = rule(mu)
            token = sampler.sample(context)
            assert token in allowed
            surprise = -math.log2(kept(allowed)[token])
            mu -= eta * (surprise - tau)


def test_draws_are_those_of_the_mersenne_twister(model: Model, context: Context) -> None:
    """std::mt19937 and std::uniform_real_distribution as the C++ standard defines them."""
    generator = np.random.MT19937()
    generator._legacy_seeding(PLAIN.seed)  # type: ignore[attr-defined]
    sums = np.cumsum(P)
    expected = []
    for _ in range(50):
        low, high = generator.random_raw(2)
        expected.append(int(np.searchsorted(sums, (int(low) + int(high) * 2**32) / 2**64)))
    with Sampler(model, PLAIN) as sampler:
        assert [sampler.sample(context) for _ in range(50)] == expected


def test_the_chain_has_the_steps_of_llama_cpp_in_their_order(model: Model) -> None:
    """common_params_sampling.samplers in common/common.h, and a question mark before each that does nothing."""
    with Sampler(model, Sampling()) as sampler:
        assert sampler.names == (
            *("?penalties", "?dry", "?top-n-sigma", "top-k", "?typical", "top-p", "min-p", "?xtc", "temp-ext"),
            "dist",
        )
    with Sampler(model, Sampling(mirostat=2, top_k=5, logit_bias={3: 1.0})) as sampler:
        assert sampler.names == ("logit-bias", "temp", "mirostat-v2")
    with Sampler(model, Sampling(samplers=("temperature", "top_k"))) as sampler:
        assert sampler.names == ("temp-ext", "top-k", "dist")


@pytest.mark.parametrize("values", [{}, {"xtc_probability": 0.5, "xtc_threshold": 0.5}, {"typical_p": 0.99}])
def test_temperature_zero_takes_the_likeliest(model: Model, context: Context, values: dict[str, Any]) -> None:
    with Sampler(model, Sampling(temperature=0.0, **values)) as sampler:
        assert {sampler.sample(context) for _ in range(5)} == {int(BEST_FIRST[0])}


def test_a_bias_outside_the_vocabulary_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="token 312 and the model's tokens are 0 to 311"):
        Sampler(model, Sampling(logit_bias={VOCABULARY: 1.0}))


def test_a_closed_sampler_says_so(model: Model, context: Context) -> None:
    sampler = Sampler(model, Sampling())
    sampler.close()
    sampler.close()
    for use in (lambda: sampler.sample(context), lambda: sampler.accept(1), lambda: sampler.names):
        with pytest.raises(NativeError, match="closed"):
            use()


def generated(model: Model, context: Context, sampling: Sampling, limit: int = 60, seed: int = 0) -> tuple[bytes, bool]:
    """A text from logits drawn at random for each token, and whether the model ended it."""
    noise = np.random.default_rng(seed)
    text = b""
    with Sampler(model, sampling) as sampler:
        for _ in range(limit):
            set_logits(context, noise.normal(0.0, 3.0, VOCABULARY))
            token = sampler.sample(context)
            if model.ends_generation(token):
                return text, True
            text += model.piece(token)
    return text, False


@pytest.mark.parametrize("seed", range(8))
def test_a_grammar_is_kept(model: Model, context: Context, seed: int) -> None:
    grammar = 'root ::= "{" [a-e]{2,4} ": " ("true" | "false") "}"'
    text, ended = generated(model, context, replace(PLAIN, grammar=grammar, seed=seed), seed=seed)
    assert ended
    body, _, word = text.decode().strip("{}").partition(": ")
    assert 2 <= len(body) <= 4 and set(body) <= set("abcde") and word in ("true", "false")


def test_a_grammar_changes_nothing_where_it_allows_what_was_drawn(model: Model, context: Context) -> None:
    """The token is drawn first and checked afterwards, so the draws are those of the same seed without a grammar."""
    only_ascii = {token: -math.inf for token in range(VOCABULARY) if not model.piece(token).isascii() or not model.piece(token)}
    plain = replace(PLAIN, logit_bias=only_ascii)
    free, _ = generated(model, context, plain, 30)
    assert generated(model, context, replace(plain, grammar="root ::= .*"), 30)[0] == free


@pytest.mark.parametrize("seed", range(20))
def test_text_under_a_grammar_is_utf8(model: Model, context: Context, seed: int) -> None:
    """llama.cpp takes overlong forms and surrogates for characters; a reader of the text would not."""
    text, ended = generated(model, context, replace(PLAIN, grammar="root ::= [^a]{12}", seed=seed), 80, seed)
    assert ended
    assert len(text.decode("utf-8")) == 12


def test_control_tokens_do_not_count_by_their_names(model: Model, context: Context) -> None:
    logits = np.full(VOCABULARY, -5.0)
    logits[1] = 20.0  # <s>
    set_logits(context, logits)
    with Sampler(model, replace(PLAIN, grammar='root ::= "<s>"')) as sampler:
        text = b"".join(model.piece(sampler.sample(context)) for _ in range(3))
    assert text == b"<s>"


def test_a_grammar_that_the_vocabulary_cannot_write_is_told(model: Model, context: Context) -> None:
    with (
        Sampler(model, replace(PLAIN, grammar=r'root ::= "a\uD800"')) as sampler,  # half a surrogate pair, no text
        pytest.raises(GrammarError, match="no token of this model"),
    ):
        for _ in range(4):
            sampler.sample(context)


@pytest.mark.parametrize("grammar", ["root ::= (", 'root ::= root "a"', 'toot ::= "a"'])
def test_a_wrong_grammar_is_refused_before_llama_cpp_prints(
    model: Model, grammar: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GrammarError):
        Sampler(model, Sampling(grammar=grammar))
    assert capfd.readouterr() == ("", "")
