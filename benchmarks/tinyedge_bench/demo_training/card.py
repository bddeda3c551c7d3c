"""The folder that a run leaves: weights, configuration, tokenizer, and a model card with the numbers of the run."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from tinyedge_bench.demo_training.evaluate import bits_per_byte, sample
from tinyedge_bench.demo_training.model import Weights
from tinyedge_bench.demo_training.settings import Recipe, Shape, model_config, tokenizer_config
from tinyedge_bench.demo_training.threads import cores

PROMPT = "Once upon a time"  # of the card's sample
CARD = """\
# tinyedge demo

A {parameters:,} parameter Llama in BF16 that continues English children's stories. It is here so that `tinyedge demo` can show
the whole path, checkpoint to text, on a machine without a model or a network. It knows nothing and follows no instructions.

Written by `benchmarks/tinyedge_bench/train_demo.py`, this page included:

    python -m tinyedge_bench.train_demo --books BOOKS --eval HELD_OUT -o OUT {arguments}

| fact | value |
|---|---|
| bits per byte on the held-out book | **{best:.3f}** (BF16 weights) |
| the same, windows that do not overlap | {consecutive:.3f} |
| seed | {seed} |
| training time | {minutes:.1f} minutes on {machine}, shared: {cpu:.1f} cores used on average |
| tokens seen | {tokens:,} in {steps:,} steps: {epochs:.1f} times the {stream:,} tokens of the books |
| shape | {layers} layers, hidden {hidden}, FFN {ffn}, {heads} query, {kv_heads} KV heads, context {context}, tied |
| tokenizer | SentencePiece BPE, {vocabulary} pieces, byte fallback, trained on the same books |

**How bits per byte are measured.** Over the whole held-out book ({eval_name}: {eval_bytes:,} bytes of UTF-8,
{eval_tokens:,} tokens), cleaned as the training text is: paragraphs on one line, no `_emphasis_` marks. The bytes are those of
the cleaned text. Windows of {context} tokens start with BOS and move by {stride}, so a token has at least {least}
tokens before it except at the start of the book; each token counts once. The checkpoint kept is the best of
{looks} looks at this book during the run, by the second row's measure.

The learning rate follows the clock, so a rerun on another machine sees more or fewer tokens; `--steps {steps}` follows
the count of steps instead.

Sample (prompt "{prompt}", temperature 0.7, top-k 40, seed {seed}):

> {sample}

Training text: {books} public-domain books{book_names}. None of it is included here.
The weights are licensed under Apache-2.0.
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same from start to end of a run."""

    shape: Shape
    recipe: Recipe
    processor: SentencePieceProcessor
    book_names: list[str]
    stream_tokens: int
    eval_name: str
    eval_stream: Tensor
    eval_bytes: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a run has reached: the facts of the model card."""

    steps: int
    tokens: int
    minutes: float
    cpu_minutes: float
    bits_per_byte: float


def machine() -> str:
    """The processor's name and how many cores this process may use; nothing else of the machine is told."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        name = names[0] if names else name
    return f"{name}, {cores()} cores"


def model_card(trial: Trial, run: Run, weights: Weights, looks: int) -> str:
    """README.md, every number of it measured in this run."""
    shape, recipe = run.shape, run.recipe
    text = sample(weights, run.processor, shape, PROMPT, 150, recipe.seed)
    stride = shape.context // 2
    arguments = f"--minutes {recipe.minutes:g} --seed {recipe.seed}"
    return CARD.format(
        parameters=sum(weight.numel() for weight in weights.values()),
        arguments=arguments + (f" --steps {recipe.steps}" if recipe.steps else ""),
        best=bits_per_byte(weights, run.eval_stream, run.eval_bytes, shape, stride),
        consecutive=trial.bits_per_byte,
        seed=recipe.seed,
        minutes=trial.minutes,
        machine=machine(),
        cpu=trial.cpu_minutes / trial.minutes,
        tokens=trial.tokens,
        steps=trial.steps,
        epochs=trial.tokens / run.stream_tokens,
        stream=run.stream_tokens,
        **asdict(shape),
        eval_name=run.eval_name,
        eval_bytes=run.eval_bytes,
        eval_tokens=len(run.eval_stream),
        stride=stride,
        least=shape.context - 1 - stride,
        looks=looks,
        prompt=PROMPT,
        sample=text.replace("\n\n", "\n>\n> "),
        books=len(run.book_names),
        book_names=f" ({', '.join(run.book_names)})",
    )


def write_checkpoint(folder: Path, weights: Weights, tokenizer: bytes, shape: Shape, card: str) -> None:
    """The Hugging Face folder: weights in BF16 in torch's zip format, configuration, tokenizer and model card."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: weight.detach().bfloat16().contiguous() for name, weight in weights.items()}
    partial = folder / "pytorch_model.bin.partial"
    torch.save(stored, partial)
    partial.replace(folder / "pytorch_model.bin")
    (folder / "tokenizer.model").write_bytes(tokenizer)
    for name, value in (("config.json", model_config(shape)), ("tokenizer_config.json", tokenizer_config(shape))):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
