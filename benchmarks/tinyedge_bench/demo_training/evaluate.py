"""What a model has learned: bits per byte of a text, and a sample to read."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from tinyedge_bench.demo_training.model import Weights, forward
from tinyedge_bench.demo_training.settings import BOS, EOS, Shape
from tinyedge_bench.demo_training.threads import POOL


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


def sample(weights: Weights, processor: SentencePieceProcessor, shape: Shape, prompt: str, tokens: int, seed: int) -> str:
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
