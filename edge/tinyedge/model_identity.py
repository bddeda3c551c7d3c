"""Says whether a KV state that was computed once belongs to the model and the settings of now."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tinyedge.gguf_file import GGUFFile, read_gguf
from tinyedge.gguf_split import as_one, read_parts
from tinyedge.model_facts import ModelFacts, describe_model

if TYPE_CHECKING:
    from tinyedge.engine import Engine

SAMPLE_BYTES = 4096  # read at the beginning and in the middle of each tensor
_HEADER_STEP = 1 << 20
_LONGEST_TEXT = 500
_ADAPTERS_SHOWN = 10
_LONG_ROPE = "rope_factors_long"  # in the tensor names of a model that rotates otherwise in a long context


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """A GGUF model: `fingerprint` tells it from every other, the rest is for people."""

    fingerprint: str
    name: str
    architecture: str
    file_type: str

    def told_from(self, other: ModelIdentity) -> tuple[str, str]:
        """Words for this model and for another one: their fingerprints too where the names are the same."""
        ours, theirs = (f"{each.name} ({each.file_type})" for each in (self, other))
        if ours != theirs:
            return ours, theirs
        return f"{ours} {self.fingerprint[:8]}", f"{theirs} {other.fingerprint[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateIdentity:
    """What a KV state depends on beside model and text: two states are the same only where all of this is.

    `long_context` is the context in tokens for a model that rotates otherwise in a long one, and 0 for every other, whose
    states go into any context that is large enough. `adapters` are the fingerprints of LoRA adapters in use, with their scales.
    """

    library: str
    kv_type: str
    flash: str
    rope_scaling: str
    rope_scale: float
    long_context: int
    adapters: str

    @property
    def key(self) -> str:
        """16 hexadecimal digits that stand for it in the name of a file."""
        return hashlib.sha256(repr(self).encode("utf-8", "replace")).hexdigest()[:16]

    def difference(self, now: StateIdentity) -> str:
        """The first thing that is not the same now, in words: `with llama-cpp-python 0.3.30, now 0.3.36`; "" for none."""
        for name, words in _WORDS.items():
            then, this = getattr(self, name), getattr(now, name)
            if then != this:
                return f"with {words}{then or 'none'}, now {this or 'none'}"
        return ""


_WORDS = {
    "library": "",
    "kv_type": "a KV cache of type ",
    "flash": "flash attention ",
    "rope_scaling": "the RoPE scaling ",
    "rope_scale": "a RoPE scale of ",
    "long_context": "a context of ",
    "adapters": "the LoRA adapters ",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What a KV state belongs to."""

    model: ModelIdentity
    state: StateIdentity

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Identity:
        """The identity that `to_json` gave. Raises ValueError for anything else."""
        if not isinstance(value, dict):
            raise ValueError("it has no identity")
        return cls(_parsed(ModelIdentity, value.get("model")), _parsed(StateIdentity, value.get("state")))


_Part = TypeVar("_Part", ModelIdentity, StateIdentity)
_TYPES: dict[str, type] = {"str": str, "float": float, "int": int}


def _parsed(kind: type[_Part], value: object) -> _Part:
    names = {field.name: _TYPES[str(field.type)] for field in fields(kind)}
    if not isinstance(value, dict) or value.keys() != names.keys():
        raise ValueError(f"it has no {kind.__name__}")
    for name, wanted in names.items():
        if type(value[name]) is not wanted or (wanted is str and len(value[name]) > _LONGEST_TEXT):
            raise ValueError(f"its {name} is not right")
    return kind(**value)


def identity_of(engine: Engine) -> Identity:
    """What the KV states of this engine belong to. Raises GGUFError when the model's file is damaged by now."""
    plan = engine.plan
    known = _known(engine.path)
    state = StateIdentity(
        library=_library(),
        kv_type=plan.kv_type,
        flash=plan.flash,
        rope_scaling=plan.rope_scaling or "",
        rope_scale=float(plan.rope_scale or 0.0),
        long_context=plan.context if known.long_rope else 0,
        adapters=_adapters(engine),
    )
    return Identity(known.identity, state)


def model_identity(path: str | os.PathLike[str]) -> ModelIdentity:
    """Which model is in the GGUF file at `path`. Raises GGUFError and ModelNotFoundError as `read_gguf` does."""
    return _known(Path(path)).identity


def model_facts_of(engine: Engine) -> ModelFacts:
    """The facts of the engine's model, which `identity_of` had to read as well."""
    return _known(engine.path).facts


def fingerprint(gguf: GGUFFile) -> str:
    """SHA-256, as 64 hexadecimal digits, over the whole header, the file's size and two samples of each tensor's data.

    A sample has 4 KiB, so TinyLlama's 201 tensors cost 400 reads of under 2 MiB in all: some milliseconds for a file that was
    just loaded. Another training, another quantization and a merged adapter change nearly every block of the tensors they
    touch, everything else changes the header. What it cannot see are a few weights changed between the samples.
    """
    digest = hashlib.sha256(f"{gguf.file_bytes}\0".encode())
    with gguf.path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        for start in range(0, gguf.data_offset, _HEADER_STEP):
            digest.update(os.pread(descriptor, min(_HEADER_STEP, gguf.data_offset - start), start))
        if hasattr(os, "posix_fadvise"):  # an SD card would read 128 KiB ahead for each sample
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for tensor in gguf.tensors:
            begin = gguf.data_offset + tensor.offset
            for start in (0, tensor.bytes // 2):
                digest.update(os.pread(descriptor, min(SAMPLE_BYTES, tensor.bytes - start), begin + start))
    return digest.hexdigest()


def _fingerprint_of_all(parts: Sequence[GGUFFile]) -> str:
    each = [fingerprint(part) for part in parts]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Known:
    identity: ModelIdentity
    facts: ModelFacts
    long_rope: bool


def _known(path: Path) -> _Known:
    try:
        facts = path.stat()
    except OSError:
        return _read(path)  # which says what is wrong with it
    return _remembered(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _remembered(path: Path, _inode: int, _size: int, _modified: int) -> _Known:
    return _read(path)


def _read(path: Path) -> _Known:
    parts = read_parts(path)
    gguf = as_one(parts)
    facts = describe_model(gguf)
    identity = ModelIdentity(
        fingerprint=_fingerprint_of_all(parts),
        name=(facts.name or path.stem)[:_LONGEST_TEXT],
        architecture=facts.architecture[:_LONGEST_TEXT],
        file_type=facts.file_type,
    )
    return _Known(identity, facts, any(_LONG_ROPE in tensor.name for tensor in gguf.tensors))


def _adapters(engine: Engine) -> str:
    """Each adapter in use by the beginning of its fingerprint and its scale: `3f2a9c01d4e5 x 0.5`."""
    used = [f"{fingerprint(read_gguf(path))[:12]} x {scale!r}" for path, scale in engine.adapters if scale]
    return ", ".join(used) if len(used) <= _ADAPTERS_SHOWN else hashlib.sha256("\0".join(used).encode()).hexdigest()


@functools.cache
def _library() -> str:
    from tinyedge.native.library import versions

    found = versions()
    return f"llama-cpp-python {found.llama_cpp_python} (ggml {found.ggml} {found.ggml_commit})"[:_LONGEST_TEXT]
