"""mlx-lm, which runs models on Apple's processors (and, more slowly, on other ones).

It loads no GGUF file of every type, so it is given the same model as an MLX or Hugging Face folder: same shape, not the same
file. A sample is one process: it loads the folder, warms up as llama-bench does, fills the cache to the depth, and times
`mlx_lm.generate.generate_step` over random tokens until the last wanted token is there; the next one, which it starts ahead,
is not waited for. Taking the most likely token is in that time, tokenizing is not. Threads are told to the linear algebra
libraries by their variables; MLX has no setting for its own. The process ends after its run, so that its memory is free while
the others are measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinyedge.errors import PeerError
from tinyedge.model_facts import ModelFacts
from tinyedge_bench.peers.peer import patience_s, quoted
from tinyedge_bench.peers.python_child import installed_version, run_script, seconds_of
from tinyedge_bench.speed.cases import Case

NAME = "mlx-lm"
_WHERE = "give the same model as an MLX or Hugging Face folder with --peer mlx-lm=FOLDER, or leave --peer out"
_INSTALL = "pip install mlx-lm (elsewhere than on a Mac: pip install 'mlx[cpu]' mlx-lm), or leave --peer out"
_MOST_CONFIG = 1 << 20
_DEVICES = {"cpu": "cpu", "metal": "gpu", "cuda": "gpu"}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# The bound between rounding, vocabulary padding or a tied output matrix counted twice, and another model.
_OTHER_MODEL = 0.2

_LOAD = """
import pathlib
import mlx.core as mx
if asked["backend"] != "cpu" and not getattr(mx, asked["backend"]).is_available():
    sys.exit("this MLX was built without " + asked["backend"])
mx.set_default_device(getattr(mx, asked["device"]))
import mlx_lm.utils
from mlx.utils import tree_flatten
model = mlx_lm.utils.load_model(pathlib.Path(asked["model"]))[0]
"""
_DESCRIBE = """
answer = {
    "layers": len(model.layers),
    "parameters": mlx_lm.utils.get_total_parameters(model),
    "bytes": sum(weight.nbytes for _, weight in tree_flatten(model.parameters())),
}
"""
_MEASURE = """
import random, time
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

draw = random.Random(0)

def tokens(count):
    return mx.array([draw.randrange(asked["vocabulary"]) for _ in range(count)])

def run(prompt, count, cache):
    # The first token that comes out is the end of the prompt's processing; each later one is one more that was put in.
    steps = generate_step(prompt, model, max_tokens=count, prompt_cache=cache)
    return sum(1 for _, _ in zip(range(count), steps))

depth, prompt = tokens(asked["depth"]), tokens(asked["prompt"] or 1)
count = asked["generate"] + (1 if asked["prompt"] else 0)
mx.eval(depth, prompt)
run(prompt, 1, make_prompt_cache(model))
cache = make_prompt_cache(model)
if asked["depth"]:
    for _ in generate_step(depth, model, max_tokens=0, prompt_cache=cache):
        pass
    mx.eval([layer.state for layer in cache])
started = time.perf_counter()
received = run(prompt, count, cache)
seconds = time.perf_counter() - started
answer = {"seconds": seconds if received == count else None}
"""


def open_peer(value: str, _model: Path, facts: ModelFacts) -> MlxLm:
    """`value` is the folder. Raises PeerError."""
    return MlxLm(value, facts)


class MlxLm:
    """mlx-lm on the model in `folder`, which must have the shape of `facts`. Raises PeerError."""

    name = NAME

    def __init__(self, folder: str, facts: ModelFacts) -> None:
        self.version = installed_version(NAME, _INSTALL)
        if not folder:
            raise PeerError(f"{NAME} cannot be given the GGUF file", _WHERE)
        self._folder = Path(folder).expanduser().absolute()
        self._facts = facts
        self._bytes = max(facts.weight_bytes, _files_bytes(self._folder))
        _check_folder(self._folder)
        found = self._run(_DESCRIBE, {"backend": "cpu", "device": "cpu"}, threads=1, tokens=0)
        self._check_model(found)
        self.notes = (
            f"mlx-lm ran the same model from another file: {found['bytes'] / 1e6:,.0f} MB of weights "
            f"where the GGUF file has {facts.weight_bytes / 1e6:,.0f} MB",
        )

    def supports(self, case: Case) -> str | None:
        if case.sequences > 1:
            return "mlx-lm is measured with one sequence only"
        if case.kv_type != "F16":
            return "mlx-lm keeps its cache in the model's own type"
        if case.backend not in _DEVICES:
            return f"MLX has no backend {case.backend}"
        return None

    def sample(self, case: Case) -> float:
        asked = {
            "backend": case.backend,
            "device": _DEVICES[case.backend],
            "vocabulary": self._facts.vocabulary,
            "depth": case.depth,
            "prompt": case.prompt,
            "generate": case.generate,
        }
        return seconds_of(NAME, self._run(_MEASURE, asked, threads=case.threads, tokens=case.positions + case.prompt + 2))

    def close(self) -> None:
        """Nothing: every run ends by itself."""

    def _run(self, script: str, asked: dict[str, Any], *, threads: int, tokens: int) -> dict[str, Any]:
        told = dict.fromkeys(_THREAD_VARIABLES, str(threads))
        asked = {"model": str(self._folder), **asked}
        return run_script(NAME, _LOAD + script, asked, patience_s(self._bytes, tokens), told)

    def _check_model(self, found: dict[str, Any]) -> None:
        layers, parameters, size = (found.get(key) for key in ("layers", "parameters", "bytes"))
        if not (isinstance(layers, int) and isinstance(parameters, int) and isinstance(size, int)):
            raise PeerError(f"{NAME} did not say what it loaded", _WHERE)
        if layers != self._facts.layers or abs(parameters - self._facts.parameters) > _OTHER_MODEL * parameters:
            raise PeerError(
                f"{quoted(str(self._folder))} is another model: {layers} layers and {parameters / 1e6:,.1f} M parameters, "
                f"where the GGUF file has {self._facts.layers} and {self._facts.parameters / 1e6:,.1f} M",
                _WHERE,
            )


def _files_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())


def _check_folder(folder: Path) -> None:
    """Raises PeerError for what is no checkpoint, or one that brings Python code with it, which older mlx-lm would run."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > _MOST_CONFIG:
            raise PeerError(f"{quoted(str(path))} is too large for a configuration", _WHERE)
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise PeerError(f"{quoted(str(path))} cannot be read ({error.strerror})", _WHERE) from error
    except (ValueError, RecursionError) as error:
        raise PeerError(f"{quoted(str(path))} is not JSON", _WHERE) from error
    if not isinstance(config, dict):
        raise PeerError(f"{quoted(str(path))} is not a configuration", _WHERE)
    if "model_file" in config:
        raise PeerError(f"{quoted(str(folder))} brings Python code to build the model with, which is not run", _WHERE)
