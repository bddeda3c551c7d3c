"""Muon, the schedule and the loop that follows the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as nnf
from torch import Tensor

from tinyedge_bench.demo_training.model import Weights, forward
from tinyedge_bench.demo_training.settings import Recipe, Shape
from tinyedge_bench.demo_training.threads import POOL
from tinyedge_bench.demo_training.tokens import Batches


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


def optimizers(weights: Weights, recipe: Recipe) -> tuple[Muon, torch.optim.Adam]:
    """Muon for the matrices inside the layers, Adam for the embedding and the norms."""
    inside = [w for name, w in weights.items() if w.ndim == 2 and "embed" not in name]
    sizes = sorted({tuple(w.shape) for w in inside})
    groups = [[w for w in inside if tuple(w.shape) == size] for size in sizes]
    rest = [w for name, w in weights.items() if w.ndim == 1 or "embed" in name]
    return Muon(groups, recipe.momentum, recipe.weight_decay), torch.optim.Adam(rest, betas=(0.9, 0.95))


def lr_share(progress: float, recipe: Recipe) -> float:
    """Warm up, stay, then fall linearly to zero at the end."""
    return min(1.0, (progress + 1e-3) / recipe.warmup, (1 - progress) / (1 - recipe.decay_from))


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


def train(
    weights: Weights, batches: Batches, shape: Shape, recipe: Recipe, evaluate: Callable[[int, int, float], None]
) -> None:
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
