"""What the cache of system prompts saves at the second start: the prompt phase with it and without, in turn.

    python -m tinyedge_bench.suite.second_start MODEL.gguf [--tokens 500] [--runs 5] [--threads N] [--keep NAME]

The prompt phase runs from the loaded model to the first token of the answer to a question behind a system prompt of that many
tokens. Each one is in a process of its own, as a second start is, so finding the entry, checking it and naming the model are
in it. Words are drawn from the vocabulary with a fixed seed: what a prompt says does not change what it costs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tinyedge.backends import Request, choose, this_machine
from tinyedge.chat.prompt_cache import PromptCache
from tinyedge.engine import Engine
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import describe_model
from tinyedge.native.model import Model
from tinyedge.sampling import Sampling
from tinyedge_bench.results import keep

QUESTION_TOKENS = 12
PREFERRED_CONTEXT = 2048


@dataclass(frozen=True)
class Start:
    """One start: how many tokens came from the cache, seconds to the first token, and seconds in all with what is kept."""

    restored: int
    first_token_s: float
    load_s: float
    first: int


def prompt_phase(model: Path, threads: int, tokens: int, cache: Path | None) -> Start:
    """Loads the model and measures the prompt phase, through the cache in the folder `cache` or without one."""
    facts = describe_model(read_gguf(model))
    context = min(facts.context or PREFERRED_CONTEXT, PREFERRED_CONTEXT)
    if tokens + QUESTION_TOKENS >= context:
        raise ValueError(f"a prompt of {tokens} tokens does not fit the model's context of {context}")
    plan = choose(facts, Request(backend="cpu", threads=threads, context=context), this_machine())
    with Engine.open(model, plan) as engine:
        system, question = prompts(engine.model, tokens)
        store = PromptCache(cache) if cache is not None else None
        began = perf_counter()
        restored = store.load(engine, system) if store is not None else 0
        stream = engine.stream([*system, *question], Sampling(temperature=0.0), 1, reuse=store is not None)
        list(stream)
        seconds = perf_counter() - began
        return Start(restored, seconds, engine.load_s, (*engine.generated, -1)[0])


def prompts(model: Model, tokens: int) -> tuple[list[int], list[int]]:
    """A system prompt of that many tokens, BOS among them where the model wants one, and a question."""
    noise = random.Random(7)
    words = [token for token in range(model.vocabulary_size) if model.piece(token) and not model.is_control(token)]
    begin = [] if model.bos is None else [model.bos]
    system = begin + noise.choices(words, k=tokens - len(begin))
    return system, noise.choices(words, k=QUESTION_TOKENS)


def measure(model: Path, threads: int, tokens: int, runs: int) -> dict[str, Any]:
    """All samples of starts without the cache, with it, and of the very first one, which fills it."""
    with tempfile.TemporaryDirectory() as folder:
        filling = _in_a_process(model, threads, tokens, folder)
        without, with_cache = [], []
        for _ in range(runs):
            without.append(_in_a_process(model, threads, tokens, None))
            with_cache.append(_in_a_process(model, threads, tokens, folder))
        kept_bytes = sum(each.stat().st_size for each in Path(folder).iterdir())
    if {start.restored for start in with_cache} != {tokens} or filling.restored:
        raise RuntimeError("the cache did not restore the prompt: is there a place for its key?")
    # Without the cache the prompt is read in other batches, whose last bits differ: random weights have ties to break.
    if {start.first for start in with_cache} != {filling.first}:
        raise RuntimeError("the first token from the cache is another one than the one it was kept with")
    return {"filling": filling, "without": without, "with": with_cache, "kept_bytes": kept_bytes}


def _in_a_process(model: Path, threads: int, tokens: int, cache: str | None) -> Start:
    options = ["--threads", str(threads), "--tokens", str(tokens), "--one", cache or ""]
    command = [sys.executable, "-m", "tinyedge_bench.suite.second_start", str(model), *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
    return Start(**json.loads(done.stdout))


def rows(samples: dict[str, Any], tokens: int) -> list[dict[str, str]]:
    """A row for the second start and one for the first, which pays for keeping the state: medians, ratios run by run."""
    plain = [start.first_token_s for start in samples["without"]]
    cached = [start.first_token_s for start in samples["with"]]
    ratios = [one / other for one, other in zip(cached, plain, strict=True)]
    middle, first = statistics.median(plain), samples["filling"].first_token_s
    kept = samples["kept_bytes"] / (1 << 20)
    return [
        {
            "what": f"second start: prompt phase of {tokens} tokens of system prompt, model loaded",
            "without": _shown(middle),
            "with": _shown(statistics.median(cached)),
            "ratio": f"{statistics.median(ratios):.3f}",
        },
        {
            "what": f"first start, which keeps {kept:.1f} MiB",
            "without": _shown(middle),
            "with": _shown(first),
            "ratio": f"{first / middle:.3f}",
        },
    ]


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the prompt phase with and without the cache of system prompts.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=this_machine().cpu.threads)
    parser.add_argument("--keep", metavar="NAME", help="keep the result as benchmarks/results/NAME.json")
    parser.add_argument("--one", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        folder = Path(options.one) if options.one else None
        print(json.dumps(asdict(prompt_phase(options.model, options.threads, options.tokens, folder))))
        return
    samples = measure(options.model, options.threads, options.tokens, options.runs)
    table = rows(samples, options.tokens)
    for row in table:
        print(" | ".join(row.values()))
    if options.keep:
        facts = describe_model(read_gguf(options.model))
        result = {
            "benchmark": "second_start",
            "model": f"{facts.name} {facts.file_type}",
            "runs": options.runs,
            "threads": options.threads,
            "rows": table,
            "kept_bytes": samples["kept_bytes"],
            "first_start_s": samples["filling"].first_token_s,
            "without_s": [start.first_token_s for start in samples["without"]],
            "with_s": [start.first_token_s for start in samples["with"]],
        }
        print(keep(options.keep, result))


if __name__ == "__main__":
    main()
