"""What was measured of a model as a flat row of a document: the keys that reports, comparisons and sweeps read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tinyedge_bench.quality.divergence import Divergence
from tinyedge_bench.quality.models import OpenModel
from tinyedge_bench.quality.perplexity import Perplexity


def model_row(opened: OpenModel, name: str) -> dict[str, Any]:
    """Which model it is, called `name`, and how it was run; keys and units are llama-bench's where it has them."""
    return {
        "model_filename": name,
        "model_type": opened.model.description,
        "model_size": opened.model.tensor_bytes,
        "model_n_params": opened.model.parameters,
        "file_bytes": opened.facts.file_bytes,
        "backends": opened.plan.backend,
        "n_threads": opened.plan.threads,
    }


def perplexity_row(perplexity: Perplexity, text: str, stride: int | None) -> dict[str, Any]:
    """Perplexity and bits per byte over the text called `text`; `text_bytes` are those that the scored tokens stand for."""
    row: dict[str, Any] = {
        "perplexity": {
            "value": perplexity.value,
            "error": perplexity.error,
            "tokens": perplexity.tokens,
            "chunks": perplexity.chunks,
            "n_ctx": perplexity.context,
            "stride": stride,
            "text": text,
            "text_bytes": perplexity.text_bytes,
        }
    }
    if perplexity.bits_per_byte is not None:
        row["bits_per_byte"] = {"value": perplexity.bits_per_byte, "error": perplexity.bits_per_byte_error}
    return row


def divergence_row(divergence: Divergence, base: str) -> dict[str, Any]:
    """The divergence from the model called `base`; shares are of 1, divergences in nats."""
    figures = asdict(divergence)
    perplexity = divergence.base_perplexity
    figures["base_perplexity"] = {"value": perplexity.value, "error": perplexity.error}
    renamed = {key: f"ppl_{key}" for key in figures if key.startswith(("correlation", "log_ratio", "ratio", "difference"))}
    return {"divergence": {"base": base} | {renamed.get(key, key): value for key, value in figures.items()}}
