"""Trains the demo checkpoint that tinyedge carries: a 3.8 million parameter Llama on public-domain children's books.

    python -m tinyedge_bench.train_demo --books BOOKS --eval HELD_OUT -o OUT --minutes 25

BOOKS and HELD_OUT are folders of plain .txt files. torch is needed here and nowhere else in tinyedge.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tinyedge_bench.demo_training.settings import Recipe, Shape


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
    try:
        from tinyedge_bench.demo_training.run import run_training
    except ModuleNotFoundError as error:
        sys.exit(f"error: training needs {error.name}; install it with: pip install 'torch>=2.4' 'sentencepiece>=0.2.0'")
    recipe = Recipe(minutes=options.minutes, steps=options.steps, seed=options.seed)
    best = run_training(options.books, options.eval, options.output, Shape(), recipe)
    print(f"best: {best.bits_per_byte:.4f} bits per byte after {best.tokens:,} tokens, in {options.output}")


if __name__ == "__main__":
    main()
