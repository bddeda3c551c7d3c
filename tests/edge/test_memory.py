"""Memory needs against the numbers llama.cpp itself prints, and free memory against the cgroup's files."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import Parts, tiny_parts, tokens, write

from tinyedge import memory
from tinyedge.gguf_file import read_gguf
from tinyedge.memory import free_memory_bytes, graph_bytes, largest_context_that_fits, memory_needed, padded_context
from tinyedge.model_facts import ModelFacts, describe_model

MIB = 1 << 20


def _facts(folder: Path) -> ModelFacts:
    return describe_model(read_gguf(write(folder / "tiny.gguf", tiny_parts())))


KV_IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "BF16": 30}  # ggml_type in ggml.h


def _printed(path: Path, context: int, kv_type: str, outputs: int, batch: int = 512, flash: bool = True) -> dict[str, float]:
    """The sizes in llama.cpp's log while it makes a context: `KV`, `compute` and `output` in MiB."""
    import llama_cpp

    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        lines.append(text.decode("utf-8", "replace"))

    @llama_cpp.llama_log_callback
    def drop(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
        pass

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    try:
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, min(batch, context), min(batch, context)
        params.type_k = params.type_v = KV_IDS[kv_type]
        params.flash_attn_type = -1 if flash else 0
        params.n_outputs_max = outputs
        llama_cpp.llama_free(llama_cpp.llama_init_from_model(model, params))
        llama_cpp.llama_model_free(model)
    finally:
        llama_cpp.llama_log_set(drop, ctypes.c_void_p(0))
        _printed.callback = drop  # type: ignore[attr-defined]  # llama.cpp keeps the pointer
    found = re.findall(r"(KV|compute|output) buffer size = +([\d.]+) MiB", "".join(lines))
    return {name: float(size) for name, size in found}


@pytest.mark.parametrize("kv_type", KV_IDS)
@pytest.mark.parametrize("context", [64, 300, 2048, 16384])
@pytest.mark.parametrize("outputs", [1, 64])
def test_the_estimate_covers_what_llama_cpp_allocates(tmp_path: Path, context: int, kv_type: str, outputs: int) -> None:
    facts = _facts(tmp_path)
    printed = _printed(tmp_path / "tiny.gguf", context, kv_type, outputs)
    need = memory_needed(facts, context, kv_type=kv_type, outputs=outputs)
    graph = graph_bytes(facts, padded_context(context), min(512, context), outputs, kv_type)
    assert need.kv_bytes / MIB == pytest.approx(printed["KV"], abs=0.006)
    assert printed["compute"] - 0.005 <= graph / MIB <= 1.3 * printed["compute"] + 4
    assert need.compute_bytes / MIB >= printed["compute"] + printed["output"] - 0.005
    assert need.total_bytes == need.weights_bytes + need.kv_bytes + need.compute_bytes


@pytest.mark.parametrize("batch", [64, 512, 1024])
@pytest.mark.parametrize("flash", [True, False])
def test_the_estimate_follows_batch_and_flash_attention(tmp_path: Path, batch: int, flash: bool) -> None:
    facts = _facts(tmp_path)
    printed = _printed(tmp_path / "tiny.gguf", 2048, "F16", 1, batch, flash)
    graph = graph_bytes(facts, 2048, batch, 1, "F16", flash)
    assert printed["compute"] - 0.005 <= graph / MIB <= 1.35 * printed["compute"]
    need = memory_needed(facts, 2048, batch=batch, flash=flash)
    assert need.compute_bytes / MIB >= printed["compute"] + printed["output"] - 0.005


# What llama.cpp (llama-cpp-python 0.3.36) printed as `compute buffer size` in MiB for TinyLlama's shape on the CPU.
TINYLLAMA_COMPUTE = {
    ("F16", 512, 64, True): 6.19,
    ("F16", 512, 512, True): 49.51,
    ("F16", 2048, 64, True): 6.38,
    ("F16", 2048, 512, True): 51.01,
    ("F16", 2048, 1024, True): 102.02,
    ("Q8_0", 2048, 512, True): 47.04,
    ("Q4_0", 2048, 512, True): 47.04,
    ("F32", 2048, 512, True): 53.01,
    ("F16", 512, 512, False): 54.01,
    ("F16", 2048, 512, False): 153.01,
    ("F16", 2048, 1024, False): 306.02,
}


def test_tinyllama_needs_what_was_measured_for_it(tmp_path: Path) -> None:
    """llama.cpp printed 44.00 MiB of KV cache and 51.01 MiB of compute buffer for this shape at 2048 tokens."""
    tinyllama = _tinyllama(tmp_path)
    assert memory_needed(tinyllama, 2048).kv_bytes == 44 * MIB
    assert memory_needed(tinyllama, 2048, kv_type="Q8_0").kv_bytes == 44 * MIB * 34 // 64
    assert memory_needed(tinyllama, 2048, kv_type="Q4_0").kv_bytes == 44 * MIB * 18 // 64
    assert 51.01 <= graph_bytes(tinyllama, 2048, 512, 1) / MIB <= 51.2
    for (kv_type, cells, batch, flash), printed in TINYLLAMA_COMPUTE.items():
        assert printed - 0.005 <= graph_bytes(tinyllama, cells, batch, 1, kv_type, flash) / MIB <= 1.1 * printed


def _tinyllama(folder: Path) -> ModelFacts:
    return replace(
        _facts(folder),
        layers=22,
        hidden=2048,
        ffn=5632,
        heads=32,
        kv_heads=4,
        head_dim_k=64,
        head_dim_v=64,
        vocabulary=32000,
        key_width=22 * 256,
        value_width=22 * 256,
        context=2048,
    )


def test_contexts_are_padded_as_llama_cpp_pads_them() -> None:
    assert [padded_context(context) for context in (0, 1, 256, 257, 2048)] == [256, 256, 256, 512, 2048]


def test_the_largest_context_fits_and_the_next_does_not(tmp_path: Path) -> None:
    facts = replace(_facts(tmp_path), context=1 << 20)
    free = memory_needed(facts, 4096).total_bytes + 1
    assert largest_context_that_fits(facts, free) == 4096
    assert memory_needed(facts, 4096 + 256).total_bytes > free
    assert largest_context_that_fits(facts, 1000) == 0
    assert largest_context_that_fits(replace(facts, context=1000), 1 << 40) == 1000


def test_a_tied_embedding_counts_twice_only_where_it_is_repacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tied = replace(_facts(tmp_path), tied_bytes=MIB, embedding_type="Q6_K")
    monkeypatch.setattr(memory.platform, "machine", lambda: "x86_64")
    assert memory_needed(tied, 256).weights_bytes == tied.weight_bytes
    monkeypatch.setattr(memory.platform, "machine", lambda: "aarch64")
    assert memory_needed(tied, 256).weights_bytes == tied.weight_bytes + MIB


@pytest.mark.parametrize(
    ("architecture", "features", "repacks"),
    [
        ("aarch64", None, True),
        ("arm64", None, True),
        ("aarch64", ("asimd", "asimddp"), True),
        ("aarch64", ("asimd",), False),
        ("x86_64", ("avx2",), True),
        ("x86_64", ("sse4_2",), False),
        ("armv7l", None, False),
        ("riscv64", None, False),
    ],
)
def test_repacking_follows_the_processor(architecture: str, features: tuple[str, ...] | None, repacks: bool) -> None:
    assert ("Q4_K" in memory.repacked_types(architecture, features)) is repacks


def test_free_memory_is_what_the_system_says_at_most() -> None:
    import psutil

    assert 0 < free_memory_bytes() <= psutil.virtual_memory().total


CGROUP_2 = {
    "memory.max": "1000000\n",
    "memory.current": "600000\n",
    "memory.stat": "inactive_file 100000\nactive_file 50000\n",
}
CGROUP_1 = {
    "memory.limit_in_bytes": "2000000\n",
    "memory.usage_in_bytes": "1500000\n",
    "memory.stat": "inactive_file 1\ntotal_inactive_file 200000\ntotal_active_file 100000\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (CGROUP_2, 550000),
        (CGROUP_1, 800000),
        (CGROUP_2 | {"memory.max": "max\n"}, 1 << 60),
        (CGROUP_1 | {"memory.limit_in_bytes": "9223372036854771712\n"}, 1 << 60),
        (CGROUP_2 | {"memory.current": "?\n"}, 1 << 60),
        ({}, 1 << 60),
    ],
)
def test_a_cgroup_limit_counts_file_cache_as_free(tmp_path: Path, files: dict[str, str], free: int) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory._cgroup_free(tmp_path) == free


def test_vocabulary_and_width_grow_the_estimate(tmp_path: Path) -> None:
    def wide(parts: Parts) -> Parts:
        texts = [*tokens(), *(b"more%d" % i for i in range(4000))]
        parts.set("tokenizer.ggml.tokens", "arr[str]", texts)
        return parts

    small, large = _facts(tmp_path), describe_model(read_gguf(write(tmp_path / "wide.gguf", wide(tiny_parts()))))
    grown = memory_needed(large, 512, outputs=512).compute_bytes - memory_needed(small, 512, outputs=512).compute_bytes
    assert grown >= 4000 * 512 * 4
