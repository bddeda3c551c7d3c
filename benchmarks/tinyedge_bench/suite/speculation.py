"""What drafts from the text so far (--lookup) bring when a text is edited, beside plain decoding.

    python -m tinyedge_bench.suite.speculation MODEL.gguf [--runs 5] [--threads N]
        [--tokens 400] [--edited 0 2 5 10 100] [--keep]

MODEL is meant to have the shape of TinyLlama 1.1B, with random weights (suite.random_checkpoint). Such a model edits nothing,
so what it says is scripted: after each pass, at each row, the logit of the token that the script has at the row's position is
raised above all others. All else is real: the passes, the logits of the other tokens, the sampler that takes the likeliest
token, the drafter, and the checks of what it guessed. Both ways of decoding say the same text.

The prompt is a text of words drawn by Zipf's law, and the script is that text with a share of its places edited: a word
replaced, left out or put in. That share controls how many guesses come true. The raised token leads by far, so no guess is
doubted: a real model that hesitates now and then under greedy sampling gains less (see tinyedge.exactness).
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinyedge.backends import LoadPlan, Request, choose, this_machine
from tinyedge.engine import DRAFT_ROWS, Engine, context_settings
from tinyedge.generation import Completion
from tinyedge.kv_cache import KvCache
from tinyedge.lookup import LookupDrafter
from tinyedge.model_probe import runnable_facts
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model
from tinyedge.sampling import Sampling
from tinyedge_bench.results import keep

_SEED = 0
_RAISED = 1e4  # far above what any logit of a model is
_WORDS = 400  # different tokens in the text, the most frequent first
_WARM_UP = 16  # tokens


class ScriptedContext(Context):
    """A context whose model says the tokens of `script`, which holds the whole text: `script[n]` is the token at position n."""

    def __init__(self, model: Model, settings: ContextSettings, script: Sequence[int]) -> None:
        super().__init__(model, settings)
        self._script = script
        self._count = 0  # tokens in the KV cache

    def clear(self) -> None:
        super().clear()
        self._count = 0

    def remove(self, start: int, end: int = -1) -> bool:
        removed = super().remove(start, end)
        if removed:
            self._count = min(self._count, start)
        return removed

    def decode(self, token: int) -> None:
        super().decode(token)
        self._raise(1, -1)

    def decode_rows(self, tokens: Sequence[int]) -> None:
        super().decode_rows(tokens)
        for row in range(len(tokens)):
            self._raise(1, row)

    def decode_all(self, tokens: Sequence[int], progress: Callable[[int], None] | None = None) -> None:
        super().decode_all(tokens, progress)
        self._raise(len(tokens), -1)

    def _raise(self, tokens: int, row: int) -> None:
        """Raises the token that follows the next `tokens` of the script in this row of the logits."""
        self._count += tokens
        if self._count < len(self._script):
            self.logits(row)[self._script[self._count]] += _RAISED


@dataclass(frozen=True)
class Edit:
    """A text to be edited, in tokens, and what it becomes; `share` of its places are edited."""

    share: float
    prompt: list[int]
    answer: list[int]

    @classmethod
    def drawn(cls, model: Model, tokens: int, share: float) -> Edit:
        """A seeded text of that many tokens and its edited copy; with a share of 1, two texts with nothing in common."""
        draw = random.Random(_SEED)
        usable = [
            token for token in range(model.vocabulary_size) if not (model.is_control(token) or model.ends_generation(token))
        ]
        words = draw.sample(usable, min(_WORDS, len(usable)))
        weights = [1 / rank for rank in range(1, len(words) + 1)]
        text = draw.choices(words, weights, k=tokens)
        answer: list[int] = []
        for word in text:
            other = draw.choice(words)
            edits = ([other], [], [word, other]) if share < 1.0 else ([other],)
            answer += draw.choice(edits) if draw.random() < share else [word]
        return cls(share, [token for token in (model.bos,) if token is not None] + text, answer)


@dataclass(frozen=True)
class Speeds:
    """Tokens/s of both ways, run by run in turn, and the share of decoded guesses that came true, None without any."""

    edit: Edit
    plain: list[float]
    lookup: list[float]
    acceptance: float | None


def edit_speeds(path: Path, threads: int, tokens: int, shares: Sequence[float], runs: int) -> list[Speeds]:
    """The speeds at each share of edited places."""
    room = Request(backend="cpu", threads=threads, context=3 * tokens)
    plan = choose(runnable_facts(path), room, this_machine())
    with Engine.open(path, plan, draft_rows=DRAFT_ROWS) as engine:
        return [_speeds(engine, plan, Edit.drawn(engine.model, tokens, share), runs) for share in shares]


def _speeds(engine: Engine, plan: LoadPlan, edit: Edit, runs: int) -> Speeds:
    engine.context.close()
    settings = replace(context_settings(plan), outputs=DRAFT_ROWS)
    engine.context = ScriptedContext(engine.model, settings, edit.prompt + edit.answer)
    engine._cache = KvCache(engine.context)
    engine.forget()
    _say(engine, edit, None, _WARM_UP)
    plain: list[float] = []
    lookup: list[float] = []
    drafted = accepted = 0
    for _ in range(runs):
        plain.append(_rate(_say(engine, edit, None, len(edit.answer))))
        done = _say(engine, edit, LookupDrafter(), len(edit.answer))
        lookup.append(_rate(done))
        drafted, accepted = drafted + done.speed.drafted_tokens, accepted + done.speed.accepted_tokens
    return Speeds(edit, plain, lookup, accepted / drafted if drafted else None)


def summary(found: Sequence[Speeds], threads: int) -> list[dict[str, str]]:
    """A row for each: medians, and the median and extremes of the ratios run by run."""

    def row(speeds: Speeds) -> dict[str, str]:
        ratios = [after / before for before, after in zip(speeds.plain, speeds.lookup, strict=True)]
        changed = "another text" if speeds.edit.share >= 1.0 else f"{speeds.edit.share:.0%} of the places edited"
        return {
            "what": f"{len(speeds.edit.answer)} tokens, {changed}, {threads} threads",
            "plain": f"{statistics.median(speeds.plain):.1f} tokens/s",
            "lookup": f"{statistics.median(speeds.lookup):.1f} tokens/s",
            "ratio": f"{statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})",
            "acceptance": "nothing drafted" if speeds.acceptance is None else f"{speeds.acceptance:.0%}",
        }

    return [row(speeds) for speeds in found]


def _say(engine: Engine, edit: Edit, drafter: LookupDrafter | None, tokens: int) -> Completion:
    """What the scripted model says; raises RuntimeError when it is not the script."""
    done = engine.complete(edit.prompt, Sampling(temperature=0.0), tokens, drafter=drafter)
    said = list(done.tokens)
    if said != edit.answer[:tokens]:
        place = next(place for place, (a, b) in enumerate(itertools.zip_longest(said, edit.answer)) if a != b)
        raise RuntimeError(f"the script was not followed from token {place} on")
    return done


def _rate(done: Completion) -> float:
    rate = done.speed.generated_tokens_per_s
    assert rate is not None
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what --lookup brings when a text is edited.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=this_machine().cpu.threads)
    parser.add_argument("--tokens", type=int, default=400, help="of the text to be edited")
    parser.add_argument("--edited", type=float, nargs="+", default=[0, 2, 5, 10, 100], help="percent of the places")
    parser.add_argument("--keep", action="store_true", help="keep the result as benchmarks/results/speculation.json")
    options = parser.parse_args()
    shares = [percent / 100 for percent in options.edited]
    found = edit_speeds(options.model, options.threads, options.tokens, shares, options.runs)
    rows = summary(found, options.threads)
    for row in rows:
        print(" | ".join(row.values()))
    if options.keep:
        samples = [{"edited": each.edit.share, "plain": each.plain, "lookup": each.lookup} for each in found]
        print(keep("speculation", {"benchmark": "speculation", "runs": options.runs, "rows": rows, "samples": samples}))


if __name__ == "__main__":
    main()
