"""The tiny models of the families with layer norms, fused matrices or partial rotation: Phi, GPT-NeoX, GPT-2, StableLM, MPT.

llama.cpp's converter reads configurations through transformers, and some of what it needs transformers 5 takes away: `n_ctx`
of GPT-2 and `rotary_pct` of GPT-NeoX. Those cases get a config.json that it can read: the key added, or the spelling of
transformers 4 without `model_type`, which makes the converter read the file itself. test_gpt_like_families.py shows that both
spellings come out the same from us.
"""

from __future__ import annotations

from typing import Any

from family_checkpoint import GELU, FamilyCase

_SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_GROUPED = _SMALL | {"num_key_value_heads": 2}
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_GPT2 = {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 512}
_MPT = {"d_model": 256, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}


def long_rope(pairs: int, original: int, **others: Any) -> dict[str, Any]:
    """Two lists of factors that differ from each other in every place."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.02 * pair for pair in range(pairs)],
        "long_factor": [1.5 + 0.37 * pair for pair in range(pairs)],
        "original_max_position_embeddings": original,
        **others,
    }


def as_transformers_4(config: dict[str, Any]) -> None:
    rope = config.pop("rope_parameters")
    for key in ("rope_theta", "partial_rotary_factor"):
        config[key] = rope.pop(key)
    rope.pop("original_max_position_embeddings", None)
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}


def neox_of_transformers_4(config: dict[str, Any]) -> None:
    """GPT-NeoX's own names for RoPE, and no `model_type` by which transformers would read and translate them."""
    rope = config.pop("rope_parameters")
    config["rotary_pct"], config["rotary_emb_base"] = rope["partial_rotary_factor"], int(rope["rope_theta"])
    del config["model_type"]


def gpt2_of_transformers_4(config: dict[str, Any]) -> None:
    config["n_ctx"] = config["n_positions"]


def _mpt_of_mosaic(config: dict[str, Any]) -> None:
    config["architectures"] = ["MPTForCausalLM"]


