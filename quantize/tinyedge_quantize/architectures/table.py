"""What describes a model family: which classes it answers to, its tensors, and the metadata llama.cpp wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tinyedge_quantize.metadata import MetadataEntry
from tinyedge_quantize.tensors import SourceTensor

Config: TypeAlias = Mapping[str, Any]
Sizes: TypeAlias = Mapping[str, int]
# What becomes of a tensor on its way: the sizes are those of the family's `sizes`.
Adapt: TypeAlias = Callable[[SourceTensor, Sizes], SourceTensor]


@dataclass(frozen=True)
class TensorRule:
    """One kind of tensor: its Hugging Face name, its GGUF name, and its shape in the checkpoint as names of sizes.

    `{}` in the names stands for the layer. `rotary` names the size that counts the heads whose rows are permuted. `adapt`
    changes the tensor after its shape is checked. With `stack`, `{part}` in the source runs over that many vectors, which
    become the rows of one matrix; `shape` is then that of the matrix. `when` names a size that is 0 where the configuration
    says that there is no such tensor.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    rotary: str | None = None
    optional: bool = False
    adapt: Adapt | None = None
    stack: str | None = None
    when: str | None = None

    @property
    def per_layer(self) -> bool:
        return "{}" in self.source


def _nothing(_config: Config, _sizes: Sizes) -> Iterable[SourceTensor]:
    return ()


def _no_warnings(_config: Config) -> Iterable[str]:
    return ()


def tied_unless_said(default: bool) -> Callable[[Config], bool]:
    """Whether the output is the embedding: what the configuration says, and `default` where it says nothing."""

    def tied(config: Config) -> bool:
        said = config.get("tie_word_embeddings")
        return said if isinstance(said, bool) else default

    return tied


_tied_when_said = tied_unless_said(False)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model family.

    `gguf_name` is llama.cpp's name, `family` people's. `sizes` reads the named sizes from a Hugging Face configuration (at
    least layers, hidden, heads, kv_heads, vocabulary) and raises when they make no sense or describe a variant that is not
    supported. `metadata` gives GGUF's keys after `general.*`; the tokenizer's come after and win. `generated` gives tensors
    that follow from the configuration alone, under names that `tensors` has as sources. `prefix` is what a checkpoint without
    its language model head lacks before every name, `head` the source of the output matrix, left out where it is `tied` unless
    llama.cpp `needs_output`, which is then the embedding again. `ignored` are ends of names of buffers that the runtime
    computes itself. `vocabulary` and `pre_tokenizers` are for `tokenizer.read_tokenizer`. `defaults` is what transformers'
    class fills in where a configuration says nothing. `warnings` gives sentences about what this checkpoint loses.
    `base_classes` are those without a language model head, whose checkpoints are whole where the output is tied. `aliases`
    gives other names of tensors that some versions of transformers use, with the names that `tensors` has. `inputs_first` are
    the last parts of the names of layers whose weights transformers stores (in, out).
    """

    gguf_name: str
    family: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    tensors: tuple[TensorRule, ...]
    sizes: Callable[[Config], Sizes]
    metadata: Callable[[Config, Sizes], dict[str, MetadataEntry]]
    generated: Callable[[Config, Sizes], Iterable[SourceTensor]] = _nothing
    tied: Callable[[Config], bool] = _tied_when_said
    prefix: str = "model."
    head: str = "lm_head.weight"
    needs_output: bool = False
    ignored: tuple[str, ...] = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
    vocabulary: str = "llama"
    pre_tokenizers: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    warnings: Callable[[Config], Iterable[str]] = _no_warnings
    base_classes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    inputs_first: frozenset[str] = frozenset()

    @property
    def embedding(self) -> str:
        """The Hugging Face name of the embedding matrix, by which a checkpoint is recognised."""
        return next(rule.source for rule in self.tensors if rule.target == "token_embd.weight")

    def describes(self, config: Config) -> bool:
        """Whether a configuration is of this family: its first architecture decides; without one, its model_type does."""
        names = config.get("architectures")
        name = names[0] if isinstance(names, list) and names else None
        if name is None:
            return config.get("model_type") in self.model_types
        return name in self.classes or name in self.base_classes
