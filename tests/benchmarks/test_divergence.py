"""KL divergence from a base: perplexity.cpp's formulas in plain Python, and llama-perplexity's own figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from quality_references import kl_statistics, llama_perplexity, logits_of, printed
from tiny_gguf import Parts, tiny_parts, tokens, write

from tinyedge.errors import EvaluationError
from tinyedge_bench.quality.divergence import (
    Divergence,
    Samples,
    add_samples,
    check_same_vocabulary,
    measure_divergence,
    statistics,
)
from tinyedge_bench.quality.models import OpenModel, open_model
from tinyedge_bench.quality.perplexity import Perplexity, measure_perplexity
from tinyedge_bench.quality.text import Text
from tinyedge_bench.quality.windows import Windows, cut
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

DEMO = demo_tokenizer().parent
CONTEXT = 192


def figures(found: Divergence, perplexity: Perplexity) -> dict[str, tuple[float | None, ...]]:
    """What we measured by llama-perplexity's names."""
    named: dict[str, tuple[float | None, ...]] = {
        "Mean PPL(Q)": (perplexity.value, perplexity.error),
        "Mean PPL(base)": (found.base_perplexity.value, found.base_perplexity.error),
        "Cor(ln(PPL(Q)), ln(PPL(base)))": (100 * (found.correlation or 0),),
        "Mean ln(PPL(Q)/PPL(base))": (found.log_ratio, found.log_ratio_error),
        "Mean PPL(Q)/PPL(base)": (found.ratio, found.ratio_error),
        "Mean PPL(Q)-PPL(base)": (found.difference, found.difference_error),
        "Mean    KLD": (found.mean_kl, found.mean_kl_error),
        "Mean    Δp": (100 * found.dp_mean, 100 * (found.dp_mean_error or 0)),
        "RMS Δp": (100 * found.dp_rms, 100 * (found.dp_rms_error or 0)),
        "Same top p": (100 * found.same_top, 100 * (found.same_top_error or 0)),
    }
    for unit, values, scale in (("KLD", found.kl_percentiles, 1), ("Δp", found.dp_percentiles, 100)):
        words = {"max": f"Maximum {unit}", "median": f"Median  {unit}", "min": f"Minimum {unit}"}
        named |= {words.get(key, f"{key}%   {unit}"): (scale * value,) for key, value in values.items()}
    return named


def flat_perplexity(losses: np.ndarray) -> Perplexity:
    mean, error = float(losses.mean()), math.sqrt(float(losses.var()) / (len(losses) - 1))
    value = math.exp(mean)
    return Perplexity(
        value=value,
        error=value * error,
        tokens=len(losses),
        chunks=1,
        context=16,
        text_bytes=0,
        bits_per_byte=None,
        bits_per_byte_error=None,
    )


def random_logits(seed: int, count: int = 300, vocabulary: int = 41) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed)
    base = noise.normal(0, 4, (count, vocabulary)).astype(np.float32)
    model = base + noise.normal(0, 0.5, base.shape).astype(np.float32)
    return model, base, noise.integers(0, vocabulary, count).astype(np.int32)


@pytest.mark.parametrize("seed", range(3))
def test_every_figure_follows_llama_perplexitys_formulas(seed: int) -> None:
    model, base, targets = random_logits(seed)
    samples = Samples.room(len(targets))
    for start, end in ((0, 7), (7, 300)):
        add_samples(samples, start, model[start:end], base[start:end], targets[start:end])
    found = statistics(samples, flat_perplexity(samples.losses), flat_perplexity(samples.base_losses))
    ours = figures(found, flat_perplexity(samples.losses))
    expected = kl_statistics(model, base, targets.tolist(), rounded=False)
    assert ours.keys() <= expected.keys()
    for name, values in ours.items():
        assert values == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


def test_a_token_that_both_rule_out_counts_nothing_and_one_that_the_model_alone_rules_out_is_infinite() -> None:
    base, model = np.zeros((2, 3), dtype=np.float32), np.zeros((2, 3), dtype=np.float32)
    base[:, 2] = -np.inf
    model[0, 2] = -np.inf
    model[1, 1] = -np.inf
    samples = Samples.room(2)
    add_samples(samples, 0, model, base, np.zeros(2, dtype=np.int32))
    assert samples.divergences.tolist() == [0.0, math.inf]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    path = tmp_path_factory.mktemp("base") / "f16.gguf"
    convert(DEMO, path, "F16")
    return open_model(path, threads=1, backend="cpu", context=CONTEXT)


