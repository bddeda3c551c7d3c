"""Makes checkpoints with random weights, for what does not depend on the weights: size, memory and speed.

python -m tinyedge_bench.suite.random_checkpoint OUT [--shape tinyllama-1.1b] [--tokenizer tokenizer.model] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The standard deviation transformers initialises a Llama with (LlamaConfig.initializer_range).
INITIALIZER_RANGE = 0.02
_CHUNK = 1 << 22


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a Llama: FFN and vocabulary rows, query and key/value heads."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Hugging Face names with shapes, in the order transformers saves them."""
        keys = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield prefix + "self_attn.k_proj.weight", (keys, self.hidden)
            yield prefix + "self_attn.v_proj.weight", (keys, self.hidden)
            yield prefix + "self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield prefix + "mlp.gate_proj.weight", (self.ffn, self.hidden)
            yield prefix + "mlp.up_proj.weight", (self.ffn, self.hidden)
            yield prefix + "mlp.down_proj.weight", (self.hidden, self.ffn)
            yield prefix + "input_layernorm.weight", (self.hidden,)
            yield prefix + "post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def config(self) -> dict[str, object]:
        """config.json as transformers 4 writes it for TinyLlama."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": INITIALIZER_RANGE,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.context,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        }


SHAPES = {
    "tinyllama-1.1b": LlamaShape(22, 2048, 5632, 32, 4, 32000, 2048),
    "tiny": LlamaShape(2, 256, 512, 8, 2, 4096, 512),
}


def make_checkpoint(
    folder: Path, shape: LlamaShape, tokenizer: Path, seed: int = 0, *, dtype: str = "BF16", tied: bool = False
) -> None:
    """Writes a Hugging Face folder: configuration, safetensors weights in BF16 or F32, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config() | {"tie_word_embeddings": tied}, indent=2))
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        )
    )
    tensors = [(name, sizes) for name, sizes in shape.tensors() if not (tied and name == "lm_head.weight")]
    _write_weights(folder / "model.safetensors", tensors, dtype, np.random.default_rng(seed))


def _write_weights(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], dtype: str, random: np.random.Generator) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, sizes in tensors:
        size = {"BF16": 2, "F32": 4}[dtype] * int(np.prod(sizes))
        entries[name] = {"dtype": dtype, "shape": list(sizes), "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, sizes in tensors:
            count = int(np.prod(sizes))
            for first in range(0, count, _CHUNK):
                values = random.standard_normal(min(_CHUNK, count - first), np.float32)
                weights = np.ones_like(values) if "norm" in name else values * np.float32(INITIALIZER_RANGE)
                file.write((weights if dtype == "F32" else (weights.view(np.uint32) >> 16).astype(np.uint16)).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a checkpoint with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--tokenizer", type=Path, help="a SentencePiece tokenizer.model (default: the demo's, padded)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = options.tokenizer or demo_tokenizer()
    make_checkpoint(options.folder, SHAPES[options.shape], tokenizer, options.seed)
    print(f"{options.folder}: {(options.folder / 'model.safetensors').stat().st_size:,} bytes of weights")


def demo_tokenizer() -> Path:
    """The tokenizer.model of the demo checkpoint in the package."""
    import tinyedge

    return Path(tinyedge.__file__).parent / "demo" / "tokenizer.model"


if __name__ == "__main__":
    main()
