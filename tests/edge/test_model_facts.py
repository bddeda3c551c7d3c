"""What a header says about a model, and every reason for which a model is not handed to llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_gguf import FFN, HIDDEN, Parts, Tensor, tiny_parts, tokens, write

from tinyedge.errors import GGUFError, TinyEdgeError, UnsupportedArchitectureError
from tinyedge.gguf_file import GGUFFile, read_gguf
from tinyedge.model_check import ARCHITECTURES
from tinyedge.model_facts import FILE_TYPES, check_runnable, describe_model


def _unchanged(_: Parts) -> None:
    pass


def _read(folder: Path, edit: Callable[[Parts], None] = _unchanged) -> GGUFFile:
    parts = tiny_parts()
    edit(parts)
    return read_gguf(write(folder / "model.gguf", parts))


def test_the_facts_of_the_tiny_model(tmp_path: Path) -> None:
    facts = describe_model(_read(tmp_path))
    matrices = 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * 64 + 3 * HIDDEN * FFN) + 2 * 312 * HIDDEN
    assert (facts.architecture, facts.name, facts.file_type) == ("llama", "tiny", "Q8_0")
    assert (facts.layers, facts.hidden, facts.heads, facts.kv_heads, facts.ffn) == (2, 256, 8, 2, 512)
    assert (facts.head_dim_k, facts.head_dim_v, facts.vocabulary, facts.context) == (32, 32, 312, 128)
    assert facts.parameters == matrices + 5 * HIDDEN
    assert [(row.type.name, row.tensors, row.elements, row.bytes) for row in facts.tensor_types] == [
        ("Q8_0", 16, matrices, matrices // 32 * 34),
        ("F32", 5, 5 * HIDDEN, 20 * HIDDEN),
    ]
    assert facts.weight_bytes == matrices // 32 * 34 + 20 * HIDDEN
    assert facts.bits_per_weight == pytest.approx(8 * facts.weight_bytes / facts.parameters)
    assert facts.chat_template and facts.tokenizer == "llama"
    assert (facts.key_width, facts.value_width) == (2 * 2 * 32, 2 * 2 * 32)
    assert facts.tied_bytes == 0 and facts.embedding_type == "Q8_0"


def test_llama_cpp_reads_the_same_size_out_of_the_file(tmp_path: Path) -> None:
    import llama_cpp

    facts = describe_model(_read(tmp_path))
    path = str(tmp_path / "model.gguf").encode()
    model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
    try:
        assert llama_cpp.llama_model_n_params(model) == facts.parameters
        assert llama_cpp.llama_model_size(model) == facts.weight_bytes
        assert llama_cpp.llama_model_n_layer(model) == facts.layers
        assert llama_cpp.llama_model_n_ctx_train(model) == facts.context
    finally:
        llama_cpp.llama_model_free(model)


def test_file_types_are_numbered_as_gguf_numbers_them() -> None:
    import gguf

    names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    shared = set(names) & set(FILE_TYPES)
    assert len(shared) > 30
    assert {number: FILE_TYPES[number] for number in shared} == {number: names[number] for number in shared}


def test_a_header_that_says_little_is_described_all_the_same(tmp_path: Path) -> None:
    parts = Parts(tensors=[Tensor("x", (4,), 0, bytes(16))])
    facts = describe_model(read_gguf(write(tmp_path / "bare.gguf", parts)))
    assert (facts.architecture, facts.layers, facts.heads, facts.context, facts.file_type) == ("", 0, 0, 0, "F32")


def test_a_tied_embedding_is_known(tmp_path: Path) -> None:
    gguf_file = _read(tmp_path, lambda parts: parts.tensors.pop())
    check_runnable(gguf_file)
    assert describe_model(gguf_file).tied_bytes == 312 * HIDDEN // 32 * 34


def _set(key: str, kind: str, value: object) -> Callable[[Parts], None]:
    return lambda parts: parts.set(key, kind, value)


def _drop(key: str) -> Callable[[Parts], None]:
    return lambda parts: parts.drop(key)


def _tensor(name: str, **changes: object) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        for field, value in changes.items():
            setattr(parts.tensor(name), field, value)

    return edit


def _without(name: str) -> Callable[[Parts], None]:
    return lambda parts: parts.tensors.remove(parts.tensor(name))


def _added(name: str, shape: tuple[int, ...]) -> Callable[[Parts], None]:
    return lambda parts: parts.tensors.append(Tensor(name, shape, 0, bytes(4 * math.prod(shape))))


def _token(position: int, text: bytes) -> Callable[[Parts], None]:
    return _set("tokenizer.ggml.tokens", "arr[str]", [*tokens()[:position], text, *tokens()[position + 1 :]])


def _bpe(parts: Parts) -> None:
    parts.set("tokenizer.ggml.model", "str", b"gpt2")
    parts.set("tokenizer.ggml.pre", "str", b"default")
    parts.set("tokenizer.ggml.merges", "arr[str]", [b"a i", b"b j"])


def _fused(parts: Parts) -> None:
    for layer in range(2):
        for part in "qkv":
            parts.tensors.remove(parts.tensor(f"blk.{layer}.attn_{part}.weight"))
        parts.tensors.append(Tensor(f"blk.{layer}.attn_qkv.weight", (HIDDEN, 384), 8, bytes(HIDDEN * 384 // 32 * 34)))


def _longrope(parts: Parts) -> None:
    parts.set("llama.rope.scaling.type", "str", b"longrope")
    _added("rope_factors_long.weight", (16,))(parts)


GOOD = {
    "as it is": _unchanged,
    "byte-level BPE": _bpe,
    "rope frequencies": _added("rope_freqs.weight", (16,)),
    "biases": _added("blk.0.attn_q.bias", (HIDDEN,)),
    "per layer heads": _set("llama.attention.head_count_kv", "arr[u32]", [2, 2]),
    "fused attention": _fused,
    "longrope": _longrope,
}


@pytest.mark.parametrize("name", GOOD)
def test_a_sound_model_passes_and_llama_cpp_loads_it(tmp_path: Path, name: str) -> None:
    import llama_cpp

    check_runnable(_read(tmp_path, GOOD[name]))
    model = llama_cpp.llama_model_load_from_file(str(tmp_path / "model.gguf").encode(), llama_cpp.llama_model_default_params())
    assert model
    llama_cpp.llama_model_free(model)


BAD: dict[str, Callable[[Parts], None]] = {
    "does not name its model architecture": _drop("general.architecture"),
    "one of 2 parts": _set("split.count", "u16", 2),
    "lacks llama.block_count": _drop("llama.block_count"),
    "block_count 0": _set("llama.block_count", "u32", 0),
    "block_count 513": _set("llama.block_count", "u32", 513),
    "2 blocks where llama.block_count says 3": _set("llama.block_count", "u32", 3),
    "block_count of type str": _set("llama.block_count", "str", b"2"),
    "context_length 0": _set("llama.context_length", "u32", 0),
    "lacks llama.embedding_length": _drop("llama.embedding_length"),
    "embedding length and vocabulary ask for (128, 312)": _set("llama.embedding_length", "u32", 128),
    "nextn_predict_layers 2": _set("llama.nextn_predict_layers", "u32", 2),
    "uses 0 of 4 experts": _set("llama.expert_count", "u32", 4),
    "expert_count 5000": _set("llama.expert_count", "u32", 5000),
    "RoPE scaling 'spiral'": _set("llama.rope.scaling.type", "str", b"spiral"),
    "nan": _set("llama.rope.freq_base", "f32", math.nan),
    "'llama.attention.layer_norm_rms_epsilon' -1.0": _set("llama.attention.layer_norm_rms_epsilon", "f32", -1.0),
    "lacks llama.attention.layer_norm_rms_epsilon": _drop("llama.attention.layer_norm_rms_epsilon"),
    "is an encoder": _set("llama.attention.causal", "bool", False),
    "do not divide": _set("llama.attention.head_count_kv", "u32", 3),
    "KV heads": _set("llama.attention.head_count", "u32", 0),
    "3 u32 values": _set("llama.attention.head_count", "arr[u32]", [8, 8, 8]),
    "value_length 64": _set("llama.attention.value_length", "u32", 64),
    "dimension_count 16": _set("llama.rope.dimension_count", "u32", 16),
    "lacks the tensor 'blk.1.ffn_up.weight'": _without("blk.1.ffn_up.weight"),
    "lacks the tensor 'token_embd.weight'": _without("token_embd.weight"),
    "does not use": _added("blk.0.surplus.weight", (32,)),
    "rope_freqs.weight' of shape (32,)": _added("rope_freqs.weight", (32,)),
    "(256, 64) was expected": _tensor("blk.0.attn_k.weight", shape=(64, 256)),
    "it must be F32": _tensor("output_norm.weight", type_id=1, data=bytes(512)),
    "stores 'output_norm.weight' as F16": _tensor("output_norm.weight", shape=(HIDDEN, 1), type_id=1, data=bytes(512)),
    "as I32, which llama.cpp cannot use there": _tensor("blk.0.attn_q.weight", type_id=26, data=bytes(4 * HIDDEN * HIDDEN)),
    "as I8, which llama.cpp cannot multiply": _tensor("blk.0.attn_q.weight", type_id=24, data=bytes(HIDDEN * HIDDEN)),
    "does not name its tokenizer": _drop("tokenizer.ggml.model"),
    "a 'none' tokenizer": _set("tokenizer.ggml.model", "str", b"none"),
    "has no merges": _set("tokenizer.ggml.model", "str", b"gpt2"),
    "has no vocabulary": _drop("tokenizer.ggml.tokens"),
    "tokenizer.ggml.tokens of type arr[f32]": _set("tokenizer.ggml.tokens", "arr[f32]", [1.0]),
    "1 entries in tokenizer.ggml.scores": _set("tokenizer.ggml.scores", "arr[f32]", [1.0]),
    "311 entries in tokenizer.ggml.token_type": _set("tokenizer.ggml.token_type", "arr[i32]", [1] * 311),
    "token types outside": _set("tokenizer.ggml.token_type", "arr[i32]", [9] * 312),
    "the token 'a' twice": _token(300, b"a"),
    "the token '[EMPTY_300]' twice": _set(
        "tokenizer.ggml.tokens", "arr[str]", [*tokens()[:300], b"\0x", b"[EMPTY_300]", *tokens()[302:]]
    ),
    "no token for the byte 0x0A": _token(3 + 10, b"<0x0b>"),
    "marks the token": _set("tokenizer.ggml.token_type", "arr[i32]", [6] * 312),
    "eos_token_id' 312": _set("tokenizer.ggml.eos_token_id", "u32", 312),
    "bos_token_id' -1": _set("tokenizer.ggml.bos_token_id", "i32", -1),
}


@pytest.mark.parametrize("message", BAD)
def test_what_would_abort_or_fail_in_llama_cpp_is_refused(tmp_path: Path, message: str) -> None:
    with pytest.raises(GGUFError) as refused:
        check_runnable(_read(tmp_path, BAD[message]))
    assert message in refused.value.problem
    assert "\n" not in str(refused.value)


def test_a_family_that_cannot_generate_text_is_unsupported(tmp_path: Path) -> None:
    for name in (b"clip", b"bert", b"no-such-family", b"\x1b[2J"):
        with pytest.raises(UnsupportedArchitectureError) as refused:
            check_runnable(_read(tmp_path, _set("general.architecture", "str", name)))
        assert "\x1b" not in str(refused.value)


def test_the_known_families_are_llama_cpps() -> None:
    import gguf

    assert "llama" in ARCHITECTURES
    shared = ARCHITECTURES & set(gguf.MODEL_ARCH_NAMES.values())
    assert len(shared) > 60


def test_another_family_gets_the_rules_that_all_share(tmp_path: Path) -> None:
    def qwen(parts: Parts) -> None:
        parts.pairs = [(key.replace("llama.", "qwen2."), kind, value) for key, kind, value in parts.pairs]
        parts.set("general.architecture", "str", b"qwen2")

    check_runnable(_read(tmp_path, qwen))

    def broken(parts: Parts) -> None:
        qwen(parts)
        parts.set("qwen2.block_count", "u32", 0)

    with pytest.raises(TinyEdgeError, match="block_count 0"):
        check_runnable(_read(tmp_path, broken))


def test_a_bpe_vocabulary_that_adds_bos_needs_one(tmp_path: Path) -> None:
    def edit(parts: Parts) -> None:
        _bpe(parts)
        parts.drop("tokenizer.ggml.bos_token_id")
        few = 8
        for key, kind, value in (("tokens", "arr[str]", tokens()[-few:]), ("scores", "arr[f32]", [0.0] * few)):
            parts.set(f"tokenizer.ggml.{key}", kind, value)
        parts.set("tokenizer.ggml.token_type", "arr[i32]", [1] * few)

    with pytest.raises(GGUFError, match="adds a BOS token"):
        check_runnable(_read(tmp_path, edit))
