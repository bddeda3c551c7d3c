"""Other programs measured beside tinyedge, in turn with it: one adapter file each, all listed here."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tinyedge.errors import PeerError
from tinyedge.model_facts import ModelFacts
from tinyedge_bench.peers.peer import Peer

__all__ = ["PEERS", "Peer", "open_peer", "require_known"]

# What `--peer NAME[=VALUE]` may name, and the module whose `open_peer(value, model, facts)` opens it.
PEERS = {
    "llama-bench": "llama_bench",
    "ollama": "ollama",
    "llama-cpp-python": "llama_cpp_python",
    "mlx-lm": "mlx_lm",
}
_FORMS = "llama-bench=PATH, llama-cpp-python, ollama, mlx-lm=FOLDER"


def require_known(argument: str) -> None:
    """Raises PeerError when `--peer argument` names no peer that there is."""
    name = argument.partition("=")[0]
    if name not in PEERS:
        raise PeerError(f"there is no peer {name!r:.60}", f"there are {_FORMS}")


def open_peer(argument: str, model: Path, facts: ModelFacts) -> Peer:
    """The peer that `--peer argument` names, ready for cases of the GGUF file `model`. Raises PeerError.

    `llama-bench=PATH` (a program, or the folder that holds it; on PATH without one), `ollama` (the server at OLLAMA_HOST),
    `llama-cpp-python`, `mlx-lm=FOLDER` (the same model as an MLX or Hugging Face folder).
    """
    name, _, value = argument.partition("=")
    require_known(argument)
    adapter = import_module(f"{__name__}.{PEERS[name]}")
    peer: Peer = adapter.open_peer(value, model, facts)
    return peer
