"""GGUF adapters: equal to llama.cpp's converter's, and at run time what merging the same adapter computes.

The converter's source is the folder vendor/llama.cpp of the llama-cpp-python source distribution, named by
TINYEDGE_LLAMA_SOURCE.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from lora_adapters import PREFIX, Matrices, log_probabilities, pair, write_adapter_folder
from test_families import assert_same

from tinyedge.cli.models import demo_checkpoint
from tinyedge.errors import AdapterError
from tinyedge_quantize.convert import Wishes, convert
from tinyedge_quantize.lora import open_adapter
from tinyedge_quantize.lora.adapter_gguf import base_config, write_adapter

SOURCE = os.environ.get("TINYEDGE_LLAMA_SOURCE")
TOKENS = [1, *range(300, 340)]
# The demo model: outputs and inputs of what is adapted in its first and last layer.
SHAPES = {
    "self_attn.q_proj": (256, 256),
    "self_attn.k_proj": (64, 256),
    "self_attn.v_proj": (64, 256),
    "self_attn.o_proj": (256, 256),
    "mlp.gate_proj": (512, 256),
    "mlp.up_proj": (512, 256),
    "mlp.down_proj": (256, 512),
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "alpha pattern": {"alpha_pattern": {"q_proj": 40, r"layers\.4\.mlp\..*": 2}},
    "rank pattern": {"rank_pattern": {"mlp.up_proj": 7}},
    "rank pattern with rslora": {"rank_pattern": {"mlp.up_proj": 7}, "use_rslora": True},
}


def matrices(config: dict[str, Any]) -> Matrices:
    result: Matrices = {}
    for layer in (0, 4):
        for module, (outputs, inputs) in SHAPES.items():
            rank = 7 if module in config.get("rank_pattern", {}) else 4
            result |= pair(f"model.layers.{layer}.{module}", outputs, inputs, rank)
    return result


def converted(folder: Path, base: Path, target: Path, type_name: str = "F32") -> Path:
    with open_adapter(folder) as adapter:
        write_adapter(adapter, base_config(base), target, type_name)
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "f32.gguf"
    convert(demo_checkpoint(), target, "F32")
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_applied_at_run_time_it_computes_what_merging_does(model: Path, kind: str, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "style", matrices(KINDS[kind]), **KINDS[kind])
    adapter = converted(folder, demo_checkpoint(), tmp_path / "adapter.gguf")
    convert(demo_checkpoint(), tmp_path / "merged.gguf", "F32", Wishes(adapters=[(folder, 1.0)]))
    applied, merged = log_probabilities(model, TOKENS, adapter), log_probabilities(tmp_path / "merged.gguf", TOKENS)
    assert np.abs(applied - merged).max() < 1e-3
    assert np.abs(applied - log_probabilities(model, TOKENS)).max() > 0.1


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_half_the_bytes_compute_nearly_the_same(model: Path, type_name: str, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "style", matrices({}))
    full = converted(folder, demo_checkpoint(), tmp_path / "full.gguf")
    half = converted(folder, demo_checkpoint(), tmp_path / "half.gguf", type_name)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    difference = np.abs(log_probabilities(model, TOKENS, half) - log_probabilities(model, TOKENS, full)).max()
    assert 0 < difference < 0.2


def test_the_bases_configuration_is_enough(tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "style", matrices({}))
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_bytes((demo_checkpoint() / "config.json").read_bytes())
    full = converted(folder, demo_checkpoint(), tmp_path / "full.gguf")
    bare = converted(folder, base, tmp_path / "bare.gguf")
    assert bare.read_bytes() == full.read_bytes()


def test_what_llama_cpp_cannot_apply_is_refused(tmp_path: Path) -> None:
    """Each refusal names the way that is open: merging."""
    query = "model.layers.0.self_attn.q_proj"
    plain = pair(query, 256, 256)
    dora = plain | {f"{PREFIX}{query}.lora_magnitude_vector": np.ones(256, np.float32)}
    norm = plain | {f"{PREFIX}model.norm.weight": np.ones(256, np.float32)}
    bias = plain | {f"{PREFIX}{query}.lora_B.bias": np.ones(256, np.float32)}
    head = plain | pair("lm_head", 4096, 256)
    embedding = plain | {
        f"{PREFIX}model.embed_tokens.lora_embedding_A": np.ones((4, 4096), np.float32),
        f"{PREFIX}model.embed_tokens.lora_embedding_B": np.ones((256, 4), np.float32),
    }
    for name, tensors in {"dora": dora, "norm": norm, "bias": bias, "head": head, "embedding": embedding}.items():
        folder = write_adapter_folder(tmp_path / name, tensors)
        with pytest.raises(AdapterError, match="tinyedge quantize BASE --lora"):
            converted(folder, demo_checkpoint(), tmp_path / "adapter.gguf")
        assert not (tmp_path / "adapter.gguf").exists()


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    deeper = write_adapter_folder(tmp_path / "deeper", pair("model.layers.9.self_attn.q_proj", 256, 256))
    with pytest.raises(AdapterError, match=r"model\.layers\.9\.self_attn\.q_proj.*does not have"):
        converted(deeper, demo_checkpoint(), tmp_path / "adapter.gguf")
    query = "layers.0.self_attn.q_proj"
    both = write_adapter_folder(tmp_path / "both", pair(query, 256, 256) | pair(f"model.{query}", 256, 256))
    with pytest.raises(AdapterError, match="twice"):
        converted(both, demo_checkpoint(), tmp_path / "adapter.gguf")
    wider = write_adapter_folder(tmp_path / "wider", pair("model.layers.0.self_attn.q_proj", 512, 512))
    with pytest.raises(AdapterError, match=r"q_proj' with 512 outputs and 512 inputs, and this base \(256, 256\)"):
        converted(wider, demo_checkpoint(), tmp_path / "adapter.gguf")


def reference_converted(folders: list[tuple[Path, Path, str, Path]]) -> None:
    """Runs llama.cpp's converter over (adapter, base, type, target) in one process: importing torch takes seconds."""
    if SOURCE is None:
        pytest.skip("TINYEDGE_LLAMA_SOURCE does not name llama.cpp's source")
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    program = (
        "import json, runpy, sys; sys.path[1:1] = [sys.argv[1] + '/gguf-py', sys.argv[1]]\n"
        "for adapter, base, type_name, target in json.loads(sys.argv[2]):\n"
        "    sys.argv = ['x', adapter, '--base', base, '--outtype', type_name, '--outfile', target]\n"
        "    runpy.run_path(SOURCE + '/convert_lora_to_gguf.py', run_name='__main__')\n"
    )
    program = f"SOURCE = {SOURCE!r}\n{program}"
    work = json.dumps([[str(a), str(b), t.lower(), str(g)] for a, b, t, g in folders])
    done = subprocess.run([sys.executable, "-c", program, SOURCE, work], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.torch
def test_the_file_equals_the_converters(tmp_path: Path) -> None:
    """LoRA of every type, per-module ranks, and a base whose output is a matrix of its own."""
    parted = tmp_path / "parted"
    parted.mkdir()
    config = json.loads((demo_checkpoint() / "config.json").read_text())
    (parted / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    rich = matrices({}) | pair("lm_head", 4096, 256)
    for part, shape in (("A", (4, 4096)), ("B", (256, 4))):
        values = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
        rich[f"{PREFIX}model.embed_tokens.lora_embedding_{part}"] = values
    plain = write_adapter_folder(tmp_path / "plain", rich)
    ranks = write_adapter_folder(tmp_path / "ranks", matrices(KINDS["rank pattern"]), **KINDS["rank pattern"])
    work = [(plain, parted, name, tmp_path / f"{name}.gguf") for name in ("F32", "F16", "BF16")]
    work.append((ranks, demo_checkpoint(), "F32", tmp_path / "ranks.gguf"))
    work.append((*fused_by_head(tmp_path), "F32", tmp_path / "fused.gguf"))
    reference_converted(work)
    for folder, base, type_name, theirs in work:
        ours = converted(folder, base, tmp_path / f"ours-{theirs.name}", type_name)
        assert_same(ours, theirs, ())
        assert gguf.GGUFReader(ours).tensors


def fused_by_head(folder: Path) -> tuple[Path, Path]:
    """An adapter for a GPT-NeoX, whose rows of q, k and v a GGUF file has in another order, and its base's configuration."""
    base = folder / "neox"
    base.mkdir()
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "max_position_embeddings": 64,
        "vocab_size": 128,
    }
    (base / "config.json").write_text(json.dumps(config))
    fused = pair("gpt_neox.layers.0.attention.query_key_value", 192, 64)
    return write_adapter_folder(folder / "fused", fused | pair("gpt_neox.layers.0.mlp.dense_h_to_4h", 96, 64)), base


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinyedge", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_the_command_writes_a_file_that_run_takes(model: Path, tmp_path: Path) -> None:
    write_adapter_folder(tmp_path / "style", matrices({}))
    done = command("lora", "style", "--base", demo_checkpoint(), "-t", "f16", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {
        "path": "style-F16.gguf",
        "kind": "LoRA",
        "architecture": "llama",
        "type": "F16",
        "alpha": 8.0,
        "modules": 14,
        "bytes": (tmp_path / "style-F16.gguf").stat().st_size,
    }
    plain, applied = (
        command("run", model, "-p", "Once", "-n", "8", "--temp", "0", *extra, cwd=tmp_path)
        for extra in ((), ("--lora", "style-F16.gguf"))
    )
    assert plain.returncode == applied.returncode == 0, applied.stderr
    assert plain.stdout != applied.stdout


def test_the_command_replaces_adapters_alone(model: Path, tmp_path: Path) -> None:
    write_adapter_folder(tmp_path / "style", pair("model.layers.0.self_attn.q_proj", 256, 256))
    arguments = ("lora", "style", "--base", demo_checkpoint(), "-o", "out.gguf")
    for name, general_type in (("imatrix", "imatrix"), ("no type", None)):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        if general_type:
            writer.add_type(general_type)
        writer.add_tensor("x", np.ones(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for other, what in ((model, "a model"), (tmp_path / "imatrix", "a GGUF file of another kind"), (tmp_path / "no type", "a")):
        (tmp_path / "out.gguf").write_bytes(other.read_bytes())
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == 9
        assert f"out.gguf is {what}" in done.stderr
        assert "would be lost; name another file with -o" in done.stderr
        assert (tmp_path / "out.gguf").read_bytes() == other.read_bytes()
    (tmp_path / "out.gguf").unlink()
    for _ in range(2):
        assert command(*arguments, cwd=tmp_path).returncode == 0


def test_the_command_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    write_adapter_folder(tmp_path / "style", pair("model.layers.9.self_attn.q_proj", 256, 256))
    base = ("--base", demo_checkpoint())
    for arguments, code in (
        (("style", *base), 26),
        (("absent", *base), 26),
        (("style", *base, "-t", "Q8_0"), 2),
        (("style", "--base", "absent"), 16),
        (("style",), 2),
    ):
        done = command("lora", *arguments, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert code == 2 or done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.gguf"))
