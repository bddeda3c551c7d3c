"""A run from books to checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import sentencepiece
import torch

from tinyedge_bench.demo_training.books import read_books, titles
from tinyedge_bench.demo_training.card import Run, Trial, model_card, write_checkpoint
from tinyedge_bench.demo_training.evaluate import bits_per_byte
from tinyedge_bench.demo_training.model import bf16_rounded, initial_weights
from tinyedge_bench.demo_training.optimize import train
from tinyedge_bench.demo_training.settings import Recipe, Shape
from tinyedge_bench.demo_training.tokens import Batches, train_tokenizer


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
        processor=processor,
        book_names=titles(books_dir),
        stream_tokens=len(batches.plain),
        eval_name=", ".join(titles(eval_dir)),
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
