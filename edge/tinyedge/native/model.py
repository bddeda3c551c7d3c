"""The weights and the vocabulary of a GGUF file, and the LoRA adapters that go with them."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tinyedge.errors import AdapterError, NativeError
from tinyedge.native import library, log
from tinyedge.native.handle import Handle, failure, freeing
from tinyedge.native.interrupt import Interruptible
from tinyedge.native.tokenizing import with_room

_LOAD_MODES = {(False, False): 0, (True, False): 1, (False, True): 2, (True, True): 3}  # (mmap, mlock): llama_load_mode
_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL


class Model(Handle):
    """The weights and the vocabulary of a GGUF file.

    `device` is the ggml name of the GPU to use, None for the CPU alone; `gpu_layers` of its layers go there, all when
    negative. Weights are memory-mapped with `mmap` where the device allows it, kept from being swapped out with `mlock`
    where the system allows that. `progress` is told the share that is loaded, 0 to 1.
    Raises NativeError when llama.cpp refuses the file; Ctrl-C ends the loading.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | None = None,
        gpu_layers: int = 0,
        mmap: bool = True,
        mlock: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self._llama: ModuleType = library.ready()
        self._pointer: int | None = None
        parameters = self._llama.llama_model_default_params()
        chosen = (ctypes.c_void_p * 2)(library.device_handle(device) if device else None, None)
        parameters.devices = ctypes.cast(chosen, ctypes.c_void_p)
        parameters.n_gpu_layers = gpu_layers if device else 0
        parameters.split_mode = self._llama.LLAMA_SPLIT_MODE_NONE if device else parameters.split_mode
        if not (mmap and not mlock):  # llama.cpp's own choice also knows where mapping does not pay
            parameters.load_mode = _LOAD_MODES[mmap, mlock]
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
            raise NativeError("the model is closed already", "open it again")
        return self._pointer

    @property
    def _vocab(self) -> int:
        if not self._pointer:
            raise NativeError("the model is closed already", "open it again")
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

    def is_control(self, token: int) -> bool:
        """Whether the token steers the model and stands for no text: BOS, EOS, the marks of a chat template."""
        return bool(self._llama.llama_vocab_get_attr(self._vocab, token) & _CONTROL)

    def token_text(self, token: int) -> str:
        """The token as the vocabulary spells it, a control token too: `<s>`, `▁the`."""
        raw: bytes = self._llama.llama_vocab_get_text(self._vocab, token) or b""
        return raw.decode("utf-8", "replace")

    @property
    def sliding_window(self) -> int:
        """How many tokens back a layer with a sliding window looks; 0 where every layer looks at all."""
        return int(self._llama.llama_model_n_swa(self.pointer))

    @property
    def embedding_width(self) -> int:
        return int(self._llama.llama_model_n_embd(self.pointer))


class Adapter(Handle):
    """A LoRA adapter, loaded beside the model it was trained for; `Context.set_adapters` puts it to use.

    The file must have passed `adapter_check.check_adapter`: llama.cpp reads it with fewer checks than a model.
    Raises AdapterError when llama.cpp refuses it. llama.cpp frees it with the model.
    """

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        llama = library.ready()
        self._model = model
        log.forget()
        self._pointer: Any = llama.llama_adapter_lora_init(model.pointer, os.fsencode(path))
        if not self._pointer:
            said = log.cause()
            raise AdapterError(f"llama.cpp cannot use {Path(path).name} as an adapter" + (f' ("{said}")' if said else ""))

    @property
    def pointer(self) -> Any:
        if not self._pointer or not self._model.pointer:
            raise NativeError("the adapter is closed already")
        return self._pointer

    def close(self) -> None:
        self._pointer = None
