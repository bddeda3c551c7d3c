"""tinyedge: from a PyTorch checkpoint to tokens per second on a small device.

As a library: `Engine` loads a model and generates, `Sampling` says how tokens are chosen, `Request` what to ask of the
machine, `Message` is a turn of a conversation, `ChatTemplate` writes it for the model, `LookupDrafter` guesses ahead. They are
imported when they are first used, so that this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tinyedge.backends import LoadPlan, Request
    from tinyedge.chat.chat_template import ChatTemplate, Message
    from tinyedge.engine import Engine
    from tinyedge.errors import EngineBusyError, GrammarError, MemoryFitError, PromptError, TemplateError, TinyEdgeError
    from tinyedge.generation import Chunk, Completion, Speed
    from tinyedge.lookup import LookupDrafter
    from tinyedge.sampling import Sampling

_HOMES = {
    "ChatTemplate": "chat.chat_template",
    "Chunk": "generation",
    "Completion": "generation",
    "Engine": "engine",
    "EngineBusyError": "errors",
    "GrammarError": "errors",
    "LoadPlan": "backends",
    "LookupDrafter": "lookup",
    "MemoryFitError": "errors",
    "Message": "chat.chat_template",
    "PromptError": "errors",
    "Request": "backends",
    "Sampling": "sampling",
    "Speed": "generation",
    "TemplateError": "errors",
    "TinyEdgeError": "errors",
}
__all__ = [
    "ChatTemplate",
    "Chunk",
    "Completion",
    "Engine",
    "EngineBusyError",
    "GrammarError",
    "LoadPlan",
    "LookupDrafter",
    "MemoryFitError",
    "Message",
    "PromptError",
    "Request",
    "Sampling",
    "Speed",
    "TemplateError",
    "TinyEdgeError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
