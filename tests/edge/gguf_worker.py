"""Tries GGUF files as `tinyedge run` would, in a process that may die: `python gguf_worker.py < paths`.

For each path it prints, flushed, `start PATH` and then `refused`, `failed` (llama.cpp reported an error) or `ran`. A file that
kills or hangs the process is the one whose `start` has no answer.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp

from tinyedge.errors import TinyEdgeError
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import check_runnable, describe_model

PROMPT = "a fact, 火 \x01 é\n".encode()


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    del level, text, data


def attempt(path: str) -> str:
    """`refused`, `failed` or `ran`."""
    try:
        gguf = read_gguf(path)
        describe_model(gguf)
        check_runnable(gguf)
    except TinyEdgeError:
        return "refused"
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        return "failed"
    try:
        return _generate(model)
    finally:
        llama_cpp.llama_model_free(model)


def _generate(model: llama_cpp.llama_model_p) -> str:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 64, 64, 1, 1
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        return "failed"
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    tokens = (llama_cpp.llama_token * 64)()
    buffer = ctypes.create_string_buffer(256)
    count = llama_cpp.llama_tokenize(vocabulary, PROMPT, len(PROMPT), tokens, 64, True, True)
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in (
        llama_cpp.llama_sampler_init_top_k(40),
        llama_cpp.llama_sampler_init_top_p(0.95, 1),
        llama_cpp.llama_sampler_init_min_p(0.05, 1),
        llama_cpp.llama_sampler_init_temp(0.8),
        llama_cpp.llama_sampler_init_dist(1),
    ):
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    try:
        for _ in range(3):
            if count < 1 or llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)):
                return "failed"
            tokens[0], count = llama_cpp.llama_sampler_sample(chain, context, -1), 1
            llama_cpp.llama_token_to_piece(vocabulary, tokens[0], buffer, 256, 0, True)
        return "ran"
    finally:
        llama_cpp.llama_sampler_free(chain)
        llama_cpp.llama_free(context)


if __name__ == "__main__":
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    for line in sys.stdin:
        sys.stdout.write(f"start {line.strip()}\n")
        sys.stdout.flush()
        sys.stdout.write(attempt(line.strip()) + "\n")
        sys.stdout.flush()
