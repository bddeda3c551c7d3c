"""Mutates a checkpoint by seed and converts it, again and again: `checkpoint_mutations.py FOLDER COUNT [FIRST]`.

Prints a JSON object with how many were accepted and refused. Anything but a TinyEdgeError is a failure and ends the process.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import test_layouts as layouts

from tinyedge.errors import TinyEdgeError
from tinyedge_quantize.convert import convert

# Where the interesting bytes of each file are: headers and pickles rather than the mass of weights.
HEAD_BYTES = {"model.safetensors": 3000, "tokenizer.model": 4000}


def mutate(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    window = min(len(data), HEAD_BYTES.get(path.name, len(data)))
    kind = chance.choice(["flip", "flip", "flip", "byte", "truncate", "splice", "digits", "zero"])
    place = chance.randrange(max(1, window))
    if path.suffix == ".bin" and chance.random() < 0.8:
        # The pickle and the ZIP directory hold the structure; they stand at both ends.
        place = chance.choice([chance.randrange(min(4000, len(data))), len(data) - 1 - chance.randrange(min(4000, len(data)))])
    if kind == "flip":
        for _ in range(chance.choice([1, 1, 2, 8])):
            data[place % len(data)] ^= 1 << chance.randrange(8)
            place += chance.randrange(1, 40)
    elif kind == "byte":
        data[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
    elif kind == "truncate":
        del data[chance.randrange(len(data)) :]
    elif kind == "splice":
        start = chance.randrange(window)
        data[place:place] = data[start : start + chance.randrange(1, 64)]
    elif kind == "digits":
        digits = [n for n in range(window) if 48 <= data[n] <= 57]
        for n in chance.sample(digits, min(len(digits), chance.choice([1, 3]))):
            data[n] = 48 + chance.randrange(10)
    else:
        data[place : place + 16] = bytes(16)
    path.write_bytes(data)
    return kind


def second_layout(source: Path, folder: Path) -> Path:
    """The same sizes as a torch.save file with a Lit-GPT configuration."""
    import numpy as np

    random_weights = np.random.default_rng(0)
    weights = {name: random_weights.standard_normal(shape, np.float32) for name, shape in layouts.SHAPE.tensors()}
    layouts.save_by_hand(folder / "pytorch_model.bin", dict(weights))
    shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")
    (folder / "config.json").write_text(json.dumps(layouts.SHAPE.config()))
    return folder


def main() -> None:
    source, count = Path(sys.argv[1]), int(sys.argv[2])
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    totals = {"accepted": 0, "refused": 0}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [source, second_layout(source, folder / "bin")]
        for seed in range(first, first + count):
            chance = random.Random(seed)
            copy = Path(shutil.copytree(chance.choice(sources), folder / "copy"))
            victim = chance.choice(sorted(copy.iterdir()))
            print(seed, victim.name, mutate(victim, chance), file=sys.stderr, flush=True)
            try:
                convert(copy, folder / "out.gguf", chance.choice(["Q4_K_M", "F16"]))
                totals["accepted"] += 1
            except TinyEdgeError as error:
                assert "\n" not in str(error)
                totals["refused"] += 1
            shutil.rmtree(copy)
    print(json.dumps(totals | {"seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main()
