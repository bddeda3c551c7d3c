"""The vocabulary of a GGUF file alone, for what needs its tokenizer and none of its weights."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from tinyedge.native import library, log
from tinyedge.native.handle import failure, freeing
from tinyedge.native.model import Model


class Vocabulary(Model):
    """A model of which llama.cpp reads the vocabulary and no tensor: it can tokenize and spell tokens, nothing else.

    Raises NativeError when llama.cpp refuses the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._llama = library.ready()
        self._pointer = None
        parameters = self._llama.llama_model_default_params()
        parameters.vocab_only = True
        no_devices = (ctypes.c_void_p * 1)(None)
        parameters.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        parameters.n_gpu_layers = 0
        log.forget()
        with freeing(self):
            self._pointer = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._pointer:
            raise failure(f"cannot load the vocabulary of {Path(path).name}")
        self._vocabulary = self._llama.llama_model_get_vocab(self._pointer)
        self._piece = ctypes.create_string_buffer(64)
