"""Refuses the models on which llama.cpp would abort the process instead of reporting an error.

Most of what llama.cpp finds wrong it throws and reports; the rest is GGML_ASSERT and GGML_ABORT, and an exception that
leaves a C function, each of which ends our process. The rules here are those asserts: llama-model.cpp `load_hparams`,
llama-model-loader.cpp, models/llama.cpp and ops.cpp of ggml-cpu.
"""

from __future__ import annotations

import math
import re

from tinyedge.errors import GGUFError, UnsupportedArchitectureError
from tinyedge.gguf_file import GGUFFile
from tinyedge.gguf_values import GGUFArray, shown
from tinyedge.hyperparameters import MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, Hyperparameters
from tinyedge.llama_check import MATRIX_TYPES, check_llama
from tinyedge.vocabulary_check import check_vocabulary

_MAX_CONTEXT = (1 << 31) - 1
_DATA_ALIGNMENT = 32  # TENSOR_ALIGNMENT of the CPU buffer that maps the file, ggml-backend.cpp
_NOT_NEGATIVE = ("epsilon", "freq_base", "factor")
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")  # llama-model.cpp

# The decoders among LLM_ARCH_NAMES of llama-arch.cpp (llama-cpp-python 0.3.36). Encoders, audio models, speculative
# drafts and `clip` cannot generate text on their own.
_DECODERS = """
afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bitnet bloom chameleon chatglm
codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4
dots1 dots3note ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon falcon-h1 gemma gemma2 gemma3 gemma3n
gemma4 glm-dsa glm4 glm4moe glm5-next gpt-oss gpt2 gptj gptneox granite granite_swa granitehybrid granitemoe
graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4 internlm2 jais jais2 jamba
kimi-k3 kimi-linear laguna lfm2 lfm2moe llama llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm minicpm3
minimax-01 minimax-m2 minimax-m3 mistral3 mistral4 mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe
olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2
qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe qwen4exp refact rwkv6 rwkv6qwen2
rwkv7 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 talkie xverse
"""
ARCHITECTURES = frozenset(_DECODERS.split())


def check_runnable(gguf: GGUFFile) -> None:
    """Raises unless llama.cpp can load and run the model without aborting the process.

    GGUFError names the first thing wrong, UnsupportedArchitectureError a model family llama.cpp cannot generate text with.
    For `llama` the check is complete; for the other families it covers the rules that all share, and
    `model_probe.probe` tries the rest in a child process.
    """
    _check_container(gguf)
    model = Hyperparameters(gguf)
    if model.architecture not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"{gguf.path} holds a {shown(model.architecture)} model, which llama.cpp cannot generate text with"
        )
    _check_hyperparameters(model)
    check_vocabulary(gguf)
    _check_tensor_types(gguf)
    _check_blocks(model)
    if model.architecture == "llama":
        check_llama(model)


def _check_container(gguf: GGUFFile) -> None:
    if not gguf.tensors:
        raise GGUFError(f"{gguf.path} holds no tensors, so it is not a model")
    parts = gguf.metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        raise GGUFError(
            f"{gguf.path} is one of {parts} parts of a split model", "give the first part, with the others beside it"
        )
    if gguf.data_offset % _DATA_ALIGNMENT or gguf.alignment % _DATA_ALIGNMENT:
        raise GGUFError(f"{gguf.path} aligns its data to {gguf.alignment} bytes; {_DATA_ALIGNMENT} are needed to map it")


def _check_hyperparameters(model: Hyperparameters) -> None:
    """The asserts of llama_model_base::load_hparams, for every architecture."""
    layers = model.integer("block_count", 1, MAX_LAYERS)
    model.integer("context_length", 1, _MAX_CONTEXT)
    model.integer("embedding_length", 1, MAX_WIDTH)
    model.integer("nextn_predict_layers", 0, layers - 1, 0)
    experts = model.integer("expert_count", 0, MAX_EXPERTS, 0)
    used = max(model.per_layer("expert_used_count", layers, 0))
    if used > experts or (experts and not used):
        raise model.error(f"uses {used} of {experts} experts")
    groups = model.integer("expert_group_count", 0, max(experts - 1, 0), 0)
    if groups > 1:
        model.integer("expert_group_used_count", 1, groups - 1)
        if experts % groups:
            raise model.error(f"divides {experts} experts into {groups} groups")
    scaling = model.gguf.metadata.get(f"{model.architecture}.rope.scaling.type", "linear")
    if scaling not in _ROPE_SCALINGS:
        raise model.error(f"asks for RoPE scaling {shown(str(scaling))}; llama.cpp knows {', '.join(_ROPE_SCALINGS)}")
    _check_floats(model)


def _check_floats(model: Hyperparameters) -> None:
    """An epsilon, a RoPE base or factor is finite and not negative (asserts of ggml-cpu's ops.cpp)."""
    for key, value in model.gguf.metadata.items():
        if not key.startswith(model.architecture + ".") or not any(word in key for word in _NOT_NEGATIVE):
            continue
        numbers = value.values if isinstance(value, GGUFArray) else (value,)
        for number in numbers:
            if isinstance(number, float) and not (math.isfinite(number) and number >= 0):
                raise model.error(f"has {shown(key)} {number}")


def _check_tensor_types(gguf: GGUFFile) -> None:
    """Vectors are multiplied and added as F32; matrices need a type with a dot product, or I32 for tables of rows."""
    for tensor in gguf.tensors:
        is_vector = len(tensor.shape) == 1
        if is_vector and tensor.name.endswith((".weight", ".bias", ".scale")) and tensor.type.name != "F32":
            raise GGUFError(f"{gguf.path} stores the vector {shown(tensor.name)} as {tensor.type}; it must be F32")
        if not is_vector and tensor.type.name not in MATRIX_TYPES | {"I32"}:
            raise GGUFError(f"{gguf.path} stores {shown(tensor.name)} as {tensor.type}, which llama.cpp cannot multiply")


def _check_blocks(model: Hyperparameters) -> None:
    """Every block from 0 to block_count - 1 is there and none beyond, and the embedding has a row for each token."""
    layers = model.integer("block_count", 1, MAX_LAYERS)
    found = {int(match[1]) for name in model.gguf.tensor if (match := re.match(r"blk\.(\d{1,9})\.", name))}
    if found != set(range(layers)):
        raise model.error(f"has tensors for {len(found)} blocks where {model.architecture}.block_count says {layers}")
    embedding = model.gguf.tensor.get("token_embd.weight")
    if embedding is None:
        raise model.error("lacks the tensor 'token_embd.weight'")
    tokens = model.gguf.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, GGUFArray)
    hidden = model.integer("embedding_length", 1, MAX_WIDTH)
    if embedding.shape != (hidden, len(tokens)):
        expected = (hidden, len(tokens))
        raise model.error(
            f"has token_embd.weight of shape {embedding.shape}; embedding length and vocabulary ask for {expected}"
        )
