"""Speed documents with made-up figures, and what llama-bench printed for the demo model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyedge_bench.result_files import Document, Missing

# Of `llama-bench -m demo-f16.gguf -p 16 -n 4 -r 2 -t 1 -o csv`, and the first line of its `-o jsonl` (llama.cpp 0c1e570).
LLAMA_BENCH_CSV = Path(__file__).with_name("llama_bench.csv").read_text("utf-8")
LLAMA_BENCH_JSONL = Path(__file__).with_name("llama_bench.jsonl").read_text("utf-8")
LLAMA_BENCH_COLUMNS = LLAMA_BENCH_CSV.splitlines()[0].split(",")


def row(*speeds: float, **changes: Any) -> dict[str, Any]:
    """A row of a generation test with these tokens per second."""
    samples = speeds or (100.0, 101.0, 102.0, 103.0, 104.0)
    tokens = 64
    return {
        "model_filename": "demo-f16.gguf",
        "model_type": "llama ?B F16",
        "model_size": 7678976,
        "model_n_params": 3836672,
        "engine": "tinyedge",
        "engine_version": "0.6.0",
        "backends": "cpu",
        "n_batch": 512,
        "n_ubatch": 512,
        "n_threads": 2,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": 0,
        "flash_attn": -1,
        "n_prompt": 0,
        "n_gen": tokens,
        "n_depth": 0,
        "n_parallel": 1,
        "test": "tg64",
        "test_time": "2026-11-22T01:22:34Z",
        "avg_ns": round(statistics.fmean(tokens / each * 1e9 for each in samples)),
        "stddev_ns": 0,
        "avg_ts": statistics.fmean(samples),
        "stddev_ts": statistics.stdev(samples) if len(samples) > 1 else 0.0,
        "samples_ns": [round(tokens / each * 1e9) for each in samples],
        "samples_ts": list(samples),
        "median_ts": statistics.median(samples),
        "ttft_ns": None,
        "bytes_per_s": 24.3e9,
        "bandwidth_share": 0.81,
        "flops": None,
        "matrix_share": None,
        "energy_j_per_token": None,
        "energy_note": "no meter",
        "temperature_c": [45.0, 61.0, 58.0],
        "clock_mhz": None,
        "throttled": [],
        "warnings": [],
        **changes,
    }


def document(rows: Sequence[dict[str, Any]] = (), *, date: str = "2026-11-22T01:29:07+00:00", **changes: Any) -> Document:
    """A document of these rows; of one generation and one prompt test without any."""
    prompt = row(
        *(800.0, 810.0, 790.0),
        n_prompt=128,
        n_gen=0,
        test="pp128",
        samples_ns=[160_000_000, 158_024_691, 162_025_316],
        ttft_ns=160_000_000,
        bytes_per_s=None,
        bandwidth_share=None,
        flops=57e9,
        matrix_share=0.57,
    )
    return Document(
        **{
            "kind": "speed",
            "date": date,
            "machine": {"cpu": "AMD EPYC", "physical_cores": 2, "memory_bytes": 8 << 30, "devices": ["cpu: AMD EPYC"]},
            "build": {"tinyedge": "0.6.0", "llama_cpp_python": "0.3.36", "ggml": "0.25.3", "ggml_commit": "0c1e570"},
            "results": tuple(rows or (prompt, row())),
            "missing": (Missing(what="peer ollama", reason="it is not installed"),),
            "more": {
                "ceilings": {"bandwidth": {"1": 30e9, "2": 36e9}, "matrix": {"cpu": {"1": {"F16": 100e9, "Q8_0": 210e9}}}},
                "loads": [
                    {
                        "model_filename": "demo-f16.gguf",
                        "backends": "cpu",
                        "cold_s": None,
                        "cold_note": "the cache cannot be emptied here",
                        "warm_s": 0.0123,
                        "peak_memory_bytes": 45 << 20,
                    }
                ],
                "references": [
                    {
                        "board": "Mac M2",
                        "model": "TinyLlama 1.1B",
                        "type": "4-bit",
                        "test": "tg",
                        "tokens_per_s": 71.8,
                        "source": "TinyLlama's README",
                        "url": "https://github.com/jzhang38/TinyLlama",
                    }
                ],
            },
            **changes,
        }
    )
