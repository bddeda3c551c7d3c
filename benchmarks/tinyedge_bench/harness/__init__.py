"""Lets lm-evaluation-harness drive a GGUF model in this process: the model class `tinyedge`.

    from tinyedge_bench.harness import TinyedgeLM
    lm_eval.simple_evaluate(model=TinyedgeLM("model.gguf"), tasks=["arc_easy"])

lm_eval (0.4.10 to 0.4.13) looks for no models in other packages, so its command line is called through this one:

    python -m tinyedge_bench.harness --model tinyedge --model_args pretrained=model.gguf --tasks arc_easy
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyedge_bench.harness.language_model import TinyedgeLM

__all__ = ["TinyedgeLM"]


def __getattr__(name: str) -> Any:
    if name != "TinyedgeLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_harness()
    from tinyedge_bench.harness.language_model import TinyedgeLM

    return TinyedgeLM


def require_harness() -> None:
    """Raises EvaluationError where lm-evaluation-harness is not installed."""
    from importlib.util import find_spec

    from tinyedge.errors import EvaluationError

    if find_spec("lm_eval") is None:
        raise EvaluationError("lm-evaluation-harness is not installed", 'install it with pip install "tinyedge-llm[eval]"')