GPT_LIKE = (
    FamilyCase(name="phi-1.5", model="PhiForCausalLM", config=_SMALL, tokenizer="phi2", pre="phi-2", loosest=GELU),
    FamilyCase(
        name="phi-2-transformers-4",
        model="PhiForCausalLM",
        # Heads of 80, as Phi-2 has, of which 32 dimensions are rotated.
        config=_SMALL | {"hidden_size": 320, "intermediate_size": 1280, "partial_rotary_factor": 0.4},
        tokenizer="phi2",
        pre="phi-2",
        padding=13,
        edit=as_transformers_4,
        loosest=GELU,
    ),
    FamilyCase(
        name="phi-3-mini",
        model="Phi3ForCausalLM",
        config=_SMALL | _NO_TOKENS | {"sliding_window": 2047, "intermediate_size": 512},
        tokenizer="phi3-spm",
    ),
    FamilyCase(
        name="phi-3.5-within-its-first-context",
        model="Phi3ForCausalLM",
        config=_GROUPED
        | _NO_TOKENS
        | {"rope_parameters": long_rope(32, 256), "original_max_position_embeddings": 256, "sliding_window": 262144},
        tokenizer="phi3-spm",
        padding=7,
    ),
    FamilyCase(
        name="phi-3.5-beyond-its-first-context",
        model="Phi3ForCausalLM",
        config=_GROUPED | _NO_TOKENS | {"rope_parameters": long_rope(32, 32), "original_max_position_embeddings": 32},
        tokenizer="phi3-spm",
    ),
    FamilyCase(
        name="phi-4-mini-transformers-4",
        model="Phi3ForCausalLM",
        config=_GROUPED
        | _NO_TOKENS
        | {
            "rope_parameters": long_rope(24, 256, partial_rotary_factor=0.75),
            "original_max_position_embeddings": 256,
            "tie_word_embeddings": True,
        },
        tokenizer="phi4-mini",
        pre="gpt-4o",
        edit=as_transformers_4,
    ),
    FamilyCase(
        name="pythia",
        model="GPTNeoXForCausalLM",
        config=_SMALL,
        tokenizer="gptneox",
        pre="olmo",
        dtype="float16",
        edit=neox_of_transformers_4,
        unsaid=("general.file_type",),
        loosest=GELU,
    ),
    FamilyCase(
        name="gpt-neox-one-after-the-other",
        model="GPTNeoXForCausalLM",
        config=_SMALL
        | {
            "hidden_act": "gelu_fast",
            "use_parallel_residual": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        },
        tokenizer="gptneox",
        pre="olmo",
        padding=5,
        edit=neox_of_transformers_4,
        unsaid=("general.file_type",),
        loosest=GELU,
    ),
    FamilyCase(
        name="gpt-2",
        model="GPT2LMHeadModel",
        config=_GPT2,
        tokenizer="gpt2",
        pre="gpt-2",
        dtype="float32",
        edit=gpt2_of_transformers_4,
        loosest=GELU,
    ),
    FamilyCase(
        name="gpt-2-untied-of-odd-rows",
        model="GPT2LMHeadModel",
        config=_GPT2 | {"n_embd": 96, "n_head": 3, "tie_word_embeddings": False},
        tokenizer="gpt2",
        pre="gpt-2",
        edit=gpt2_of_transformers_4,
        loosest=GELU,
    ),
    FamilyCase(
        name="stablelm-3b",
        model="StableLmForCausalLM",
        config=_SMALL | {"num_key_value_heads": 4},
        tokenizer="gptneox",
        pre="olmo",
    ),
    FamilyCase(
        name="stablelm-2-transformers-4",
        model="StableLmForCausalLM",
        config=_GROUPED | {"use_qkv_bias": True},
        tokenizer="stablelm2",
        pre="stablelm2",
        dtype="float16",
        edit=as_transformers_4,
    ),
    FamilyCase(
        name="stablelm-2-12b",
        model="StableLmForCausalLM",
        config=_GROUPED | {"qk_layernorm": True, "use_parallel_residual": True},
        tokenizer="stablelm2",
        pre="stablelm2",
    ),
    FamilyCase(
        name="mpt",
        model="MptForCausalLM",
        config=_MPT,
        tokenizer="mpt",
        pre="olmo",
        edit=_mpt_of_mosaic,
        unsaid=("general.file_type",),
        loosest=GELU,
    ),
    FamilyCase(
        name="mpt-clipped-with-six-heads",
        model="MptForCausalLM",
        config=_MPT | {"d_model": 384, "n_heads": 6, "attn_config": {"clip_qkv": 0.75}},
        tokenizer="mpt",
        pre="olmo",
        edit=_mpt_of_mosaic,
        unsaid=("general.file_type",),
        loosest=GELU,
    ),
)

# What the converter writes wrongly or not at all, so that only transformers can tell whether it is right.
BEYOND_THE_CONVERTER = (
    FamilyCase(
        name="phi-2-with-grouped-queries",
        model="PhiForCausalLM",
        config=_GROUPED | {"intermediate_size": 512, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        tokenizer="phi2",
        loosest=GELU,
    ),
    FamilyCase(
        name="phi-3-with-an-attention-factor",
        model="Phi3ForCausalLM",
        config=_GROUPED
        | _NO_TOKENS
        | {"rope_parameters": long_rope(32, 32, attention_factor=1.4), "original_max_position_embeddings": 32},
        tokenizer="phi3-spm",
    ),
    FamilyCase(
        name="pythia-stretched",
        model="GPTNeoXForCausalLM",
        config=_SMALL
        | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6, "partial_rotary_factor": 0.5}},
        tokenizer="gptneox",
        loosest=GELU,
    ),
    FamilyCase(
        name="pythia-tied",
        model="GPTNeoXForCausalLM",
        config=_SMALL | {"tie_word_embeddings": True},
        tokenizer="gptneox",
        loosest=GELU,
    ),
    FamilyCase(
        name="stablelm-by-yarn",
        model="StableLmForCausalLM",
        config=_GROUPED
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 128,
            }
        },
        tokenizer="stablelm2",
    ),
    FamilyCase(
        name="gpt-2-of-another-width",
        model="GPT2LMHeadModel",
        config=_GPT2 | {"n_inner": 384},
        tokenizer="gpt2",
        loosest=GELU,
    ),
)
