"""Tiny checkpoints of every model family, written by transformers itself, and what transformers computes with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from family_tokenizers import special_token_ids, write_tokenizer

# Tokens whose log-probabilities are compared; longer than the sliding windows of the tiny configurations.
POSITIONS = 64
# How far log-probabilities may be off where ggml takes GELU from a table of F16 values (ggml-cpu/vec.h); else 1e-3.
GELU = 1e-2


@dataclass(frozen=True, kw_only=True)
class FamilyCase:
    """One tiny model: its class in transformers and the arguments of its configuration, `vocab_size` being the tokenizer's.

    `tokenizer` is a kind of family_tokenizers, `pre` the pre-tokenizer llama.cpp's converter names for the family's real
    tokenizer. `padding` are rows of the embedding beyond the tokenizer's. `edit` changes config.json after it is saved, to
    what other versions of transformers write. `loosest` bounds the difference of log-probabilities. `unsaid` are keys that
    this family's converter leaves out and llama.cpp's quantizer adds, `added` those that neither writes and that make llama.cpp
    compute what transformers does.
    """

    name: str
    model: str
    config: Mapping[str, Any]
    tokenizer: str
    pre: str | None = None
    dtype: str = "bfloat16"
    padding: int = 0
    edit: Callable[[dict[str, Any]], None] | None = None
    loosest: float = 1e-3
    nested: Mapping[str, Any] = field(default_factory=dict)
    unsaid: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def write_checkpoint(case: FamilyCase, folder: Path) -> tuple[Any, Any]:
    """Tokens and their log-probabilities as float32 (POSITIONS, vocabulary), after writing the checkpoint and its tokenizer.

    Weights are seeded normal values large enough that a wrong rotation or scale shows in every position.
    """
    import torch
    import transformers

    rows = write_tokenizer(folder, case.tokenizer) + case.padding
    model = _model(transformers, case, rows)
    generator = torch.Generator().manual_seed(7)
    dtype = getattr(torch, case.dtype)
    with torch.no_grad():
        for _name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            values = weight + 0.2 * noise if weight.dim() == 1 else noise / weight.shape[-1] ** 0.5
            weight.copy_(values.to(dtype).float())
        tokens = torch.randint(0, rows - case.padding, (1, POSITIONS), generator=generator)
        logits = model.eval()(input_ids=tokens).logits[0].float()
    model.to(dtype).save_pretrained(folder)
    if case.edit is not None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        case.edit(config)
        path.write_text(json.dumps(config, indent=2))
    return tokens[0].numpy(), torch.log_softmax(logits, -1).numpy()


def _model(transformers: Any, case: FamilyCase, rows: int) -> Any:
    kind = getattr(transformers, case.model)
    arguments = {"vocab_size": rows, **special_token_ids(case.tokenizer), **case.config}
    if case.nested:
        arguments = {"text_config": arguments, **case.nested}
    config = kind.config_class(**arguments)
    config._attn_implementation = "eager"
    return kind(config).float()
