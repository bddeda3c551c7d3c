"""Several texts read side by side in one context, with the logits of the places that matter.

What a benchmark of parallel sequences, a perplexity over windows and the answers of a multiple-choice question have in
common: a batch names for each token its sequence and its position, and says whether its logits are wanted.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyedge.errors import NativeError
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


class SequenceContext(Context):
    """A KV cache for `settings.sequences` texts, numbered from 0.

    With `settings.unified` a text can begin with what another holds (`copy`), at no cost in memory or time. The methods of
    Context that do not name a sequence mean the first, but `clear`, which forgets all.
    """

    def __init__(self, model: Model, settings: ContextSettings) -> None:
        # llama.cpp aborts where there is not a row of logits for each text.
        super().__init__(model, replace(settings, outputs=max(settings.outputs, settings.sequences)))
        room = self._room
        self._ids = np.zeros(room, dtype=np.int32)
        self._positions = np.zeros(room, dtype=np.int32)
        self._sequences = np.zeros(room, dtype=np.int32)
        self._counts = np.ones(room, dtype=np.int32)
        self._wanted = np.zeros(room, dtype=np.int8)
        addresses = self._sequences.ctypes.data + 4 * np.arange(room, dtype=np.uintp)
        self._lists = addresses.astype(np.uintp)
        batch = self._llama.llama_batch()
        batch.token = _pointer(self._ids, ctypes.c_int32)
        batch.pos = _pointer(self._positions, ctypes.c_int32)
        batch.n_seq_id = _pointer(self._counts, ctypes.c_int32)
        batch.seq_id = ctypes.cast(self._lists.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        batch.logits = _pointer(self._wanted, ctypes.c_int8)
        self._placed = batch

    @property
    def room(self) -> int:
        """How many tokens one `read` takes."""
        return self._room

    def read(
        self, tokens: npt.ArrayLike, positions: npt.ArrayLike, sequences: npt.ArrayLike, wanted: npt.ArrayLike | None = None
    ) -> Floats:
        """Appends tokens (n,), each at its position of its sequence; the logits of those `wanted`, (rows, vocabulary).

        The rows are in the order of the tokens; they are a view that the next `read` overwrites. At most `room` tokens and
        `settings.outputs` rows; None wants no row. Ctrl-C is heeded within one operation of the graph. Raises NativeError when
        the cache has no room, or when the signal's handler did not raise.
        """
        count = self._fill(tokens, positions, sequences, wanted)
        rows = int(np.count_nonzero(self._wanted[:count]))
        if rows > self.settings.outputs:
            raise ValueError(f"{rows} rows of logits were asked for and the context was made for {self.settings.outputs}")
        self._llama.llama_set_abort_callback(self.pointer, self._abort_callback, None)
        one = self._batch
        try:
            self._failed = None
            with self._interrupt:
                self._batch = self._placed
                self._run(count)
                self.wait()
        finally:
            self._batch = one
            self._llama.llama_set_abort_callback(self.pointer, self._no_callback, None)
        if self._interrupt.requested:  # whoever handled the signal wants to go on, but the graph was cut short
            raise NativeError("a signal interrupted the reading of a text", "read it again")
        return self._logits(rows)

    def copy(self, source: int, target: int) -> None:
        """Lets the text `target`, which must be empty, begin with all that `source` holds. Needs `settings.unified`."""
        self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Forgets the tokens of one text from position `start` on; False where the model's state cannot give up a part."""
        _ = self.pointer
        return bool(self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def _fill(
        self, tokens: npt.ArrayLike, positions: npt.ArrayLike, sequences: npt.ArrayLike, wanted: npt.ArrayLike | None
    ) -> int:
        ids = np.asarray(tokens, dtype=np.int32)
        count = len(ids)
        if not 0 < count <= self._room:
            raise ValueError(f"{count} tokens were given and a batch takes 1 to {self._room}")
        self._ids[:count] = ids
        self._positions[:count] = positions
        self._sequences[:count] = sequences
        self._wanted[:count] = 0 if wanted is None else wanted
        return count

    def _logits(self, rows: int) -> Floats:
        shape = (rows, self._vocabulary_size)
        if not rows:
            return np.empty(shape, dtype=np.float32)
        pointer = self._llama.llama_get_logits(self.pointer)
        if not pointer:
            raise NativeError("llama.cpp gave no logits for this text")
        row: Any = (ctypes.c_float * (shape[0] * shape[1])).from_address(ctypes.addressof(pointer.contents))
        logits: Floats = np.frombuffer(row, dtype=np.float32).reshape(shape)
        return logits


def _pointer(values: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(values.ctypes.data, ctypes.POINTER(kind))
