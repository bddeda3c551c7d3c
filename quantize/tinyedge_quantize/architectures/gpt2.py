"""GPT-2 and what was trained in its shape: learned positions, and weights stored (in, out).

Reference: llama.cpp's conversion/gpt2.py and src/models/gpt2.cpp; defaults of transformers' GPT2Config.
"""

from __future__ import annotations

from tinyedge_quantize.architectures.common import check_absent, check_activation, check_settings
from tinyedge_quantize.architectures.gpt_like import GELUS, multi_head_sizes, with_biases
from tinyedge_quantize.architectures.table import Architecture, Config, Sizes, TensorRule, tied_unless_said
from tinyedge_quantize.config import integer, real
from tinyedge_quantize.metadata import MetadataEntry, float32, uint32
from tinyedge_quantize.tensors import SourceTensor


def _transposed(tensor: SourceTensor, _sizes: Sizes) -> SourceTensor:
    return tensor.transposed()


def _conv1d(source: str, target: str, inputs: str, outputs: str) -> tuple[TensorRule, ...]:
    """The rules of a transformers Conv1D, which stores its weight (in, out)."""
    source, target = f"transformer.h.{{}}.{source}", f"blk.{{}}.{target}"
    return (
        TensorRule(f"{source}.weight", f"{target}.weight", (inputs, outputs), adapt=_transposed),
        TensorRule(f"{source}.bias", f"{target}.bias", (outputs,)),
    )


TENSORS = (
    TensorRule("transformer.wte.weight", "token_embd.weight", ("vocabulary", "hidden")),
    TensorRule("transformer.wpe.weight", "position_embd.weight", ("context", "hidden")),
    TensorRule("lm_head.weight", "output.weight", ("vocabulary", "hidden")),
    *with_biases(
        TensorRule("transformer.ln_f.weight", "output_norm.weight", ("hidden",)),
        TensorRule("transformer.h.{}.ln_1.weight", "blk.{}.attn_norm.weight", ("hidden",)),
        TensorRule("transformer.h.{}.ln_2.weight", "blk.{}.ffn_norm.weight", ("hidden",)),
    ),
    *_conv1d("attn.c_attn", "attn_qkv", "hidden", "qkv"),
    *_conv1d("attn.c_proj", "attn_output", "hidden", "hidden"),
    *_conv1d("mlp.c_fc", "ffn_up", "hidden", "ffn"),
    *_conv1d("mlp.c_proj", "ffn_down", "ffn", "hidden"),
)


def gpt2_sizes(config: Config) -> Sizes:
    """The sizes; refuses attention and activations that llama.cpp's GPT-2 does not compute."""
    check_activation(config, GELUS, "activation_function")
    check_absent(config, "scale_attn_by_inverse_layer_idx", "add_cross_attention")
    check_settings(config, {"scale_attn_weights": (True,)})
    hidden = integer(config, "n_embd")
    return multi_head_sizes(
        layers=integer(config, "n_layer"),
        hidden=hidden,
        heads=integer(config, "n_head"),
        ffn=integer(config, "n_inner", 4 * hidden),
        vocabulary=integer(config, "vocab_size"),
        context=integer(config, "n_positions"),
    )


def gpt2_metadata(config: Config, sizes: Sizes) -> dict[str, MetadataEntry]:
    """GGUF's gpt2.* keys; the converter's feed-forward length is 4 * hidden whatever the model's is."""
    return {
        "gpt2.block_count": uint32(sizes["layers"]),
        "gpt2.context_length": uint32(sizes["context"]),
        "gpt2.embedding_length": uint32(sizes["hidden"]),
        "gpt2.feed_forward_length": uint32(sizes["ffn"]),
        "gpt2.attention.head_count": uint32(sizes["heads"]),
        "gpt2.attention.layer_norm_epsilon": float32(real(config, "layer_norm_epsilon")),
    }


GPT2 = Architecture(
    gguf_name="gpt2",
    family="GPT-2",
    classes=("GPT2LMHeadModel",),
    base_classes=("GPT2Model",),
    model_types=("gpt2",),
    tensors=TENSORS,
    sizes=gpt2_sizes,
    metadata=gpt2_metadata,
    tied=tied_unless_said(True),
    prefix="transformer.",
    inputs_first=frozenset({"c_attn", "c_proj", "c_fc"}),
    # The causal mask, which old versions saved; the biases of the layers end in c_attn.bias and c_proj.bias.
    ignored=(".attn.bias", ".attn.masked_bias"),
    vocabulary="gpt2",
    defaults={"n_positions": 1024, "layer_norm_epsilon": 1e-5},
)
