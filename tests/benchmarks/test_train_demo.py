"""The demo checkpoint that the package carries, and the script that trains it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from tinyedge_bench.demo_training.books import clean
from tinyedge_bench.demo_training.settings import Recipe, Shape, model_config

DEMO = Path(__file__).resolve().parents[2] / "edge" / "tinyedge" / "demo"


def test_demo_holds_a_checkpoint_of_at_most_8_mb() -> None:
    sizes = {path.name: path.stat().st_size for path in DEMO.iterdir()}
    assert {"config.json", "pytorch_model.bin", "tokenizer.model", "tokenizer_config.json", "README.md"} <= sizes.keys()
    assert sum(sizes.values()) <= 8_000_000


def test_demo_configuration_is_the_shape_the_script_trains() -> None:
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    assert config == json.loads(json.dumps(model_config(Shape())))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_size"] % 256 == 0 and config["intermediate_size"] % 256 == 0  # K-quant blocks


def test_demo_model_card_states_bits_per_byte_under_two() -> None:
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"\| bits per byte on the held-out book \| \*\*([\d.]+)\*\*", card)
    assert stated and float(stated[1]) < 2.0


def test_demo_tokenizer_restores_any_text() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
    assert processor.get_piece_size() == Shape().vocabulary
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)
    text = 'Once upon a time,\n\n"1984"  said the Zoë of 東京.'
    assert processor.decode(processor.encode(text)) == text


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("one\r\ntwo\r\n\r\n\r\nthree  four\n", "one two\n\nthree four"),
        ("licence\n*** START OF THE BOOK X ***\nIt is _very_ late.\n*** END OF THE BOOK X ***\nmore", "It is very late."),
    ],
)
def test_clean_joins_wrapped_lines_and_drops_frame_and_emphasis(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


TINY = Shape(vocabulary=300, hidden=32, ffn=64, layers=2, heads=4, kv_heads=2, context=64)


def write_books(folder: Path) -> Path:
    folder.mkdir()
    words = [f"{a}{b}" for a in ("hen", "fox", "owl", "cat", "dog") for b in ("", "s", "ling", "ish")]
    lines = (" ".join(words[(i * j) % 20] for j in range(1, 12)) for i in range(400))
    (folder / "a.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.torch
def test_a_few_steps_write_a_checkpoint_that_transformers_reads_alike(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentencepiece")
    transformers = pytest.importorskip("transformers")
    from tinyedge_bench.demo_training.model import forward
    from tinyedge_bench.demo_training.run import run_training

    books, out = write_books(tmp_path / "books"), tmp_path / "out"
    recipe = Recipe(minutes=1, seed=1, steps=8)
    trial = run_training(books, books, out, TINY, recipe)
    assert (trial.steps, trial.tokens) == (8, 8 * (6 * 31 + 2 * 63))

    weights = torch.load(out / "pytorch_model.bin", weights_only=True)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    weights = {name: weight.float() for name, weight in weights.items()}
    tokens = torch.randint(TINY.vocabulary, (2, TINY.context))
    model = transformers.LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(forward(weights, tokens, TINY), model(tokens).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.torch
def test_bits_per_byte_counts_every_token_once_whatever_the_stride() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentencepiece")
    from tinyedge_bench.demo_training.evaluate import bits_per_byte
    from tinyedge_bench.demo_training.model import initial_weights

    weights = {name: torch.zeros_like(weight) for name, weight in initial_weights(TINY).items()}
    stream = torch.arange(200)
    for stride in (17, 32, TINY.context - 1):  # a model of zeros gives every token log2(vocabulary) bits
        bits = bits_per_byte(weights, stream, 1000, TINY, stride)
        assert bits == pytest.approx(200 * math.log2(TINY.vocabulary) / 1000)
