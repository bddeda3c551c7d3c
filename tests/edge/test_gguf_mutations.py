"""No damaged or hostile GGUF file may crash or hang the process: what the checks accept, llama.cpp must survive.

More seeds by hand: `TINYEDGE_MUTATIONS=20000 pytest tests/edge/test_gguf_mutations.py` (about 12 ms each).
"""

from __future__ import annotations

import math
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_gguf import CODES, HIDDEN, Tensor, pack, tiny_parts

from tinyedge import ggml_types
from tinyedge.llama_check import MATRIX_TYPES

SEEDS = int(os.environ.get("TINYEDGE_MUTATIONS", "480"))
SEEDS_PER_TEST = max(SEEDS // 8, 1)
SECONDS_PER_FILE = 20
WORKER = Path(__file__).with_name("gguf_worker.py")
HEADER_BYTES = 8768  # of the packed tiny model: metadata and tensor table

INTEGERS = (0, 1, 2, 3, 7, 31, 32, 33, 64, 255, 256, 257, 511, 513, 1024, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (0.0, -1.0, 1e-5, 1.0, 1e38, -1e38, math.inf, -math.inf, math.nan)
STRINGS = (
    b"",
    b"llama",
    b"gpt2",
    b"bert",
    b"t5",
    b"rwkv",
    b"none",
    b"no_vocab",
    b"test",
    b"gemma4",
    b"plamo2",
    b"yarn",
)
STRINGS += (b"longrope", b"linear", b"\xff\xfe", b"\x1b[31m", b"phi3", b"qwen2", b"clip", b"mamba", b"x" * 300)
# Keys that llama.cpp reads for every model and asserts about, and some that only change how it behaves.
DANGEROUS = (
    ("llama.expert_count", "u32"),
    ("llama.expert_used_count", "u32"),
    ("llama.expert_group_count", "u32"),
    ("llama.expert_group_used_count", "u32"),
    ("llama.nextn_predict_layers", "u32"),
    ("llama.embedding_length_out", "u32"),
    ("llama.pooling_type", "u32"),
    ("llama.classifier.pooling_type", "u32"),
    ("llama.attention.causal", "bool"),
    ("llama.attention.key_length", "u32"),
    ("llama.attention.value_length", "u32"),
    ("llama.attention.key_length_swa", "u32"),
    ("llama.attention.sliding_window", "u32"),
    ("llama.attention.clamp_kqv", "f32"),
    ("llama.attention.scale", "f32"),
    ("llama.rope.scaling.type", "str"),
    ("llama.rope.scaling.factor", "f32"),
    ("llama.rope.scaling.original_context_length", "u32"),
    ("llama.rope.scaling.attn_factor", "f32"),
    ("llama.rope.scaling.yarn_ext_factor", "f32"),
    ("llama.rope.scale_linear", "f32"),
    ("llama.logit_scale", "f32"),
    ("llama.residual_scale", "f32"),
    ("llama.embedding_scale", "f32"),
    ("llama.use_parallel_residual", "bool"),
    ("llama.tensor_data_layout", "str"),
    ("split.count", "u16"),
    ("split.no", "u16"),
    ("split.tensors.count", "i32"),
    ("general.alignment", "u32"),
    ("general.type", "str"),
    ("general.quantization_version", "u32"),
    ("tokenizer.ggml.pre", "str"),
    ("tokenizer.ggml.token_type_count", "u32"),
    ("tokenizer.ggml.unknown_token_id", "u32"),
    ("tokenizer.ggml.padding_token_id", "u32"),
    ("tokenizer.ggml.eot_token_id", "u32"),
    ("tokenizer.ggml.seperator_token_id", "u32"),
    ("tokenizer.ggml.mask_token_id", "u32"),
    ("tokenizer.ggml.fim_pre_token_id", "u32"),
    ("tokenizer.ggml.add_eos_token", "bool"),
    ("tokenizer.ggml.add_sep_token", "bool"),
    ("tokenizer.ggml.add_space_prefix", "bool"),
    ("tokenizer.ggml.remove_extra_whitespaces", "bool"),
)


def _positions(chance: random.Random, count: int) -> list[int]:
    """Header positions, half of them outside the token list that fills most of it."""
    spots = (range(HEADER_BYTES), range(24), range(24, 900), range(HEADER_BYTES - 1700, HEADER_BYTES))
    return [chance.choice(chance.choice(spots)) for _ in range(count)]


def _flip_bits(chance: random.Random) -> bytes:
    data = bytearray(pack(tiny_parts()))
    for position in _positions(chance, chance.choice((1, 1, 1, 2, 4, 16))):
        data[position] ^= 1 << chance.randrange(8)
    return bytes(data)


def _overwrite_numbers(chance: random.Random) -> bytes:
    data = bytearray(pack(tiny_parts()))
    for position in _positions(chance, chance.choice((1, 1, 2, 4))):
        raw = struct.pack("<Q", chance.choice((*INTEGERS, 2**63, 2**64 - 1)))[: chance.choice((1, 4, 8))]
        data[position : position + len(raw)] = raw
    return bytes(data)


def _truncate(chance: random.Random) -> bytes:
    data = pack(tiny_parts())
    return data[: chance.choice((chance.randrange(HEADER_BYTES), chance.randrange(len(data)), len(data) - 1))]


def _splice(chance: random.Random) -> bytes:
    data = bytearray(pack(tiny_parts()))
    start, target = _positions(chance, 2)
    piece = bytes(data[start : start + chance.choice((1, 4, 8, 32, 100))])
    how = chance.randrange(3)
    if how == 0:
        data[target : target + len(piece)] = piece
    elif how == 1:
        data[target:target] = piece
    else:
        del data[start : start + len(piece)]
    return bytes(data)


def _value(chance: random.Random, kind: str) -> object:
    if kind == "str":
        return chance.choice(STRINGS)
    if kind == "f32":
        return chance.choice(FLOATS) if chance.random() < 0.9 else chance.uniform(-10, 10)
    if kind == "bool":
        return chance.random() < 0.5
    low, high = (-(2**31), 2**31 - 1) if kind == "i32" else (0, 2 ** (8 * struct.calcsize(CODES[kind])) - 1)
    return min(max(chance.choice((*INTEGERS, chance.randrange(600))), low), high)


def _bend_metadata(chance: random.Random) -> bytes:
    parts = tiny_parts()
    for _ in range(chance.choice((1, 1, 2, 3))):
        key, kind, value = chance.choice(parts.pairs)
        how = chance.randrange(5)
        if how == 0:
            parts.drop(key)
        elif how == 1:
            kind = chance.choice(("u32", "i32", "f32", "str", "bool", "u64"))
            parts.set(key, kind, _value(chance, kind))
        elif kind.startswith("arr["):
            parts.set(key, kind, value[: chance.randrange(len(value))] if how == 2 else value + value[:1])
        else:
            parts.set(key, kind, _value(chance, kind))
    return pack(parts)


def _add_keys(chance: random.Random) -> bytes:
    parts = tiny_parts()
    for key, kind in chance.sample(DANGEROUS, chance.choice((1, 1, 2, 4))):
        parts.set(key, kind, _value(chance, kind))
    if chance.random() < 0.2:
        key = chance.choice(("feed_forward_length", "attention.head_count", "attention.head_count_kv"))
        parts.set(
            f"llama.{key}",
            "arr[u32]",
            [chance.choice((0, 1, 2, 4, 8, 512)) for _ in range(chance.choice((0, 1, 2, 3)))],
        )
    return pack(parts)


def _retype(chance: random.Random, tensor: Tensor) -> None:
    """Another type, with as many bytes as it takes."""
    kind = chance.choice(list(ggml_types.BY_ID.values()))
    elements = math.prod(tensor.shape)
    tensor.type_id, tensor.data = kind.id, chance.randbytes(elements // kind.block_elements * kind.block_bytes)


def _bend_tensors(chance: random.Random) -> bytes:
    parts = tiny_parts()
    for _ in range(chance.choice((1, 1, 2, 4))):
        tensor = chance.choice(parts.tensors)
        how = chance.randrange(7)
        if how == 0:
            parts.tensors.remove(tensor)
        elif how == 1:
            tensor.name = chance.choice(
                ("", "x", "blk.2.attn_q.weight", "blk.0.attn_q.bias", tensor.name.replace("weight", "scale"))
            )
        elif how == 2:
            tensor.shape = tensor.shape[::-1]
        elif how == 3:
            tensor.shape = (*tensor.shape, chance.choice((0, 1, 2)))
        elif how == 4:
            name = chance.choice(
                ("rope_freqs.weight", "blk.0.attn_q.bias", "blk.1.ffn_up.scale", "output.scale", "other.weight")
            )
            parts.tensors.append(Tensor(name, (chance.choice((1, 16, HIDDEN)),), 0, bytes(4 * HIDDEN)))
        else:
            _retype(chance, tensor)
    return pack(parts)


def _bend_vocabulary(chance: random.Random) -> bytes:
    parts = tiny_parts()
    texts, types = list(parts.get("tokenizer.ggml.tokens")), parts.get("tokenizer.ggml.token_type")
    for _ in range(chance.choice((1, 1, 2, 8))):
        position = chance.randrange(chance.choice((0, 259)), len(texts))  # 259 byte and control tokens come first
        texts[position] = chance.choice(
            (b"", b"\0", b"\xff", b"<0x0G>", b"<0x>", b"ab", chance.choice(texts), chance.randbytes(5))
        )
    parts.set("tokenizer.ggml.tokens", "arr[str]", texts)
    if chance.random() < 0.4:
        parts.set("tokenizer.ggml.token_type", "arr[i32]", types[:259] + [chance.randrange(8) for _ in texts[259:]])
    if chance.random() < 0.2:
        parts.set("tokenizer.ggml.scores", "arr[f32]", [chance.choice(FLOATS) for _ in texts])
    if chance.random() < 0.3:
        parts.set("tokenizer.ggml.model", "str", b"gpt2")
        parts.set(
            "tokenizer.ggml.merges",
            "arr[str]",
            [chance.choice((b"a b", b"", b" ", b"a", b"\xff \xff")) for _ in range(4)],
        )
        parts.set("tokenizer.ggml.pre", "str", chance.choice((b"default", b"llama-bpe", b"gpt-2", b"qwen2", b"tekken")))
    return pack(parts)


MUTATIONS: tuple[Callable[[random.Random], bytes], ...] = (
    _flip_bits,
    _overwrite_numbers,
    _truncate,
    _splice,
    _bend_metadata,
    _add_keys,
    _bend_tensors,
    _bend_vocabulary,
)


def mutated(seed: int) -> bytes:
    """The tiny model, damaged in the way and place that `seed` says."""
    return MUTATIONS[seed % len(MUTATIONS)](random.Random(seed))


def try_files(paths: list[Path]) -> dict[Path, str]:
    """What became of each file: refused, failed, ran, or how the process that tried it ended."""
    results: dict[Path, str] = {}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    while left := [path for path in paths if path not in results]:
        worker = [sys.executable, str(WORKER)]
        names = "\n".join(map(str, left))
        try:
            done = subprocess.run(
                worker,
                input=names,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=SECONDS_PER_FILE + len(left),
            )
            output, ending = done.stdout, f"died with {done.returncode}: {done.stderr[-600:]}"
        except subprocess.TimeoutExpired as expired:
            output, ending = (expired.stdout or b"").decode(), "hung"
        lines = output.splitlines()
        answered = dict(zip(lines[::2], lines[1::2], strict=False))
        results |= {path: answered[f"start {path}"] for path in left if f"start {path}" in answered}
        if len(answered) < len(left):
            culprit = left[len(answered)]
            results[culprit] = ending
    return results


def try_seeds(folder: Path, seeds: range) -> dict[int, str]:
    paths = {folder / f"{seed}.gguf": seed for seed in seeds}
    for path, seed in paths.items():
        path.write_bytes(mutated(seed))
    results = try_files(list(paths))
    for path in paths:
        path.unlink()
    return {paths[path]: result for path, result in results.items()}


def test_the_unharmed_model_runs(tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    path.write_bytes(pack(tiny_parts()))
    assert try_files([path]) == {path: "ran"}


def test_every_type_that_the_checks_allow_runs(tmp_path: Path) -> None:
    paths = {}
    for name in sorted(MATRIX_TYPES):
        parts, kind, noise = tiny_parts(), ggml_types.type_named(name), random.Random(1)
        for tensor in parts.tensors:
            if len(tensor.shape) > 1:
                blocks = math.prod(tensor.shape) // kind.block_elements
                tensor.type_id, tensor.data = kind.id, noise.randbytes(blocks * kind.block_bytes)
        paths[tmp_path / f"{name}.gguf"] = name
        (tmp_path / f"{name}.gguf").write_bytes(pack(parts))
    results = {paths[path]: result for path, result in try_files(list(paths)).items()}
    assert {name for name, result in results.items() if result == "ran"} == MATRIX_TYPES


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_no_mutation_crashes_or_hangs(tmp_path: Path, first: int) -> None:
    results = try_seeds(tmp_path, range(first, first + SEEDS_PER_TEST))
    assert {seed: result for seed, result in results.items() if result not in ("refused", "failed", "ran")} == {}
    assert "refused" in results.values()


def test_the_worker_notices_a_file_that_kills_it(tmp_path: Path) -> None:
    """Proof that the test above can fail: without the checks the same mutations do kill the process."""
    seeds = list(range(5, 200, 8))
    paths = []
    for seed in seeds:
        paths.append(tmp_path / f"{seed}.gguf")
        paths[-1].write_bytes(mutated(seed))
    code = "import tinyedge.model_facts as m; m.check_runnable = lambda gguf: None; import runpy, sys; " + (
        f"runpy.run_path({str(WORKER)!r}, run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(map(str, paths)), capture_output=True, text=True, env=environment
    )
    assert done.returncode < 0
