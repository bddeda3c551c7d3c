"""Documents as `tinyedge bench`, `eval` and `eval sweep` write them, with made-up but plausible figures."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

MACHINE = {
    "cpu": "Cortex-A76",
    "architecture": "aarch64",
    "system": "Linux-6.6-aarch64-with-glibc2.36",
    "logical_cores": 4,
    "physical_cores": 4,
    "performance_cores": 4,
    "cpu_quota": None,
    "memory_bytes": 8 << 30,
    "free_memory_bytes": 6 << 30,
    "devices": ["cpu: Cortex-A76"],
}
BUILD = {"tinyedge": "0.6.0", "llama_cpp_python": "0.3.36", "ggml": "0.9.4"}
MODELS = {"tinyllama-1.1b-Q4_K_M.gguf": (667_815_040, 1.0), "tinyllama-1.1b-Q8_0.gguf": (1_169_000_000, 0.6)}
PARAMETERS = 1_100_048_384
SWEEP = (
    # type, bytes, mean KL, perplexity, on the front
    ("Q8_0", 1_169_000_000, 0.0008, 8.412, True),
    ("Q6_K", 903_000_000, 0.0031, 8.431, True),
    ("Q5_K_M", 782_000_000, 0.0082, 8.467, True),
    ("Q4_K_M", 668_000_000, 0.0305, 8.623, True),
    ("Q4_0", 637_000_000, 0.0612, 8.879, False),
    ("IQ4_XS", 620_000_000, 0.0388, 8.691, True),
    ("Q3_K_M", 550_000_000, 0.1107, 9.214, True),
    ("Q2_K", 432_000_000, 0.6034, 14.07, True),
)


def document(kind: str, results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    head = {"tinyedge": {"schema": 1, "kind": kind}, "date": "2026-11-22T01:00:00+00:00", "machine": MACHINE, "build": BUILD}
    return {**head, "missing": [], **more, "results": results}


def speed_row(model: str, speed: float, *, prompt: int = 0, generate: int = 0, threads: int = 4, **more: Any) -> dict[str, Any]:
    chance = random.Random(f"{model} {prompt} {generate} {threads} {more}")
    size = MODELS.get(model, (500_000_000, 1.0))[0]
    samples = [round(speed * chance.uniform(0.98, 1.02), 3) for _ in range(5)]
    words = [f"pp{prompt}" if prompt else "", f"tg{generate}" if generate else ""]
    depth = more.get("n_depth", 0)
    return {
        "model_filename": model,
        "model_type": "llama 1B",
        "model_size": size,
        "model_n_params": PARAMETERS,
        "engine": "tinyedge",
        "engine_version": "0.6.0",
        "backends": "cpu",
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_threads": threads,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": 0,
        "flash_attn": 0,
        "n_prompt": prompt,
        "n_gen": generate,
        "n_depth": 0,
        "n_parallel": 1,
        "test": "+".join(filter(None, words)) + (f" @ d{depth}" if depth else ""),
        "test_time": "2026-11-22T01:00:00Z",
        "avg_ns": round((prompt + generate) / speed * 1e9),
        "stddev_ns": 1_000_000,
        "avg_ts": sum(samples) / 5,
        "stddev_ts": speed * 0.01,
        "samples_ns": [round((prompt + generate) / each * 1e9) for each in samples],
        "samples_ts": samples,
        "median_ts": sorted(samples)[2],
        "ttft_ns": round(prompt / speed * 1e9) if prompt else None,
        "ttft_samples_ns": [],
        "bytes_per_s": None if prompt else speed * size,
        "bandwidth_share": None if prompt else speed * size / 13.1e9,
        "flops": speed * 2.05e9 if prompt else None,
        "matrix_share": speed * 2.05e9 / 120e9 if prompt else None,
        "energy_j_per_token": None,
        "energy_note": "this machine does not tell",
        "temperature_c": [48.0, 71.5, None],
        "clock_mhz": [2400, 2400, 2400],
        "throttled": [],
        "warnings": [],
        **more,
    }


def speed_document() -> dict[str, Any]:
    """Two models, 1, 2 and 4 threads, four depths, two peers, ceilings, loads, references and a missing peer."""
    rows = [
        speed_row(model, base * factor * threads**0.8, prompt=prompt, generate=generate, threads=threads)
        for model, (_, factor) in MODELS.items()
        for prompt, generate, base in ((512, 0, 12.0), (0, 128, 5.5))
        for threads in (1, 2, 4)
    ]
    first = next(iter(MODELS))
    rows += [speed_row(first, 16 - depth / 250, generate=128, n_depth=depth) for depth in (512, 1024, 2048)]
    for engine, version, factor in (("llama-bench", "b6700", 0.99), ("ollama", "0.12.3", 0.93)):
        rows += [
            speed_row(first, base * factor, prompt=prompt, generate=generate, engine=engine, engine_version=version)
            for prompt, generate, base in ((512, 0, 36.4), (0, 128, 16.7))
        ]
    rows[0]["warnings"] = ["the speed fell by 6 % during the runs; let the board cool with --cool"]
    rows[1]["throttled"] = ["soft temperature limit"]
    return document(
        "speed",
        rows,
        missing=[{"what": "peer mlx-lm", "reason": "it runs on Apple machines only"}],
        ceilings={
            "bandwidth": {"1": 9.8e9, "2": 12.4e9, "4": 13.1e9},
            "matrix": {"cpu": {"4": {"F16": 118e9, "Q8_0": 121e9, "Q4_K": 96e9}}},
        },
        loads=[
            {
                "model_filename": model,
                "backends": "cpu",
                "cold_s": None,
                "cold_note": "needs root",
                "warm_s": 0.412,
                "peak_memory_bytes": size * 11 // 10,
            }
            for model, (size, _) in MODELS.items()
        ],
        references=[
            {
                "board": "Mac M2, 16 GB",
                "model": "TinyLlama 1.1B",
                "type": "4-bit",
                "test": "generation",
                "tokens_per_s": 71.8,
                "source": "TinyLlama's README",
                "url": "https://github.com/jzhang38/TinyLlama",
            }
        ],
    )


def quality_document() -> dict[str, Any]:
    """Seven checkpoints of a training run, three tasks, perplexity."""
    steps = ("105B", "503B", "1T", "1.5T", "2T", "2.5T", "3T")
    return document(
        "quality",
        [
            {
                "model_filename": f"tinyllama-{step}.gguf",
                "model_type": "llama 1B F16",
                "model_size": 2_200_000_000,
                "model_n_params": PARAMETERS,
                "file_bytes": 2_200_900_000,
                "backends": "cpu",
                "n_threads": 4,
                "perplexity": {
                    "value": 11.2 - i / 3,
                    "error": 0.071,
                    "tokens": 20480,
                    "chunks": 40,
                    "n_ctx": 512,
                    "stride": 0,
                    "text": "wiki.test.raw",
                    "text_bytes": 1_290_590,
                },
                "bits_per_byte": {"value": 0.81 - i / 100},
                "tasks": [
                    {
                        "task": task,
                        "file": f"{task}.jsonl",
                        "questions": 1000,
                        "accuracy": start + i * 0.015,
                        "accuracy_error": 0.0155,
                        "accuracy_norm": start + 0.03 + i * 0.018,
                        "accuracy_norm_error": 0.0156,
                        "shots": 0,
                        "seconds": 61.0,
                    }
                    for task, start in (("hellaswag", 0.40), ("arc_easy", 0.45), ("piqa", 0.64))
                ],
                "seconds": 300.0,
            }
            for i, step in enumerate(steps)
        ],
    )


def sweep_document() -> dict[str, Any]:
    percentiles = {
        "max": 9.1,
        "99.9": 2.2,
        "99.0": 0.6,
        "95.0": 0.2,
        "90.0": 0.1,
        "median": 0.01,
        "10.0": 0.0,
        "5.0": 0.0,
        "1.0": 0.0,
    }
    return document(
        "sweep",
        [
            {
                "model_filename": f"tinyllama-{name}.gguf",
                "model_type": f"llama 1B {name}",
                "model_size": size - 900_000,
                "model_n_params": PARAMETERS,
                "file_bytes": size,
                "backends": "cpu",
                "n_threads": 4,
                "perplexity": {
                    "value": perplexity,
                    "error": 0.052,
                    "tokens": 20480,
                    "chunks": 40,
                    "n_ctx": 512,
                    "text": "wiki.raw",
                },
                "bits_per_byte": {"value": 0.77},
                "divergence": {
                    "base": "tinyllama-F16.gguf",
                    "mean_kl": kl,
                    "mean_kl_error": kl / 40,
                    "kl_percentiles": {key: value * kl * 20 for key, value in percentiles.items()},
                    "same_top": 0.98 - kl / 2,
                    "same_top_error": 0.001,
                },
                "type": name,
                "prompt_tokens_per_s": 36.0,
                "generated_tokens_per_s": 9e9 / size,
                "quantize_s": 31.0,
                "bits_per_weight": size * 8 / PARAMETERS,
                "pareto": front,
            }
            for name, size, kl, perplexity, front in SWEEP
        ],
    )


def write_all(folder: Path) -> list[Path]:
    """The three documents as files bench.json, eval.json and sweep.json."""
    made = {"bench": speed_document(), "eval": quality_document(), "sweep": sweep_document()}
    paths = [folder / f"{name}.json" for name in made]
    for path, value in zip(paths, made.values(), strict=True):
        path.write_text(json.dumps(value))
    return paths
