"""A model, a context and a sampler of llama.cpp as Python objects that close themselves.

Nothing is allocated per token: one batch and one buffer live as long as their owner. Closing twice is harmless.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tinyedge.errors import NativeError
from tinyedge.native import library, log
from tinyedge.native.handle import Handle, failure, freeing
from tinyedge.native.interrupt import Interruptible
from tinyedge.native.threads import ThreadPool
from tinyedge.native.tokenizing import with_room

BATCH_TOKENS = 512  # tokens per decode call and per compute graph, llama.cpp's own n_ubatch
KV_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30}

_ABORTED = 2  # llama_decode: the abort callback said so
_NO_SLOT = 1  # llama_decode: no room in the KV cache


class Model(Handle):
    """The weights and the vocabulary of a GGUF file.

    `device` is the ggml name of the GPU to use, None for the CPU alone; `gpu_layers` of its layers go there, all when
    negative. Weights are memory-mapped where the device allows it. `progress` is told the share that is loaded, 0 to 1.
    Raises NativeError when llama.cpp refuses the file; Ctrl-C ends the loading.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | None = None,
        gpu_layers: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self._llama: ModuleType = library.ready()
        self._pointer: int | None = None
        parameters = self._llama.llama_model_default_params()
        chosen = (ctypes.c_void_p * 2)(library.device_handle(device) if device else None, None)
        parameters.devices = ctypes.cast(chosen, ctypes.c_void_p)
        parameters.n_gpu_layers = gpu_layers if device else 0
        parameters.split_mode = self._llama.LLAMA_SPLIT_MODE_NONE if device else parameters.split_mode
        log.forget()
        with freeing(self), Interruptible() as interrupt:

            def go_on(share: float, _data: object) -> bool:
                if progress is not None:
                    progress(share)
                return not interrupt.requested

            parameters.progress_callback = self._llama.llama_progress_callback(go_on)
            self._pointer = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._pointer:
            raise failure(f"cannot load {Path(path).name}")
        self._vocabulary: int = self._llama.llama_model_get_vocab(self._pointer)
        self._piece = ctypes.create_string_buffer(64)

    def close(self) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer:
            self._llama.llama_model_free(pointer)

    @property
    def pointer(self) -> int:
        if not self._pointer:
            raise NativeError("the model is closed already")
        return self._pointer

    @property
    def _vocab(self) -> int:
        if not self._pointer:
            raise NativeError("the model is closed already")
        return self._vocabulary

    @property
    def description(self) -> str:
        """llama.cpp's own words for it: `llama 1B Q4_K - Medium`."""
        buffer = ctypes.create_string_buffer(256)
        self._llama.llama_model_desc(self.pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def tensor_bytes(self) -> int:
        return int(self._llama.llama_model_size(self.pointer))

    @property
    def parameters(self) -> int:
        return int(self._llama.llama_model_n_params(self.pointer))

    @property
    def vocabulary_size(self) -> int:
        return int(self._llama.llama_vocab_n_tokens(self._vocab))

    @property
    def bos(self) -> int | None:
        """The token that begins a text, when this model wants one."""
        if not self._llama.llama_vocab_get_add_bos(self._vocab):
            return None
        return int(self._llama.llama_vocab_bos(self._vocab))

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The tokens of `text`; BOS and EOS are added when `add_special` and the model wants them."""
        raw, vocabulary = text.encode("utf-8"), self._vocab
        room = len(raw) + 8
        for _ in range(2):
            tokens = (ctypes.c_int32 * room)()
            arguments = (vocabulary, raw, len(raw), tokens, room, add_special, parse_special)
            count = with_room(functools.partial(self._llama.llama_tokenize, *arguments), len(raw))
            if count >= 0:
                return list(tokens[:count])
            room = -count
        raise failure(f"cannot tokenize {len(raw)} bytes of text")

    @functools.cached_property
    def longest_token_bytes(self) -> int:
        """The bytes of the longest token as the vocabulary spells it, which is never shorter than the text it stands for."""
        text, vocabulary = self._llama.llama_vocab_get_text, self._vocab
        return max((len(text(vocabulary, token) or b"") for token in range(self.vocabulary_size)), default=1)

    def piece(self, token: int) -> bytes:
        """The bytes of one token, which may be a part of a character; nothing for a control token."""
        count = self._llama.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
        if count < 0:
            self._piece = ctypes.create_string_buffer(-count)
            count = self._llama.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
        return self._piece.raw[:count]

    def ends_generation(self, token: int) -> bool:
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))


class Context(Handle):
    """A KV cache of `context` tokens over a model, and what decodes tokens into it.

    Only the last token of a batch gets logits, so no buffer for 512 rows of a whole vocabulary is kept.
    Raises NativeError when the memory cannot be had.
    """

    def __init__(self, model: Model, *, context: int, threads: int, kv_type: str = "F16", gpu: bool = False) -> None:
        self._llama: ModuleType = library.ready()
        self._pointer: int | None = None
        self._pool: ThreadPool | None = None
        self._model = model  # llama.cpp needs the model as long as the context
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = min(context, BATCH_TOKENS)
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = KV_TYPES[kv_type]
        parameters.no_perf = True
        parameters.offload_kqv = parameters.op_offload = gpu
        if hasattr(parameters, "n_outputs_max"):  # older releases have no such field
            parameters.n_outputs_max = 1
        log.forget()
        with freeing(self), Interruptible():
            self._pointer = self._llama.llama_init_from_model(model.pointer, parameters)
        if not self._pointer:
            raise failure(f"cannot make a context of {context} tokens")
        self._pool = ThreadPool(threads)
        self._pool.attach(self._pointer)
        self._memory = self._llama.llama_get_memory(self._pointer)
        self._room = int(parameters.n_batch)
        self._tokens = (ctypes.c_int32 * self._room)()
        self._batch = self._llama.llama_batch_get_one(self._tokens, 0)
        self._interrupt = Interruptible()
        self._progress: Callable[[int], None] | None = None
        self._done = 0
        self._abort_callback = self._llama.ggml_abort_callback(self._stop_wanted)
        self._no_callback = self._llama.ggml_abort_callback()

    def close(self) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer:
            self._llama.llama_free(pointer)
        if self._pool:
            self._pool.close()

    @property
    def pointer(self) -> int:
        if not self._pointer:
            raise NativeError("the context is closed already")
        return self._pointer

    def clear(self) -> None:
        """Forgets every token; the cache's data need not be zeroed for that."""
        self._llama.llama_memory_clear(self._memory, False)

    def decode(self, token: int) -> None:
        """Appends one token and computes its logits."""
        self._tokens[0] = token
        self._run(1)

    def decode_all(self, tokens: Sequence[int], progress: Callable[[int], None] | None = None) -> None:
        """Appends `tokens` and computes the logits of the last. Ctrl-C is heeded within one operation of the graph.

        `progress` is told how many tokens are done after each batch of 512, and on the CPU many times in between.
        """
        self._progress, self._done = progress, 0
        self._llama.llama_set_abort_callback(self.pointer, self._abort_callback, None)
        try:
            with self._interrupt:
                for start in range(0, len(tokens), self._room):
                    part: list[Any] = list(tokens[start : start + self._room])
                    self._tokens[: len(part)] = part
                    self._run(len(part))
                    if self._interrupt.requested:
                        break
                    self._done += len(part)
                    if progress is not None:
                        progress(self._done)
        finally:
            self._progress = None
            self._llama.llama_set_abort_callback(self.pointer, self._no_callback, None)

    def _stop_wanted(self, _data: object) -> bool:
        """What ggml asks after each operation of a graph."""
        if self._progress is not None:
            self._progress(self._done)
        return self._interrupt.requested

    def wait(self) -> None:
        """Returns when the device has finished what it was given."""
        self._llama.llama_synchronize(self.pointer)

    def _run(self, count: int) -> None:
        self._batch.n_tokens = count
        status = self._llama.llama_decode(self.pointer, self._batch)
        if status == 0:
            return
        if status == _ABORTED and self._interrupt.requested:
            return  # and the `with` of the caller raises
        if status == _NO_SLOT:
            raise NativeError(f"the KV cache has no room for {count} more tokens", "raise --ctx")
        raise failure(f"failed to decode {count} tokens (status {status})")


class Sampler(Handle):
    """llama.cpp's chain in its usual order: penalties, top-k, top-p, min-p, temperature, a draw; greedy at temperature 0.

    The same seed gives the same draws. `repeat_penalty` looks at the last `repeat_last` tokens that were sampled.
    """

    def __init__(
        self,
        model: Model,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repeat_penalty: float,
        repeat_last: int,
        seed: int,
    ) -> None:
        self._llama: ModuleType = library.ready()
        self._pointer: Any = self._llama.llama_sampler_chain_init(self._llama.llama_sampler_chain_default_params())
        parts = []
        if repeat_penalty != 1.0:
            parts.append(self._penalties(model.vocabulary_size, repeat_last, repeat_penalty))
        if temperature <= 0.0:
            parts.append(self._llama.llama_sampler_init_greedy())
        else:
            parts += [
                self._llama.llama_sampler_init_top_k(top_k),
                self._llama.llama_sampler_init_top_p(top_p, 1),
                self._llama.llama_sampler_init_min_p(min_p, 1),
                self._llama.llama_sampler_init_temp(temperature),
                self._llama.llama_sampler_init_dist(seed),
            ]
        for part in parts:
            self._llama.llama_sampler_chain_add(self._pointer, part)

    def _penalties(self, vocabulary: int, last: int, repeat: float) -> Any:
        make = self._llama.llama_sampler_init_penalties
        with_vocabulary = len(make.argtypes) == 5  # older releases do not take the size of the vocabulary
        return make(*((vocabulary,) if with_vocabulary else ()), last, repeat, 0.0, 0.0)

    def accept(self, token: int) -> None:
        """Counts a token of the prompt among those that the penalty looks at."""
        self._llama.llama_sampler_accept(self._pointer, token)

    def sample(self, context: Context) -> int:
        """The next token, drawn from the last logits and accepted into the chain."""
        token: int = self._llama.llama_sampler_sample(self._pointer, context.pointer, -1)
        return token

    def close(self) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer:
            self._llama.llama_sampler_free(pointer)
