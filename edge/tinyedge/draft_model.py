"""Drafts from a second, smaller model with the same vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyedge.backends import LoadPlan, Request, choose, this_machine
from tinyedge.errors import DraftError
from tinyedge.model_probe import runnable_facts
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.draft_facts import added_end, first_other_token, vocabulary_kind
from tinyedge.native.lead import logits_of
from tinyedge.native.model import Model
from tinyedge.tokens import common_length

# common/speculative.cpp: sizes may differ by padding, and the first tokens are control tokens that families name differently.
_SIZE_DIFFERENCE = 128
_FIRST_COMPARED = 5
_LEAST_PROBABILITY = 0.75  # of a token, for the draft to go on with it; llama.cpp's --draft-p-min
_SHOWN = 24  # characters of a token in a message


class ModelDrafter:
    """Guesses what a second model would say, up to the first token that it is not sure of.

    It owns the model and the context, whose KV cache is kept in step with the text: what the two share is not computed again.
    """

    sureness = 0

    def __init__(self, model: Model, context: Context, *, least_probability: float = _LEAST_PROBABILITY) -> None:
        self._model, self._context = model, context
        self._threshold = math.log(least_probability)
        self._cached: list[int] = []  # the KV cache begins with these

    def propose(self, tokens: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens; none where the text is longer than the context or has a token that the draft model lacks."""
        context, size = self._context, self._model.vocabulary_size
        limit = min(limit, context.settings.context - len(tokens))
        kept = min(common_length(self._cached, tokens), len(tokens) - 1)
        if limit < 1 or any(token >= size for token in tokens[kept:]):
            return []
        del self._cached[kept:]
        if not (kept and context.remove(kept)):
            context.clear()
            self._cached.clear()
            kept = 0
        context.decode_all(tokens[kept:])
        self._cached += tokens[kept:]
        draft: list[int] = []
        while True:
            logits = logits_of(context)
            token = int(logits.argmax())
            unsure = -math.log(float(np.exp(logits - logits[token]).sum())) < self._threshold
            if unsure or self._model.ends_generation(token):
                return draft
            draft.append(token)
            if len(draft) == limit:
                return draft
            context.decode(token)
            self._cached.append(token)

    def close(self) -> None:
        self._context.close()
        self._model.close()


def open_draft(path: Path, target: Model, plan: LoadPlan) -> ModelDrafter:
    """The model in the GGUF file at `path` as a drafter for `target`, loaded with the same context and threads as `plan`.

    Raises DraftError, naming the first difference, when the vocabularies differ, and GGUFError, MemoryFitError or NativeError
    when the file or the machine will not do.
    """
    wish = Request(backend=plan.backend, context=plan.context, threads=plan.threads, affinity=plan.affinity)
    own = choose(runnable_facts(path), wish, this_machine())
    on_gpu = own.backend != "cpu"
    model = Model(path, device=own.device.name if on_gpu else None, gpu_layers=own.gpu_layers)
    try:
        check_vocabulary(model, target, path.name)
        settings = ContextSettings(
            context=own.context,
            threads=own.threads,
            batch=own.batch,
            kv_type=own.kv_type,
            gpu=on_gpu and own.gpu_layers > 0,
            affinity=own.affinity,
        )
        return ModelDrafter(model, Context(model, settings))
    except BaseException:
        model.close()
        raise


def check_vocabulary(draft: Model, target: Model, name: str) -> None:
    """Raises DraftError when `draft` cannot guess for `target`, by the rules of llama.cpp's common/speculative.cpp."""
    facts = (
        ("kind of vocabulary", vocabulary_kind(draft), vocabulary_kind(target)),
        ("token that begins a text", _named(draft.bos), _named(target.bos)),
        ("token that ends a text", _named(added_end(draft)), _named(added_end(target))),
    )
    for what, drafts, targets in facts:
        if drafts != targets:
            raise DraftError(f"{name} cannot draft for this model: its {what} is {drafts}, not {targets}")
    sizes = draft.vocabulary_size, target.vocabulary_size
    if abs(sizes[0] - sizes[1]) > _SIZE_DIFFERENCE:
        raise DraftError(f"{name} cannot draft for this model: its vocabulary has {sizes[0]} tokens, not {sizes[1]}")
    other = first_other_token(draft, target, _FIRST_COMPARED)
    if other is not None:
        texts = [repr(model.token_text(other)[:_SHOWN]) for model in (draft, target)]
        raise DraftError(f"{name} cannot draft for this model: its token {other} is {texts[0]}, not {texts[1]}")


def _named(token: int | None) -> str:
    return "none" if token is None else f"number {token}"
