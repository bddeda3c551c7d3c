"""Trains the demo checkpoint that tinyedge carries: a 3.8 million parameter Llama on public-domain children's books.

    python -m tinyedge_bench.train_demo --books BOOKS --eval HELD_OUT -o OUT --minutes 25

BOOKS and HELD_OUT are folders of plain .txt files. torch is needed here and nowhere else in tinyedge. The model is a dict of
tensors under their Hugging Face names and one `forward` function, so what is trained is what is written.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

try:  # main() says what to install; reading this module's facts needs neither
    import sentencepiece
    import torch
    import torch.nn.functional as nnf
except ImportError as error:
    missing: str | None = error.name
else:
    missing = None

Tensor: TypeAlias = Any  # torch is not seen by the type checker: it is no dependency of tinyedge
Weights: TypeAlias = dict[str, Any]
Look: TypeAlias = Callable[[int, int, float], None]

UNK, BOS, EOS = 0, 1, 2  # Llama's and SentencePiece's own order
INIT_STD = 0.02  # GPT-2's, as transformers' initializer_range


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


POOL = ThreadPoolExecutor(cores())


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama in which every matrix row has 256 or 512 weights, so that every K-quant (blocks of 256) applies."""

    vocabulary: int = 4096
    hidden: int = 256
    ffn: int = 512
    layers: int = 5
    heads: int = 8
    kv_heads: int = 2
    context: int = 512
    norm_eps: float = 1e-5  # TinyLlama's
    rope_theta: float = 10000.0  # TinyLlama's

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. Usual values, not searched for; Muon and its 0.02 are from Jordan's post (kellerjordan.github.io)."""

    minutes: float
    seed: int
    steps: int | None = None  # replaces the clock
    batch: int = 8
    share: int = 2  # windows of a batch that one thread takes at a time
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    weight_decay: float = 0.1  # of the learning rate, matrices only
    momentum: float = 0.95
    bpe_dropout: float = 0.05  # Provilkov et al. 2020 use 0.1; in every second epoch before `long_from`
    warmup: float = 0.02
    decay_from: float = 0.4  # constant until here, then linear to zero
    long_from: float = 0.75  # half the context until here, the whole of it after: early steps are cheaper
    looks: tuple[float, ...] = (0.6, 0.85, 1.0)  # shares of the run after which the held-out book is measured


