"""Perplexity and bits per byte: llama-perplexity's own figures, its formulas over logits of single windows, transformers."""

from __future__ import annotations

import math
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from quality_references import llama_perplexity, log_probabilities, logits_of, loss
from tiny_gguf import CONTEXT, F32, Parts, tiny_parts, write

from tinyedge.errors import EvaluationError
from tinyedge_bench.quality import windows as windows_module
from tinyedge_bench.quality.models import OpenModel, open_model
from tinyedge_bench.quality.perplexity import Perplexity, log_softmax, measure_perplexity, slabs
from tinyedge_bench.quality.text import Text
from tinyedge_bench.quality.windows import cut, tokens_wanted
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

WORDS = "abide edible imaged chime ml kled jab bid di cable kind "
DEMO = demo_tokenizer().parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    path = write(tmp_path_factory.mktemp("tiny") / "tiny.gguf", tiny_parts())
    return open_model(path, threads=1, backend="cpu", context=CONTEXT)


@pytest.fixture(scope="module", params=["F16", "Q4_K_M", "Q2_K"])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    path = tmp_path_factory.mktemp("demo") / f"{request.param}.gguf"
    convert(DEMO, path, request.param)
    return open_model(path, threads=1, backend="cpu", context=512)


@pytest.fixture(scope="module")
def story() -> Text:
    """Prose with line breaks, quotes and rare characters, 1,900 tokens of it."""
    return Text(path=DEMO / "README.md", data=(DEMO / "README.md").read_bytes() + "\n“Größe” — 火山, naïve.\n".encode() * 9)


def expected(model: OpenModel, tokens: list[int], size: int, stride: int | None, count: int) -> list[float]:
    """The losses of perplexity.cpp's `perplexity`, or with a stride `perplexity_v2`, from logits read window by window."""
    losses = []
    for number in range(count):
        start = number * (stride or size)
        window = tokens[start : start + size]
        if not stride and model.model.bos is not None:
            window[0] = model.model.bos
        logits = logits_of(model.model, window)
        first = size - stride - 1 if stride else size // 2
        losses += [loss(logits[place].tolist(), tokens[start + place + 1]) for place in range(first, size - 1)]
    return losses


def measured(
    model: OpenModel, tokens: list[int], size: int, stride: int | None = None, chunks: int | None = None
) -> Perplexity:
    return measure_perplexity(model, cut(tokens, "text", context=size, bos=model.model.bos, stride=stride, chunks=chunks))


@pytest.mark.parametrize(("size", "stride"), [(16, None), (64, None), (63, None), (100, None), (64, 16), (64, 63), (50, 7)])
def test_figures_follow_from_the_logits_of_single_windows(tiny: OpenModel, size: int, stride: int | None) -> None:
    tokens = tiny.model.tokenize(WORDS * 12)
    found = measured(tiny, tokens, size, stride)
    most = math.ceil((len(tokens) - size) / stride) if stride else len(tokens) // size
    assert found.chunks == most
    losses = expected(tiny, tokens, size, stride, most)
    mean = math.fsum(losses) / len(losses)
    variance = math.fsum(value * value for value in losses) / len(losses) - mean * mean
    assert found.tokens == len(losses)
    assert found.value == pytest.approx(math.exp(mean), rel=1e-4)
    assert found.error == pytest.approx(math.exp(mean) * math.sqrt(variance / (len(losses) - 1)), rel=1e-3)


def test_bits_per_byte_count_the_bytes_of_the_scored_tokens(tiny: OpenModel) -> None:
    tokens = tiny.model.tokenize(WORDS * 12)
    found = measured(tiny, tokens, 32)
    scored = [tokens[start + place] for start in range(0, len(tokens) - 31, 32) for place in range(17, 32)]
    text = b"".join(map(tiny.model.piece, scored))
    assert found.text_bytes == len(text) > len(scored)
    assert found.bits_per_byte == pytest.approx(math.log2(found.value) * len(scored) / len(text), rel=1e-12)