@pytest.fixture(scope="module", params=["Q4_K_M", "Q2_K"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    path = tmp_path_factory.mktemp("model") / f"{request.param}.gguf"
    convert(DEMO, path, request.param)
    return open_model(path, threads=1, backend="cpu", context=CONTEXT)


@pytest.fixture(scope="module")
def windows(base: OpenModel) -> Windows:
    read = Text(path=DEMO / "README.md").tokens(base.model)
    return cut(read, "README.md", context=CONTEXT, bos=base.model.bos)


def test_a_model_diverges_from_itself_by_nothing(base: OpenModel, windows: Windows) -> None:
    perplexity, found = measure_divergence(base, base, windows)
    assert perplexity == found.base_perplexity == measure_perplexity(base, windows)
    assert set(found.kl_percentiles.values()) == {0.0}
    assert (found.mean_kl, found.log_ratio, found.difference, found.dp_rms, found.same_top) == (0, 0, 0, 0, 1)
    assert found.correlation == pytest.approx(1)


def test_only_the_16_bits_of_its_file_part_us_from_llama_perplexity(
    model: OpenModel, base: OpenModel, windows: Windows, tmp_path: Path
) -> None:
    """Its formulas in plain Python give every figure it prints when log-probabilities go through its 16 bits, ours when not.

    Percentiles are figures of single tokens, which sums in another order may move by a step of the 16 bits.

    No log-probability in its file is below the likeliest's less 16. This text has rarer tokens than that, so that the base's
    perplexity from that file is 15% too small; over prose it is the same.
    """
    (tmp_path / "text").write_bytes((DEMO / "README.md").read_bytes())
    common = ("-c", str(CONTEXT), "-b", str(2 * CONTEXT), "--kl-divergence-base", tmp_path / "logits")
    llama_perplexity("-m", base.path, "-f", tmp_path / "text", *common, until="Final estimate")
    said = printed(llama_perplexity("-m", model.path, *common, "--kl-divergence", until="Same top p"))
    rows, base_rows, targets = [], [], []
    for start in windows.starts:
        window = windows.tokens[start : start + CONTEXT].tolist()
        window[0] = windows.bos
        for found, opened in ((rows, model), (base_rows, base)):
            found += list(logits_of(opened.model, window)[CONTEXT // 2 : -1])
        targets += window[CONTEXT // 2 + 1 :]
    imitated = kl_statistics(rows, base_rows, targets, rounded=True)
    exact = kl_statistics(rows, base_rows, targets, rounded=False)
    perplexity, divergence = measure_divergence(model, base, windows)
    measured = figures(divergence, perplexity)
    assert measured.keys() == said.keys()
    for name, words in said.items():
        mean = name.startswith(("Mean", "RMS", "Same"))
        step = 10.0 ** -len(words[0].partition(".")[2])
        near = {"rel": 1e-5, "abs": 3 * step} if mean else {"rel": 1e-3, "abs": 2e-3 if "Δp" in name else 2e-5}
        assert imitated[name] == pytest.approx([float(word) for word in words], **near), name
        assert measured[name] == pytest.approx(exact[name], rel=1e-4, abs=1e-5), name
    assert exact["Mean    KLD"] == pytest.approx(imitated["Mean    KLD"], rel=0.01)


def bent(key: str, kind: str, value: object) -> Parts:
    parts = tiny_parts()
    parts.set(key, kind, value)
    return parts


OTHER_TOKENS = [*tokens()[:-1], b"zzz"]
SCORES = [-float(i) for i in range(len(tokens()))]


@pytest.mark.parametrize(
    ("parts", "difference"),
    [
        (bent("tokenizer.ggml.tokens", "arr[str]", OTHER_TOKENS), "list of tokens is another (entry 311 is 'zzz', not 'em')"),
        (
            bent("tokenizer.ggml.scores", "arr[f32]", [*SCORES[:-1], 5.0]),
            "list of scores is another (entry 311 is 5.0, not -311.0)",
        ),
        (bent("tokenizer.ggml.bos_token_id", "u32", 2), "token that begins a text is another (2, not 1)"),
        (
            bent("tokenizer.ggml.add_bos_token", "bool", False),
            "choice of beginning a text with it is another (False, not True)",
        ),
    ],
)
def test_a_base_with_another_vocabulary_is_refused(parts: Parts, difference: str, tmp_path: Path) -> None:
    path, base = write(tmp_path / "model.gguf", tiny_parts()), write(tmp_path / "base.gguf", parts)
    with pytest.raises(EvaluationError) as raised:
        check_same_vocabulary(path, base)
    assert raised.value.problem == f"base.gguf cannot be the base of model.gguf: its {difference}"


def test_what_only_one_file_says_is_no_difference(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.drop("tokenizer.ggml.add_bos_token")
    check_same_vocabulary(write(tmp_path / "model.gguf", tiny_parts()), write(tmp_path / "base.gguf", parts))
