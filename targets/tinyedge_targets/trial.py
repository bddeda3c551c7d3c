"""What a wheel does where it runs: the program that a proof starts under emulation, or natively, in a process of its own.

It prints one line for each step that is done, so that one that ends the process (an illegal instruction, a crash) shows which
step it was. Only this file of the package may import the runtime and the quantizer, for it runs on the board's side.
"""

from __future__ import annotations

import argparse
import array
import base64
import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

MARK = "tinyedge-trial "  # begins each line of ours: a library may print too

# One type for each family of kernels: k-quants; the ones that are repacked for the processor when they are loaded; halves.
TYPES = ("Q4_K_M", "Q4_0", "Q8_0", "F16")
QUANTIZED = "Q4_K_M"

PROMPT = "Once upon a time there was a little girl who"
_TEXT = (
    "Once upon a time there was a little girl who lived with her mother in a small house near the great forest. Every morning "
    "she went out to gather wood, and every evening they sat by the fire and told each other stories of kings and wolves."
)
# Tokens read in one go: whole blocks of the kernels and remainders. After the last of these, one token at a time.
_BATCHES = (2, 7, 32)
_SINGLE = 8
POSITIONS = len(_BATCHES) + _SINGLE
_CONTEXT = 128

Step = Callable[[argparse.Namespace], Iterator[dict[str, Any]]]


def main(arguments: list[str]) -> None:
    """`make FOLDER` quantizes the demo checkpoint into FOLDER/TYPE.gguf; `run FOLDER` tries the library on those."""
    parser = argparse.ArgumentParser(prog="trial")
    parser.add_argument("action", choices=("make", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", nargs="+", choices=tuple(_STEPS), default=list(_STEPS))
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args(arguments)
    if options.action == "make":
        _make_models(options.folder)
        return
    for name in options.steps:
        started = perf_counter()
        _tell({"begun": name})
        for result in _STEPS[name](options):
            _tell({"step": name, **result, "seconds": round(perf_counter() - started, 3)})
            started = perf_counter()


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(line)}\n")
    sys.stdout.flush()


def _demo() -> Path:
    from importlib.resources import files

    return Path(str(files("tinyedge") / "demo"))


def _make_models(folder: Path) -> None:
    from tinyedge_quantize.convert import convert

    for name in TYPES:
        convert(_demo(), folder / f"{name}.gguf", name)


def _library(_options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Which library was loaded and which of its CPU modules is mapped, after all of them were looked at."""
    from tinyedge.machine.cpu_features import cpu_features
    from tinyedge.native import library

    versions = dataclasses.asdict(library.versions())
    features = cpu_features().words or ()
    yield {**versions, "mapped": mapped_libraries(), "features": features, "machine": platform.machine()}


def mapped_libraries() -> list[str]:
    """The file names of ggml's libraries in this process; empty where the system does not tell (macOS)."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count("/") and len(line.split(maxsplit=5)) == 6}
    return sorted(name for path in paths if (name := os.path.basename(path)).startswith(("libggml", "libllama")))  # noqa: PTH119


def _kernels(_options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The error of each quantization kernel; raises SelfCheckError where one is out of bounds."""
    from tinyedge_quantize.selfcheck import check_kernels

    yield {"errors": {kernel.type: [kernel.error, kernel.bound] for kernel in check_kernels()}}


def _logits(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """For each model the logits of a fixed text at POSITIONS places: float32, (positions, vocabulary), base64."""
    for name in TYPES:
        rows, vocabulary = _logit_rows(options.folder / f"{name}.gguf")
        yield {"type": name, "vocabulary": vocabulary, "logits": base64.b64encode(rows.tobytes()).decode("ascii")}


def _logit_rows(path: Path) -> tuple[array.array[float], int]:
    from tinyedge.native.context import Context, ContextSettings
    from tinyedge.native.model import Model

    rows = array.array("f")
    with Model(path) as model, Context(model, ContextSettings(context=_CONTEXT, threads=1)) as context:
        tokens, size = model.tokenize(_TEXT), model.vocabulary_size

        def keep() -> None:
            context.wait()
            rows.extend(context.logits())

        for count in _BATCHES:
            context.clear()
            context.decode_all(tokens[:count])
            keep()
        for token in tokens[_BATCHES[-1] : _BATCHES[-1] + _SINGLE]:
            context.decode(token)
            keep()
    if sys.byteorder == "big":
        rows.byteswap()
    return rows, size


def _text(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What the demo model tells, by the whole way through the runtime: plan, engine, greedy sampling."""
    from tinyedge.backends import Request, choose, this_machine
    from tinyedge.engine import Engine
    from tinyedge.gguf_file import read_gguf
    from tinyedge.model_facts import describe_model
    from tinyedge.sampling import Sampling

    path = options.folder / f"{QUANTIZED}.gguf"
    plan = choose(describe_model(read_gguf(path)), Request(backend="cpu", threads=1, context=_CONTEXT), this_machine())
    with Engine.open(path, plan) as engine:
        chunks = list(engine.stream(PROMPT, Sampling(temperature=0.0), options.tokens))
    speed = chunks[-1].speed
    assert speed is not None
    yield {
        "text": "".join(chunk.text for chunk in chunks),
        "tokens": speed.generated_tokens,
        "tokens_per_s": speed.generated_tokens_per_s,
        "reason": plan.reason,
    }


def _quantize(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Quantizes the demo checkpoint here; how many bytes differ from the file of the same type that was handed over."""
    from tinyedge_quantize.convert import convert

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "demo.gguf")
        convert(_demo(), output, QUANTIZED, threads=1)
        ours, theirs = output.read_bytes(), (options.folder / f"{QUANTIZED}.gguf").read_bytes()
    differing = sum(a != b for a, b in zip(ours, theirs, strict=False)) if ours != theirs else 0
    yield {"bytes": len(ours), "expected_bytes": len(theirs), "differing": differing}


_STEPS: dict[str, Step] = {"library": _library, "kernels": _kernels, "logits": _logits, "text": _text, "quantize": _quantize}

if __name__ == "__main__":
    main(sys.argv[1:])