def test_neither_the_batches_nor_the_slabs_change_the_figures(tiny: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tiny.model.tokenize(WORDS * 12)
    whole = measured(tiny, tokens, 60)
    monkeypatch.setattr(windows_module, "_LOGIT_BYTES", 4 * tiny.model.vocabulary_size * 11)
    assert measured(tiny, tokens, 60).value == pytest.approx(whole.value, rel=1e-5)
    monkeypatch.setattr(windows_module, "BATCH_TOKENS", 40)
    assert measured(tiny, tokens, 60).value == pytest.approx(whole.value, rel=1e-5)


def test_log_probabilities_are_exact_and_take_a_slab_of_memory() -> None:
    rows = np.random.default_rng(5).normal(0, 9, (3, 50)).astype(np.float32)
    for row, found in zip(rows, log_softmax(rows), strict=True):
        assert found == pytest.approx(log_probabilities(row.tolist()), abs=1e-13)
    large = np.zeros((512, 128_000), dtype=np.float32)
    tracemalloc.start()
    for part in slabs(large):
        log_softmax(large[part])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_chunks_take_the_beginning_of_the_text_alone(tiny: OpenModel, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(WORDS * 20_000)
    whole = tiny.model.tokenize(WORDS * 12)
    for stride in (None, 8):
        wanted = tokens_wanted(32, stride, 3)
        tokens = Text(path=path).tokens(tiny.model, wanted)
        assert len(tokens) < 80_000
        assert measured(tiny, tokens, 32, stride, 3) == measured(tiny, whole, 32, stride, 3)


def test_a_text_that_is_too_short_says_what_would_do() -> None:
    def problem(count: int, stride: int | None = None) -> str:
        with pytest.raises(EvaluationError) as raised:
            cut(range(count), "story.txt", context=128, bos=None, stride=stride)
        return str(raised.value)

    assert problem(127) == (
        "story.txt has 127 tokens, fewer than the 128 of one window; "
        "give a longer text, or take smaller windows (--ctx 63 would make two)"
    )
    assert problem(128, 8).startswith("story.txt has 128 tokens, fewer than the 129 of one window")
    assert problem(20).endswith("give a longer text")
    assert "take a --stride from 1 to 127" in problem(1000, 128)
    assert len(cut(range(128), "story.txt", context=128, bos=None).starts) == 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"caf\xe9 au lait", "is not UTF-8 text (byte 3 is 0xE9)"),
        ("säße".encode("utf-16"), "is not UTF-8 text (byte 0 is 0xFF)"),
    ],
)
def test_a_text_that_is_none_is_refused(data: bytes, problem: str, tmp_path: Path, tiny: OpenModel) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    for text, name in ((Text(path=path), "text.txt"), (Text(path=path, data=data), "standard input")):
        with pytest.raises(EvaluationError) as raised:
            text.check()
            text.tokens(tiny.model)
        assert raised.value.problem == f"{name} {problem}"


def test_text_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path / "gone.txt", "there is no file"),
        (tmp_path, "cannot be read"),
        (Path("/dev/zero"), "not a reg"),
    ):
        with pytest.raises(EvaluationError, match=problem):
            Text(path=path).check()


def spoiled(value: float) -> Parts:
    """A model whose last norm is `value` everywhere."""
    parts = tiny_parts()
    norm = parts.tensor("output_norm.weight")
    assert norm.type_id == F32
    norm.data = struct.pack("<f", value) * (len(norm.data) // 4)
    return parts


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_computes_no_numbers_is_named(value: float, tmp_path: Path) -> None:
    path = write(tmp_path / "sick.gguf", spoiled(value))
    with open_model(path, threads=1, backend="cpu", context=64) as model:
        tokens = model.model.tokenize(WORDS * 12)
        with pytest.raises(EvaluationError, match=r"^sick.gguf computes NaN or infinity \(in window \d\)"):
            measured(model, tokens, 64)


@pytest.mark.parametrize("size", [512, 256, 96])
def test_it_is_llama_perplexitys_to_every_digit(size: int, demo: OpenModel, story: Text, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(story.data or b"")
    found = measured(demo, story.tokens(demo.model), size)
    batch = str(512 // size * size)
    said = llama_perplexity("-m", demo.path, "-f", path, "-c", str(size), "-b", batch, until="Final estimate")
    assert f"Final estimate: PPL = {found.value:.4f} +/- {found.error:.5f}\n" in said


def test_with_a_stride_it_is_llama_perplexitys_too(demo: OpenModel, story: Text, tmp_path: Path) -> None:
    """The program makes its window from -c: with half of the stride, in steps of 256 tokens."""
    path = tmp_path / "story.txt"
    path.write_bytes(story.data or b"")
    found = measured(demo, story.tokens(demo.model), 256, 128)
    wanted = f"[{found.chunks}]{found.value:.4f},"
    arguments = ("-c", "192", "-b", "192", "--ppl-stride", "128")
    assert wanted in llama_perplexity("-m", demo.path, "-f", path, *arguments, until=wanted)


@pytest.mark.torch
def test_it_is_what_transformers_computes(story: Text, tmp_path: Path) -> None:
    """With the weights as F32 on both sides, so that nothing but the order of sums differs."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    convert(DEMO, tmp_path / "f32.gguf", "F32")
    reference = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    with open_model(tmp_path / "f32.gguf", threads=1, backend="cpu", context=256) as model:
        tokens = story.tokens(model.model)
        found = measured(model, tokens, 256, chunks=4)
        losses = []
        for start in range(0, 4 * 256, 256):
            window = [model.model.bos, *tokens[start + 1 : start + 256]]
            with torch.no_grad():
                logits = reference(torch.tensor([window])).logits[0, 128:-1].double()
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(window[129:]), reduction="none"))
    assert found.value == pytest.approx(torch.cat(losses).mean().exp().item(), rel=2e-4)
