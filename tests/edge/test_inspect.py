"""`tinyedge inspect` through its command function: the numbers, the JSON, and nothing hostile on the terminal."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import typer
from tiny_gguf import HIDDEN, tiny_parts, tokens, write
from typer.testing import CliRunner

import tinyedge
from tinyedge.cli.inspect import inspect
from tinyedge.errors import GGUFError, ModelNotFoundError
from tinyedge.gguf_file import read_gguf
from tinyedge.memory import memory_needed
from tinyedge.model_facts import describe_model

app = typer.Typer()
app.command()(inspect)
DEMO = Path(tinyedge.__file__).parent / "demo"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", tiny_parts())


def test_json_holds_the_facts_and_the_metadata(model: Path) -> None:
    report = json.loads(run(str(model), "--json", "--ctx", "1000"))
    facts = describe_model(read_gguf(model))
    assert report["architecture"] == "llama" and report["type"] == "Q8_0" and report["runnable"] is True
    assert report["parameters"] == facts.parameters and report["file_bytes"] == model.stat().st_size
    assert [row["type"] for row in report["tensor_types"]] == ["Q8_0", "F32"]
    assert sum(row["bytes"] for row in report["tensor_types"]) == facts.weight_bytes
    assert report["memory"]["context"] == 1000
    assert report["memory"]["total_bytes"] == memory_needed(facts, 1000).total_bytes
    assert report["metadata"]["llama.context_length"] == 128
    assert report["metadata"]["tokenizer.ggml.tokens"] == {
        "type": "str",
        "count": len(tokens()),
        "first": ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>", "<0x02>", "<0x03>", "<0x04>"],
    }
    assert len(report["tensors"]) == 21
    assert report["chat_template"] is True and report["context"] == 128


def test_the_human_report_says_the_same_within_80_columns(model: Path) -> None:
    output = run(str(model))
    for expected in (
        "architecture   llama",
        "parameters     1.28 M, 8.52 bits each",
        "heads          8, 2 for keys and values, 32 wide",
        "context        128 tokens",
        "chat template  yes",
        "llama.cpp      can run it",
        "Q8_0                16       1,273,856       1,353,472       8.50",
        "memory at a context of 128 tokens:",
        "llama.attention.layer_norm_rms_epsilon  1e-05",
        "312 str: <unk>, <s>, </s>,",
    ):
        assert expected in output
    assert max(map(len, output.replace(str(model), "PATH").splitlines())) <= 80


def test_hostile_strings_reach_neither_terminal_nor_json_raw(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.set("general.name", "str", "\x1b]0;owned\x07\x1b[31mred\x9b1m\u202e\r\n[bold]".encode())
    parts.set("evil\x1b[2Jkey", "str", b"\x00\xff" + b"A" * 5000)
    parts.set("general.architecture", "str", b"\x1b[1mllama")
    parts.set("tokenizer.ggml.tokens", "arr[str]", [b"\x1b[7m", *tokens()[1:]])
    output = run(str(write(tmp_path / "hostile.gguf", parts)))
    assert all(character.isprintable() or character == "\n" for character in output)
    assert "\\x1b[31mred" in output and "[bold]" in output
    assert max(map(len, output.splitlines())) < 400
    text = run(str(tmp_path / "hostile.gguf"), "--json")
    assert "\x1b" not in text and json.loads(text)["name"].startswith("\x1b]0;owned")


def test_not_a_number_is_valid_json(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.set("llama.rope.freq_base", "f32", float("nan"))
    report = json.loads(run(str(write(tmp_path / "nan.gguf", parts)), "--json"))
    assert report["metadata"]["llama.rope.freq_base"] == "nan"
    assert report["runnable"] is False and "nan" in report["problem"]


def test_a_model_that_cannot_run_is_described_with_the_reason(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.drop("llama.block_count")
    assert "llama.cpp      cannot run it" in run(str(write(tmp_path / "odd.gguf", parts)))


def test_damaged_and_missing_files_raise_their_own_errors(tmp_path: Path, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(GGUFError, match="100 bytes are missing"):
        run(str(model))
    with pytest.raises(ModelNotFoundError):
        run(str(tmp_path / "nowhere"))


def _checkpoint(folder: Path) -> Path:
    """A Hugging Face folder of one layer with zero weights and the demo's tokenizer."""
    folder.mkdir()
    shutil.copy(DEMO / "tokenizer.model", folder)
    vocabulary, ffn, key = 4096, 512, 64
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": ffn,
    }
    config |= {"num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": vocabulary}
    config |= {"rms_norm_eps": 1e-5, "max_position_embeddings": 512, "rope_theta": 10000.0, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    block = "model.layers.0."
    shapes = {"model.embed_tokens": (vocabulary, HIDDEN), "lm_head": (vocabulary, HIDDEN), "model.norm": (HIDDEN,)}
    shapes |= {block + "self_attn.q_proj": (HIDDEN, HIDDEN), block + "self_attn.o_proj": (HIDDEN, HIDDEN)}
    shapes |= {block + "self_attn.k_proj": (key, HIDDEN), block + "self_attn.v_proj": (key, HIDDEN)}
    shapes |= {
        block + "mlp.gate_proj": (ffn, HIDDEN),
        block + "mlp.up_proj": (ffn, HIDDEN),
        block + "mlp.down_proj": (HIDDEN, ffn),
    }
    shapes |= {block + "input_layernorm": (HIDDEN,), block + "post_attention_layernorm": (HIDDEN,)}
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name + ".weight"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(end))
    return folder


def test_a_checkpoint_is_shown_as_what_it_would_become(tmp_path: Path) -> None:
    from tinyedge_quantize.convert import convert

    folder = _checkpoint(tmp_path / "checkpoint")
    report = json.loads(run(str(folder), "--json"))
    assert report["format"] == "checkpoint" and report["runnable"] is True
    assert report["checkpoint"]["tensor_types"] == [{"type": "BF16", "tensors": 12, "elements": report["parameters"]}]
    convert(folder, tmp_path / "made.gguf", "Q4_K_M")
    made = json.loads(run(str(tmp_path / "made.gguf"), "--json"))
    assert made["metadata"].pop("tinyedge.source.sha256")
    differ = ("path", "format", "checkpoint", "memory")
    assert {k: v for k, v in report.items() if k not in differ} == {k: v for k, v in made.items() if k not in differ}
    assert "checkpoint" in run(str(folder)) and "BF16 tensors" in run(str(folder))
