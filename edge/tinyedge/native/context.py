"""A KV cache over a model and what decodes tokens into it.

Nothing is allocated per token: the batch and its buffers live as long as their owner. Closing twice is harmless.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tinyedge.errors import NativeError
from tinyedge.ggml_types import type_named
from tinyedge.native import library, log
from tinyedge.native.handle import Handle, failure, freeing
from tinyedge.native.interrupt import Interruptible
from tinyedge.native.model import Adapter, Model
from tinyedge.native.threads import ThreadPool

BATCH_TOKENS = 512  # tokens per decode call and per compute graph, llama.cpp's own n_ubatch
FLASH_MODES = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type
ROPE_SCALINGS = {"none": 0, "linear": 1, "yarn": 2}  # llama_rope_scaling_type

_ABORTED = 2  # llama_decode: the abort callback said so
_NO_SLOT = 1  # llama_decode: no room in the KV cache
_SEQUENCE = 0
_POOL_MEAN = 1  # llama_pooling_type


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSettings:
    """How a context is made. `context` and `batch` are in tokens, `outputs` are the rows of logits one decode may give.

    `kv_type` is a ggml type that llama.cpp has attention kernels for; a quantized one needs flash attention. `affinity`
    are the CPUs that the threads may run on, all when empty. `rope_scale` is the factor by which the context is stretched.
    `embeddings` makes a context that gives the mean hidden state of its text in place of logits. `sequences` texts share the
    `context` tokens of room: in equal parts, or `unified`, when each takes what it needs and a beginning can be held in common.
    """

    context: int
    threads: int
    batch_threads: int | None = None
    batch: int = BATCH_TOKENS
    kv_type: str = "F16"
    flash: str = "auto"
    gpu: bool = False
    affinity: tuple[int, ...] = ()
    rope_scaling: str | None = None
    rope_scale: float | None = None
    outputs: int = 1
    embeddings: bool = False
    sequences: int = 1
    unified: bool = False


class Context(Handle):
    """A KV cache over a model, for one sequence of tokens whose positions follow each other without a gap.

    Only the rows that were asked for get logits, so no buffer for 512 rows of a whole vocabulary is kept.
    Raises NativeError when the memory cannot be had.
    """

    def __init__(self, model: Model, settings: ContextSettings) -> None:
        self._llama: ModuleType = library.ready()
        self._pointer: int | None = None
        self._pool: ThreadPool | None = None
        self.model = model  # llama.cpp needs the model as long as the context
        self.settings = settings
        parameters = self._parameters(settings)
        log.forget()
        with freeing(self), Interruptible():
            self._pointer = self._llama.llama_init_from_model(model.pointer, parameters)
        if not self._pointer:
            raise failure(f"cannot make a context of {settings.context} tokens")
        self._pool = ThreadPool(max(settings.threads, settings.batch_threads or 0), settings.affinity)
        self._pool.attach(self._pointer)
        self._memory = self._llama.llama_get_memory(self._pointer)
        self._vocabulary_size = model.vocabulary_size
        self._window = model.sliding_window
        # llama.cpp would number the tokens anew and keep what the state holds of those that went.
        self._mixed = self._llama.llama_model_is_recurrent(model.pointer) or self._llama.llama_model_is_hybrid(model.pointer)
        self.moved = False  # whether positions were shifted since the last decode
        self._room = int(parameters.n_batch)
        self._tokens = (ctypes.c_int32 * self._room)()
        self._batch = self._llama.llama_batch_get_one(self._tokens, 0)
        self._every_row = (ctypes.c_int8 * settings.outputs)(*[1] * settings.outputs)
        self._interrupt = Interruptible()
        self._progress: Callable[[int], None] | None = None
        self._done = 0
        self._failed: BaseException | None = None
        self._abort_callback = self._llama.ggml_abort_callback(self._stop_wanted)
        self._no_callback = self._llama.ggml_abort_callback()

    def _parameters(self, settings: ContextSettings) -> Any:
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = settings.context
        parameters.n_batch = parameters.n_ubatch = min(settings.context, settings.batch)
        parameters.n_threads = settings.threads
        parameters.n_threads_batch = settings.batch_threads or settings.threads
        parameters.type_k = parameters.type_v = type_named(settings.kv_type).id
        parameters.flash_attn_type = FLASH_MODES[settings.flash]
        parameters.no_perf = True
        parameters.offload_kqv = parameters.op_offload = settings.gpu
        if settings.rope_scaling is not None:
            parameters.rope_scaling_type = ROPE_SCALINGS[settings.rope_scaling]
        if settings.rope_scale is not None:
            parameters.rope_freq_scale = 1.0 / settings.rope_scale
        parameters.n_seq_max, parameters.kv_unified = settings.sequences, settings.unified
        if settings.embeddings:
            parameters.embeddings, parameters.pooling_type = True, _POOL_MEAN
        elif hasattr(parameters, "n_outputs_max"):  # older releases have no such field
            parameters.n_outputs_max = settings.outputs
        return parameters

    def close(self) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer:
            self._llama.llama_free(pointer)
        if self._pool:
            self._pool.close()

    @property
    def closed(self) -> bool:
        return not self._pointer

    @property
    def pointer(self) -> int:
        if not self._pointer:
            raise NativeError("the context is closed already", "open the model again")
        return self._pointer

    def clear(self) -> None:
        """Forgets every token; the cache's data need not be zeroed for that."""
        _ = self.pointer
        self._llama.llama_memory_clear(self._memory, False)
        self.moved = False

    def stop(self) -> None:
        """Ends a `decode_all` of another thread, if there is one, which raises NativeError there."""
        self._failed = NativeError("the context was closed while it read a prompt", "read the prompt in a new one")

    @property
    def length(self) -> int:
        """How many positions the cache holds, from 0 to its last token."""
        _ = self.pointer
        return 1 + int(self._llama.llama_memory_seq_pos_max(self._memory, _SEQUENCE))

    @property
    def can_shift(self) -> bool:
        """Whether positions in the cache can be moved, which a recurrent model's state does not allow."""
        return bool(self.pointer and not self._mixed and self._llama.llama_memory_can_shift(self._memory))

    def remove(self, start: int, end: int = -1) -> bool:
        """Forgets the tokens at positions `start` up to `end`, to the last when negative.

        False, with nothing changed, where the model's state cannot give up a part. A state that was restored holds no more
        than a sliding window needs for what comes behind it, so that it cannot be cut shorter.
        """
        _ = self.pointer
        if start and self._window:
            first: int = self._llama.llama_memory_seq_pos_min(self._memory, _SEQUENCE)
            if first > max(0, start - self._window):
                return False
        return bool(self._llama.llama_memory_seq_rm(self._memory, _SEQUENCE, start, end))

    def shift(self, start: int, end: int, delta: int) -> None:
        """Moves the tokens at positions `start` up to `end` by `delta`; their keys are rotated anew at the next decode."""
        _ = self.pointer
        self._llama.llama_memory_seq_add(self._memory, _SEQUENCE, start, end, delta)
        self.moved = True

    def set_adapters(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        """Puts exactly these adapters to use, each with its scale. What was decoded before stays as it is."""
        pointers = (self._llama.llama_adapter_lora_p_ctypes * len(adapters))(*[adapter.pointer for adapter, _ in adapters])
        scales = (ctypes.c_float * len(adapters))(*[scale for _, scale in adapters])
        if self._llama.llama_set_adapters_lora(self.pointer, pointers, len(adapters), scales):
            raise failure("cannot apply the adapters")

    def decode(self, token: int) -> None:
        """Appends one token and computes its logits."""
        self._tokens[0] = token
        self._run(1)

    def decode_rows(self, tokens: Sequence[int]) -> None:
        """Appends at most `settings.outputs` tokens and computes the logits of every one of them, row by row."""
        count = len(tokens)
        if count > len(self._every_row):
            raise ValueError(f"{count} rows of logits were asked for and the context was made for {len(self._every_row)}")
        self._tokens[:count] = list[Any](tokens)
        self._batch.logits = self._every_row
        try:
            self._run(count)
        finally:
            self._batch.logits = None

    def decode_all(self, tokens: Sequence[int], progress: Callable[[int], None] | None = None) -> None:
        """Appends `tokens` and computes the logits of the last. Ctrl-C is heeded within one operation of the graph.

        `progress` is told how many tokens are done after each batch, and on the CPU many times in between.
        """
        self._progress, self._done, self._failed = progress, 0, None
        self._llama.llama_set_abort_callback(self.pointer, self._abort_callback, None)
        try:
            with self._interrupt:
                for start in range(0, len(tokens), self._room):
                    part: list[Any] = list(tokens[start : start + self._room])
                    self._tokens[: len(part)] = part
                    self._run(len(part))
                    if self._failed is not None:
                        raise self._failed
                    if self._interrupt.requested:
                        break
                    self._done += len(part)
                    if progress is not None:
                        progress(self._done)
        finally:
            self._progress = None
            self._llama.llama_set_abort_callback(self.pointer, self._no_callback, None)

    def _stop_wanted(self, _data: object) -> bool:
        """What ggml asks after each operation of a graph. An exception would be lost in C, so it is kept for later."""
        if self._progress is not None and self._failed is None:
            try:
                self._progress(self._done)
            except BaseException as error:
                self._failed = error
        return self._interrupt.requested or self._failed is not None

    def wait(self) -> None:
        """Returns when the device has finished what it was given."""
        self._llama.llama_synchronize(self.pointer)

    def logits(self, row: int = -1) -> Any:
        """A row of logits over the vocabulary, a ctypes array of floats that the next decode overwrites."""
        return self._row(self._llama.llama_get_logits_ith(self.pointer, row), self._vocabulary_size)

    def embedding(self) -> list[float]:
        """The mean hidden state of the tokens in a context made with `embeddings`."""
        return list(self._row(self._llama.llama_get_embeddings_seq(self.pointer, _SEQUENCE), self.model.embedding_width))

    def _row(self, pointer: Any, width: int) -> Any:
        if not pointer:
            raise NativeError("this row was not computed by the last decode")
        return (ctypes.c_float * width).from_address(ctypes.addressof(pointer.contents))

    def state(self) -> memoryview:
        """The KV state of every token in the cache, to be given to `restore` of a context made alike.

        Keys that `moved` are rotated anew by the next decode only: before it their state is not right.
        """
        size = self._llama.llama_state_seq_get_size(self.pointer, _SEQUENCE)
        buffer = (ctypes.c_uint8 * size)()
        written = self._llama.llama_state_seq_get_data(self.pointer, buffer, size, _SEQUENCE)
        return memoryview(buffer).cast("B")[:written]

    def restore(self, state: bytes | memoryview) -> bool:
        """Puts a state back in place of what the cache holds; False, with an empty cache, when it does not fit.

        `state` must come from `state()`, unchanged: llama.cpp trusts the numbers in it. Of a view that cannot be written, such
        as one of a file mapped to be read, a copy is made; nothing is written to the others.
        """
        self.clear()
        if isinstance(state, memoryview) and state.readonly:
            state = bytes(state)
        kind = ctypes.c_uint8 * len(state)
        buffer = (
            ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(kind)).contents
            if isinstance(state, bytes)
            else kind.from_buffer(state)
        )
        if self._llama.llama_state_seq_set_data(self.pointer, buffer, len(state), _SEQUENCE):
            return True
        self.clear()
        return False

    def _run(self, count: int) -> None:
        self._batch.n_tokens = count
        status = self._llama.llama_decode(self.pointer, self._batch)
        if status == 0:
            self.moved = False
            return
        if status == _ABORTED and (self._interrupt.requested or self._failed is not None):
            return  # and the caller raises
        if status == _NO_SLOT:
            raise NativeError(f"the KV cache has no room for {count} more tokens", "raise --ctx")
        raise failure(f"failed to decode {count} tokens (status {status})")
