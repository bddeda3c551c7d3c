"""Speed documents with made-up figures, and what llama-bench printed for the demo model with llama.cpp 0.5.0-dev, commit 0c1e570."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tinyedge_bench.result_files import Document, Missing

# The head of `llama-bench -o csv`, in its order.
LLAMA_BENCH_COLUMNS = (
    "build_commit,build_number,cpu_info,gpu_info,backends,model_filename,model_type,model_size,model_n_params,n_batch,n_ubatch,"
    "n_threads,cpu_mask,cpu_strict,poll,type_k,type_v,n_gpu_layers,n_cpu_moe,split_mode,main_gpu,no_kv_offload,flash_attn,"
    "devices,tensor_split,tensor_buft_overrides,load_mode,lazy_mode,embeddings,no_op_offload,no_host,repack,fit_target,"
    "fit_min_ctx,n_prompt,n_gen,n_depth,test_time,avg_ns,stddev_ns,avg_ts,stddev_ts"
).split(",")
LLAMA_BENCH_CSV = (
    ",".join(LLAMA_BENCH_COLUMNS) + "\n"
    '"0c1e570","1","AMD EPYC","","CPU","demo-f16.gguf","llama ?B F16","7678976","3836672","2048","512","1","0x0","0","50","f16",'
    '"f16","-1","0","layer","0","0","-1","auto","0.00","none","auto","auto","0","0","0","1","0","0","16","0","0",'
    '"2026-11-22T01:22:34Z","2163500","192044","7424.674871","659.056301"\n'
    '"0c1e570","1","AMD EPYC","","CPU","demo-f16.gguf","llama ?B F16","7678976","3836672","2048","512","1","0x0","0","50","f16",'
    '"f16","-1","0","layer","0","0","-1","auto","0.00","none","auto","auto","0","0","0","1","0","0","0","4","0",'
    '"2026-11-22T01:22:34Z","1265230","85296","3168.681240","213.620143"\n'
)
# `llama-bench -o jsonl` for the same.
LLAMA_BENCH_JSONL = (
    '{"build_commit": "0c1e570", "build_number": 1, "cpu_info": "AMD EPYC", "gpu_info": "", "backends": "CPU", "model_filename": '
    '"demo-f16.gguf", "model_type": "llama ?B F16", "model_size": 7678976, "model_n_params": 3836672, "n_batch": 2048, "n_ubatch": '
    '512, "n_threads": 1, "cpu_mask": "0x0", "cpu_strict": false, "poll": 50, "type_k": "f16", "type_v": "f16", "n_gpu_layers": -1, '
    '"n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0, "no_kv_offload": false, "flash_attn": -1, "devices": "auto", '
    '"tensor_split": "0.00", "tensor_buft_overrides": "none", "load_mode": "auto", "lazy_mode": "auto", "embeddings": false, '
    '"no_op_offload": 0, "no_host": false, "repack": true, "fit_target": 0, "fit_min_ctx": 0, "n_prompt": 16, "n_gen": 0, "n_depth": '
    '0, "test_time": "2026-11-22T01:22:34Z", "avg_ns": 2025651, "stddev_ns": 179911, "avg_ts": 7929.966667, "stddev_ts": 704.267685, '
    '"samples_ns": [ 2152860, 1898443 ],"samples_ts": [ 7431.97, 8427.96 ]}\n'
)


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
        **{"n_prompt": 128, "n_gen": 0, "test": "pp128", "ttft_ns": 160_000_000, "bytes_per_s": None, "bandwidth_share": None},
        **{"flops": 57e9, "matrix_share": 0.57, "samples_ns": [160_000_000, 158_024_691, 162_025_316]},
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