# Text ---------------------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Paragraphs on one line each with a blank line between, without Gutenberg's frame and `_emphasis_` marks."""
    text = text.replace("\r\n", "\n")
    start = re.search(r"^\*\*\* ?START OF.*$", text, re.MULTILINE)
    end = re.search(r"^\*\*\* ?END OF.*$", text, re.MULTILINE)
    text = text[start.end() if start else 0 : end.start() if end else len(text)].replace("_", "")
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def read_books(folder: Path) -> list[str]:
    """The cleaned text of every .txt file of the folder, in order of name."""
    books = [clean(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.txt"))]
    if not books:
        raise SystemExit(f"error: no .txt file in {folder}; give a folder of plain text books")
    return books


def train_tokenizer(books: list[str], vocabulary: int) -> bytes:
    """A serialized SentencePiece BPE model with the settings of Llama 2's own (as its tokenizer.model records them)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(paragraph for book in books for paragraph in book.split("\n\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        unk_surface=" \u2047 ",
        max_sentence_length=1 << 16,
        minloglevel=2,
    )
    return model.getvalue()


def token_stream(processor: Any, books: list[str], bpe_dropout: float = 0.0) -> Tensor:
    """All books as one row of token ids, each followed by EOS."""
    sampling = {"enable_sampling": True, "alpha": bpe_dropout, "nbest_size": -1} if bpe_dropout else {}
    books_ids = [np.asarray([*processor.encode(book, **sampling), EOS], dtype=np.int64) for book in books]
    return torch.from_numpy(np.concatenate(books_ids))


# Model --------------------------------------------------------------------------------------------------------------


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every matrix inside the layers, by Hugging Face name."""
    kv = shape.kv_heads * shape.head_dim
    per_layer = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (kv, shape.hidden),
        "self_attn.v_proj": (kv, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.ffn, shape.hidden),
        "mlp.up_proj": (shape.ffn, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.ffn),
    }
    return {f"model.layers.{i}.{name}.weight": size for i in range(shape.layers) for name, size in per_layer.items()}


def initial_weights(shape: Shape) -> Weights:
    """Float32 leaves; the output matrix is the embedding (tied), and what writes to the residual stream starts at zero."""
    weights = {"model.embed_tokens.weight": torch.randn(shape.vocabulary, shape.hidden) * INIT_STD}
    for name, (rows, columns) in matrices(shape).items():
        std = 0.0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1 / math.sqrt(3 * columns)
        weights[name] = torch.randn(rows, columns) * std
    for layer in range(shape.layers):
        weights[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(shape.hidden)
        weights[f"model.layers.{layer}.post_attention_layernorm.weight"] = torch.ones(shape.hidden)
    weights["model.norm.weight"] = torch.ones(shape.hidden)
    return {name: weight.requires_grad_() for name, weight in weights.items()}


def rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (length, head_dim), in Hugging Face's half-rotation order."""
    half = torch.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = torch.outer(torch.arange(length).float(), shape.rope_theta**-half).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x turned by its position; keeps the dtype."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def attention(weights: Weights, prefix: str, x: Tensor, shape: Shape, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Causal grouped-query attention, (batch, length, hidden).

    The query heads of a group are stacked as extra rows of one product with their shared key head. Plain products: torch
    2.13's fused attention was slower here, its backward pass alone taking 28% of a training step on two AVX-512 cores.
    """
    batch, length, _ = x.shape
    group = shape.heads // shape.kv_heads

    def project(name: str, heads: int) -> Tensor:
        y = nnf.linear(x, weights[f"{prefix}{name}_proj.weight"])
        return y.view(batch, length, heads, shape.head_dim).transpose(1, 2)

    query, key, value = project("q", shape.heads), project("k", shape.kv_heads), project("v", shape.kv_heads)
    query = rotate(query, *turn).reshape(batch, shape.kv_heads, group * length, shape.head_dim)
    scores = query @ rotate(key, *turn).transpose(2, 3) * shape.head_dim**-0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1).repeat(group, 1)
    mixed = scores.masked_fill(future, -math.inf).softmax(dim=-1).to(value.dtype) @ value
    mixed = mixed.view(batch, shape.heads, length, shape.head_dim).transpose(1, 2).reshape(batch, length, shape.hidden)
    return nnf.linear(mixed, weights[f"{prefix}o_proj.weight"])


def forward(weights: Weights, tokens: Tensor, shape: Shape) -> Tensor:
    """Logits (batch, length, vocabulary) of the next token at each position of `tokens` (batch, length)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return nnf.rms_norm(x, (shape.hidden,), weights[name], shape.norm_eps)

    turn = rotary(shape, tokens.shape[1])
    x = nnf.embedding(tokens, weights["model.embed_tokens.weight"])
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, f"{prefix}input_layernorm.weight")
        x = x + attention(weights, f"{prefix}self_attn.", h, shape, turn)
        h = norm(x, f"{prefix}post_attention_layernorm.weight")
        gate = nnf.silu(nnf.linear(h, weights[f"{prefix}mlp.gate_proj.weight"]))
        up = nnf.linear(h, weights[f"{prefix}mlp.up_proj.weight"])
        x = x + nnf.linear(gate * up, weights[f"{prefix}mlp.down_proj.weight"])
    return nnf.linear(norm(x, "model.norm.weight"), weights["model.embed_tokens.weight"])


def bf16_rounded(weights: Weights) -> Weights:
    """What the file will hold, as float32: the weights that every reported number is measured on."""
    return {name: weight.detach().bfloat16().float() for name, weight in weights.items()}


# Optimizers ---------------------------------------------------------------------------------------------------------


def orthogonalized(g: Tensor) -> Tensor:
    """(n, rows, columns) with singular values near 1: five Newton-Schulz steps, coefficients from Jordan's Muon post."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = (g.transpose(1, 2) if tall else g).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return (x.transpose(1, 2) if tall else x).float()


@dataclass
class Muon:
    """Momentum, orthogonalized, for matrices; those of one shape are stepped together."""

    groups: list[list[Tensor]]
    momentum: float
    weight_decay: float
    velocity: dict[int, Tensor] = field(default_factory=dict)

    def step(self, lr: float) -> None:
        list(POOL.map(lambda i: self.step_group(i, lr), range(len(self.groups))))

    def step_group(self, i: int, lr: float) -> None:
        group = self.groups[i]
        gradient = torch.stack([weight.grad for weight in group])
        velocity = self.velocity.setdefault(i, torch.zeros_like(gradient))
        velocity.lerp_(gradient, 1 - self.momentum)
        rows, columns = gradient.shape[1:]
        update = orthogonalized(gradient.lerp(velocity, self.momentum)) * max(1.0, rows / columns) ** 0.5
        with torch.no_grad():  # per thread
            for weight, change in zip(group, update, strict=True):
                weight.mul_(1 - lr * self.weight_decay).add_(change, alpha=-lr)
                weight.grad = None


def optimizers(weights: Weights, recipe: Recipe) -> tuple[Muon, Any]:
    """Muon for the matrices inside the layers, Adam for the embedding and the norms."""
    inside = [w for name, w in weights.items() if w.ndim == 2 and "embed" not in name]
    sizes = sorted({tuple(w.shape) for w in inside})
    groups = [[w for w in inside if tuple(w.shape) == size] for size in sizes]
    rest = [w for name, w in weights.items() if w.ndim == 1 or "embed" in name]
    return Muon(groups, recipe.momentum, recipe.weight_decay), torch.optim.Adam(rest, betas=(0.9, 0.95))


def lr_share(progress: float, recipe: Recipe) -> float:
    """Warm up, stay, then fall linearly to zero at the end."""
    return min(1.0, (progress + 1e-3) / recipe.warmup, (1 - progress) / (1 - recipe.decay_from))


# Evaluation ---------------------------------------------------------------------------------------------------------


def bits_per_byte(weights: Weights, stream: Tensor, text_bytes: int, shape: Shape, stride: int) -> float:
    """-log2 p of a text, over its bytes in UTF-8. Every window is BOS and up to context - 1 tokens of the text.

    `stride` tokens of each window are new; a token before them is context only, so each token is counted once.
    """
    span = shape.context - 1

    def window_bits(start: int) -> float:
        end = min(start + stride, len(stream))
        first = max(0, end - span)
        window = torch.cat((torch.tensor([BOS]), stream[first:end]))
        with torch.no_grad():
            logits = forward(weights, window[None, :-1], shape)[0, start - first :]
        return float(nnf.cross_entropy(logits, window[1 + start - first :], reduction="sum")) / math.log(2)

    return sum(POOL.map(window_bits, range(0, len(stream), stride))) / text_bytes


def sample(weights: Weights, processor: Any, shape: Shape, prompt: str, tokens: int, seed: int) -> str:
    """The prompt continued at temperature 0.7 from the 40 likeliest tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = [BOS, *processor.encode(prompt)]
    with torch.no_grad():
        for _ in range(min(tokens, shape.context - len(ids))):
            logits, choices = forward(weights, torch.tensor([ids]), shape)[0, -1].topk(40)
            chosen = torch.multinomial((logits / 0.7).softmax(dim=-1), 1, generator=generator)
            ids.append(int(choices[chosen]))
            if ids[-1] == EOS:
                break
    return str(processor.decode(ids[1:]))


# Training -----------------------------------------------------------------------------------------------------------


class Batches:
    """Endless (batch, length + 1) windows, each BOS and then text; an epoch reads the books once, in shuffled windows."""

    def __init__(self, processor: Any, books: list[str], shape: Shape, recipe: Recipe) -> None:
        self.processor, self.books, self.recipe, self.long = processor, books, recipe, shape.context - 1
        self.plain = token_stream(processor, books)
        self.rows: Tensor = torch.empty(0, 0)
        self.epoch = 0

    def next(self, length: int) -> Tensor:
        if self.rows.shape[1] != length or len(self.rows) < self.recipe.batch:
            again = self.epoch % 2 == 1 and length < self.long
            stream = token_stream(self.processor, self.books, self.recipe.bpe_dropout) if again else self.plain
            offset = int(torch.randint(length, ()))
            count = (len(stream) - offset) // length
            if count < self.recipe.batch:
                raise SystemExit(f"error: the books give {len(stream)} tokens, too few for one batch; give more text")
            rows = stream[offset : offset + count * length].view(count, length)
            self.rows = rows[torch.randperm(count)]
            self.epoch += 1
        rows, self.rows = self.rows[: self.recipe.batch], self.rows[self.recipe.batch :]
        return torch.cat((torch.full((len(rows), 1), BOS), rows), dim=1)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a run has reached: the facts of the model card."""

    steps: int
    tokens: int
    minutes: float
    cpu_minutes: float
    bits_per_byte: float


def backward(weights: Weights, parameters: list[Tensor], rows: Tensor, shape: Shape, recipe: Recipe) -> float:
    """Mean loss of a batch, its gradient left in the parameters.

    Threads take a few windows each, every one of them with single-threaded operators: no thread waits for another inside an
    operator. On two cores that was 1.3 times as fast as torch's own threads when they were free, up to 7 times when shared.
    """
    predicted: int = rows[:, 1:].numel()

    def part(windows: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(weights, windows[:, :-1], shape)
        losses = nnf.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")
        return losses.item(), torch.autograd.grad(losses / predicted, parameters)

    total = 0.0
    for losses, gradients in POOL.map(part, rows.split(recipe.share)):
        total += losses
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return total / predicted


def train(weights: Weights, batches: Batches, shape: Shape, recipe: Recipe, evaluate: Look) -> None:
    """Trains the weights in place. `evaluate(steps, tokens, minutes)` is called at each of the recipe's looks."""
    muon, adam = optimizers(weights, recipe)
    parameters = list(weights.values())
    begin, steps, tokens = time.monotonic(), 0, 0
    looks = list(recipe.looks)
    progress = 0.0
    while progress < 1:
        length = shape.context - 1 if progress >= recipe.long_from else shape.context // 2 - 1
        rows = batches.next(length)
        loss = backward(weights, parameters, rows, shape, recipe)
        share = lr_share(progress, recipe)
        with torch.no_grad():
            muon.step(recipe.muon_lr * share)
            adam.param_groups[0]["lr"] = recipe.adam_lr * share
            adam.step()
            adam.zero_grad()
        steps, tokens = steps + 1, tokens + rows[:, 1:].numel()
        minutes = (time.monotonic() - begin) / 60
        progress = steps / recipe.steps if recipe.steps else minutes / recipe.minutes
        if steps % 50 == 0:
            speed = tokens / minutes / 60
            print(f"step {steps}  {minutes:.1f} min  loss {loss:.3f}  {speed:.0f} tokens/s", flush=True)
        if looks and progress >= looks[0]:
            looks = [look for look in looks if look > progress]
            evaluate(steps, tokens, minutes)


# Files --------------------------------------------------------------------------------------------------------------


def model_config(shape: Shape) -> dict[str, Any]:
    """config.json as transformers 4 writes it for a LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": INIT_STD,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    """tokenizer_config.json in the form of Llama 2's."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": shape.context,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }


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


def machine() -> str:
    """The processor's name and how many cores this process may use; nothing else of the machine is told."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        name = names[0] if names else name
    return f"{name}, {cores()} cores"


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


def model_card(trial: Trial, run: Run, weights: Weights, looks: int, prompt: str = "Once upon a time") -> str:
    """README.md, every number of it measured in this run."""
    shape, recipe = run.shape, run.recipe
    text = sample(weights, run.processor, shape, prompt, 150, recipe.seed)
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
        **{name: getattr(shape, name) for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "vocabulary")},
        context=shape.context,
        eval_name=run.eval_name,
        eval_bytes=run.eval_bytes,
        eval_tokens=len(run.eval_stream),
        stride=stride,
        least=shape.context - 1 - stride,
        looks=looks,
        prompt=prompt,
        sample=text.replace("\n\n", "\n>\n> "),
        books=len(run.book_names),
        book_names=f" ({', '.join(run.book_names)})",
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same from start to end of a run."""

    shape: Shape
    recipe: Recipe
    tokenizer: bytes
    processor: Any
    book_names: list[str]
    stream_tokens: int
    eval_name: str
    eval_stream: Tensor
    eval_bytes: int


def title(path: Path) -> str:
    """A readable title from a file name: `black-beauty.txt` gives Black Beauty."""
    return path.stem.replace("-s-", "'s-").replace("-", " ").title().replace("'S", "'s")


def run_training(books_dir: Path, eval_dir: Path, out: Path, shape: Shape, recipe: Recipe) -> Trial:
    """Trains and leaves the best checkpoint in `out`; returns what it reached."""
    torch.set_num_threads(1)  # the pool's threads are the parallel ones
    torch.manual_seed(recipe.seed)
    sentencepiece.set_random_generator_seed(recipe.seed)
    books, held_out = read_books(books_dir), read_books(eval_dir)
    tokenizer = train_tokenizer(books, shape.vocabulary)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    batches = Batches(processor, books, shape, recipe)
    run = Run(
        shape=shape,
        recipe=recipe,
        tokenizer=tokenizer,
        processor=processor,
        book_names=[title(path) for path in sorted(books_dir.glob("*.txt"))],
        stream_tokens=len(batches.plain),
        eval_name=", ".join(title(path) for path in sorted(eval_dir.glob("*.txt"))),
        eval_stream=torch.tensor([i for book in held_out for i in processor.encode(book)]),
        eval_bytes=sum(len(book.encode()) for book in held_out),
    )
    weights = initial_weights(shape)
    looks: list[Trial] = []
    begin_cpu = time.process_time()

    def evaluate(steps: int, tokens: int, minutes: float) -> None:
        rounded = bf16_rounded(weights)
        cpu = (time.process_time() - begin_cpu) / 60
        reached = bits_per_byte(rounded, run.eval_stream, run.eval_bytes, shape, shape.context - 1)
        trial = Trial(steps=steps, tokens=tokens, minutes=minutes, cpu_minutes=cpu, bits_per_byte=reached)
        print(f"{minutes:.1f} min: {reached:.4f} bits per byte", flush=True)
        looks.append(trial)
        if reached == min(look.bits_per_byte for look in looks):
            write_checkpoint(out, rounded, tokenizer, shape, model_card(trial, run, rounded, len(looks)))

    train(weights, batches, shape, recipe, evaluate)
    return min(looks, key=lambda look: look.bits_per_byte)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tinyedge_bench.train_demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--books", type=Path, required=True, metavar="DIR", help="folder of .txt books to train on")
    parser.add_argument("--eval", type=Path, required=True, metavar="DIR", help="folder of .txt books to measure on")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write the checkpoint to")
    parser.add_argument("--minutes", type=float, default=25.0, help="training time (default: 25)")
    parser.add_argument("--steps", type=int, help="train this many steps instead of a time")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights, order and sampling (default: 1)")
    options = parser.parse_args(arguments)
    if missing:
        sys.exit(f"error: training needs {missing}; install it with: pip install 'torch>=2.4' 'sentencepiece>=0.2.0'")
    recipe = Recipe(minutes=options.minutes, steps=options.steps, seed=options.seed)
    best = run_training(options.books, options.eval, options.output, Shape(), recipe)
    print(f"best: {best.bits_per_byte:.4f} bits per byte after {best.tokens:,} tokens, in {options.output}")


if __name__ == "__main__":
    main()
