"""What is trained and how: the shape, the recipe, and the configuration files that tell other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

UNK, BOS, EOS = 0, 1, 2  # Llama's and SentencePiece's own order
INIT_STD = 0.02  # GPT-2's, as transformers' initializer_range


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama in which every matrix row has 256 or 512 weights, so that every K-quant (blocks of 256) applies."""

    vocabulary: int = 4096
    hidden: int = 256
    ffn: int = 512
    layers: int = 5
    heads: int = 8
    kv_heads: int = 2
    context: int = 512
    norm_eps: float = 1e-5  # TinyLlama's
    rope_theta: float = 10000.0  # TinyLlama's

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. Usual values, not searched for; Muon and its 0.02 are from Jordan's post (kellerjordan.github.io)."""

    minutes: float
    seed: int
    steps: int | None = None  # replaces the clock
    batch: int = 8
    share: int = 2  # windows of a batch that one thread takes at a time
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    weight_decay: float = 0.1  # of the learning rate, matrices only
    momentum: float = 0.95
    bpe_dropout: float = 0.05  # Provilkov et al. 2020 use 0.1; in every second epoch before `long_from`
    warmup: float = 0.02
    decay_from: float = 0.4  # constant until here, then linear to zero
    long_from: float = 0.75  # half the context until here, the whole of it after: early steps are cheaper
    looks: tuple[float, ...] = (0.6, 0.85, 1.0)  # shares of the run after which the held-out book is measured


def model_config(shape: Shape) -> dict[str, Any]:
    """config.json as transformers 4 writes it for a LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": INIT_STD,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    """tokenizer_config.json in the form of Llama 2's."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": shape.context,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
