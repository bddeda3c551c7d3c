"""llama-cpp-python's own class `Llama`, which is what most Python programs use llama.cpp through.

A sample is one process: it makes a `Llama` with the case's context, threads, KV type and backend and the class's defaults for
the rest (batches of 512; flash attention only where a quantized KV cache needs it), warms up as llama-bench does, and times
`Llama.eval`: the whole prompt in one call, then one call for each generated token, waiting for each. The tokens are random,
with BOS first where the model wants it; nothing is tokenized or sampled in the time, just as in tinyedge's own runs. The
process ends after its run, so that its memory is free while the others are measured.
"""

from __future__ import annotations

from pathlib import Path

from tinyedge.ggml_types import BY_NAME
from tinyedge.model_facts import ModelFacts
from tinyedge_bench.peers.peer import no_value, patience_s
from tinyedge_bench.peers.python_child import installed_version, run_script, seconds_of
from tinyedge_bench.speed.cases import Case

NAME = "llama-cpp-python"
SCRIPT = """
import random, time
import llama_cpp

llama_cpp.llama_backend_init()
if asked["gpu"] and not llama_cpp.llama_supports_gpu_offload():
    sys.exit("this llama-cpp-python was built without a GPU backend")
llama = llama_cpp.Llama(
    asked["model"], n_ctx=asked["context"], n_threads=asked["threads"], n_threads_batch=asked["threads"],
    n_gpu_layers=-1 if asked["gpu"] else 0, op_offload=asked["gpu"], type_k=asked["kv_type"], type_v=asked["kv_type"],
    flash_attn=asked["flash"], verbose=False,
)
vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
draw = random.Random(0)

def tokens(count):
    return [draw.randrange(llama.n_vocab()) for _ in range(count)]

def wait():
    llama_cpp.llama_synchronize(llama.ctx)

def run(prompt, generated):
    if prompt:
        llama.eval(prompt)
        wait()
    for token in generated:
        llama.eval([token])
        wait()

depth, prompt, generated = tokens(asked["depth"]), tokens(asked["prompt"]), tokens(asked["generate"])
if llama_cpp.llama_vocab_get_add_bos(vocabulary):
    (depth or prompt or generated)[0] = llama.token_bos()
run(prompt, generated[:1])
llama.reset()
run(depth, [])
started = time.perf_counter()
run(prompt, generated)
answer = {"seconds": time.perf_counter() - started, "tokens": llama.n_tokens}
"""


def open_peer(value: str, model: Path, facts: ModelFacts) -> LlamaCppPython:
    """The package that this interpreter imports; it takes no value. Raises PeerError."""
    no_value(NAME, value)
    return LlamaCppPython(model, facts)


class LlamaCppPython:
    """`Llama` on the GGUF file `model`."""

    name = NAME
    notes = ("llama-cpp-python ran as its class Llama does by default: flash attention only with a quantized KV cache",)

    def __init__(self, model: Path, facts: ModelFacts) -> None:
        self.version = installed_version(NAME, "reinstall tinyedge, which needs it, or leave --peer out")
        self._model = model
        self._facts = facts

    def supports(self, case: Case) -> str | None:
        return "llama-cpp-python's Llama holds one sequence only" if case.sequences > 1 else None

    def sample(self, case: Case) -> float:
        asked = {
            "model": str(self._model.absolute()),
            "context": case.positions,
            "threads": case.threads,
            "gpu": case.backend != "cpu",
            "kv_type": BY_NAME[case.kv_type].id,
            "flash": BY_NAME[case.kv_type].block_elements > 1,
            "depth": case.depth,
            "prompt": case.prompt,
            "generate": case.generate,
        }
        answer = run_script(NAME, SCRIPT, asked, patience_s(self._facts.weight_bytes, case.positions + case.prompt + 1))
        return seconds_of(NAME, answer)

    def close(self) -> None:
        """Nothing: every run ends by itself."""
